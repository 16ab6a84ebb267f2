"""The options of the pseudo-label refresh, made from `SSKD.CLUSTER` or from the command line."""
from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

from fastreid.config import CfgNode

from .methods import find_method

Rule = tuple[Callable[[Any], bool], str]

_COUNT: Rule = (lambda v: v >= 1, "a number of images >= 1")
_OR_AUTOMATIC: Rule = (lambda v: v >= 0, "a number >= 1, or 0 to choose it automatically")
_RATIO: Rule = (lambda v: 0 <= v <= 1, "a ratio in [0, 1]")
_POSITIVE_RATIO: Rule = (lambda v: 0 < v <= 1, "a ratio in (0, 1]")


#: what reads an option: a search for neighbors; a radius; the rules that try several radii
_NEIGHBORS, _RADIUS, _SEVERAL = "neighbors", "radius", "several"


def _option(default: Any, meaning: str, rule: Rule | None = None, read_by: str = "") -> Any:
    return field(default=default, metadata={"meaning": meaning, "rule": rule, "read_by": read_by})


@dataclass(frozen=True)
class ClusterOptions:
    """How features become pseudo-labels. A field is the key of the same name in `SSKD.CLUSTER`; `seed` is `SEED`.

    The radius is the first of these that is given: `eps`, an `eps_rule` other than "pairs", `pairs_per_image`, `rho`.

    Raises:
        ValueError: an unknown method, or a value out of its range that the method reads.
    """

    k1: int = _option(20, "neighbors that make the reciprocal sets [images]", _COUNT, _NEIGHBORS)
    k2: int = _option(6, "neighbors averaged in query expansion, self included; 1: none [images]", _COUNT, _NEIGHBORS)
    variant: str = _option("sskd", "definition of the Jaccard distance")
    knn: str = _option("auto", "neighbor search; reduced and ivf are approximate")
    reduced_dim: int = _option(0, "reduced: length of the projected features; 0: half, at most 256", _OR_AUTOMATIC, _NEIGHBORS)
    ivf_lists: int = _option(0, "ivf: number of cells; 0: 4 sqrt(N)", _OR_AUTOMATIC, _NEIGHBORS)
    ivf_probes: int = _option(0, "ivf: cells searched for an image; 0: enough for the recall wanted", _OR_AUTOMATIC, _NEIGHBORS)
    min_recall: float = _option(0.98, "approximate search: recall below which a warning is logged", _POSITIVE_RATIO, _NEIGHBORS)
    method: str = _option("dbscan", "clustering method")
    num_clusters: int = _option(0, "kmeans: number of clusters")
    eps: float = _option(
        0.0, "radius as a Jaccard distance in (0, 1); 0: estimate it",
        (lambda v: 0 <= v < 1, "a Jaccard distance in (0, 1), or 0 to estimate it by PAIRS_PER_IMAGE or RHO"),
        _RADIUS,
    )  # fmt: skip
    eps_rule: str = _option("pairs", "how the radius is estimated: by pairs, or by the clusters at several radii")
    pairs_per_image: float = _option(
        0.0, "the radius averages this many of the smallest distances per image; 0: use rho",
        (lambda v: v >= 0, "a number of pairs > 0, or 0 to estimate eps by RHO"),
        _RADIUS,
    )  # fmt: skip
    rho: float = _option(1.6e-3, "the radius averages this ratio of the smallest distances")
    eps_radii: tuple[float, ...] = _option(
        tuple(i / 25 for i in range(6, 18)), "radii tried by the other rules, ascending",
        (
            lambda v: len(v) >= 2 and all(low < high for low, high in pairwise((0, *v, 1))),
            "two or more ascending Jaccard distances in (0, 1)",
        ),
        _SEVERAL,
    )  # fmt: skip
    eps_largest_share: float = _option(
        0.03, "ratio of the images above which a cluster is too large for the other rules", _POSITIVE_RATIO,
        _SEVERAL,
    )
    eps_min: float = _option(
        0.0, "lower bound of an estimated radius; 0: none",
        (lambda v: 0 <= v < 1, "a Jaccard distance in (0, 1), or 0 for no bound"),
        _RADIUS,
    )  # fmt: skip
    eps_max: float = _option(
        0.0, "upper bound of an estimated radius; 0: none",
        (lambda v: 0 <= v <= 1, "a Jaccard distance in (0, 1], or 0 for no bound"),
        _RADIUS,
    )  # fmt: skip
    min_samples: int = _option(4, "images that make a core (dbscan) or a cluster (hdbscan, infomap)", _COUNT, _NEIGHBORS)
    max_noise_share: float = _option(0.9, "limit of the ratio of images without a cluster; 1: none", _RATIO)
    max_largest_share: float = _option(0.25, "limit of the ratio of images in the largest cluster; 1: none", _RATIO)
    on_limit: str = _option(
        "warn", "whether a ratio above its limit is a warning or a collapse",
        (lambda v: v in ("warn", "collapse"), "warn or collapse"),
    )  # fmt: skip
    seed: int = _option(0, "seed of methods that draw", (lambda v: v >= 0, "a number >= 0"))

    def __post_init__(self) -> None:
        uses = find_method(self.method).uses
        unread = {
            _NEIGHBORS: uses == "features", _RADIUS: uses != "radius",
            _SEVERAL: uses != "radius" or self.eps_rule == "pairs",
        }  # fmt: skip
        for option in fields(self):
            value, rule = getattr(self, option.name), option.metadata["rule"]
            if rule is None or unread.get(option.metadata["read_by"]) or rule[0](value):
                continue
            key = "SEED" if option.name == "seed" else f"SSKD.CLUSTER.{option.name.upper()}"
            given = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{key} must be {rule[1]}; got {given}: change it in the config or on the command line")
        if uses == "radius" and self.eps_max and self.eps_min > self.eps_max:
            raise ValueError(
                f"SSKD.CLUSTER.EPS_MIN={self.eps_min:g} and SSKD.CLUSTER.EPS_MAX={self.eps_max:g} must be 0 (no bound) "
                "or positive with EPS_MIN <= EPS_MAX"
            )

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> ClusterOptions:
        """The options of a run; a SEED that is not set counts as 0."""
        values = {o.name: cfg.SSKD.CLUSTER[o.name.upper()] for o in fields(cls) if o.name != "seed"}
        values["eps_radii"] = tuple(values["eps_radii"])
        return cls(**values, seed=max(cfg.SEED, 0))

    def replace(self, **changes: Any) -> ClusterOptions:
        """A copy with some options changed."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser, choices: Mapping[str, Sequence[str]]) -> None:
        """Add a flag for each option; only those given are in the parsed namespace.

        Args:
            choices: names that an option may have.
        """
        radius = parser.add_mutually_exclusive_group()
        for option in fields(cls):
            several = isinstance(option.default, tuple)
            (radius if option.name in RADIUS else parser).add_argument(
                f"--{option.name.replace('_', '-')}",
                type=float if several else type(option.default),
                nargs="+" if several else None,
                choices=choices.get(option.name),
                default=argparse.SUPPRESS,
                help=option.metadata["meaning"],
            )


#: options of which one sets the radius
RADIUS = ("eps", "eps_rule", "pairs_per_image", "rho")

