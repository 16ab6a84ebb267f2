"""Whether a config's values can work, before anything is trained: the ranges and names that config.py states."""
import inspect
from collections.abc import Callable

import numpy as np
import torch
from fastreid.config import CfgNode

from ..clustering import (
    CLUSTERING_METHODS,
    KNN_BACKENDS,
    VARIANTS,
    ApproximateOptions,
    Limits,
    RadiusSweep,
    check_bounds,
    find_method,
)
from ..clustering.backends import import_faiss
from ..clustering.eps import mean_of_smallest, most_pairs_averaged, rho_from_pairs_per_image
from ..clustering.features import UnitRows
from ..clustering.infomap import import_infomap
from ..clustering.jaccard import list_sizes
from ..clustering.kmeans import check_num_clusters
from ..clustering.sweep import RULES
from ..data.transforms import PLACES
from ..evaluation.distances import METRICS_IN_BLOCKS
from ..modeling.sskd import LABEL_STATISTICS
from .records import LABEL_FREE

__all__ = ["check_clustering", "check_settings"]

#: settings that are one of some names; names of clusterings and searches may be registered later, so they are looked up
_NAMES: dict[str, Callable[[], tuple[str, ...]]] = {
    "SOLVER.OPT": lambda: tuple(name for name, value in vars(torch.optim).items() if inspect.isclass(value) and name != "Optimizer"),
    "SOLVER.WARMUP_METHOD": lambda: ("linear", "constant", "exp"),
    "TEST.METRIC": lambda: (*METRICS_IN_BLOCKS, "jaccard"),  # the host's third, of all distances at once
    "SSKD.SELECT_BY": lambda: ("mAP", *LABEL_FREE),
    "SSKD.AUGMENT_ON": lambda: PLACES,
    "SSKD.SOFT_LABELS.BN": lambda: LABEL_STATISTICS,
    "SSKD.CLUSTER.METHOD": lambda: tuple(CLUSTERING_METHODS),
    "SSKD.CLUSTER.EPS_RULE": lambda: ("pairs", *RULES),
    "SSKD.CLUSTER.VARIANT": lambda: tuple(VARIANTS),
    "SSKD.CLUSTER.KNN": lambda: ("auto", *KNN_BACKENDS),
    "SSKD.CLUSTER.ON_LIMIT": lambda: ("warn", "collapse"),
    "SSKD.CLUSTER.ON_COLLAPSE": lambda: ("stop", "keep"),
}

#: numbers that nothing else checks before it is too late: whether a value is allowed, and what is. NaN never is.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "SEED": (lambda v: 0 <= v < 2**32, "a number >= 0 and below 2**32; fastreid_sskd.engine.resolve, and so the command line, draws one for -1"),
    "SOLVER.MAX_EPOCH": (lambda v: v >= 1, "a number of epochs >= 1"),
    "SSKD.ITERS_PER_EPOCH": (lambda v: v >= 1, "a number of iterations >= 1"),
    "SSKD.CACHE_IMAGES": (lambda v: v >= 0, "a size in MB >= 0, 0 for no cache"),
    "SOLVER.BASE_LR": (lambda v: v >= 0, "a learning rate >= 0"),
    "TEST.IMS_PER_BATCH": (lambda v: v >= 1, "a number of images >= 1"),
    "TEST.EVAL_PERIOD": (lambda v: v >= 0, "a number of epochs >= 0, 0 for never"),
    "DATALOADER.NUM_WORKERS": (lambda v: v >= 0, "a number of processes >= 0"),
    "SSKD.EMA.WINDOW": (lambda v: 0 <= v <= 1, "a share of the run's steps in (0, 1], or 0 for SSKD.EMA.MOMENTUM"),
    "SSKD.SOFT_LABELS.TEMPERATURE": (lambda v: 0 <= v < float("inf"), "a number > 0, or 0 to find it at every refresh"),
    "SSKD.SOFT_LABELS.CONFIDENCE": (lambda v: 0 < v < 1, "a probability in (0, 1)"),
    "SSKD.LOG_PERIOD": (lambda v: v >= 1, "a number of iterations >= 1"),
    "SSKD.CLUSTER.EPS": (
        lambda v: 0 <= v < 1, "a Jaccard distance in (0, 1), or 0 to estimate it by PAIRS_PER_IMAGE or RHO",
    ),
    "SSKD.CLUSTER.PAIRS_PER_IMAGE": (lambda v: v >= 0, "a number of pairs > 0, or 0 to estimate eps by RHO"),
    "SSKD.CLUSTER.EPS_EVERY": (lambda v: v >= 0, "a number of epochs >= 1, or 0 to estimate eps once"),
    "SSKD.CLUSTER.EPS_MIN": (lambda v: 0 <= v < 1, "a Jaccard distance in (0, 1), or 0 for no bound"),
    "SSKD.CLUSTER.EPS_MAX": (lambda v: 0 <= v <= 1, "a Jaccard distance in (0, 1], or 0 for no bound"),
    "SSKD.CLUSTER.MIN_SAMPLES": (lambda v: v >= 1, "a number of images >= 1"),
}  # fmt: skip


def check_settings(cfg: CfgNode) -> None:
    """Check names, ranges and optional packages, whatever the data.

    Raises:
        ValueError: naming the key, its rule and its value.
        ImportError: if the clustering or the search for neighbours needs a package that is not installed.
    """
    for key, known in _NAMES.items():
        if _value(cfg, key) not in known():
            raise ValueError(f"{key} must be one of {', '.join(known())}; got {_value(cfg, key)!r}: choose one of them")
    for key, (allowed, rule) in _RANGES.items():
        if not allowed(_value(cfg, key)):
            raise ValueError(f"{key} must be {rule}; got {_value(cfg, key)}: change it in the config or on the command line")
    cluster = cfg.SSKD.CLUSTER
    Limits(cluster.MAX_NOISE_SHARE, cluster.MAX_LARGEST_SHARE)
    ApproximateOptions(cluster.REDUCED_DIM, cluster.IVF_LISTS, cluster.IVF_PROBES, cluster.MIN_RECALL)
    check_bounds(cluster.EPS_MIN, cluster.EPS_MAX)
    if cluster.EPS_RULE != "pairs":
        RadiusSweep(cluster.EPS_RULE, tuple(cluster.EPS_RADII), cluster.EPS_LARGEST_SHARE)
    if cluster.METHOD == "infomap":
        import_infomap()
    if cluster.KNN in ("faiss", "ivf") and find_method(cluster.METHOD).uses != "features":
        import_faiss(cluster.KNN)


def check_clustering(cfg: CfgNode, num_images: int) -> None:
    """Check what ``SSKD.CLUSTER`` says against the number of the target's images N.

    Raises:
        ValueError: if N < 2, lists are empty, a share of the pairs is none or rounds to none, or clusters are not in 2..N.
    """
    UnitRows.from_features(np.ones((num_images, 1), dtype=np.float32))  # refuses too few
    cluster = cfg.SSKD.CLUSTER
    if cluster.METHOD == "kmeans":
        check_num_clusters(cluster.NUM_CLUSTERS, num_images)
    uses = find_method(cluster.METHOD).uses
    if uses != "features":
        list_sizes(num_images, cluster.K1, cluster.K2, cluster.VARIANT)
    if cluster.RHO:  # also one that EPS or PAIRS_PER_IMAGE goes before
        most_pairs_averaged(num_images, cluster.RHO)
    if uses == "radius" and not cluster.EPS and cluster.EPS_RULE == "pairs":
        pairs = cluster.PAIRS_PER_IMAGE
        # what no two images being at distance 0 would give: the largest share there can be
        mean_of_smallest(np.empty(0), num_images, rho_from_pairs_per_image(pairs, num_images) if pairs else cluster.RHO)


def _value(cfg: CfgNode, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
