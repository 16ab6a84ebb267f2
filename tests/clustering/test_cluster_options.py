"""The one dataclass of options: ranges, and the same from a config as from the command line."""

import argparse
from dataclasses import fields

import pytest
from fastreid.config import get_cfg

from fastreid_sskd import add_sskd_config
from fastreid_sskd.clustering import ClusterOptions


def config(**changes):
    cfg = get_cfg()
    add_sskd_config(cfg)
    for name, value in changes.items():
        cfg.SSKD.CLUSTER[name.upper()] = value
    return cfg


def test_defaults_are_those_of_the_config():
    assert ClusterOptions.from_cfg(config()) == ClusterOptions()


def test_every_option_comes_from_the_config():
    changes = {
        "k1": 9,
        "k2": 3,
        "variant": "faiss",
        "knn": "reduced",
        "reduced_dim": 3,
        "min_recall": 0.1,
        "method": "infomap",
        "num_clusters": 5,
        "eps": 0.4,
        "eps_rule": "plateau",
        "pairs_per_image": 2.0,
        "rho": 0.1,
        "eps_radii": [0.2, 0.3],
        "eps_largest_share": 0.5,
        "eps_min": 0.1,
        "eps_max": 0.9,
        "min_samples": 2,
        "max_noise_share": 0.5,
        "max_largest_share": 0.6,
        "on_limit": "collapse",
    }
    cfg = config(**changes)
    cfg.SEED = 7
    assert {option.name for option in fields(ClusterOptions)} == {*changes, "seed"}
    assert ClusterOptions.from_cfg(cfg) == ClusterOptions(**{**changes, "eps_radii": (0.2, 0.3)}, seed=7)


def test_every_option_is_a_flag():
    parser = argparse.ArgumentParser()
    ClusterOptions.add_arguments(parser)
    assert vars(parser.parse_args([])) == {}
    for option in fields(ClusterOptions):
        default = option.default if isinstance(option.default, tuple) else (option.default,)
        given = parser.parse_args([f"--{option.name.replace('_', '-')}", *map(str, default)])
        assert (
            vars(given).keys() == {option.name} and ClusterOptions.from_arguments(given) == ClusterOptions()
        )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k1": 0}, "SSKD.CLUSTER.K1 must be a number of images >= 1; got 0"),
        ({"k2": 0}, "SSKD.CLUSTER.K2 "),
        ({"min_samples": 0}, "SSKD.CLUSTER.MIN_SAMPLES "),
        ({"reduced_dim": -1}, "SSKD.CLUSTER.REDUCED_DIM "),
        ({"min_recall": 0}, "SSKD.CLUSTER.MIN_RECALL "),
        ({"min_recall": 1.1}, "SSKD.CLUSTER.MIN_RECALL "),
        ({"eps": -0.5}, "SSKD.CLUSTER.EPS must be a Jaccard distance"),
        ({"eps": float("nan")}, "got nan"),
        ({"pairs_per_image": -1}, "SSKD.CLUSTER.PAIRS_PER_IMAGE "),
        ({"max_noise_share": -0.1}, "SSKD.CLUSTER.MAX_NOISE_SHARE must be a ratio in [0, 1]; got -0.1"),
        ({"max_largest_share": 1.1}, "SSKD.CLUSTER.MAX_LARGEST_SHARE "),
        ({"seed": -1}, "SEED must be"),
        ({"eps_min": 0.5, "eps_max": 0.4}, "EPS_MIN <= EPS_MAX"),
        ({"eps_min": -0.1}, "EPS_MIN"),
        ({"eps_max": -0.1}, "EPS_MAX"),
        ({"method": "spectral"}, "SSKD.CLUSTER.METHOD is one of dbscan"),
        *(
            ({"eps_rule": "largest", "eps_radii": radii}, "EPS_RADII")
            for radii in ((0.5,), (0.5, 0.5), (0.0, 0.5), (0.5, float("nan")))
        ),
        *(({"eps_rule": "largest", "eps_largest_share": share}, "EPS_LARGEST_SHARE") for share in (0.0, 1.1)),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError) as error:
        ClusterOptions(**options)
    assert message in str(error.value)


def test_what_the_method_does_not_read_may_be_anything():
    ClusterOptions(method="kmeans", k1=0, min_samples=0, eps=3.0, eps_min=0.5, eps_max=0.4)
    ClusterOptions(method="hdbscan", eps=3.0, pairs_per_image=-1)
    ClusterOptions(eps_radii=(0.5,), eps_largest_share=0.0)
    with pytest.raises(ValueError, match="K1"):
        ClusterOptions(method="hdbscan", k1=0)
