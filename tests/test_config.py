"""The SSKD node.

Read everywhere, the method's numbers as defaults, and every config that ships with the package.
"""

import ast
import dataclasses
import inspect
import types
from pathlib import Path

import fastreid_sskd  # first of all: it mends the host before anything else imports it

# isort: split
import pytest
import torch
from fastreid.config import get_cfg
from fastreid.engine.hooks import LRScheduler
from fastreid.utils.events import EventStorage
from tiny_reid import CONFIGS
from yacs.config import CfgNode

from fastreid_sskd import add_sskd_config
from fastreid_sskd.clustering import KNN_BACKENDS, VARIANTS, ClusterOptions
from fastreid_sskd.clustering.eps import RULES
from fastreid_sskd.config import HOST, KEYS, OneOf, Rule, reference, value_of
from fastreid_sskd.engine import Trainer, load_config, source_config
from fastreid_sskd.engine.events import LABEL_FREE
from fastreid_sskd.evaluation.ranking import METRICS_IN_BLOCKS
from fastreid_sskd.losses import SSKD_LOSS_REGISTRY
from fastreid_sskd.losses.loss_set import build_losses
from fastreid_sskd.modeling.sskd import LABEL_STATISTICS

ALL = sorted(path.name for path in CONFIGS.glob("*.yml"))
FULL = [
    "sskd_m2d.yml",
    "sskd_d2m.yml",
    "sskd_m2msmt.yml",
    "sskd_d2msmt.yml",
    "sskd_msmt2m.yml",
    "sskd_m2d_bn16.yml",
]
SOURCES = ["source_m2d.yml", "source_d2m.yml", "source_m2msmt.yml", "source_d2msmt.yml", "source_msmt2m.yml"]


def new_config():
    cfg = get_cfg()
    add_sskd_config(cfg)
    return cfg


def load(name, *opts):
    return load_config(str(CONFIGS / name), opts)


def leaves(node, prefix=""):
    """{dotted key: value} of a node."""
    found = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            found.update(leaves(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


# ---- what the node holds and who reads it --------------------------------------------------------


def keys_read(path):
    """Dotted names that a source file reads, with `name = a.b.c` followed, and keys that it spells in
    strings.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aliases = {
        node.targets[0].id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Attribute)
    }  # fmt: skip

    def dotted(node, followed=()):
        if isinstance(node, ast.Attribute):
            return f"{dotted(node.value, followed)}.{node.attr}"
        if isinstance(node, ast.Name) and node.id in aliases and node.id not in followed:
            return dotted(aliases[node.id], (*followed, node.id))
        return node.id if isinstance(node, ast.Name) else "?"

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield dotted(node)
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("SSKD.")
        ):
            yield node.value


def test_every_key_is_read():
    package = Path(fastreid_sskd.__file__).parent
    sources = [path for path in package.rglob("*.py") if path.name != "config.py"]
    read = [name for path in sources for name in keys_read(path)]
    cfg = new_config()
    by_name = ("LOSSES.", "FOLDERS.")  # read as the parameters of what they name, see below and test_datasets
    wanted = ["SEED", *(f"SSKD.{key}" for key in leaves(cfg.SSKD) if not key.startswith(by_name))]
    # options of the clustering are read as the fields of the dataclass that is made from them
    fields = {
        f"SSKD.CLUSTER.{field.name.upper()}": f"options.{field.name}"
        for field in dataclasses.fields(ClusterOptions)
    }
    names = {key: fields.get(key, key) for key in wanted}
    unread = [
        key for key, own in names.items() if not any(name.endswith(f".{own}") or name == own for name in read)
    ]
    assert not unread, f"nothing reads {unread}"


def test_reading_is_found_where_it_is(tmp_path):
    """The search itself.

    A chain, an alias, and neither an assignment nor another node's key of the same name.
    """
    path = tmp_path / "code.py"
    path.write_text(
        "cfg.SSKD.WRITTEN = 1\nnode = self.cfg.SSKD.CLUSTER\nnode.K1 + cfg.SSKD.PLAIN + cfg.OTHER.K2\n"
    )
    found = set(keys_read(path))
    assert {"self.cfg.SSKD.CLUSTER.K1", "cfg.SSKD.PLAIN", "cfg.OTHER.K2"} <= found
    assert not any(name.endswith(("WRITTEN", "CLUSTER.K2")) for name in found)


def test_every_loss_parameter_is_one():
    for name, node in new_config().SSKD.LOSSES.items():
        taken = set(inspect.signature(SSKD_LOSS_REGISTRY.get(name)).parameters)
        assert {key.lower() for key in node} - {"weight"} == taken, name


def test_every_loss_weight_is_used():
    cfg = new_config()
    cfg.MODEL.HEADS.NECK_FEAT = "after"
    names = list(cfg.SSKD.LOSSES)
    for name in names:
        for other in names:
            cfg.SSKD.LOSSES[other].WEIGHT = 0.25 if other == name else 0.0
        ((weight, loss),) = build_losses(cfg).active
        assert weight == 0.25 and type(loss).__name__ == name


def test_a_loss_on_features_after_the_neck_needs_them():
    cfg = new_config()
    cfg.SSKD.LOSSES.ClusterContrast.WEIGHT = 1.0
    with pytest.raises(
        ValueError, match="ClusterContrast takes features from behind .*NECK_FEAT is 'before'"
    ):
        build_losses(cfg)


def test_a_classifier_is_trained_or_moved_not_both():
    cfg = new_config()
    cfg.MODEL.HEADS.NECK_FEAT = "after"
    cfg.SSKD.LOSSES.ClusterContrast.WEIGHT = 1.0
    with pytest.raises(
        ValueError,
        match="ClusterContrast moves the classifier, which LabelSmoothCE, SoftCE, NuclearNorm would train",
    ):
        build_losses(cfg)
    for name in ("LabelSmoothCE", "SoftCE", "NuclearNorm"):
        cfg.SSKD.LOSSES[name].WEIGHT = 0.0
    assert [type(loss).__name__ for _, loss in build_losses(cfg).active] == [
        "MultiSimilarity",
        "ClusterContrast",
    ]


def test_defaults_are_the_methods():
    """The paper's numbers; all defaults are on the page of docs/, which the next test compares."""
    found = leaves(new_config().SSKD)
    method = {
        "NUM_PEERS": 3, "ITERS_PER_EPOCH": 400, "EMA.MOMENTUM": 0.999, "SOFT_LABELS.BN": "batch",
        "SOFT_LABELS.TEMPERATURE": 1.0, "LOSSES.LabelSmoothCE.WEIGHT": 0.5,
        "LOSSES.LabelSmoothCE.EPSILON": 0.1, "LOSSES.SoftCE.WEIGHT": 0.5,
        "LOSSES.MultiSimilarity.WEIGHT": 3.0, "LOSSES.MultiSimilarity.ALPHA": 2.0,
        "LOSSES.MultiSimilarity.BETA": 40.0, "LOSSES.MultiSimilarity.BASE": 0.5,
        "LOSSES.MultiSimilarity.MARGIN": 0.1, "LOSSES.NuclearNorm.WEIGHT": 1.5, "ERASING.AREA": (0.02, 0.4),
        "ERASING.ASPECT": (0.3, 3.3), "CLUSTER.K1": 20, "CLUSTER.K2": 6, "CLUSTER.VARIANT": "sskd",
        "CLUSTER.METHOD": "dbscan", "CLUSTER.EPS_RULE": "pairs", "CLUSTER.RHO": 1.6e-3,
        "CLUSTER.MIN_SAMPLES": 4, "SOURCE.CLASSIFIER_STD": 0.001,
    }  # fmt: skip
    off = ("ClusterContrast", "SoftTriplet", "PeerSoftTriplet")
    method |= {f"LOSSES.{name}.WEIGHT": 0.0 for name in off}
    assert method.items() <= found.items()


def test_every_key_has_a_meaning_and_a_place_on_the_page():
    own = [key for key in KEYS if key.default is not HOST]
    assert {key.name for key in own} == {"SEED", *(f"SSKD.{name}" for name in leaves(new_config().SSKD))}
    assert all(key.meaning for key in own)
    page = (Path(__file__).parents[1] / "docs" / "config.md").read_text(encoding="utf-8")
    assert page == reference(), "run make reference"


def test_the_table_names_keys_once_and_fast_reids_as_they_are():
    names = [key.name for key in KEYS]
    assert len(set(names)) == len(names)
    for key in KEYS:
        assert value_of(new_config(), key.name) is not None
        assert key.resume in ("same", "start", "continue", "any")


@pytest.mark.parametrize("key", [key for key in KEYS if isinstance(key.rule, Rule)], ids=lambda key: key.name)
def test_ranges_have_an_end_and_refuse_nan(key):
    default = value_of(new_config(), key.name)
    if not isinstance(default, (list, tuple)):
        assert not key.rule.allows(float("nan")) and not key.rule.allows(-2)
    assert key.name == "SEED" or key.rule.allows(default)


def test_choices_are_those_of_the_parts_that_act():
    choices = {key.name: tuple(key.rule.names) for key in KEYS if isinstance(key.rule, OneOf)}
    assert choices["SSKD.SELECT_BY"] == ("mAP", *LABEL_FREE)
    assert choices["SSKD.SOFT_LABELS.BN"] == LABEL_STATISTICS
    assert set(choices["SSKD.CLUSTER.EPS_RULE"]) == {"pairs", *RULES}
    assert set(choices["SSKD.CLUSTER.VARIANT"]) == set(VARIANTS)
    assert set(choices["SSKD.CLUSTER.KNN"]) == {"auto", *KNN_BACKENDS}
    assert set(choices["TEST.METRIC"]) == {*METRICS_IN_BLOCKS, "jaccard"}


def test_host_keys_are_left_alone():
    host, ours = get_cfg(), new_config()
    del ours["SSKD"], ours["SEED"]
    assert ours == host


@pytest.mark.parametrize(
    "key", ["SSKD.PEER", "SSKD.CLUSTER.RHOO", "SSKD.LOSSES.Nothing.WEIGHT", "SOLVER.SPEED"]
)
def test_unknown_keys(key, tmp_path):
    near = r"there is: SSKD\.CLUSTER\.RHO" if key.endswith("RHOO") else ""
    with pytest.raises(KeyError, match=f"{key.split('.')[1]}.*{near}"):
        load_config("", [key, "1"])
    path = tmp_path / "wrong.yml"
    *nodes, leaf = key.split(".")
    path.write_text(
        "".join(f"{'  ' * i}{node}:\n" for i, node in enumerate(nodes)) + f"{'  ' * len(nodes)}{leaf}: 1\n"
    )
    with pytest.raises(KeyError, match=f"{key.split('.')[1]}.*{near}"):
        load_config(str(path))


# ---- the configs ---------------------------------------------------------------------------------


def test_configs_that_are_promised_exist():
    assert set(FULL) | set(SOURCES) | {"base_network.yml", "base_sskd.yml", "base_source.yml"} <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_config_loads(name):
    cfg = load(name, "SEED", "5", "SSKD.CLUSTER.EPS", "0.5")
    assert cfg.SEED == 5 and cfg.SSKD.CLUSTER.EPS == 0.5
    assert cfg.SOLVER.IMS_PER_BATCH % cfg.DATALOADER.NUM_INSTANCE == 0
    build_losses(cfg)
    assert "SSKD" in cfg.dump()


@pytest.mark.parametrize("name", [name for name in ALL if load(name).SSKD.SOURCE.CONFIG])
def test_adaptation_and_its_source_fit(name):
    cfg = load(name, "OUTPUT_DIR", "somewhere")
    source = source_config(cfg, 0)
    assert cfg.MODEL.META_ARCHITECTURE == "SSKD" and source.MODEL.META_ARCHITECTURE == "SSKDSource"
    assert not set(source.DATASETS.NAMES) & set(cfg.DATASETS.NAMES)
    assert tuple(source.SSKD.SOURCE.BN_DATASETS) == tuple(cfg.DATASETS.NAMES)
    if source.TEST.EVAL_PERIOD:
        assert source.DATASETS.TESTS == source.DATASETS.NAMES  # model_best is chosen on the source
    else:  # a source without a test split
        assert not source.DATASETS.TESTS
    assert source.MODEL.BACKBONE == cfg.MODEL.BACKBONE and source.MODEL.HEADS == cfg.MODEL.HEADS
    assert source.SSKD.LOSSES.SoftCE.WEIGHT == 0 and source.SSKD.LOSSES.PeerSoftTriplet.WEIGHT == 0


@pytest.mark.parametrize("name", FULL)
def test_full_adaptation_is_the_methods(name):
    cfg = load(name)
    defaults = leaves(new_config().SSKD)
    changed = {key for key, value in leaves(cfg.SSKD).items() if value != defaults[key]}
    changed -= {"CACHE_IMAGES"}  # the pixels are the same
    assert changed == {"SOURCE.CONFIG"} | ({"BN_CHUNK"} if "bn16" in name else set())
    assert cfg.SSKD.BN_CHUNK == (16 if "bn16" in name else 0)
    assert cfg.SOLVER.MAX_EPOCH == 20 and cfg.SOLVER.WARMUP_ITERS == 0
    assert not [step for step in cfg.SOLVER.STEPS if step <= 20]  # constant rate
    assert cfg.INPUT.REA.ENABLED and cfg.INPUT.REA.PROB == 0.5
    assert cfg.TEST.EVAL_PERIOD == 1


@pytest.mark.parametrize("name", FULL + SOURCES)
def test_full_network_and_batches_are_the_methods(name):
    cfg = load(name)
    backbone, heads, solver = cfg.MODEL.BACKBONE, cfg.MODEL.HEADS, cfg.SOLVER
    assert (backbone.NAME, backbone.DEPTH, backbone.LAST_STRIDE) == ("build_resnet_backbone", "50x", 1)
    assert backbone.PRETRAIN and not (backbone.WITH_IBN or backbone.WITH_NL or backbone.WITH_SE)
    assert (heads.POOL_LAYER, heads.WITH_BNNECK, heads.NECK_FEAT, heads.CLS_LAYER, heads.EMBEDDING_DIM) == (
        "GlobalAvgPool", True, "before", "Linear", 0,
    )  # fmt: skip
    assert (solver.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE) == (64, 4)
    assert (solver.OPT, solver.BASE_LR) == ("Adam", 3.5e-4)
    assert {solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_BIAS} == {5e-4}
    assert (solver.HEADS_LR_FACTOR, solver.BIAS_LR_FACTOR, solver.AMP.ENABLED) == (1.0, 1.0, False)
    assert cfg.INPUT.SIZE_TRAIN == cfg.INPUT.SIZE_TEST == [256, 128]
    assert cfg.INPUT.FLIP.ENABLED and cfg.INPUT.FLIP.PROB == 0.5
    assert cfg.INPUT.PADDING.ENABLED and cfg.INPUT.PADDING.SIZE == 10
    others = ("CJ", "CROP", "AUTOAUG", "AUGMIX", "AFFINE", "RPT")
    assert not any(cfg.INPUT[name].ENABLED for name in others)


@pytest.mark.parametrize("name", SOURCES)
def test_full_source_training_is_the_methods(name):
    cfg = load(name)
    weights = {loss: node.WEIGHT for loss, node in cfg.SSKD.LOSSES.items() if node.WEIGHT}
    assert weights == {"LabelSmoothCE": 1.0, "MultiSimilarity": 1.0, "NuclearNorm": 2.0}
    assert (cfg.SOLVER.MAX_EPOCH, cfg.SSKD.ITERS_PER_EPOCH) == (80, 100)
    assert not cfg.INPUT.REA.ENABLED
    assert cfg.TEST.EVAL_PERIOD == 40  # the better of epochs 40 and 80


def learning_rates(cfg):
    """Rate of every step, as the trainer's scheduler and hook set it, without training."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=cfg.SOLVER.BASE_LR)
    iters = cfg.SSKD.ITERS_PER_EPOCH
    hook = LRScheduler(optimizer, Trainer.build_lr_scheduler(cfg, optimizer, iters))
    found = []
    with EventStorage(0) as storage:
        hook.trainer = trainer = types.SimpleNamespace(
            iter=0, epoch=0, storage=storage, grad_scaler=None,
            warmup_iters=cfg.SOLVER.WARMUP_ITERS, delay_epochs=cfg.SOLVER.DELAY_EPOCHS,
        )  # fmt: skip
        for trainer.epoch in range(cfg.SOLVER.MAX_EPOCH):
            for _ in range(iters):
                hook.before_step()
                found.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                hook.after_step()
                trainer.iter += 1
            hook.after_epoch()
    return found


@pytest.mark.parametrize("name", SOURCES[:1])
def test_source_learning_rate(name):
    """Linear from 0.01 over 10 epochs, x 0.1 from the 40th and the 70th epoch on.

    The 40th's candidate has had one.
    """
    expected = []
    for step in range(80 * 100):
        warm = min(1.0, 0.01 + (1 - 0.01) * step / 1000)
        expected.append(3.5e-4 * warm * 0.1 ** ((step >= 3900) + (step >= 6900)))
    assert learning_rates(load(name)) == pytest.approx(expected, rel=1e-9)


def test_adaptation_learning_rate_is_constant():
    cfg = load("sskd_m2d.yml", "SSKD.ITERS_PER_EPOCH", "40")
    assert set(learning_rates(cfg)) == {3.5e-4}
