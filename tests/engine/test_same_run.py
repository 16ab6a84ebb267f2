"""A checkpoint of another config is refused, naming what differs."""

import logging
import os
import re
from pathlib import Path

import pytest
import torch
from tiny_reid import (
    DUKE,
    MARKET,
    TINY_SOURCE,
    load_checkpoint,
    overrides,
    tiny_adaptation,
    tiny_baseline,
    tiny_source,
)

from fastreid_sskd.engine import SourceTrainer, Trainer, load_config, pipeline, run
from fastreid_sskd.engine.checkpoint import (
    OtherConfigError,
    check_same_images,
    check_same_run,
    image_names,
    last_checkpoint,
    plain_config,
    same_value,
)


def config(*opts):
    return plain_config(load_config("", overrides("SEED 1", *opts)))


def check(saved, given, epoch=0, **how):
    check_same_run({"config": saved, "epoch": epoch}, given, "cannot resume from x.pth", **how)


def test_plain_config():
    """As a checkpoint holds it: one level, lists for tuples."""
    plain = config("DATASETS.NAMES ('Market1501',)")
    assert plain["DATASETS.NAMES"] == ["Market1501"] and plain["SSKD.LOSSES.SoftCE.WEIGHT"] == 0.5
    kinds = {type(value) for value in plain.values()}
    assert kinds <= {int, float, str, bool, list, type(None)}, kinds


OF_NO_EFFECT = """OUTPUT_DIR elsewhere | MODEL.DEVICE cpu | DATALOADER.NUM_WORKERS 3 | SSKD.LOG_PERIOD 7
SSKD.CHECKPOINT_SECONDS 9 | SSKD.KEEP_CHECKPOINTS 9 | TEST.EVAL_PERIOD 3 | SOLVER.CHECKPOINT_PERIOD 3
SOLVER.MAX_EPOCH 200 | SSKD.CLUSTER.EPS 0.5 | SSKD.EVAL_WITH ensemble"""
OF_AN_EFFECT = """SEED 2 | SOLVER.BASE_LR 0.5 | SOLVER.IMS_PER_BATCH 8 | SSKD.NUM_PEERS 2 | SSKD.CLUSTER.K1 9
SSKD.LOSSES.SoftCE.WEIGHT 0.1 | DATASETS.NAMES ('DukeMTMC',) | DATASETS.TESTS ('DukeMTMC',) | SSKD.BN_CHUNK 4
INPUT.SIZE_TRAIN [64, 32] | MODEL.FREEZE_LAYERS ['backbone']"""


@pytest.mark.parametrize("opt", ["SEED 1", *re.split(r" \| |\n", OF_NO_EFFECT)])
def test_keys_without_an_effect_may_differ(opt, caplog):
    check(config(), config(opt))
    assert not caplog.records


@pytest.mark.parametrize("opt", re.split(r" \| |\n", OF_AN_EFFECT))
def test_keys_with_an_effect_are_named(opt):
    saved, given = config(), config(opt, "SOLVER.MOMENTUM 0.5")
    with pytest.raises(OtherConfigError) as raised:
        check(saved, given)
    for key in (opt.split()[0], "SOLVER.MOMENTUM"):
        assert f"{key}: {saved[key]!r} there, {given[key]!r} here" in str(raised.value)
    assert "cannot resume from x.pth" in str(raised.value) and "SSKD.MAY_DIFFER" in str(raised.value)


def test_keys_changed_on_purpose():
    """Whole nodes too, and no key that only begins alike."""
    changed = ("SSKD.CLUSTER.K1 9", "SSKD.CLUSTER.RHO 0.1")
    check(config(), config(*changed, "SSKD.MAY_DIFFER ['SSKD.CLUSTER']"))
    check(config(), config(*changed, "SSKD.MAY_DIFFER ['SSKD.CLUSTER.K1', 'SSKD.CLUSTER.RHO']"))
    with pytest.raises(OtherConfigError, match="SSKD.CLUSTER.RHO"):
        check(config(), config(*changed, "SSKD.MAY_DIFFER ['SSKD.CLUSTER.K1', 'SSKD.CLUSTER.R']"))


def test_keys_that_act_at_the_start(caplog):
    """Nothing comes of them in a resumed run, which is said; in a finished model they count."""
    given = config("MODEL.BACKBONE.PRETRAIN_PATH other.pth", "SSKD.SOURCE.OPTS ['SEED', 3]")
    with caplog.at_level(logging.WARNING):
        check(config(), given)
    assert "PRETRAIN_PATH" in caplog.text and "SSKD.SOURCE.OPTS" in caplog.text
    with pytest.raises(OtherConfigError, match="PRETRAIN_PATH"):
        check(config(), given, from_scratch=True)


def test_epochs_that_the_rate_depends_on():
    cosine = ("SOLVER.SCHED CosineAnnealingLR",)
    window = ("SSKD.EMA.WINDOW 0.125",)
    for key in (cosine, window):
        with pytest.raises(OtherConfigError, match="SOLVER.MAX_EPOCH"):
            check(config(*key), config(*key, "SOLVER.MAX_EPOCH 200"))
        check(config(*key), config(*key, "SOLVER.MAX_EPOCH 200", "SSKD.MAY_DIFFER ['SOLVER.MAX_EPOCH']"))
    check(config(*cosine), config(*cosine))


def test_fewer_epochs_than_are_done():
    check(config(), config("SOLVER.MAX_EPOCH 5"), epoch=4)
    with pytest.raises(OtherConfigError, match="6 epochs, which is more than SOLVER.MAX_EPOCH = 5"):
        check(config(), config("SOLVER.MAX_EPOCH 5"), epoch=5)


def test_keys_of_other_versions():
    """One that came later has its default's meaning in the older file; one that is gone means nothing."""
    saved = config()
    del saved["SSKD.BN_CHUNK"]
    saved["SSKD.FORMER"] = 1
    check(saved, config())
    with pytest.raises(OtherConfigError, match="SSKD.BN_CHUNK"):
        check(saved, config("SSKD.BN_CHUNK 4"))


def test_file_without_a_config(caplog):
    check_same_run({}, config(), "x.pth")
    assert "x.pth does not say what config" in caplog.text


def test_two_paths_of_one_file(tmp_path, monkeypatch, caplog):
    """Relative, absolute, through a link; in lists too. What is no path is compared as it is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    for name in ("runs/a.pth", "./runs/a.pth", "runs//a.pth", "link/a.pth"):
        assert same_value(name, str(tmp_path / "runs" / "a.pth"))
        assert same_value(["a", name], ["a", str(tmp_path / "runs" / "a.pth")])
        check(
            config("MODEL.WEIGHTS", name),
            config("MODEL.WEIGHTS", str(tmp_path / "runs" / "a.pth")),
            from_scratch=True,
        )
    for one, other in (
        ("runs/a.pth", "runs/b.pth"),
        ("", "."),
        ("1", 1),
        (["a"], ["a", "b"]),
        ("Adam", "SGD"),
        (1, 2),
    ):
        assert not same_value(one, other)


# ---- images --------------------------------------------------------------------------------------


def paths(*names, root="/data"):
    return [f"{root}/market/{name}" for name in names]


def test_names_of_images_do_not_depend_on_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = image_names(paths("train/1.jpg", "train/2.jpg", "test/1.jpg"))
    assert names.dtype == torch.int64 and len(set(names.tolist())) == 3
    for root in ("/elsewhere", "data", "./data/"):
        assert torch.equal(image_names(paths("train/1.jpg", "train/2.jpg", "test/1.jpg", root=root)), names)
    assert torch.equal(image_names(paths("1.jpg")), image_names(paths("1.jpg", root="/x/y")))
    assert not torch.equal(image_names(paths("a/1.jpg", "b/1.jpg")), image_names(paths("a/1.jpg", "c/1.jpg")))
    assert image_names([]).shape == (0,)


@pytest.mark.parametrize(
    "now, said",
    [
        (("1.jpg", "2.jpg", "4.jpg"), "3 then, 3 now, 1 of them new, 1 gone, first /data/market/4.jpg"),
        (("1.jpg", "2.jpg"), "3 then, 2 now, 0 of them new, 1 gone"),
        (
            ("0.jpg", "1.jpg", "2.jpg", "3.jpg"),
            "3 then, 4 now, 1 of them new, 0 gone, first /data/market/0.jpg",
        ),
        (("1.jpg", "3.jpg", "2.jpg"), "3 then, 3 now, 0 of them new, 0 gone, first /data/market/3.jpg"),
        ((), "3 then, 0 now, 0 of them new, 3 gone"),
    ],
)
def test_other_images_are_counted_and_named(now, said):
    saved = {"images": {"KEY": image_names(paths("1.jpg", "2.jpg", "3.jpg"))}}
    check_same_images(saved, {"KEY": paths("1.jpg", "2.jpg", "3.jpg", root="/moved")}, "x.pth")
    with pytest.raises(OtherConfigError) as raised:
        check_same_images(saved, {"KEY": paths(*now)}, "x.pth")
    assert f"x.pth: it was trained on other images of KEY: {said}." in str(raised.value)


def test_images_changed_on_purpose():
    """But not those that a checkpoint has pseudo-labels of."""
    saved, now = (
        {"images": {"DATASETS.NAMES": image_names(paths("1.jpg"))}},
        {"DATASETS.NAMES": paths("2.jpg", "3.jpg")},
    )
    check_same_images(saved, now, "x.pth", ["DATASETS"])
    with pytest.raises(OtherConfigError):
        check_same_images({**saved, "refresh": {}}, now, "x.pth", ["DATASETS"])


def test_file_without_images(caplog):
    check_same_images({}, {"KEY": paths("1.jpg")}, "x.pth")
    assert "x.pth does not say which images" in caplog.text


# ---- in runs -------------------------------------------------------------------------------------


def content(folder):
    files = [entry for entry in os.scandir(folder) if entry.name != ".lock" and entry.is_file()]
    return {entry.name: Path(entry.path).read_bytes() for entry in files}


def test_resumed_run_refuses_another_config(adaptation, one_epoch):
    """Before anything is loaded or written."""
    cfg = adaptation("SOLVER.MAX_EPOCH 1")
    before = content(cfg.OUTPUT_DIR)
    for opts, named in (
        (("SOLVER.BASE_LR 0.1",), "SOLVER.BASE_LR: 0.00035 there, 0.1 here"),
        (("SSKD.NUM_PEERS 1",), "SSKD.NUM_PEERS"),
    ):
        with pytest.raises(OtherConfigError, match=named):
            run(adaptation("TEST.EVAL_PERIOD 0", *opts), resume=True)
    assert content(cfg.OUTPUT_DIR) == before


def test_plain_run_refuses_another_config(tmp_path):
    short = ("SOLVER.MAX_EPOCH 1", "TEST.EVAL_PERIOD 0")
    run(tiny_baseline(tmp_path, *short))
    with pytest.raises(OtherConfigError, match="MODEL.HEADS.NECK_FEAT"):
        run(tiny_baseline(tmp_path, *short, "MODEL.HEADS.NECK_FEAT after"), resume=True)


@pytest.fixture
def one_peer(tmp_path):
    """Makes the config of a pipeline with one source model of one epoch, which is trained."""

    def make(*opts, source=()):
        short = [*TINY_SOURCE[-12:], "SSKD.ITERS_PER_EPOCH 1", "SOLVER.MAX_EPOCH 1", "TEST.EVAL_PERIOD 0"]
        cfg = tiny_adaptation(tmp_path, "SSKD.NUM_PEERS 1", *opts)
        cfg.defrost()
        cfg.SSKD.SOURCE.OPTS = overrides(*short, *source)
        return cfg

    pipeline.source_weights(make())
    return make


def test_finished_source_model_of_another_config_is_not_reused(one_peer, tmp_path):
    final = tmp_path / "source" / "peer0" / "model_final.pth"
    before = final.stat().st_mtime_ns
    for cfg, named in (
        (one_peer("SEED 2"), "SEED"),
        (one_peer(source=("SOLVER.BASE_LR 0.2",)), "SOLVER.BASE_LR: 0.00035 there, 0.2 here"),
        (one_peer("SSKD.BN_CHUNK 4"), "SSKD.BN_CHUNK"),
        (one_peer(source=("SOLVER.MAX_EPOCH 0",)), "1 epochs, which is more than SOLVER.MAX_EPOCH = 0"),
    ):
        with pytest.raises(
            OtherConfigError, match=f"cannot reuse the finished source model .*peer0.*{named}"
        ):
            pipeline.source_weights(cfg)
    assert final.stat().st_mtime_ns == before


def test_finished_source_model_of_fewer_epochs_goes_on(one_peer, tmp_path, monkeypatch):
    steps, run_step = [], SourceTrainer.run_step
    monkeypatch.setattr(SourceTrainer, "run_step", lambda self: steps.append(self.iter) or run_step(self))
    pipeline.source_weights(one_peer(source=("SOLVER.MAX_EPOCH 3",)))
    assert steps == [1, 2]
    assert load_checkpoint(tmp_path / "source" / "peer0" / "model_final.pth")["epoch"] == 2


def test_damaged_source_model_is_trained_again(one_peer, tmp_path, monkeypatch):
    final = tmp_path / "source" / "peer0" / "model_final.pth"
    final.write_bytes(final.read_bytes()[:-50])
    trained, train = [], Trainer.train
    monkeypatch.setattr(SourceTrainer, "train", lambda self: trained.append(1) or train(self))
    assert pipeline.source_weights(one_peer()) == [str(final)]
    assert trained == [1] and load_checkpoint(final)["epoch"] == 0


@pytest.fixture
def own_world(world, tmp_path, monkeypatch):
    """The data sets as links that a test may change."""

    def make(name):
        root = tmp_path / name
        for folder in (MARKET, DUKE):
            for part in ("bounding_box_train", "query", "bounding_box_test"):
                (root / folder / part).mkdir(parents=True)
                for image in (world / folder / part).iterdir():
                    (root / folder / part / image.name).symlink_to(image)
        monkeypatch.setenv("FASTREID_DATASETS", str(root))
        return root

    return make


def rename_an_image(folder):
    """One image becomes another of the same identity and camera; returns its name."""
    image = min(folder.glob("bounding_box_train/*.jpg"))
    image.rename(image.with_name(image.name.replace("_00.jpg", "_99.jpg")))
    return image.name.replace("_00.jpg", "_99.jpg")


@pytest.mark.parametrize("kind, data, key", [
    ("adaptation", MARKET, "DATASETS.NAMES"), ("source", DUKE, "DATASETS.NAMES"),
    ("source", MARKET, "SSKD.SOURCE.BN_DATASETS"),
    ("plain", MARKET, "DATASETS.NAMES"),
])  # fmt: skip
def test_other_images_are_refused(adaptation, own_world, tmp_path, kind, data, key):
    """As many of them, in a folder that was moved: nothing is touched; the old names go on."""
    make = {"adaptation": adaptation, "source": lambda *o: tiny_source(tmp_path / "s", *o),
            "plain": lambda *o: tiny_baseline(tmp_path / "p", *o)}[kind]  # fmt: skip
    opts = ("TEST.EVAL_PERIOD 0",)
    own_world("before")
    cfg = make(*opts, "SOLVER.MAX_EPOCH 1")
    run(cfg)
    root, before = own_world("moved"), content(cfg.OUTPUT_DIR)
    named = rename_an_image(root / data)
    with pytest.raises(
        OtherConfigError, match=rf"other images of {key}: 48 then, 48 now, 1 of them new, 1 gone, .*{named}"
    ):
        run(make(*opts), resume=True)
    assert content(cfg.OUTPUT_DIR) == before
    own_world("again")
    run(make(*opts), resume=True)
    assert load_checkpoint(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))["epoch"] == 1


def test_finished_source_model_of_other_images_is_not_reused(one_peer, own_world, tmp_path, monkeypatch):
    """Those it was trained on; of a source that is not there any more nothing can be asked."""
    root = own_world("other")
    rename_an_image(root / MARKET)
    pipeline.source_weights(one_peer())
    named = rename_an_image(root / DUKE)
    with pytest.raises(
        OtherConfigError,
        match=f"cannot reuse the finished source model .*other images of DATASETS.NAMES.*{named}",
    ):
        pipeline.source_weights(one_peer())
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "nowhere"))
    pipeline.source_weights(one_peer())


def test_checkpoint_of_an_earlier_version(adaptation, one_epoch, caplog):
    """That does not say which images it is of: their number counts."""
    cfg = adaptation("SOLVER.MAX_EPOCH 1")
    path = last_checkpoint(cfg.OUTPUT_DIR)
    saved = load_checkpoint(path)
    del saved["images"]
    torch.save({**saved, "refresh": {**saved["refresh"], "labels": saved["refresh"]["labels"][1:]}}, path)
    with pytest.raises(ValueError, match="labels of 47 images, and the target has 48 now"):
        run(adaptation("TEST.EVAL_PERIOD 0"), resume=True)
    torch.save(saved, path)
    run(adaptation("TEST.EVAL_PERIOD 0"), resume=True)
    assert "does not say which images" in caplog.text
    assert load_checkpoint(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))["epoch"] == 1
