"""Settings that cannot work are refused before a source model is trained, and what ships is not."""

import os
import sys
import types

import pytest
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from tiny_reid import (
    CONFIGS,
    DUKE,
    MARKET,
    overrides,
    tiny_adaptation,
    tiny_baseline,
    tiny_source,
    write_split,
)

from fastreid_sskd.clustering import ClusterOptions, check_options
from fastreid_sskd.config import KEYS, OneOf, value_of
from fastreid_sskd.data.loaders import source_items
from fastreid_sskd.engine import check_config, evaluate, load_config, pipeline, run
from fastreid_sskd.engine.check_config import check_settings
from fastreid_sskd.engine.hooks import PseudoLabelRefresh
from fastreid_sskd.refusals import UnknownNameError

SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yml"))

RESNET = (
    "MODEL.BACKBONE.NAME build_resnet_backbone",
    "MODEL.BACKBONE.DEPTH 18x",
    "MODEL.BACKBONE.FEAT_DIM 512",
)
ESTIMATED = ("SSKD.CLUSTER.PAIRS_PER_IMAGE 0.0",)  # the tiny config's: else it goes before RHO

# the key that the error names, and the overrides
WRONG = [
    ("NUM_CLUSTERS", "SSKD.CLUSTER.METHOD kmeans", "SSKD.CLUSTER.NUM_CLUSTERS 0"),
    ("NUM_CLUSTERS", "SSKD.CLUSTER.METHOD kmeans", "SSKD.CLUSTER.NUM_CLUSTERS 1"),
    ("NUM_CLUSTERS", "SSKD.CLUSTER.METHOD kmeans", "SSKD.CLUSTER.NUM_CLUSTERS 49"),  # of 48 images
    ("K1", "SSKD.CLUSTER.K1 0"),
    ("K2", "SSKD.CLUSTER.K2 0"),
    ("MIN_SAMPLES", "SSKD.CLUSTER.MIN_SAMPLES 0"),
    ("EPS ", "SSKD.CLUSTER.EPS 1.0"),
    ("EPS ", "SSKD.CLUSTER.EPS 1.5"),
    ("EPS ", "SSKD.CLUSTER.EPS float('nan')"),
    ("RHO", "SSKD.CLUSTER.RHO 2.0", *ESTIMATED),
    ("RHO", "SSKD.CLUSTER.RHO 0.0", *ESTIMATED),
    ("RHO", "SSKD.CLUSTER.RHO -0.1", *ESTIMATED),
    ("rounds to 0 pairs", "SSKD.CLUSTER.RHO 1e-4", *ESTIMATED),  # of 1128 pairs
    ("PAIRS_PER_IMAGE", "SSKD.CLUSTER.PAIRS_PER_IMAGE 24.0"),  # there are 23.5
    ("EPS_MIN", "SSKD.CLUSTER.EPS_MIN 0.6", "SSKD.CLUSTER.EPS_MAX 0.5"),
    ("EPS_MIN", "SSKD.CLUSTER.EPS_MIN 1.0"),
    ("EPS_MAX", "SSKD.CLUSTER.EPS_MAX 1.5"),
    ("EPS_RADII", "SSKD.CLUSTER.EPS_RULE plateau", "SSKD.CLUSTER.EPS_RADII [0.5]"),
    ("EPS_RADII", "SSKD.CLUSTER.EPS_RULE plateau", "SSKD.CLUSTER.EPS_RADII [0.5, 0.4]"),
    ("EPS_RADII", "SSKD.CLUSTER.EPS_RULE plateau", "SSKD.CLUSTER.EPS_RADII [0.5, 1.0]"),
    ("EPS_LARGEST_SHARE", "SSKD.CLUSTER.EPS_RULE largest", "SSKD.CLUSTER.EPS_LARGEST_SHARE 0.0"),
    ("WINDOW", "SSKD.EMA.WINDOW 1.5"),
    ("CONFIDENCE", "SSKD.SOFT_LABELS.CONFIDENCE 1.0"),
    ("MAX_NOISE_SHARE", "SSKD.CLUSTER.MAX_NOISE_SHARE 1.5"),
    ("MIN_RECALL", "SSKD.CLUSTER.MIN_RECALL 0.0"),
    ("NUM_PEERS must be .*got -1", "SSKD.NUM_PEERS -1"),
    ("ITERS_PER_EPOCH", "SSKD.ITERS_PER_EPOCH 0"),
    ("MAX_EPOCH", "SOLVER.MAX_EPOCH 0"),
    ("LOG_PERIOD", "SSKD.LOG_PERIOD 0"),
    ("KEEP_CHECKPOINTS", "SSKD.KEEP_CHECKPOINTS 0"),
    ("CHECKPOINT_PERIOD", "SOLVER.CHECKPOINT_PERIOD 0"),
    ("SEED", "SEED -1"),
    ("SEED", "SEED 4294967296"),
    ("OPT", "SOLVER.OPT Adamm"),
    ("IMS_PER_BATCH", "TEST.IMS_PER_BATCH 0"),
    ("METRIC", "TEST.METRIC nonsense"),
    ("METHOD", "SSKD.CLUSTER.METHOD spectral"),
    ("EMA.MOMENTUM", "SSKD.EMA.MOMENTUM 1.5"),
    ("EVAL_WITH", "SSKD.EVAL_WITH 2"),
    ("PRECISE_BN", "TEST.PRECISE_BN.ENABLED True"),
    ("SOLVER.IMS_PER_BATCH = 6 ", "SOLVER.IMS_PER_BATCH 6"),
    ("epsilon", "SSKD.LOSSES.LabelSmoothCE.EPSILON 2.0"),
]

# of every run: adaptation, stage 1 and plain
EVERYWHERE = [
    ("nearest that there is: Adam", "SOLVER.OPT adam"),
    ("SparseAdam cannot train", "SOLVER.OPT SparseAdam"),
    ("LBFGS cannot train", "SOLVER.OPT LBFGS"),
    ("SGD cannot train.*esterov", "SOLVER.OPT SGD", "SOLVER.NESTEROV True", "SOLVER.MOMENTUM 0"),
    ("Adam cannot train.*clip", "SOLVER.CLIP_GRADIENTS.ENABLED True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE clip"),
    ("SCHED", "SOLVER.SCHED StepLR"),
    ("MAX_EPOCH", "SOLVER.MAX_EPOCH 0"),
    ("CHECKPOINT_PERIOD", "SOLVER.CHECKPOINT_PERIOD 0"),
    ("LOG_PERIOD", "SSKD.LOG_PERIOD 0"),
    ("RERANK.K1 must be", "TEST.RERANK.K1 0"),
    ("18x, 34x, 50x, 101x; got '19x'", *RESNET, "MODEL.BACKBONE.DEPTH 19x"),
    (
        "FEAT_DIM is 2048, and the maps of build_resnet_backbone 18x have 512 .*set it to 512",
        *RESNET,
        "MODEL.BACKBONE.FEAT_DIM 2048",
    ),
    ("nearest that there is: build_resnet_backbone", "MODEL.BACKBONE.NAME resnet_backbone"),
    ("POOL_LAYER", "MODEL.HEADS.POOL_LAYER AvgPool"),
    ("CLS_LAYER", "MODEL.HEADS.CLS_LAYER Cosine"),
    ("MODEL.HEADS.NAME", "MODEL.HEADS.NAME Head"),
    ("SIZE_TRAIN", "INPUT.SIZE_TRAIN 32"),
    ("PIXEL_STD", "MODEL.PIXEL_STD [0, 1, 1]"),
    ("SOLVER.MOMENTUM must be a share", "SOLVER.MOMENTUM 2"),
    ("SOLVER.GAMMA must be a factor > 0", "SOLVER.GAMMA 0"),
    ("FREEZE_ITERS is 0: set", "MODEL.FREEZE_LAYERS backbone"),
    ("'bacbone', but the network has", "MODEL.FREEZE_LAYERS bacbone", "SOLVER.FREEZE_ITERS 2"),
    ("METRIC", "TEST.METRIC cosinus"),
    ("nearest that there is: Market1501", "DATASETS.NAMES Market1051"),
    ("Market1501", "DATASETS.TESTS Market1051"),
    ("MSMT17", "DATASETS.TESTS MSMT17"),
    ("SEED", "SEED 4294967296"),
    ("MODEL.WEIGHTS 'no.pth' not found", "MODEL.WEIGHTS no.pth"),
    ("MODEL.META_ARCHITECTURE.*nearest that there is: SSKDSource", "MODEL.META_ARCHITECTURE SSKDSorce"),
]
RUNS = {"adaptation": tiny_adaptation, "source": tiny_source, "plain": tiny_baseline}

# what looks odd and is allowed
RIGHT = [
    (),
    ("SSKD.CLUSTER.METHOD kmeans", "SSKD.CLUSTER.NUM_CLUSTERS 2"),
    ("SSKD.CLUSTER.METHOD hdbscan", "SSKD.CLUSTER.RHO 0.0", *ESTIMATED),
    ("SSKD.CLUSTER.EPS 0.5", "SSKD.CLUSTER.RHO 0.0", *ESTIMATED),
    ("SSKD.CLUSTER.RHO 2.0",),  # PAIRS_PER_IMAGE goes before
    (
        "SSKD.CLUSTER.METHOD kmeans",
        "SSKD.CLUSTER.NUM_CLUSTERS 6",
        "SSKD.CLUSTER.RHO 2.0",
        "SSKD.CLUSTER.K1 0",
        "SSKD.CLUSTER.EPS 3.0",
        "SSKD.CLUSTER.MIN_SAMPLES 0",
    ),
    ("SSKD.CLUSTER.METHOD hdbscan", "SSKD.CLUSTER.EPS_MIN 2.0", "SSKD.CLUSTER.PAIRS_PER_IMAGE -1"),
    ("SSKD.CLUSTER.RHO 1.0", *ESTIMATED),
    ("SSKD.CLUSTER.EPS_RULE largest", "SSKD.CLUSTER.RHO 0.0", *ESTIMATED),
    ("SSKD.CLUSTER.PAIRS_PER_IMAGE 23.5",),
    ("SSKD.CLUSTER.EPS_MIN 0.5", "SSKD.CLUSTER.EPS_MAX 0.5"),
    ("SSKD.CLUSTER.MAX_NOISE_SHARE 1.0", "SSKD.CLUSTER.MAX_LARGEST_SHARE 0.0"),
    ("SSKD.CHECKPOINT_SECONDS 0", "SSKD.CHECKPOINT_ITERS 0", "SSKD.KEEP_CHECKPOINTS 1"),
    ("SSKD.CACHE_IMAGES 1", "TEST.METRIC jaccard"),
]


# Keys with a rule that docs/config.md, which a test compares with the table, does not show.
UNWRITTEN = """
    MODEL.BACKBONE.FEAT_DIM MODEL.BACKBONE.NORM MODEL.HEADS.EMBEDDING_DIM MODEL.HEADS.NORM
    MODEL.HEADS.NECK_FEAT MODEL.LOSSES.NAME MODEL.PIXEL_MEAN MODEL.PIXEL_STD INPUT.SIZE_TRAIN
    INPUT.SIZE_TEST INPUT.FLIP.PROB INPUT.CJ.PROB INPUT.AUTOAUG.PROB INPUT.AUGMIX.PROB INPUT.REA.PROB
    INPUT.RPT.PROB DATALOADER.NUM_WORKERS DATALOADER.NUM_INSTANCE DATALOADER.SAMPLER_TRAIN SOLVER.SCHED
    SOLVER.MAX_EPOCH SOLVER.IMS_PER_BATCH SOLVER.BASE_LR SOLVER.HEADS_LR_FACTOR SOLVER.BIAS_LR_FACTOR
    SOLVER.WEIGHT_DECAY SOLVER.WEIGHT_DECAY_NORM SOLVER.WEIGHT_DECAY_BIAS SOLVER.MOMENTUM SOLVER.GAMMA
    SOLVER.WARMUP_METHOD SOLVER.WARMUP_FACTOR SOLVER.WARMUP_ITERS SOLVER.FREEZE_ITERS
    SOLVER.CHECKPOINT_PERIOD TEST.EVAL_PERIOD TEST.IMS_PER_BATCH TEST.METRIC TEST.RERANK.K1
    TEST.RERANK.K2 TEST.RERANK.LAMBDA SSKD.SELECT_BY SSKD.PRECISION SSKD.SOFT_LABELS.BN
    SSKD.CLUSTER.VARIANT SSKD.CLUSTER.KNN SSKD.CLUSTER.EPS_RULE SSKD.CLUSTER.ON_LIMIT
    SSKD.CLUSTER.ON_COLLAPSE
"""


@pytest.mark.parametrize(
    "key", [key for key in KEYS if key.rule or key.name in UNWRITTEN.split()], ids=lambda key: key.name
)
def test_every_rule_is_applied(tmp_path, key):
    """In an adaptation that clusters by radii, which reads all keys but the two of plain runs."""
    plain = key.name in ("MODEL.LOSSES.NAME", "DATALOADER.SAMPLER_TRAIN")
    cfg = (tiny_baseline if plain else tiny_adaptation)(tmp_path, "SSKD.CLUSTER.EPS_RULE largest").clone()
    cfg.defrost()
    section, _, name = key.name.rpartition(".")
    node, wrong = value_of(cfg, section) if section else cfg, "none" if isinstance(key.rule, OneOf) else -2
    node[name] = [wrong] if isinstance(node[name], (list, tuple)) else type(node[name])(wrong)
    with pytest.raises(ValueError, match=f"{key.name} must be"):
        check_settings(cfg)


class Begun(Exception):
    """Source training has begun."""


@pytest.fixture
def training_ends(monkeypatch):
    """Source training raises Begun."""

    def begin(cfg, k):
        raise Begun

    monkeypatch.setattr(pipeline, "_pretrain", begin)


def label(case):
    return " ".join(part.removeprefix("SSKD.").removeprefix("CLUSTER.") for part in case) or "as it is"


@pytest.mark.parametrize("case", WRONG, ids=lambda case: label(case[1:]))
def test_what_cannot_work_is_refused_before_source_training(tmp_path, training_ends, case):
    named, *opts = case
    with pytest.raises(ValueError, match=named):
        run(config(tmp_path, *opts))
    assert not os.path.exists(tmp_path / "source")


@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("case", EVERYWHERE, ids=lambda case: label(case[1:]))
def test_what_no_run_can_do_is_refused_before_anything_is_written(tmp_path, kind, case):
    named, *opts = case
    with pytest.raises((ValueError, FileNotFoundError, UnknownNameError), match=named) as raised:
        run(RUNS[kind](tmp_path / "out", *opts))
    assert raised.value.exit_status == 2
    assert not list(tmp_path.iterdir())


def test_an_architecture_that_does_not_fit_the_backbone(tmp_path):
    with pytest.raises(ValueError, match="cannot be built, AttributeError: .*conv1"):
        pipeline.check_run(tiny_baseline(tmp_path / "out", "MODEL.META_ARCHITECTURE MGN"))


def test_a_network_that_cannot_take_the_test_images(tmp_path):
    vit = (
        "MODEL.BACKBONE.NAME build_vit_backbone",
        "MODEL.BACKBONE.DEPTH small",
        "MODEL.BACKBONE.FEAT_DIM 768",
    )
    with pytest.raises(ValueError, match="fails on an image of 48 x 32 pixels"):
        run(tiny_baseline(tmp_path / "out", *vit, "INPUT.SIZE_TEST [48, 32]"))


@pytest.mark.parametrize("opts", RIGHT, ids=label)
def test_what_can_work_goes_on_to_source_training(tmp_path, training_ends, opts):
    with pytest.raises(Begun):
        run(config(tmp_path, *opts))


def config(output, *opts):
    """The tiny config; "float('nan')", which yacs does not read, is set afterwards."""
    if opts == ("SSKD.CLUSTER.EPS float('nan')",):
        cfg = tiny_adaptation(output)
        cfg.defrost()
        cfg.SSKD.CLUSTER.EPS = float("nan")
        return cfg
    return tiny_adaptation(output, *opts)


@pytest.mark.parametrize(
    "opts, package",
    [
        (("SSKD.CLUSTER.METHOD", "infomap"), "infomap"),
        (("SSKD.CLUSTER.KNN", "faiss"), "faiss"),
    ],
    ids=label,
)
def test_missing_packages(tmp_path, training_ends, monkeypatch, opts, package):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(ImportError, match=f"{opts[0]} is '{opts[1]}'.*pip install {package}"):
        run(tiny_adaptation(tmp_path, *opts))


def test_a_package_that_is_not_used_may_be_missing(tmp_path, training_ends, monkeypatch):
    for package in ("infomap", "faiss"):
        monkeypatch.setitem(sys.modules, package, None)
    kmeans = ("SSKD.CLUSTER.METHOD kmeans", "SSKD.CLUSTER.NUM_CLUSTERS 6", "SSKD.CLUSTER.KNN faiss")
    for opts in ((), kmeans):  # k-means searches no neighbours
        with pytest.raises(Begun):
            run(tiny_adaptation(tmp_path, *opts))


def test_an_error_names_key_rule_and_value(tmp_path):
    with pytest.raises(
        ValueError, match=r"SSKD\.CLUSTER\.EPS must be a Jaccard distance in \(0, 1\).*got -0\.5: "
    ):
        check_settings(tiny_adaptation(tmp_path, "SSKD.CLUSTER.EPS -0.5"))


def test_a_target_of_one_image(tmp_path):
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        check_options(ClusterOptions.from_cfg(tiny_adaptation(tmp_path)), 1)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_pass(name):
    cfg = load_config(str(CONFIGS / name))
    check_settings(cfg)
    check_options(ClusterOptions.from_cfg(cfg), 12_936)  # images of Market-1501


def test_an_eps_that_is_given_goes_before_the_estimated_one(tmp_path):
    for eps, used in ((0.0, 0.3), (0.4, 0.4)):
        cfg = tiny_adaptation(tmp_path, "SSKD.CLUSTER.EPS", str(eps))
        refresh = PseudoLabelRefresh(cfg, types.SimpleNamespace(device="cpu"), [], None)
        assert refresh._options().eps == eps and refresh._options().pairs_per_image == 2.0
        refresh.eps = 0.3
        assert refresh._options().eps == used and refresh._options(estimate_again=True).eps == eps
    with pytest.raises(ValueError, match=r"SSKD\.CLUSTER\.EPS must be"):
        PseudoLabelRefresh(tiny_adaptation(tmp_path, "SSKD.CLUSTER.EPS -0.5"), None, [], None)


def test_abilities_are_asked_of_the_device_that_is_used(data_sets, tmp_path, monkeypatch):
    """A number names it: what is asked before it is the current device is answered by another."""
    asked = []
    monkeypatch.setattr(pipeline, "use_device", lambda device: asked.append(device))
    monkeypatch.setattr(pipeline, "Precision", lambda cfg: asked.append("precision"))
    pipeline.check_inputs(tiny_adaptation(tmp_path))
    assert asked == ["cpu", "precision"]


# ---- one kind of run -----------------------------------------------------------------------------


def test_an_architecture_that_its_backbone_does_not_fit():
    """The host's MGN is made for the channels of ResNet-50."""
    opts = overrides("MODEL.META_ARCHITECTURE MGN", "MODEL.DEVICE cpu", "MODEL.BACKBONE.PRETRAIN False")
    with pytest.raises(
        ValueError, match="cannot be built, RuntimeError: Error.* in loading state_dict"
    ) as refused:
        check_config.build_network(load_config(str(CONFIGS / "base_demo.yml"), opts))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("case", [
    ("LOSSES.NAME is empty, so a Baseline would learn nothing", "MODEL.LOSSES.NAME", ""),
    ("KD.MODEL_CONFIG names none", "MODEL.META_ARCHITECTURE Distiller"),
    ("names 0 teachers and KD.MODEL_WEIGHTS 1", "MODEL.META_ARCHITECTURE Distiller",
     "KD.EMA.ENABLED True", "KD.MODEL_WEIGHTS a.pth"),
], ids=lambda case: label(case[1:]))  # fmt: skip
def test_a_plain_config_that_has_nothing_to_learn_from(tmp_path, case):
    named, *opts = case
    with pytest.raises(ValueError, match=named) as raised:
        run(tiny_baseline(tmp_path / "out", *opts))
    assert raised.value.exit_status == 2 and not list(tmp_path.iterdir())


def test_a_distiller_without_losses_of_its_own_learns_from_itself(tmp_path):
    check_settings(
        tiny_baseline(
            tmp_path, "MODEL.META_ARCHITECTURE Distiller", "KD.EMA.ENABLED True", "MODEL.LOSSES.NAME", ""
        )
    )


@pytest.mark.parametrize("key", ["MODEL.LOSSES.NAME", "DATALOADER.SAMPLER_TRAIN"])
def test_what_only_the_host_reads_is_checked_for_the_host_only(tmp_path, key):
    with pytest.raises(ValueError, match=f"{key} must be one of"):
        check_settings(tiny_baseline(tmp_path, key, "nothing"))
    check_settings(tiny_source(tmp_path, key, "nothing"))
    check_settings(tiny_adaptation(tmp_path, key, "nothing"))


def test_the_hosts_sampler_that_cannot_work(tmp_path):
    with pytest.raises(ValueError, match="SAMPLER_TRAIN must be one of .*; got 'SetReWeightSampler'"):
        check_settings(tiny_baseline(tmp_path, "DATALOADER.SAMPLER_TRAIN SetReWeightSampler"))


@pytest.mark.parametrize("make", [tiny_source, tiny_baseline])
def test_what_only_stage_2_reads_is_not_checked_without_it(tmp_path, make):
    check_settings(make(tmp_path, "SSKD.CLUSTER.EPS -1", "SSKD.SELECT_BY luck", "SEED -1"))


@pytest.mark.parametrize("make", [tiny_source, tiny_baseline])
def test_a_source_of_one_identity(tmp_path, monkeypatch, make):
    for folder in (MARKET, DUKE):
        write_split(tmp_path / "data" / folder / "bounding_box_train", [7], (0, 1), 4, 1)
        write_split(tmp_path / "data" / folder / "query", [1, 2], (0,), 1, 1)
        write_split(tmp_path / "data" / folder / "bounding_box_test", [1, 2], (0, 1), 1, 1)
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "data"))
    with pytest.raises(
        ValueError, match=r"a classifier needs two identities or more, and (DukeMTMC|Market1501) has 1"
    ):
        run(make(tmp_path / "out", "DATALOADER.SAMPLER_TRAIN TrainingSampler"))
    assert not (tmp_path / "out").exists()


def test_a_source_whose_identities_have_one_image_each(tmp_path, monkeypatch):
    write_split(tmp_path / "data" / DUKE / "bounding_box_train", range(1, 9), (0,), 1, 1)
    for part in ("query", "bounding_box_test"):
        write_split(tmp_path / "data" / DUKE / part, [101], (0, 1), 1, 1)
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "data"))
    with pytest.raises(ValueError, match="each of the 8 identities of DukeMTMC has one image"):
        run(tiny_source(tmp_path / "out"))


def test_query_and_gallery_of_a_source_are_trained_on_where_they_are_asked_for(tmp_path):
    """6 people in training; with COMBINEALL 6 others, of query and gallery. Never of a target."""
    train, both = (
        source_items(tiny_source(tmp_path, "DATASETS.COMBINEALL", value)) for value in ("False", "True")
    )
    assert (len(train[0]), max(train[1]) + 1) == (48, 6)
    assert (len(both[0]), max(both[1]) + 1) == (48 + 6 + 24, 12)
    with pytest.raises(ValueError, match="DATASETS.COMBINEALL would train on the target's query and gallery"):
        run(tiny_adaptation(tmp_path, "DATASETS.COMBINEALL True"))


@pytest.mark.parametrize(
    "opt, named",
    [("SOLVER.OPT SparseAdam", "cannot train"), ("SOLVER.MAX_EPOCH 0", "MAX_EPOCH"),
     ("DATASETS.NAMES MSMT17", "MSMT17"),
     ("SOLVER.IMS_PER_BATCH 6", "SOLVER.IMS_PER_BATCH = 6"),
     ("MODEL.WEIGHTS no.pth", "stage 1, .*'no.pth' not found"),
     ("OUTPUT_DIR elsewhere", "SSKD.SOURCE.OPTS: OUTPUT_DIR would be one folder"),
     ("SOLVER.MAX_EPOHC 3", "SSKD.SOURCE.OPTS: there is no key SOLVER.MAX_EPOHC")],
)  # fmt: skip
def test_stage_1_is_checked_before_it_begins(tmp_path, opt, named):
    """By the file and the overrides that it is made of; a run that does not need it does not look at it."""
    cfg = tiny_adaptation(tmp_path / "out")
    cfg.defrost()
    cfg.SSKD.SOURCE.OPTS = [*cfg.SSKD.SOURCE.OPTS, *overrides(opt)]
    with pytest.raises((ValueError, FileNotFoundError, UnknownNameError), match=named) as raised:
        run(cfg)
    assert raised.value.exit_status == 2 and not list(tmp_path.iterdir())
    cfg.SSKD.SOURCE.SKIP = True
    pipeline.check_run(cfg)


def test_a_finished_stage_1_needs_no_data(finished, tmp_path, monkeypatch, world):
    only_target = tmp_path / "data"
    only_target.mkdir()
    (only_target / MARKET).symlink_to(world / MARKET)
    monkeypatch.setenv("FASTREID_DATASETS", str(only_target))
    pipeline.check_run(finished.cfg)
    with pytest.raises(FileNotFoundError, match=r"stage 1, .*source_d2m\.yml: data set DukeMTMC"):
        pipeline.check_run(tiny_adaptation(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone, depth", [(name, depth) for name, known in check_config._HOST_DEPTHS.items() for depth in known]
)
def test_every_depth_that_is_named_is_one(tmp_path, backbone, depth):
    cfg = load_config(
        "", ["MODEL.DEVICE", "meta", "MODEL.BACKBONE.NAME", backbone, "MODEL.BACKBONE.DEPTH", depth]
    )
    assert check_config.build_network(cfg).backbone is not None


def test_every_backbone_of_the_host_has_its_depths():
    host = {
        name
        for name, builder in BACKBONE_REGISTRY._obj_map.items()
        if builder.__module__.startswith("fastreid.")
    }
    assert host == set(check_config._HOST_DEPTHS)


def test_evaluation_needs_a_test_set(finished):
    cfg = finished.cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TESTS, cfg.MODEL.WEIGHTS = (), str(finished.output / "model_final.pth")
    with pytest.raises(ValueError, match="DATASETS.TESTS is empty") as raised:
        evaluate(cfg)
    assert raised.value.exit_status == 2
