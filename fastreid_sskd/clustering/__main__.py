"""The refresh alone, on saved features: python -m fastreid_sskd.clustering FEATURES.npy --out LABELS.npy"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..engine.atomic import check_output, write_atomically
from .backends import KNN_BACKENDS, ApproximateOptions
from .diagnostics import cluster_agreement
from .guards import PseudoLabelError, check_usable
from .jaccard import VARIANTS
from .methods import CLUSTERING_METHODS
from .refresh import find_method, pseudo_labels
from .sweep import RULES, RadiusSweep

logger = logging.getLogger("fastreid.sskd.clustering")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line of the refresh."""
    parser = argparse.ArgumentParser(prog="python -m fastreid_sskd.clustering", description=__doc__)
    parser.add_argument(
        "features", type=Path, help="(N, d) array: .npy, read as a memory map, or 'features' in the .npz of --predict"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="the .npy file for the (N,) int64 labels, -1 for noise"
    )
    parser.add_argument("--centroids", type=Path, help="the .npy file for the (C, d) float32 centroids")
    parser.add_argument("--identities", type=Path, help="(N,) array of true identities, to report agreement")
    parser.add_argument("--cameras", type=Path, help="(N,) array of cameras, whose mean and deviation are taken out first")
    parser.add_argument("--k1", type=int, default=20)
    parser.add_argument("--k2", type=int, default=6)
    parser.add_argument("--variant", choices=list(VARIANTS), default="sskd")
    radius = parser.add_mutually_exclusive_group()
    radius.add_argument("--eps", type=float, help="DBSCAN's radius itself")
    radius.add_argument("--rho", type=float, help="or the share of pairs it averages (1.6e-3 unless given)")
    radius.add_argument("--pairs-per-image", type=float, help="or the number of pairs per image it averages")
    radius.add_argument("--eps-rule", choices=list(RULES), help="or what of the clusters at several radii chooses it")
    parser.add_argument("--eps-radii", type=float, nargs="+", default=[i / 25 for i in range(6, 18)], help="those radii")
    parser.add_argument(
        "--eps-largest-share", type=float, default=0.03, help="share of the images above which a cluster there is too large"
    )
    parser.add_argument("--eps-min", type=float, default=0.0, help="bounds of an estimated radius; 0: none")
    parser.add_argument("--eps-max", type=float, default=0.0)
    parser.add_argument("--min-samples", type=int, default=4)
    parser.add_argument("--method", choices=list(CLUSTERING_METHODS), default="dbscan")
    parser.add_argument("--num-clusters", type=int, default=0, help="for kmeans")
    parser.add_argument("--seed", type=int, default=0, help="for methods that draw")
    parser.add_argument("--knn", choices=["auto", *KNN_BACKENDS], default="auto")
    parser.add_argument(
        "--reduced-dim", type=int, default=0, help="length for the k-NN 'reduced'; 0: half, at most 256"
    )
    parser.add_argument("--ivf-lists", type=int, default=0, help="cells of the k-NN 'ivf'; 0: 4 sqrt(N)")
    parser.add_argument("--ivf-probes", type=int, default=0, help="cells searched; 0: enough for --min-recall")
    parser.add_argument("--min-recall", type=float, default=ApproximateOptions.min_recall)
    parser.add_argument("--device", help="where the k-NN search runs, e.g. cuda; the CPU unless given")
    options = parser.parse_args(arguments)
    given = [options.eps, options.rho, options.pairs_per_image, options.eps_rule]
    if find_method(options.method).uses != "radius":
        if any(value is not None for value in given):
            parser.error(f"--method {options.method} has no radius: leave out --eps, --rho, --pairs-per-image, --eps-rule")
    elif all(value is None for value in given):
        options.rho = 1.6e-3
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Cluster the features and save the labels; 3 when nothing can be trained on them, 2 when they cannot be clustered."""
    options = parse_arguments(arguments)
    logger.addFilter(_with_flags)
    try:
        return _cluster(options)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        logger.error("%s", error)
        return 2
    finally:
        logger.removeFilter(_with_flags)


def _with_flags(record: logging.LogRecord) -> bool:
    """A log filter: what a config calls SSKD.CLUSTER.PAIRS_PER_IMAGE is --pairs-per-image here."""
    said = re.sub(r"SSKD\.CLUSTER\.(\w+)", lambda key: f"--{key[1].lower().replace('_', '-')}", record.getMessage())
    record.msg, record.args = said, ()
    return True


def _read(path: Path, name: str) -> np.ndarray:
    """The array of a .npy file, or the one of that name in a .npz."""
    try:
        file = np.load(path, mmap_mode="r")
    except (EOFError, ValueError, zipfile.BadZipFile):  # numpy's own message may advise to load the file unsafely
        raise ValueError(f"{path} is not a whole .npy or .npz file of numbers: make it with numpy.save or --predict") from None
    if isinstance(file, np.ndarray):
        return file
    with file:
        if name not in file:
            raise ValueError(f"{path} has no array {name!r}, only {', '.join(file.files)}")
        return file[name]


def _read_names(options: argparse.Namespace, name: str, shape: tuple) -> np.ndarray | None:
    """What an option, if it is given, says of each image; ``shape`` is that of the features."""
    path = getattr(options, name)
    if path is None:
        return None
    names = _read(path, name)
    if names.shape != shape[:1]:
        raise ValueError(f"--{name} has to give one for each image, got {names.shape} for features {shape}")
    unknown = np.flatnonzero(np.isnan(names)) if names.dtype.kind == "f" else []
    if len(unknown):
        raise ValueError(
            f"--{name} is NaN for {len(unknown)} of {len(names)} images (first: row {unknown[0]}): name it for each, or leave --{name} out"
        )
    return names


def _cluster(options: argparse.Namespace) -> int:
    outputs = [path for path in (options.out, options.centroids) if path is not None]
    inputs = [path for path in (options.features, options.identities, options.cameras) if path is not None]
    for path in outputs:
        check_output(path, (".npy",), inputs)
    if len({path.absolute() for path in outputs}) < len(outputs):
        raise ValueError(f"--out and --centroids are both {options.out}: give two files")
    features = _read(options.features, "features")
    identities, cameras = (_read_names(options, name, features.shape) for name in ("identities", "cameras"))
    sweep = options.eps_rule and RadiusSweep(options.eps_rule, tuple(options.eps_radii), options.eps_largest_share)
    result = pseudo_labels(
        features,
        k1=options.k1,
        k2=options.k2,
        variant=options.variant,
        eps=options.eps,
        rho=options.rho,
        pairs_per_image=options.pairs_per_image,
        sweep=sweep,
        eps_min=options.eps_min,
        eps_max=options.eps_max,
        min_samples=options.min_samples,
        method=options.method,
        num_clusters=options.num_clusters,
        seed=options.seed,
        knn=options.knn,
        approximate=ApproximateOptions(
            options.reduced_dim, options.ivf_lists, options.ivf_probes, options.min_recall
        ),
        device=options.device,
        cameras=cameras,
    )
    for path, array in zip(outputs, (result.labels, result.centroids)):
        write_atomically(str(path), lambda file, array=array: np.save(file, array))
    logger.info("%s", result.report)
    logger.info("seconds: %s", ", ".join(f"{stage} {value:.2f}" for stage, value in result.seconds.items()))
    if identities is not None:
        agreement = cluster_agreement(result.labels, identities)
        logger.info("agreement: %s", ", ".join(f"{name} {value:.3f}" for name, value in agreement.items()))
    try:
        check_usable(result.report)
    except PseudoLabelError as error:
        logger.error("%s", error)
        return error.exit_status
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    sys.exit(main())
