"""One command for both stages.

Pre-training, reuse, direct transfer, and bad input refused before anything is lost.
"""

import gc
import os
import shutil

import pytest
import torch
from fastreid.modeling import build_model
from tiny_reid import CONFIGS, DUKE, MARKET, load_checkpoint, overrides, tiny_adaptation, tiny_source

from fastreid_sskd.clustering import PseudoLabelError
from fastreid_sskd.engine import (
    AdaptationTrainer,
    SourceTrainer,
    Trainer,
    evaluate,
    pipeline,
    run,
    source_config,
    trainer_class,
)  # fmt: skip
from fastreid_sskd.engine import hooks as refresh_module
from fastreid_sskd.modeling import SSKD


def states(path):
    return load_checkpoint(path)["model"]


def same_model(one, other):
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def no_training(monkeypatch):
    """Fails the test if a source model is trained."""

    def refuse(self):
        raise AssertionError("a source model was trained")

    monkeypatch.setattr(SourceTrainer, "train", refuse)


# ---- both stages ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch, cls", [("SSKD", AdaptationTrainer), ("SSKDSource", SourceTrainer), ("Baseline", Trainer)]
)
def test_trainer_of_an_architecture(finished, arch, cls):
    cfg = finished.cfg.clone()
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE = arch
    assert trainer_class(cfg) is cls


def test_every_peer_is_pre_trained_with_its_own_seed(finished):
    cfgs = [source_config(finished.cfg, k) for k in range(2)]
    assert cfgs[0].SEED != cfgs[1].SEED and cfgs[0].OUTPUT_DIR != cfgs[1].OUTPUT_DIR
    one, other = map(states, finished.sources)
    assert not torch.equal(one["backbone.0.weight"], other["backbone.0.weight"])
    for source in finished.sources:
        folder = os.path.dirname(source)
        assert {"model_best.pth", "model_final.pth", "metrics.json", "last_checkpoint"} <= set(
            os.listdir(folder)
        )


def test_a_seed_in_the_options_of_stage_1_leaves_the_peers_different(finished):
    cfg = tiny_adaptation(finished.output)
    cfg.defrost()

    def seeds(*opts):
        cfg.SSKD.SOURCE.OPTS = overrides(*opts)
        return [source_config(cfg, k).SEED for k in range(2)]

    plain, one, two = seeds(), seeds("SEED 1"), seeds("SEED 2")
    assert len({*one, *two}) == 4, "every peer of every seed trains a network of its own"
    assert seeds("SEED", str(cfg.SEED)) == plain == seeds("SEED -1"), "the run's seed, or none"


def test_source_models_see_this_runs_target(finished, caplog):
    """The shipped stage 1 names the shipped target. Another target on the command line is the one that batch
    norm has to see.
    """
    caplog.set_level("INFO")
    assert source_config(finished.cfg, 0).SSKD.SOURCE.BN_DATASETS == ("Market1501",) and not caplog.text
    other = finished.cfg.clone()
    other.defrost()
    other.DATASETS.NAMES = ("CropFolder",)
    assert source_config(other, 0).SSKD.SOURCE.BN_DATASETS == ("CropFolder",)
    assert "batch norm sees CropFolder, the target of this run" in caplog.text
    other.SSKD.SOURCE.OPTS = [*other.SSKD.SOURCE.OPTS, "SSKD.SOURCE.BN_DATASETS", ()]
    assert source_config(other, 0).SSKD.SOURCE.BN_DATASETS == ()  # none, as asked for


def test_source_config_shares_the_network(tmp_path):
    cfg = tiny_adaptation(
        tmp_path,
        "INPUT.SIZE_TRAIN [48, 24]",
        "SSKD.BN_CHUNK 4",
        "MODEL.HEADS.POOL_LAYER GeneralizedMeanPooling",
    )
    source = source_config(cfg, 1)
    assert source.MODEL.BACKBONE == cfg.MODEL.BACKBONE and source.MODEL.HEADS == cfg.MODEL.HEADS
    assert source.INPUT.SIZE_TRAIN == [48, 24] and source.SSKD.BN_CHUNK == 4
    assert source.DATASETS.NAMES == ("DukeMTMC",) and source.SSKD.SOURCE.BN_DATASETS == ("Market1501",)
    assert source.SOLVER.MAX_EPOCH == 2  # SSKD.SOURCE.OPTS go last
    assert source.is_frozen()


def test_direct_transfer_is_epoch_zero(finished):
    """The record's first rows are those of the source models themselves."""
    entries = finished.record["evaluations"]
    assert [entry["epoch"] for entry in entries] == [0, 1, 2]
    for k, source in enumerate(finished.sources):
        cfg = finished.cfg.clone()
        cfg.defrost()
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS = "SSKDSource", source
        direct = evaluate(cfg)
        assert entries[0]["results"]["Market1501"][f"teacher{k}"]["mAP"] == pytest.approx(
            direct["mAP"], abs=1e-6
        )


def test_results_and_record(finished):
    """The results are the last evaluation; the record names the best, and the split it was chosen on."""
    every = [entry["results"]["Market1501"] for entry in finished.record["evaluations"]]
    assert set(every[-1]) == {"teacher0", "teacher1", "ensemble"}
    for row, metrics in every[-1].items():
        assert finished.results["Market1501"][row]["mAP"] == pytest.approx(metrics["mAP"])
    tops = [max(rows[f"teacher{k}"]["mAP"] for k in range(2)) for rows in every]
    assert finished.results["metric"] == pytest.approx(tops[-1])
    best = finished.record["best"]
    assert every[best["epoch"]][best["row"]]["mAP"] == max(tops)
    assert "Market1501" in best["chosen_on"] and "test" in best["chosen_on"]


def test_finished_source_models_are_reused(finished, adaptation, no_training, tmp_path):
    """Not a file of theirs changes, and the adaptation is the same as after training them just now."""
    output = tmp_path / "again"
    shutil.copytree(finished.output / "source", output / "source")
    files = sorted((output / "source").rglob("*.*"))
    files = [file for file in files if file.name != ".lock"]
    before = [file.stat().st_mtime_ns for file in files]
    run(tiny_adaptation(output))
    assert sorted(file for file in (output / "source").rglob("*.*") if file.name != ".lock") == files
    assert [file.stat().st_mtime_ns for file in files] == before
    final = load_checkpoint(output / "model_final.pth")
    assert same_model(final["model"], finished.final["model"])
    assert final["refresh"]["eps"] == finished.final["refresh"]["eps"]


def test_source_models_without_evaluation(finished, tmp_path):
    """No best one then: the last is taken."""
    cfg = tiny_adaptation(tmp_path, "SSKD.NUM_PEERS 1")
    cfg.defrost()
    cfg.SSKD.SOURCE.OPTS = [*cfg.SSKD.SOURCE.OPTS, *overrides("TEST.EVAL_PERIOD 0", "SOLVER.MAX_EPOCH 1")]
    final = str(tmp_path / "source" / "peer0" / "model_final.pth")
    assert pipeline.source_weights(cfg) == [final]
    shutil.copy(final, tmp_path / "source" / "peer0" / "model_best.pth")  # of a shorter run that did evaluate
    assert pipeline.source_weights(cfg) == [final]


def test_one_source_model_for_all_peers(finished, trainer, caplog):
    with caplog.at_level("WARNING"):
        made = trainer(weights=finished.sources[:1])
    assert "start equal" in caplog.text
    one, other = made.model.students
    assert torch.equal(one.backbone[0].weight, other.backbone[0].weight)
    made.train()
    assert not torch.equal(one.backbone[0].weight, other.backbone[0].weight)  # their views differ


def test_a_finished_run_leaves_no_network_behind(adaptation):
    """Without a collection at its end a grid of runs grows by a run's networks and moments each."""
    gc.collect()
    before = sum(type(thing) is SSKD for thing in gc.get_objects())
    gc.disable()
    try:
        run(adaptation())
        assert sum(type(thing) is SSKD for thing in gc.get_objects()) == before
    finally:
        gc.enable()


def test_whole_sskd_model_as_a_start(finished, no_training, tmp_path):
    cfg = tiny_adaptation(
        tmp_path,
        "MODEL.WEIGHTS",
        str(finished.output / "model_final.pth"),
        "SOLVER.MAX_EPOCH 1",
        "SSKD.ITERS_PER_EPOCH 1",
    )
    made = AdaptationTrainer(cfg)
    made.resume_or_load(resume=False)
    assert same_model(made.model.state_dict(), finished.final["model"])
    run(cfg)
    assert (tmp_path / "model_final.pth").is_file()


def test_without_evaluation(adaptation):
    cfg = adaptation("TEST.EVAL_PERIOD 0")
    assert run(cfg) == {}
    files = os.listdir(cfg.OUTPUT_DIR)
    assert "model_final.pth" in files and "model_best.pth" not in files and "results.json" not in files
    assert states(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))["best_peer"] == -1


# ---- the best teacher ----------------------------------------------------------------------------


def scripted(*values):
    rows = {f"teacher{k}": {"mAP": float(value), "Rank-1": 0.0} for k, value in enumerate(values)}
    return {"results": {"Market1501": {**rows, "ensemble": {"mAP": 99.0, "Rank-1": 0.0}}}}


def test_best_teacher_and_best_model_belong_together(adaptation, monkeypatch):
    """Epoch 2 is the best (its peer 1), neither the start nor the last epoch is."""
    values = iter([(55, 10), (30, 20), (40, 60), (50, 45)])
    monkeypatch.setattr(
        AdaptationTrainer, "test", classmethod(lambda cls, cfg, model: scripted(*next(values))["results"])
    )
    cfg = adaptation("SOLVER.MAX_EPOCH 3", "SSKD.ITERS_PER_EPOCH 1")
    results = run(cfg)
    assert results["metric"] == 50
    best, final = (
        load_checkpoint(os.path.join(cfg.OUTPUT_DIR, f"model_{name}.pth")) for name in ("best", "final")
    )
    assert best["epoch"] == 1 and best["model"]["best_peer"] == 1 and best["checkpoints"]["best_metric"] == 60
    assert final["epoch"] == 2 and final["model"]["best_peer"] == 1

    model = build_model(cfg)
    model.load_state_dict(best["model"])
    model.eval()
    images = {"images": torch.rand(2, 3, 32, 16) * 255}
    assert torch.equal(model(images), model.teacher_features(images)[1])


def test_best_teacher_before_training_is_the_best_source_model(trainer, monkeypatch):
    made = trainer()
    monkeypatch.setattr(type(made), "test", classmethod(lambda cls, cfg, model: scripted(1, 2)["results"]))
    assert made.model.best_peer == -1
    made.evaluate(epoch=0)
    assert made.model.best_peer == 1


# ---- eval-only -----------------------------------------------------------------------------------


def eval_config(finished, **changes):
    cfg = finished.cfg.clone()
    cfg.defrost()
    for key, value in changes.items():
        setattr(cfg.MODEL, key, value)
    return cfg


def test_evaluating_a_checkpoint_gives_the_numbers_of_its_run(finished, caplog):
    with caplog.at_level("INFO"):
        found = evaluate(eval_config(finished, WEIGHTS=str(finished.output / "model_final.pth")))
    for row, metrics in found["Market1501"].items():
        for name, value in metrics.items():
            assert finished.results["Market1501"][row][name] == pytest.approx(value, abs=1e-9)
    assert "| Market1501 | ensemble" in caplog.text and "model_final.pth" in caplog.text


def test_evaluation_needs_weights(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS"):
        evaluate(eval_config(finished))
    with pytest.raises(FileNotFoundError, match="none.pth"):
        evaluate(eval_config(finished, WEIGHTS=str(tmp_path / "none.pth")))


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("opts, source, said", [
    (("DATASETS.NAMES ('DukeMTMC',)",), (), "DukeMTMC is source .*source_d2m.yml.* and target"),
    ((), ("DATASETS.NAMES ('DukeMTMC', 'Market1501')",), "Market1501 is source"),
    (("SSKD.SOURCE.CONFIG", ""), (), "SSKD.SOURCE.WEIGHTS .*SSKD.SOURCE.CONFIG"),
    (("SSKD.SOURCE.CONFIG", str(CONFIGS / "sskd_m2d.yml")), (), "has to be of SSKDSource"),
])  # fmt: skip
def test_sources_that_are_none(tmp_path, no_training, opts, source, said):
    cfg = tiny_adaptation(tmp_path, *opts)
    cfg.defrost()
    cfg.SSKD.SOURCE.OPTS = [*cfg.SSKD.SOURCE.OPTS, *overrides(*source)]
    with pytest.raises(ValueError, match=said):
        run(cfg)


def test_missing_test_sets_and_targets(tmp_path, no_training, monkeypatch, world):
    with pytest.raises(ValueError, match="DATASETS.TESTS is empty"):
        cfg = tiny_adaptation(tmp_path, "DATASETS.TESTS ()")  # which alone turns evaluation off
        cfg.defrost()
        cfg.TEST.EVAL_PERIOD = 1
        run(cfg)
    only_source = tmp_path / "only_source"
    shutil.copytree(world / DUKE, only_source / DUKE)
    (only_source / MARKET / "query").mkdir(parents=True)
    monkeypatch.setenv("FASTREID_DATASETS", str(only_source))
    with pytest.raises(FileNotFoundError, match="Market1501"):
        run(tiny_adaptation(tmp_path))


def test_imagenet_weights_are_not_looked_for_when_others_are_given(adaptation, tmp_path, finished):
    """The host would download them, or fail without its downloader."""
    assert run(adaptation("MODEL.BACKBONE.PRETRAIN True", "SOLVER.MAX_EPOCH 1", "TEST.EVAL_PERIOD 0")) == {}
    resnet = (
        "MODEL.BACKBONE.NAME build_resnet_backbone",
        "MODEL.BACKBONE.DEPTH 18x",
        "MODEL.BACKBONE.FEAT_DIM 512",
        "MODEL.BACKBONE.PRETRAIN True",
    )
    assert isinstance(AdaptationTrainer.build_model(adaptation(*resnet)), SSKD)
    SourceTrainer.build_model(tiny_source(tmp_path, *resnet, "MODEL.WEIGHTS", finished.sources[0]))


def test_imagenet_weights_that_cannot_be_had(tmp_path, monkeypatch):
    """Without a path and without the downloader."""
    monkeypatch.setitem(__import__("sys").modules, "gdown", None)
    monkeypatch.setenv("FASTREID_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cfg = tiny_source(
        tmp_path, "MODEL.BACKBONE.NAME build_resnet_backbone", "MODEL.BACKBONE.DEPTH 18x",
        "MODEL.BACKBONE.FEAT_DIM 512", "MODEL.BACKBONE.PRETRAIN True",
    )  # fmt: skip
    with pytest.raises(FileNotFoundError, match="MODEL.BACKBONE.PRETRAIN_PATH"):
        SourceTrainer.build_model(cfg)


def test_batch_too_large_for_the_clusters_still_trains(adaptation):
    """16 identities wanted, a handful of clusters found."""
    cfg = adaptation("SOLVER.IMS_PER_BATCH 64", "SOLVER.MAX_EPOCH 1", "SSKD.ITERS_PER_EPOCH 1")
    assert run(cfg)["metric"] > 0


# ---- clusters that cannot be trained on ----------------------------------------------------------


@pytest.mark.parametrize(
    "eps, k1, k2, message",
    [("1e-9", "6", "2", "0 clusters.*SSKD.CLUSTER"), ("0.999", "20", "6", "1 cluster .*SSKD.CLUSTER")],
)
def test_unusable_clusters_stop_the_run(adaptation, eps, k1, k2, message):
    cfg = adaptation("SSKD.CLUSTER.EPS", eps, "SSKD.CLUSTER.K1", k1, "SSKD.CLUSTER.K2", k2)
    with pytest.raises(PseudoLabelError, match=message):
        run(cfg)
    assert not os.path.exists(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))


def test_unusable_clusters_later_keep_what_was_learned(finished, adaptation, monkeypatch):
    """Although checkpoints are rare, the last epoch is saved; with another EPS the run goes on from there."""
    opts = ("SOLVER.CHECKPOINT_PERIOD 10", "TEST.EVAL_PERIOD 0")
    cfg = adaptation(*opts)
    pseudo_labels, calls = refresh_module.pseudo_labels, []

    def fails_the_second_time(features, **options):
        calls.append(options)
        return pseudo_labels(features, **(options if len(calls) == 1 else {**options, "eps": 1e-9}))

    with monkeypatch.context() as patch:
        patch.setattr(refresh_module, "pseudo_labels", fails_the_second_time)
        with pytest.raises(PseudoLabelError, match="0 clusters"):
            run(cfg)
    assert sorted(name for name in os.listdir(cfg.OUTPUT_DIR) if name.endswith(".pth")) == ["model_0000.pth"]
    kept = load_checkpoint(os.path.join(cfg.OUTPUT_DIR, "model_0000.pth"))
    assert kept["epoch"] == 0 and len(kept["refresh"]["history"]) == 1
    assert kept["refresh"]["eps"] == finished.final["refresh"]["eps"]

    run(adaptation(*opts, "SSKD.CLUSTER.EPS 0.3"), resume=True)
    history = load_checkpoint(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))["refresh"]["history"]
    assert [entry["eps"] for entry in history] == [kept["refresh"]["eps"], 0.3]


@pytest.mark.parametrize("images, chunk", [(8, 7), (24, 23)])
def test_chunk_of_one_image(adaptation, tmp_path, no_training, images, chunk):
    """Found before anything is trained, in both stages, where torch would speak of channels."""
    opts = ("SOLVER.IMS_PER_BATCH", str(images), "SSKD.BN_CHUNK", str(chunk))
    message = f"{images} images in chunks of SSKD.BN_CHUNK = {chunk} ends with a chunk of one image"
    with pytest.raises(ValueError, match=message):
        run(tiny_adaptation(tmp_path, *opts))
    with pytest.raises(ValueError, match=message):
        AdaptationTrainer(adaptation(*opts))
    with pytest.raises(ValueError, match=message):
        SourceTrainer(tiny_source(tmp_path, *opts))


# ---- what goes wrong during training -------------------------------------------------------------


def test_loss_that_is_not_finite_is_named(trainer):
    made = trainer()
    made.model.register_forward_hook(
        lambda model, args, out: (
            {**out, "loss_ms_peer1": out["loss_ms_peer1"] * float("nan")} if model.training else out
        )
    )
    before = [p.detach().clone() for p in made.model.students[0].backbone.parameters()]
    with pytest.raises(FloatingPointError, match=r"step 0: loss_ms of peer 1 is nan\. .*SOLVER.BASE_LR"):
        made.train()
    after = made.model.students[0].backbone.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after))  # raised before the step
