"""The best epoch and teacher without labels: signals, what is kept, and a run without any source."""

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastreid.engine.train_loop import HookBase
from same_runs import cut
from tiny_reid import load_checkpoint, tiny_adaptation

from fastreid_sskd.clustering import ClusterReport, jaccard_distance, pseudo_labels, sparse_silhouette
from fastreid_sskd.data import extraction_loader
from fastreid_sskd.engine import AdaptationTrainer, run
from fastreid_sskd.engine import hooks as refresh_module
from fastreid_sskd.engine.events import LABEL_FREE, Record
from fastreid_sskd.evaluation.features import extract_features

UNLABELLED = ("DATASETS.TESTS ()", "SSKD.SELECT_BY silhouette")


def selections(output):
    """The selection/ scalars of the start and of every epoch, from metrics.json."""
    rows = {}
    for line in (output / "metrics.json").read_text().splitlines():
        found = {
            key.removeprefix("selection/"): value
            for key, value in json.loads(line).items()
            if key.startswith("selection/")
        }
        if found:
            rows.setdefault(json.loads(line)["iteration"], {}).update(found)
    return [rows[iteration] for iteration in sorted(rows)]


def test_signals_are_those_of_the_state_after_the_epoch(trainer):
    made = trainer(*UNLABELLED, "SOLVER.MAX_EPOCH 1")
    made.train()
    cluster = made.cfg.SSKD.CLUSTER
    features = extract_features(made.model, extraction_loader(made.cfg, made.items))
    labels = pseudo_labels(
        made.model.combine(features), k1=cluster.K1, k2=cluster.K2, eps=made.refresh.eps, min_samples=4
    ).labels

    def silhouette(feature):
        return sparse_silhouette(jaccard_distance(feature, cluster.K1, cluster.K2), labels).mean()

    start, signals = selections(made.output)
    assert (start["epoch"], signals["epoch"]) == (0, 1)
    assert signals["clusters"] == labels.max() + 1
    assert signals["noise_share"] == pytest.approx((labels == -1).mean())
    assert signals["silhouette"] == pytest.approx(silhouette(made.model.combine(features)), abs=1e-6)
    own = [silhouette(feature) for feature in features]
    assert [signals["silhouette_teacher0"], signals["silhouette_teacher1"]] == pytest.approx(own, abs=1e-6)
    assert signals["score"] == signals["silhouette"]
    assert int(made.model.best_peer) == int(np.argmax(own))


@pytest.fixture
def trainer(trainer, tmp_path):
    """The trainer of this folder's other tests, and where it writes."""

    def make(*opts, **kwargs):
        made = trainer(*opts, **kwargs)
        made.output = Path(made.cfg.OUTPUT_DIR)
        return made

    return make


def test_scores_are_larger_where_it_looks_better():
    signals = {"silhouette": 0.2, "noise_share": 0.3, "changed_share": 0.1}
    better = {"silhouette": 0.3, "noise_share": 0.2, "changed_share": 0.0}
    for name, score in LABEL_FREE.items():
        assert -1 <= score(signals) < score(better) <= 1, name


@pytest.fixture
def offers(monkeypatch):
    """What a run offers for selection: (epochs done, teacher, score)."""
    seen, select = [], Record.select
    monkeypatch.setattr(Record, "select", lambda self, *offer: seen.append(offer) or select(self, *offer))
    return seen


@pytest.mark.parametrize("select_by", LABEL_FREE)
def test_model_best_is_the_highest_score(adaptation, tmp_path, caplog, offers, select_by):
    caplog.set_level(logging.INFO, logger="fastreid.sskd")
    run(
        adaptation(
            "DATASETS.TESTS ()", "SSKD.SELECT_BY", select_by, "SOLVER.MAX_EPOCH 3", "SOLVER.BASE_LR 0.01"
        )
    )
    rows = selections(tmp_path / "out")
    start = [] if select_by == "stability" else [0]  # the first labels have changed from none
    assert [epoch for epoch, _, _ in offers] == [*start, 1, 2, 3]
    assert [(epoch, score) for epoch, _, score in offers] == [(row["epoch"], row["score"]) for row in rows]
    epoch, peer, _ = max(offers, key=lambda offer: offer[2])
    saved = load_checkpoint(tmp_path / "out" / "model_best.pth")
    assert saved["epoch"] == epoch - 1 and int(saved["model"]["best_peer"]) == peer
    assert f"the best epoch and teacher are chosen by {select_by}" in caplog.text
    assert (
        f"model_best holds the state after {epoch} epochs" in caplog.text and "without labels" in caplog.text
    )
    assert not (tmp_path / "out" / "results.json").exists()


def test_epochs_of_one_step_are_offered_too(trainer, offers):
    """The first one's state has the iteration of the start's."""
    trainer(*UNLABELLED, "SSKD.ITERS_PER_EPOCH 1").train()
    assert [epoch for epoch, _, _ in offers] == [0, 1, 2]


@pytest.mark.parametrize(
    "opts", [("DATASETS.TESTS ()", "SSKD.SELECT_BY silhouette"), ("SSKD.SELECT_BY mAP",)]
)
def test_a_start_that_no_epoch_betters_is_kept(adaptation, tmp_path, caplog, finished, monkeypatch, opts):
    """A learning rate that ruins the network, and scores to match: the start is model_best, as is said."""
    scores = iter((0.5, 0.5, 0.4))
    monkeypatch.setitem(LABEL_FREE, "silhouette", lambda signals: next(scores))
    cfg = adaptation(*opts, "SOLVER.MAX_EPOCH 2", "SOLVER.BASE_LR 3.0", "SSKD.CLUSTER.MAX_LARGEST_SHARE 1.0")
    run(cfg)
    saved = load_checkpoint(tmp_path / "out" / "model_best.pth")
    assert saved["epoch"] == -1
    for k, source in enumerate(finished.sources):
        expected = load_checkpoint(source)["model"]
        key = next(name for name in expected if name.endswith("backbone.0.weight"))
        assert torch.equal(saved["model"][f"teachers.{k}.backbone.0.weight"], expected[key])
    assert "no epoch is better than the start" in caplog.text and "EPS_RULE" in caplog.text
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize(
    "select_by, label, reason",
    [("noise", 0, "1 cluster"), ("fewest", 0, "1 cluster"), ("fewest", -1, "0 clusters")],
)
def test_collapsed_clusters_are_not_selected(trainer, monkeypatch, caplog, offers, select_by, label, reason):
    """One cluster of everything has no noise, so its score would be the highest."""
    monkeypatch.setitem(LABEL_FREE, "fewest", lambda signals: 1 / (1 + signals["clusters"]))
    made = trainer("DATASETS.TESTS ()", "SSKD.SELECT_BY", select_by, "SOLVER.MAX_EPOCH 2")
    real = made.refresh.cluster

    def cluster(features):
        found, previous = real(features), made.refresh.labels.numpy()
        if len(offers) < 2:  # the start and the first epoch
            return found
        labels = np.full_like(found.labels, label)
        return dataclasses.replace(
            found, labels=labels, report=ClusterReport.from_labels(labels, found.eps, previous)
        )

    monkeypatch.setattr(made.refresh, "cluster", cluster)
    with caplog.at_level(logging.INFO, logger="fastreid.sskd"):
        made.train()
    _, first, second = selections(made.output)
    collapsed = {"clusters": label + 1, "noise_share": -label}
    assert "score" not in second
    assert {name: second[name] for name in collapsed} == collapsed
    assert LABEL_FREE[select_by]({**second, **collapsed}) > first["score"]
    epoch, peer, score = max(offers, key=lambda offer: offer[2])
    assert [offer[0] for offer in offers] == [0, 1] and offers[1][2] == first["score"]
    assert made.record.selected == {"epoch": epoch, "peer": peer, "score": score} and peer == int(
        made.model.best_peer
    )
    assert load_checkpoint(made.output / "model_best.pth")["epoch"] == epoch - 1
    assert (
        f"the state after 2 epochs is not selected, its clusters have collapsed: {reason} at eps"
        in caplog.text
    )
    assert "the state after 1 epochs is not selected" not in caplog.text
    assert f"{select_by} -; best so far, without labels: teacher {peer} after {epoch} epochs" in caplog.text


def test_nothing_is_selected_where_all_clusters_have_collapsed(trainer, caplog):
    """By a limit that is set after the refresh, which keeps to the run's."""
    made = trainer("DATASETS.TESTS ()", "SSKD.SELECT_BY noise", "SOLVER.MAX_EPOCH 1")

    class Tighten(HookBase):
        def before_epoch(self):
            made.refresh.options = made.refresh.options.replace(max_largest_share=0.0, on_limit="collapse")

    made._hooks.insert(1, Tighten())
    made._hooks[1].trainer = made
    with caplog.at_level(logging.INFO, logger="fastreid.sskd"):
        made.train()
    assert made.record.selected == {"epoch": 0, "peer": 0, "score": None}
    assert not (made.output / "model_best.pth").exists() and (made.output / "model_final.pth").exists()
    assert (
        "MAX_LARGEST_SHARE=0" in caplog.text and "noise -; best so far, without labels: none" in caplog.text
    )


def test_clusters_with_the_eps_of_the_epochs_labels(trainer, monkeypatch):
    """Also at the end of an epoch at whose start eps was estimated again."""
    calls = []

    def spy(features, **options):
        calls.append((options, made.refresh.eps))
        return pseudo_labels(features, **options)

    monkeypatch.setattr(refresh_module, "pseudo_labels", spy)
    made = trainer(*UNLABELLED, "SOLVER.MAX_EPOCH 3", "SSKD.CLUSTER.EPS_EVERY 2", "SOLVER.BASE_LR 0.05")
    made.train()
    assert len(calls) == 7  # with one for the start
    refreshes, selecting = [calls[0], *calls[3::2]], calls[2::2]
    assert [given["options"].eps for given, _ in refreshes] == [0, selecting[0][1], 0]
    assert [given["options"].eps for given, _ in selecting] == [eps for _, eps in selecting]
    assert selecting[0][1] == selecting[1][1] != selecting[2][1]


def test_silhouettes_by_the_searchs_settings(trainer, monkeypatch):
    seen = []

    def spy(*features, **options):
        seen.append(options)
        return jaccard_distance(*features, **options)

    monkeypatch.setattr(refresh_module, "jaccard_distance", spy)
    made = trainer(
        *UNLABELLED, "SOLVER.MAX_EPOCH 1", "SSKD.CLUSTER.KNN reduced", "SSKD.CLUSTER.REDUCED_DIM 3",
        "SSKD.CLUSTER.MIN_RECALL 0.1",
    )  # fmt: skip
    made.train()
    assert len(seen) == 6  # together, and each of two teachers, for the start and the epoch
    for given in seen:
        options = given["options"]
        assert (options.knn, options.reduced_dim, options.min_recall) == ("reduced", 3, 0.1)


def test_selecting_trains_nothing_else(adaptation, tmp_path):
    """The same weights with and without; only the marked teacher may differ."""
    states = []
    for name, opts in (("plain", ("DATASETS.TESTS ()",)), ("selected", UNLABELLED)):
        run(adaptation(*opts, output=tmp_path / name))
        states.append(load_checkpoint(tmp_path / name / "model_final.pth")["model"])
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items() if key != "best_peer")


def test_evaluations_do_not_choose(adaptation, tmp_path):
    """With a test set the figures are there, and the choice is not theirs."""
    run(adaptation("SSKD.SELECT_BY stability", "SOLVER.MAX_EPOCH 2"))
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    scores = [row["score"] for row in selections(tmp_path / "out")]
    assert [evaluation["epoch"] for evaluation in written["evaluations"]] == [0, 1, 2]
    assert written["best"]["chosen_on"] == "stability, without labels"
    assert written["best"]["epoch"] == scores.index(max(scores)) + 1
    final = load_checkpoint(tmp_path / "out" / "model_final.pth")
    assert written["best"]["row"] == f"teacher{int(final['model']['best_peer'])}"


def test_resumed_run_remembers(adaptation, tmp_path):
    whole = adaptation(*UNLABELLED, "SOLVER.MAX_EPOCH 3", output=tmp_path / "whole")
    run(whole)
    cfg = adaptation(*UNLABELLED, "SOLVER.MAX_EPOCH 3", output=tmp_path / "parts")
    cut(cfg, 6)  # after the third epoch's refresh
    run(cfg, resume=True)
    one, other = (load_checkpoint(at / "model_final.pth") for at in (tmp_path / "whole", tmp_path / "parts"))
    assert one["record"]["selected"] == other["record"]["selected"]
    assert torch.equal(one["model"]["best_peer"], other["model"]["best_peer"])


def test_record(tmp_path):
    record = Record(["First"], "noise")
    assert record.label_free and not Record(["First"]).label_free
    record.add(0, {"First": {"teacher0": {"mAP": 20.0}, "ensemble": {"mAP": 30.0}}})
    assert record.best == (None, None)  # direct transfer is not what noise has chosen
    assert "No epoch has been chosen by noise" in record.table() and "best, epoch" not in record.table()
    record.write(str(tmp_path / "results.json"))
    assert json.loads((tmp_path / "results.json").read_text())["best"] is None
    assert record.select(1, 1, 0.5) and not record.select(2, 0, 0.5) and not record.select(3, 0, 0.4)
    assert record.select(4, 2, 0.6) and record.selected == {"epoch": 4, "peer": 2, "score": 0.6}
    rows = {
        name: {"mAP": value} for name, value in (("teacher0", 90.0), ("teacher2", 10.0), ("ensemble", 50.0))
    }
    record.add(4, {"First": rows})
    assert record.best[1] == "teacher2" and record.best[0]["epoch"] == 4
    table = record.table()
    assert (
        "best, epoch 4" in table
        and "chosen by noise, without labels" in table
        and "mAP on the test split" not in table
    )
    other = Record(["First"], "noise")
    other.load_state_dict(record.state_dict())
    assert other.selected == record.selected
    assert not record.select(5, 0, float("nan"))


# ---- no source -----------------------------------------------------------------------------------


def test_without_any_source(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="fastreid.sskd")
    cfg = tiny_adaptation(
        tmp_path,
        "SSKD.SOURCE.SKIP True",
        "SSKD.SOURCE.CONFIG",
        "",
        "SOLVER.MAX_EPOCH 1",
        "TEST.EVAL_PERIOD 0",
    )
    run(cfg)
    state = load_checkpoint(tmp_path / "model_final.pth")["model"]
    assert "2 peers start from random weights" in caplog.text
    assert not torch.equal(state["teachers.0.backbone.0.weight"], state["teachers.1.backbone.0.weight"])
    assert not (tmp_path / "source").exists()


def test_without_a_source_from_a_pretrained_backbone(tmp_path, monkeypatch):
    """The backbone's weights are asked for; given source models go before."""
    seen = []

    def build_network(cfg):
        seen.append(cfg.MODEL.BACKBONE.PRETRAIN)
        return SimpleNamespace(students=())

    monkeypatch.setattr("fastreid_sskd.engine.trainer.build_network", build_network)
    pretrained = ("MODEL.BACKBONE.PRETRAIN True", "SSKD.SOURCE.SKIP True")
    AdaptationTrainer.build_model(tiny_adaptation(tmp_path, *pretrained))
    AdaptationTrainer.build_model(tiny_adaptation(tmp_path, *pretrained, "SSKD.SOURCE.WEIGHTS ['a.pth']"))
    AdaptationTrainer.build_model(tiny_adaptation(tmp_path, "MODEL.BACKBONE.PRETRAIN True"))
    assert seen == [True, False, False]
