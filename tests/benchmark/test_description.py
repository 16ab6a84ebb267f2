"""What a config says about a row of a table."""

import pytest
import yaml
from tiny_reid import CONFIGS

from fastreid_sskd.benchmark.description import backbone_name, describe, read_config
from fastreid_sskd.engine import load_config


def config(name="", *opts):
    return yaml.safe_load(load_config(str(CONFIGS / name) if name else "", opts).dump())


@pytest.mark.parametrize(
    "builder, depth, ibn, name",
    [
        ("build_resnet_backbone", "50x", False, "resnet50"),
        ("build_resnet_backbone", "101x", True, "resnet101-ibn"),
        ("build_osnet_backbone", "x0_25", False, "osnet x0.25"),
        ("build_vit_backbone", "base", False, "vit base"),
    ],
)
def test_backbone(builder, depth, ibn, name):
    opts = [
        "MODEL.BACKBONE.NAME",
        builder,
        "MODEL.BACKBONE.DEPTH",
        depth,
        "MODEL.BACKBONE.WITH_IBN",
        str(ibn),
    ]
    assert backbone_name(config("", *opts)) == name


def test_adaptation_between_benchmarks():
    assert describe(config("sskd_m2d.yml"), "DukeMTMC") == {
        "method": "SSKD", "source": "Market1501", "target": "DukeMTMC", "backbone": "resnet50", "images_per_bn": 64,
        "epochs": 20, "seed": 1,
    }  # fmt: skip


def test_batch_norm_in_chunks():
    assert describe(config("sskd_m2d_bn16.yml"), "DukeMTMC")["images_per_bn"] == 16


@pytest.mark.parametrize(
    "opts, processes, images",
    [
        ((), 4, 16), (("SSKD.BN_CHUNK", "16"), 2, 16), (("SSKD.BN_CHUNK", "16"), 8, 8),
        (("MODEL.BACKBONE.NORM", "syncBN"), 4, 64), (("MODEL.META_ARCHITECTURE", "Baseline", "SSKD.BN_CHUNK", "16"), 2, 32),
    ],
)  # fmt: skip
def test_batch_norm_of_several_processes(opts, processes, images):
    """Each sees its own share of the batch, unless they are told each other's."""
    assert describe(config("sskd_m2d.yml", *opts), "DukeMTMC", processes)["images_per_bn"] == images


def test_source_that_is_a_file_of_weights():
    opts = ["SSKD.SOURCE.WEIGHTS", "['a/osnet_msmt17.pth', 'b/osnet_msmt17.pth']"]
    assert describe(config("sskd_msmt2m_osnet.yml", *opts), "Market1501")["source"] == "osnet_msmt17"


@pytest.mark.parametrize("architecture", ["Baseline", "SSKDSource"])
def test_trained_on_the_source_only_or_on_the_target(architecture):
    opts = ["MODEL.META_ARCHITECTURE", architecture, "DATASETS.NAMES", "('Market1501',)"]
    assert describe(config("", *opts), "DukeMTMC")["method"] == f"source only, {architecture}"
    assert describe(config("", *opts), "DukeMTMC")["source"] == "Market1501"
    assert describe(config("", *opts), "Market1501")["method"] == f"supervised, {architecture}"


def test_a_file_that_is_no_config(tmp_path):
    (tmp_path / "config.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="no config of a run"):
        read_config(str(tmp_path / "config.yaml"))
