"""A checkpoint of another config is refused, naming what differs."""

import logging
import os
from pathlib import Path

import pytest
from tiny_reid import TINY_SOURCE, load_checkpoint, tiny_adaptation, tiny_baseline

from fastreid_sskd.engine import SourceTrainer, Trainer, load_config, pipeline, run
from fastreid_sskd.engine.same_run import OtherConfigError, check_same_run, plain_config


def config(*opts):
    return plain_config(load_config("", ["SEED", "1", *opts]))


def check(saved, given, epoch=0, **how):
    check_same_run({"config": saved, "epoch": epoch}, given, "cannot go on from x.pth", **how)


def test_plain_config():
    """As a checkpoint holds it: one level, lists for tuples."""
    plain = config("DATASETS.NAMES", "('Market1501',)")
    assert plain["DATASETS.NAMES"] == ["Market1501"] and plain["SSKD.LOSSES.SoftCE.WEIGHT"] == 0.5
    kinds = {type(value) for value in plain.values()}
    assert kinds <= {int, float, str, bool, list, type(None)}, kinds


def test_same_config():
    check(config(), config())


@pytest.mark.parametrize(
    "key, value",
    [
        ("OUTPUT_DIR", "elsewhere"), ("MODEL.DEVICE", "cpu"), ("DATALOADER.NUM_WORKERS", "3"),
        ("SSKD.LOG_PERIOD", "7"), ("SSKD.CHECKPOINT_SECONDS", "9"), ("SSKD.KEEP_CHECKPOINTS", "9"),
        ("TEST.EVAL_PERIOD", "3"), ("SOLVER.CHECKPOINT_PERIOD", "3"), ("SOLVER.MAX_EPOCH", "200"),
        ("SSKD.CLUSTER.EPS", "0.5"), ("SSKD.EVAL_WITH", "ensemble"),
    ],
)  # fmt: skip
def test_keys_without_an_effect_may_differ(key, value, caplog):
    check(config(), config(key, value))
    assert not caplog.records


@pytest.mark.parametrize(
    "key, value",
    [
        ("SEED", "2"), ("SOLVER.BASE_LR", "0.5"), ("SOLVER.IMS_PER_BATCH", "8"), ("SSKD.NUM_PEERS", "2"),
        ("SSKD.LOSSES.SoftCE.WEIGHT", "0.1"), ("SSKD.CLUSTER.K1", "9"), ("DATASETS.NAMES", "('DukeMTMC',)"),
        ("DATASETS.TESTS", "('DukeMTMC',)"), ("INPUT.SIZE_TRAIN", "[64, 32]"), ("SSKD.BN_CHUNK", "4"),
        ("MODEL.FREEZE_LAYERS", "['backbone']"),
    ],
)  # fmt: skip
def test_keys_with_an_effect_are_named(key, value):
    saved, given = config(), config(key, value)
    with pytest.raises(OtherConfigError) as raised:
        check(saved, given)
    assert f"{key}: {saved[key]!r} there, {given[key]!r} here" in str(raised.value)
    assert "cannot go on from x.pth" in str(raised.value) and "SSKD.MAY_DIFFER" in str(raised.value)


def test_every_differing_key_is_named():
    with pytest.raises(OtherConfigError, match="SOLVER.BASE_LR.*SSKD.NUM_PEERS"):
        check(config(), config("SOLVER.BASE_LR", "0.5", "SSKD.NUM_PEERS", "2"))


def test_keys_changed_on_purpose():
    """Whole nodes too, and no key that only begins alike."""
    changed = ("SSKD.CLUSTER.K1", "9", "SSKD.CLUSTER.RHO", "0.1")
    check(config(), config(*changed, "SSKD.MAY_DIFFER", "['SSKD.CLUSTER']"))
    check(config(), config(*changed, "SSKD.MAY_DIFFER", "['SSKD.CLUSTER.K1', 'SSKD.CLUSTER.RHO']"))
    with pytest.raises(OtherConfigError, match="SSKD.CLUSTER.RHO"):
        check(config(), config(*changed, "SSKD.MAY_DIFFER", "['SSKD.CLUSTER.K1', 'SSKD.CLUSTER.R']"))


def test_keys_that_act_at_the_start(caplog):
    """Nothing comes of them in a resumed run, which is said; for a finished model that stands for a run they count."""
    given = config("MODEL.BACKBONE.PRETRAIN_PATH", "other.pth", "SSKD.SOURCE.OPTS", "['SEED', 3]")
    with caplog.at_level(logging.WARNING):
        check(config(), given)
    assert "PRETRAIN_PATH" in caplog.text and "SSKD.SOURCE.OPTS" in caplog.text
    with pytest.raises(OtherConfigError, match="PRETRAIN_PATH"):
        check(config(), given, anew=True)


def test_epochs_that_the_rate_depends_on():
    cosine = ("SOLVER.SCHED", "CosineAnnealingLR")
    window = ("SSKD.EMA.WINDOW", "0.125")
    for key in (cosine, window):
        with pytest.raises(OtherConfigError, match="SOLVER.MAX_EPOCH"):
            check(config(*key), config(*key, "SOLVER.MAX_EPOCH", "200"))
    check(config(*cosine), config(*cosine))


def test_fewer_epochs_than_are_done():
    check(config(), config("SOLVER.MAX_EPOCH", "5"), epoch=4)
    with pytest.raises(OtherConfigError, match="6 epochs, which is more than SOLVER.MAX_EPOCH = 5"):
        check(config(), config("SOLVER.MAX_EPOCH", "5"), epoch=5)


def test_keys_of_other_versions():
    """One that came later has its default's meaning in the older file; one that is gone means nothing."""
    saved = config()
    del saved["SSKD.BN_CHUNK"]
    saved["SSKD.FORMER"] = 1
    check(saved, config())
    with pytest.raises(OtherConfigError, match="SSKD.BN_CHUNK"):
        check(saved, config("SSKD.BN_CHUNK", "4"))


def test_file_without_a_config(caplog):
    check_same_run({}, config(), "x.pth")
    assert "x.pth does not say what config" in caplog.text


# ---- in runs ----------------------------------------------------------------------------------------------------


def content(folder):
    files = [entry for entry in os.scandir(folder) if entry.name != ".lock" and entry.is_file()]
    return {entry.name: Path(entry.path).read_bytes() for entry in files}


def test_resumed_run_refuses_another_config(adaptation):
    """Before anything is loaded or written."""
    cfg = adaptation("SOLVER.MAX_EPOCH", "1", "TEST.EVAL_PERIOD", "0")
    run(cfg)
    before = content(cfg.OUTPUT_DIR)
    for opts, named in (
        (("SOLVER.BASE_LR", "0.1"), "SOLVER.BASE_LR: 0.00035 there, 0.1 here"), (("SSKD.NUM_PEERS", "1"), "SSKD.NUM_PEERS"),
    ):
        with pytest.raises(OtherConfigError, match=named):
            run(adaptation("TEST.EVAL_PERIOD", "0", *opts), resume=True)
    assert content(cfg.OUTPUT_DIR) == before


def test_plain_run_refuses_another_config(tmp_path):
    short = ("SOLVER.MAX_EPOCH", "1", "TEST.EVAL_PERIOD", "0")
    run(tiny_baseline(tmp_path, *short))
    with pytest.raises(OtherConfigError, match="MODEL.HEADS.NECK_FEAT"):
        run(tiny_baseline(tmp_path, *short, "MODEL.HEADS.NECK_FEAT", "after"), resume=True)


@pytest.fixture
def one_peer(tmp_path):
    """Makes the config of a pipeline with one source model of one epoch, which is trained."""

    def make(*opts, source=()):
        short = [*TINY_SOURCE[-12:], "SSKD.ITERS_PER_EPOCH", "1", "SOLVER.MAX_EPOCH", "1", "TEST.EVAL_PERIOD", "0"]
        cfg = tiny_adaptation(tmp_path, "SSKD.NUM_PEERS", "1", *opts)
        cfg.defrost()
        cfg.SSKD.SOURCE.OPTS = [*short, *source]
        return cfg

    pipeline.pretrain_peers(make())
    return make


def test_finished_source_model_of_another_config_is_not_reused(one_peer, tmp_path):
    final = tmp_path / "source" / "peer0" / "model_final.pth"
    before = final.stat().st_mtime_ns
    for cfg, named in (
        (one_peer("SEED", "2"), "SEED"),
        (one_peer(source=("SOLVER.BASE_LR", "0.2")), "SOLVER.BASE_LR: 0.00035 there, 0.2 here"),
        (one_peer("SSKD.BN_CHUNK", "4"), "SSKD.BN_CHUNK"),
        (one_peer(source=("SOLVER.MAX_EPOCH", "0")), "1 epochs, which is more than SOLVER.MAX_EPOCH = 0"),
    ):
        with pytest.raises(OtherConfigError, match=f"cannot reuse the finished source model .*peer0.*{named}"):
            pipeline.pretrain_peers(cfg)
    assert final.stat().st_mtime_ns == before


def test_finished_source_model_of_fewer_epochs_goes_on(one_peer, tmp_path, monkeypatch):
    steps, run_step = [], SourceTrainer.run_step
    monkeypatch.setattr(SourceTrainer, "run_step", lambda self: steps.append(self.iter) or run_step(self))
    pipeline.pretrain_peers(one_peer(source=("SOLVER.MAX_EPOCH", "3")))
    assert steps == [1, 2]
    assert load_checkpoint(tmp_path / "source" / "peer0" / "model_final.pth")["epoch"] == 2


def test_damaged_source_model_is_trained_again(one_peer, tmp_path, monkeypatch):
    final = tmp_path / "source" / "peer0" / "model_final.pth"
    final.write_bytes(final.read_bytes()[:-50])
    trained, train = [], Trainer.train
    monkeypatch.setattr(SourceTrainer, "train", lambda self: trained.append(1) or train(self))
    assert pipeline.pretrain_peers(one_peer()) == [str(final)]
    assert trained == [1] and load_checkpoint(final)["epoch"] == 0
