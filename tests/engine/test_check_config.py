"""Settings that cannot work are refused before a source model is trained, and what ships is not."""

import os
import sys
import types

import pytest
from tiny_reid import CONFIGS, tiny_adaptation

from fastreid_sskd.engine import check_config, load_config, pipeline, run
from fastreid_sskd.engine.check_config import check_clustering, check_settings
from fastreid_sskd.engine.refresh import PseudoLabelRefresh

SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yml"))

ESTIMATED = ("SSKD.CLUSTER.PAIRS_PER_IMAGE", "0.0")  # the tiny config's: else it goes before RHO

# the key that the error names, and the overrides
WRONG = [
    ("NUM_CLUSTERS", "SSKD.CLUSTER.METHOD", "kmeans", "SSKD.CLUSTER.NUM_CLUSTERS", "0"),
    ("NUM_CLUSTERS", "SSKD.CLUSTER.METHOD", "kmeans", "SSKD.CLUSTER.NUM_CLUSTERS", "1"),
    ("NUM_CLUSTERS", "SSKD.CLUSTER.METHOD", "kmeans", "SSKD.CLUSTER.NUM_CLUSTERS", "49"),  # of 48 images
    ("K1", "SSKD.CLUSTER.K1", "0"),
    ("K2", "SSKD.CLUSTER.K2", "0"),
    ("MIN_SAMPLES", "SSKD.CLUSTER.MIN_SAMPLES", "0"),
    ("EPS ", "SSKD.CLUSTER.EPS", "-0.5"),
    ("EPS ", "SSKD.CLUSTER.EPS", "1.0"),
    ("EPS ", "SSKD.CLUSTER.EPS", "1.5"),
    ("EPS ", "SSKD.CLUSTER.EPS", "float('nan')"),
    ("RHO", "SSKD.CLUSTER.RHO", "2.0"),
    ("RHO", "SSKD.CLUSTER.RHO", "2.0", *ESTIMATED),
    ("RHO", "SSKD.CLUSTER.RHO", "0.0", *ESTIMATED),
    ("RHO", "SSKD.CLUSTER.RHO", "-0.1", *ESTIMATED),
    ("rounds to 0 pairs", "SSKD.CLUSTER.RHO", "1e-4", *ESTIMATED),  # of 1128 pairs
    ("PAIRS_PER_IMAGE", "SSKD.CLUSTER.PAIRS_PER_IMAGE", "-1.0"),
    ("PAIRS_PER_IMAGE", "SSKD.CLUSTER.PAIRS_PER_IMAGE", "24.0"),  # there are 23.5
    ("EPS_MIN", "SSKD.CLUSTER.EPS_MIN", "0.6", "SSKD.CLUSTER.EPS_MAX", "0.5"),
    ("EPS_MIN", "SSKD.CLUSTER.EPS_MIN", "-0.1"),
    ("EPS_MIN", "SSKD.CLUSTER.EPS_MIN", "1.0"),
    ("EPS_MAX", "SSKD.CLUSTER.EPS_MAX", "1.5"),
    ("EPS_EVERY", "SSKD.CLUSTER.EPS_EVERY", "-2"),
    ("EPS_RULE", "SSKD.CLUSTER.EPS_RULE", "best"),
    ("EPS_RADII", "SSKD.CLUSTER.EPS_RULE", "plateau", "SSKD.CLUSTER.EPS_RADII", "[0.5]"),
    ("EPS_RADII", "SSKD.CLUSTER.EPS_RULE", "plateau", "SSKD.CLUSTER.EPS_RADII", "[0.5, 0.4]"),
    ("EPS_RADII", "SSKD.CLUSTER.EPS_RULE", "plateau", "SSKD.CLUSTER.EPS_RADII", "[0.5, 1.0]"),
    ("EPS_LARGEST_SHARE", "SSKD.CLUSTER.EPS_RULE", "largest", "SSKD.CLUSTER.EPS_LARGEST_SHARE", "0.0"),
    ("WINDOW", "SSKD.EMA.WINDOW", "1.5"),
    ("WINDOW", "SSKD.EMA.WINDOW", "-0.1"),
    ("SOFT_LABELS.BN", "SSKD.SOFT_LABELS.BN", "eval"),
    ("TEMPERATURE", "SSKD.SOFT_LABELS.TEMPERATURE", "-1.0"),
    ("CONFIDENCE", "SSKD.SOFT_LABELS.CONFIDENCE", "1.0"),
    ("MAX_NOISE_SHARE", "SSKD.CLUSTER.MAX_NOISE_SHARE", "1.5"),
    ("MAX_LARGEST_SHARE", "SSKD.CLUSTER.MAX_LARGEST_SHARE", "-0.5"),
    ("MIN_RECALL", "SSKD.CLUSTER.MIN_RECALL", "0.0"),
    ("REDUCED_DIM", "SSKD.CLUSTER.REDUCED_DIM", "-1"),
    ("ON_LIMIT", "SSKD.CLUSTER.ON_LIMIT", "stop"),
    ("ON_COLLAPSE", "SSKD.CLUSTER.ON_COLLAPSE", "go"),
    ("ITERS_PER_EPOCH", "SSKD.ITERS_PER_EPOCH", "0"),
    ("MAX_EPOCH", "SOLVER.MAX_EPOCH", "0"),
    ("LOG_PERIOD", "SSKD.LOG_PERIOD", "0"),
    ("KEEP_CHECKPOINTS", "SSKD.KEEP_CHECKPOINTS", "0"),
    ("CHECKPOINT_PERIOD", "SOLVER.CHECKPOINT_PERIOD", "0"),
    ("CHECKPOINT_SECONDS", "SSKD.CHECKPOINT_SECONDS", "-1"),
    ("CHECKPOINT_ITERS", "SSKD.CHECKPOINT_ITERS", "-1"),
    ("AUGMENT_ON", "SSKD.AUGMENT_ON", "nowhere"),
    ("CACHE_IMAGES", "SSKD.CACHE_IMAGES", "-1"),
    ("AMP_DTYPE", "SSKD.AMP_DTYPE", "float8"),
    ("NUM_WORKERS", "DATALOADER.NUM_WORKERS", "-1"),
    ("SEED", "SEED", "-1"),
    ("SEED", "SEED", "4294967296"),
    ("OPT", "SOLVER.OPT", "Adamm"),
    ("BASE_LR", "SOLVER.BASE_LR", "-1.0"),
    ("SCHED", "SOLVER.SCHED", "StepLR"),
    ("WARMUP_METHOD", "SOLVER.WARMUP_METHOD", "burnin"),
    ("IMS_PER_BATCH", "TEST.IMS_PER_BATCH", "0"),
    ("EVAL_PERIOD", "TEST.EVAL_PERIOD", "-1"),
    ("SELECT_BY", "SSKD.SELECT_BY", "luck"),
    ("METRIC", "TEST.METRIC", "nonsense"),
]

# what looks odd and is allowed
RIGHT = [
    (),
    ("SSKD.CLUSTER.METHOD", "kmeans", "SSKD.CLUSTER.NUM_CLUSTERS", "2"),
    ("SSKD.CLUSTER.METHOD", "hdbscan", "SSKD.CLUSTER.RHO", "0.0", *ESTIMATED),
    ("SSKD.CLUSTER.EPS", "0.5", "SSKD.CLUSTER.RHO", "0.0", *ESTIMATED),
    ("SSKD.CLUSTER.RHO", "1.0", *ESTIMATED),
    ("SSKD.CLUSTER.EPS_RULE", "largest", "SSKD.CLUSTER.RHO", "0.0", *ESTIMATED),
    ("SSKD.CLUSTER.PAIRS_PER_IMAGE", "23.5"),
    ("SSKD.CLUSTER.EPS_MIN", "0.5", "SSKD.CLUSTER.EPS_MAX", "0.5"),
    ("SSKD.CLUSTER.MAX_NOISE_SHARE", "1.0", "SSKD.CLUSTER.MAX_LARGEST_SHARE", "0.0"),
    ("SSKD.CHECKPOINT_SECONDS", "0", "SSKD.CHECKPOINT_ITERS", "0", "SSKD.KEEP_CHECKPOINTS", "1"),
    ("SSKD.AUGMENT_ON", "device", "SSKD.CACHE_IMAGES", "1", "TEST.METRIC", "jaccard"),
]  # fmt: skip


class Begun(Exception):
    """Source training has begun."""


@pytest.fixture
def training_ends(monkeypatch):
    """Source training raises Begun."""

    def begin(cfg):
        raise Begun

    monkeypatch.setattr(pipeline, "pretrain_peers", begin)


def label(case):
    return " ".join(part.removeprefix("SSKD.").removeprefix("CLUSTER.") for part in case) or "as it is"


@pytest.mark.parametrize("case", WRONG, ids=lambda case: label(case[1:]))
def test_what_cannot_work_is_refused_before_source_training(tmp_path, training_ends, case):
    named, *overrides = case
    with pytest.raises(ValueError, match=named):
        run(config(tmp_path, *overrides))
    assert not os.path.exists(tmp_path / "source")


@pytest.mark.parametrize("overrides", RIGHT, ids=label)
def test_what_can_work_goes_on_to_source_training(tmp_path, training_ends, overrides):
    with pytest.raises(Begun):
        run(config(tmp_path, *overrides))


def config(output, *overrides):
    """The tiny config; "float('nan')", which yacs does not read, is set afterwards."""
    if overrides and overrides[-1] == "float('nan')":
        cfg = tiny_adaptation(output)
        cfg.defrost()
        cfg.SSKD.CLUSTER.EPS = float("nan")
        return cfg
    return tiny_adaptation(output, *overrides)


@pytest.mark.parametrize(
    "overrides, package",
    [
        (("SSKD.CLUSTER.METHOD", "infomap"), "infomap"),
        (("SSKD.CLUSTER.KNN", "faiss"), "faiss"),
        (("SSKD.CLUSTER.KNN", "ivf"), "faiss"),
    ],
    ids=label,
)
def test_missing_packages(tmp_path, training_ends, monkeypatch, overrides, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ImportError, match=f"{overrides[0]} is '{overrides[1]}'.*pip install {package}"):
        run(tiny_adaptation(tmp_path, *overrides))


def test_a_package_that_is_not_used_may_be_missing(tmp_path, training_ends, monkeypatch):
    for package in ("infomap", "faiss"):
        monkeypatch.setitem(sys.modules, package, None)
    kmeans = ("SSKD.CLUSTER.METHOD", "kmeans", "SSKD.CLUSTER.NUM_CLUSTERS", "6", "SSKD.CLUSTER.KNN", "faiss")
    for overrides in ((), kmeans):  # k-means searches no neighbours
        with pytest.raises(Begun):
            run(tiny_adaptation(tmp_path, *overrides))


def test_an_error_names_key_rule_and_value(tmp_path):
    with pytest.raises(ValueError, match=r"SSKD\.CLUSTER\.EPS must be a Jaccard distance in \(0, 1\).*got -0\.5: "):
        check_settings(tiny_adaptation(tmp_path, "SSKD.CLUSTER.EPS", "-0.5"))


def test_a_target_of_one_image(tmp_path):
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        check_clustering(tiny_adaptation(tmp_path), 1)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_pass(name):
    cfg = load_config(str(CONFIGS / name))
    check_settings(cfg)
    check_clustering(cfg, 12_936)  # images of Market-1501


def test_every_key_of_the_tables_is_one():
    cfg = load_config("")
    for key in (*check_config._NAMES, *check_config._RANGES):
        assert check_config._value(cfg, key) is not None


def test_only_an_eps_above_zero_goes_first(tmp_path):
    """ "The first of these three that is > 0": a negative one, which a library's user may have set, is passed over."""
    options = {}
    for eps in (-0.5, 0.0, 0.4):
        cfg = tiny_adaptation(tmp_path, "SSKD.CLUSTER.EPS", str(eps))
        refresh = PseudoLabelRefresh(cfg, types.SimpleNamespace(device="cpu"), [], None)
        refresh.trainer = types.SimpleNamespace(epoch=0)
        options[eps] = refresh._clustering_options()
    assert options[0.4]["eps"] == 0.4 and "pairs_per_image" not in options[0.4]
    for eps in (-0.5, 0.0):
        assert "eps" not in options[eps] and options[eps]["pairs_per_image"] == 2.0
    refresh.cfg = tiny_adaptation(tmp_path, "SSKD.CLUSTER.EPS", "-0.5")
    refresh.eps, refresh.trainer.epoch = 0.3, 1
    assert refresh._clustering_options()["eps"] == 0.3


def test_abilities_are_asked_of_the_device_that_is_used(data_sets, tmp_path, monkeypatch):
    """A number names it: what is asked before it is the current device is answered by another."""
    asked = []
    monkeypatch.setattr(pipeline, "use_device", lambda device: asked.append(device))
    monkeypatch.setattr(pipeline, "Precision", lambda cfg: asked.append("precision"))
    pipeline.check_inputs(tiny_adaptation(tmp_path))
    assert asked == ["cpu", "precision"]
