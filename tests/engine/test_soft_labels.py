"""What makes labels and soft labels better than the release's.

Neck, temperature, statistics, cameras, radius; and resume.
"""

import logging
import os

import numpy as np
import pytest
import torch
from fastreid.engine.train_loop import HookBase
from same_runs import assert_same_files, cut
from tiny_reid import load_checkpoint

from fastreid_sskd.clustering import cluster_centroids, pseudo_labels
from fastreid_sskd.data import extraction_loader
from fastreid_sskd.engine import AdaptationTrainer, refresh, run, seed_everything
from fastreid_sskd.engine import refresh as module
from fastreid_sskd.engine.refresh import find_temperature
from fastreid_sskd.evaluation.features import extract_features

SHORT = ("TEST.EVAL_PERIOD 0", "SSKD.ITERS_PER_EPOCH 2", "SOLVER.MAX_EPOCH 2")
EVERYTHING = (
    "SSKD.SOFT_LABELS.BN running",
    "SSKD.SOFT_LABELS.TEMPERATURE 0.0",
    "SSKD.CLUSTER.CAMERA_STATISTICS True",
    "SSKD.CLUSTER.EPS_RULE plateau",
    "SSKD.CLUSTER.EPS_LARGEST_SHARE 0.3",
    "SSKD.EMA.WINDOW 0.5",
)


class AfterRefresh(HookBase):
    """Calls a function after every refresh."""

    def __init__(self, function):
        self.before_epoch = function


def features_of(made):
    """f_k of every teacher for the whole target."""
    return extract_features(made.model, extraction_loader(made.cfg, made.items))


# ---- the temperature -----------------------------------------------------------------------------


def highest(logits, temperature):
    return float(torch.cat([(one / temperature).softmax(1).amax(1) for one in logits]).mean())


@pytest.mark.parametrize("confidence", [0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_temperature_gives_the_confidence_whatever_the_length_of_features(confidence, scale):
    torch.manual_seed(0)
    logits = [torch.randn(50, 30), torch.randn(50, 30)]
    found = find_temperature([scale * one for one in logits], confidence)
    assert highest([scale * one for one in logits], found) == pytest.approx(confidence, abs=1e-4)
    assert found == pytest.approx(scale * find_temperature(logits, confidence), rel=1e-4)


def test_temperature_of_labels_that_cannot_be_sharpened():
    assert find_temperature([torch.ones(4, 7)], 0.5) == 1.0
    assert find_temperature([torch.zeros(4, 1)], 0.5) == 1.0
    torch.manual_seed(0)
    assert highest([torch.randn(9, 4)], find_temperature([torch.randn(9, 4)], 0.1)) == pytest.approx(
        0.25, abs=1e-2
    )


@pytest.mark.parametrize("sample", [1024, 7])
def test_temperature_of_a_run_is_found_at_every_refresh(trainer, monkeypatch, caplog, sample):
    """On labelled images in evaluation mode: the feature after the neck times the rows, by hand."""
    monkeypatch.setattr(module, "SAMPLE", sample)
    seen = []

    def measure():
        labels = made.refresh.labels.numpy()
        labelled = np.flatnonzero(labels >= 0)
        if sample < len(labelled):
            labelled = labelled[[round(i * (len(labelled) - 1) / (sample - 1)) for i in range(sample)]]
        logits = [
            feature[labelled] @ teacher.heads.weight.T
            for feature, teacher in zip(features_of(made), made.model.teachers)
        ]
        temperature = made.model.temperature
        assert highest(logits, temperature) == pytest.approx(0.6, abs=1e-3)
        p = torch.cat([(one / temperature).softmax(1) for one in logits])
        targets = torch.as_tensor(labels[labelled]).repeat(2)
        noted = made.refresh.history[-1]
        assert noted["temperature"] == temperature
        assert noted["label_probability"] == pytest.approx(float(p[range(len(p)), targets].mean()), abs=1e-4)
        assert noted["label_agreement"] == pytest.approx(float((p.argmax(1) == targets).float().mean()))
        assert noted["label_entropy"] == pytest.approx(float(-(p * p.log()).sum(1).mean()), abs=1e-3)
        seen.append(temperature)

    made = trainer(
        *SHORT,
        "SSKD.SOFT_LABELS.TEMPERATURE 0.0",
        "SSKD.SOFT_LABELS.CONFIDENCE 0.6",
        "SOLVER.BASE_LR 0.01",
        hooks=[AfterRefresh(measure)],
    )
    with caplog.at_level(logging.INFO, logger="fastreid"):
        made.train()
    assert len(set(seen)) == 2 and caplog.text.count("soft labels: temperature") == 2
    assert made.storage.latest()["refresh/temperature"][0] == seen[-1]


def test_a_temperature_that_is_given_stays(trainer):
    made = trainer(*SHORT, "SSKD.SOFT_LABELS.TEMPERATURE 0.3")
    made.train()
    assert made.model.temperature == 0.3 and "temperature" not in made.refresh.history[0]


# ---- the neck ------------------------------------------------------------------------------------


@pytest.fixture
def without_neck(finished, tmp_path):
    """Files of the finished source models' backbones alone."""
    paths = []
    for k, path in enumerate(finished.sources):
        state = load_checkpoint(path)["model"]
        torch.save(
            {name: v for name, v in state.items() if name.startswith("backbone.")}, tmp_path / f"{k}.pth"
        )
        paths.append(str(tmp_path / f"{k}.pth"))
    return paths


def test_neck_without_statistics_gets_the_targets(adaptation, without_neck, caplog):
    """Exactly those of all images' pooled features, in student and teacher, once, after direct transfer."""
    cfg = adaptation("SSKD.SOURCE.WEIGHTS", str(without_neck), "SOLVER.MAX_EPOCH 1", "TEST.IMS_PER_BATCH 7")
    seed_everything(cfg.SEED)
    made = AdaptationTrainer(cfg)
    made.start_from(without_neck)
    backbones = [teacher.backbone.eval() for teacher in made.model.teachers]
    with torch.no_grad():
        pooled = [
            torch.cat(
                [
                    backbone(made.model.pixels(batch["images"])).mean((2, 3))
                    for batch in extraction_loader(cfg, made.items)
                ]
            )
            for backbone in backbones
        ]
    assert torch.equal(made.model.teachers[0].heads.bottleneck[0].running_mean, torch.zeros(16))
    checked = []

    def compare():
        for k, values in enumerate(pooled):
            for peer in (made.model.students[k], made.model.teachers[k]):
                neck = peer.heads.bottleneck[0]
                torch.testing.assert_close(neck.running_mean, values.mean(0), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(
                    neck.running_var, values.var(0, unbiased=False), rtol=1e-4, atol=1e-6
                )
        checked.append(made.epoch)

    made.register_hooks([AfterRefresh(compare)])
    with caplog.at_level(logging.INFO, logger="fastreid"):
        made.train()
    assert checked == [0] and made.absent == ()
    assert (
        caplog.text.count("the weights bring no statistics of heads.bottleneck.0: those of 48 target images")
        == 2
    )


def test_neck_that_the_weights_bring_stays(adaptation, finished, monkeypatch):
    monkeypatch.setattr(
        module, "extraction_loader", lambda *args, **kwargs: pytest.fail("nothing is to be estimated")
    )
    cfg = adaptation(*SHORT)
    made = AdaptationTrainer(cfg)
    made.start_from(finished.sources)
    assert not any(made.absent)
    made.train()


def test_neck_of_a_bare_backbone_and_of_a_resumed_run(adaptation, without_neck, tmp_path, caplog):
    for opts in (
        ("SSKD.SOURCE.SKIP True", "SSKD.SOURCE.WEIGHTS []", "SSKD.SOURCE.CONFIG", ""),
        ("MODEL.WEIGHTS", without_neck[0]),
    ):
        cfg = adaptation(
            "SSKD.SOURCE.WEIGHTS []", "SSKD.SOURCE.CONFIG", "", *opts, *SHORT, output=tmp_path / opts[0]
        )
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="fastreid"):
            run(cfg)
        assert caplog.text.count("the weights bring no statistics") == 2
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="fastreid"):
            run(cfg, resume=True)
        assert "the weights bring no statistics" not in caplog.text


# ---- statistics, cameras, radius -----------------------------------------------------------------


def test_statistics_of_a_refresh_are_the_targets(trainer):
    """Estimated before the features are extracted, on all images; none is moved by a step."""
    seen = []

    def compare():
        found = [t.backbone[1].running_mean.clone() for t in made.model.teachers]
        order = np.random.default_rng(1).permutation(48)
        refresh.reestimate_batch_norm(made.cfg, made.model, [made.items[i] for i in order])
        for mean, teacher in zip(found, made.model.teachers):
            assert torch.equal(mean, teacher.backbone[1].running_mean)
        assert made.refresh.history[-1]["clusters"] > 1
        seen.append(found[0])

    made = trainer(
        *SHORT, "SSKD.SOFT_LABELS.BN refresh", "SOLVER.BASE_LR 0.01", hooks=[AfterRefresh(compare)]
    )
    made.train()
    assert len(seen) == 2 and not torch.equal(*seen)
    assert torch.equal(made.model.teachers[0].backbone[1].running_mean, seen[-1])


def test_statistics_of_the_students_reach_the_teachers(trainer):
    made = trainer(*SHORT, "SSKD.SOFT_LABELS.BN student", "SOLVER.MAX_EPOCH 1", "SSKD.ITERS_PER_EPOCH 1")
    made.train()  # alpha is 0 in the first step
    for student, teacher in zip(made.model.students, made.model.teachers):
        assert torch.equal(student.backbone[1].running_mean, teacher.backbone[1].running_mean)


def test_clusters_without_cameras_and_classifiers_with(trainer):
    checked = []

    def compare():
        cluster, features = made.cfg.SSKD.CLUSTER, made.model.combine(features_of(made))
        options = {
            "k1": cluster.K1,
            "k2": cluster.K2,
            "eps": made.refresh.eps,
            "min_samples": cluster.MIN_SAMPLES,
        }
        expected = pseudo_labels(features, cameras=[item[2] for item in made.items], **options)
        assert np.array_equal(made.refresh.labels, expected.labels)
        rows = torch.as_tensor(cluster_centroids(features, expected.labels))
        for peer in (*made.model.students, *made.model.teachers):
            torch.testing.assert_close(peer.heads.weight, rows, rtol=0, atol=1e-5)
        again = made.refresh.cluster(features)  # what the label-free selection looks at
        assert np.array_equal(again.labels, expected.labels)
        plain = pseudo_labels(features, **options)
        checked.append(np.array_equal(plain.labels, expected.labels))

    made = trainer(*SHORT, "SSKD.CLUSTER.CAMERA_STATISTICS True", hooks=[AfterRefresh(compare)])
    made.train()
    assert checked == [False, False]


def test_one_camera_is_no_camera(adaptation, tmp_path):
    states = []
    for value in ("True", "False"):
        cfg = adaptation(*SHORT, "SSKD.CLUSTER.CAMERA_STATISTICS", value, output=tmp_path / value)
        seed_everything(cfg.SEED)
        made = AdaptationTrainer(cfg)
        made.start_from(list(cfg.SSKD.SOURCE.WEIGHTS))
        made.items[:] = [(path, who, "one") for path, who, _ in made.items]
        made.train()
        states.append(made.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_radius_of_a_run_is_chosen_once_and_its_sweep_kept(trainer, caplog):
    with caplog.at_level(logging.INFO, logger="fastreid"):
        made = trainer(*SHORT, "SSKD.CLUSTER.EPS_RULE silhouette", "SSKD.CLUSTER.EPS_LARGEST_SHARE 0.3")
        made.train()
    first, second = made.refresh.history
    assert first["eps"] == second["eps"] == made.refresh.eps in made.cfg.SSKD.CLUSTER.EPS_RADII
    usable = [row for row in first["sweep"] if row["largest_share"] <= 0.3 and row["clusters"] > 1]
    assert first["eps"] == max(usable, key=lambda row: row["silhouette"])["eps"]
    assert "sweep" not in second and caplog.text.count("the radius by the rule silhouette") == 1
    again = trainer(*SHORT, "SSKD.CLUSTER.EPS_RULE largest", "SSKD.CLUSTER.EPS_EVERY 1")
    again.train()
    assert all(len(entry["sweep"]) == 12 for entry in again.refresh.history)
    given = trainer(*SHORT, "SSKD.CLUSTER.EPS_RULE largest", "SSKD.CLUSTER.EPS 0.35")
    given.train()
    assert given.refresh.eps == 0.35 and "sweep" not in given.refresh.history[0]


# ---- the window, and a run of everything ---------------------------------------------------------


@pytest.mark.parametrize("opts, decays, warned", [
    (("SSKD.EMA.WINDOW 0.25",), [0, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2], False),
    (("SSKD.EMA.MOMENTUM 0.75",), [0, 1 / 2, 2 / 3, 3 / 4, 3 / 4, 3 / 4, 3 / 4, 3 / 4], True),
    (("SSKD.EMA.MOMENTUM 0.0",), [0] * 8, False),
    (("SSKD.EMA.MOMENTUM 1.0",), [1 - 1 / (t + 1) for t in range(8)], True),
])  # fmt: skip
def test_window_of_the_teachers(trainer, caplog, opts, decays, warned):
    """Eight steps; one that is longer than two is warned of, which an average that is none is not."""
    found = []

    class Decay(HookBase):
        def after_step(self):
            found.append(made.storage.latest()["ema_decay"][0])

    with caplog.at_level(logging.WARNING, logger="fastreid"):
        made = trainer(*SHORT, "SSKD.ITERS_PER_EPOCH 4", *opts, hooks=[Decay()])
        made.train()
    assert found == pytest.approx(decays)
    assert ("more than a quarter of the run's 8" in caplog.text) == warned


@pytest.mark.parametrize("statistics", ["running", "student", "refresh"])
def test_goes_on_where_it_stopped(adaptation, without_neck, tmp_path, statistics):
    """With everything that is not the release's: inside an epoch, bit for bit."""
    opts = (
        *EVERYTHING,
        "SSKD.SOFT_LABELS.BN",
        statistics,
        "SSKD.SOURCE.WEIGHTS",
        str(without_neck),
        "SSKD.CHECKPOINT_ITERS 1",
        "SSKD.CLUSTER.EPS_EVERY 1",
    )
    whole, parts = (adaptation(*opts, output=tmp_path / name) for name in ("whole", "parts"))
    run(whole)
    cut(parts, 4)
    seed_everything(99)
    run(parts, resume=True)
    assert_same_files(parts.OUTPUT_DIR, whole.OUTPUT_DIR)
    saved = load_checkpoint(os.path.join(whole.OUTPUT_DIR, "model_final.pth"))["refresh"]
    assert saved["temperature"] == saved["history"][-1]["temperature"] != 1.0
