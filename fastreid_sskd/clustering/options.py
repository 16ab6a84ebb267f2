"""The options of the pseudo-label refresh, made from `SSKD.CLUSTER` or from the command line."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field, fields
from typing import Any

from fastreid.config import CfgNode

from ..config import KEYS, OneOf, check_value
from .methods import CLUSTERING_METHODS, find_method

_KEYS = {
    key.name.removeprefix("SSKD.CLUSTER.").lower(): key
    for key in KEYS
    if key.name.startswith("SSKD.CLUSTER.")
}
#: options of which one sets the radius
RADIUS = ("eps", "eps_rule", "pairs_per_image", "rho")


def parts_read(method: str, eps_rule: str) -> set[str]:
    """Which of `Key.read_by` a clustering method and rule read, beside "stage 2"."""
    uses = CLUSTERING_METHODS[method].uses if method in CLUSTERING_METHODS else "radius"
    parts = {"radius": {"neighbors", "radius"}, "distances": {"neighbors"}, "features": set()}[uses]
    return parts | {"radii"} if uses == "radius" and eps_rule != "pairs" else parts


def _key(name: str) -> Any:
    """A field with the default of the key of this name."""
    default = _KEYS[name].default
    return field(default=tuple(default) if isinstance(default, list) else default)


@dataclass(frozen=True)
class ClusterOptions:
    """How features become pseudo-labels; each field is a key of `SSKD.CLUSTER`, `seed` is `SEED`.

    Meanings, defaults and ranges are those of the keys, see docs/config.md. The radius is the first of these
    that is given: `eps`, an `eps_rule` other than "pairs", `pairs_per_image`, `rho`.

    Raises:
        ValueError: an unknown method, or a value out of its range that the method reads.
    """

    k1: int = _key("k1")
    k2: int = _key("k2")
    variant: str = _key("variant")
    knn: str = _key("knn")
    reduced_dim: int = _key("reduced_dim")
    min_recall: float = _key("min_recall")
    method: str = _key("method")
    num_clusters: int = _key("num_clusters")
    eps: float = _key("eps")
    eps_rule: str = _key("eps_rule")
    pairs_per_image: float = _key("pairs_per_image")
    rho: float = _key("rho")
    eps_radii: tuple[float, ...] = _key("eps_radii")
    eps_largest_share: float = _key("eps_largest_share")
    eps_min: float = _key("eps_min")
    eps_max: float = _key("eps_max")
    min_samples: int = _key("min_samples")
    max_noise_share: float = _key("max_noise_share")
    max_largest_share: float = _key("max_largest_share")
    on_limit: str = _key("on_limit")
    seed: int = 0

    def __post_init__(self) -> None:
        find_method(self.method)
        read = parts_read(self.method, self.eps_rule)
        for name, key in _KEYS.items():
            checked = key.rule and hasattr(self, name) and name != "knn"  # a search may be registered later
            if checked and key.read_by in ("stage 2", *read):
                check_value(key.name, getattr(self, name), key.rule)
        if self.seed < 0:
            raise ValueError(f"SEED must be a number >= 0; got {self.seed}")
        if "radius" in read and self.eps_max and self.eps_min > self.eps_max:
            raise ValueError(
                f"SSKD.CLUSTER.EPS_MIN={self.eps_min:g} and SSKD.CLUSTER.EPS_MAX={self.eps_max:g} must be 0 "
                "(no bound) or positive with EPS_MIN <= EPS_MAX"
            )

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> ClusterOptions:
        """The options of a run; a SEED that is not set counts as 0."""
        values = {name: cfg.SSKD.CLUSTER[name.upper()] for name in _KEYS if name in cls.__dataclass_fields__}
        values["eps_radii"] = tuple(values["eps_radii"])
        return cls(**values, seed=max(cfg.SEED, 0))

    def replace(self, **changes: Any) -> ClusterOptions:
        """A copy with some options changed."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add a flag for each option; only those given are in the parsed namespace."""
        radius = parser.add_mutually_exclusive_group()
        for option in fields(cls):
            key = _KEYS.get(option.name)
            names = key.rule.names if key and isinstance(key.rule, OneOf) else None
            several = isinstance(option.default, tuple)
            (radius if option.name in RADIUS else parser).add_argument(
                f"--{option.name.replace('_', '-')}",
                type=float if several else type(option.default),
                nargs="+" if several else None,
                choices=list(CLUSTERING_METHODS) if option.name == "method" else names,
                default=argparse.SUPPRESS,
                help=key.meaning.replace("%", "%%") if key else "seed of methods that draw",
            )

    @classmethod
    def from_arguments(cls, given: argparse.Namespace) -> ClusterOptions:
        """The options of a command line to which `add_arguments` added the flags."""
        values = {option.name: vars(given)[option.name] for option in fields(cls) if option.name in given}
        if "eps_radii" in values:
            values["eps_radii"] = tuple(values["eps_radii"])
        return cls(**values)
