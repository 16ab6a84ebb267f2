"""Cluster saved features: `python -m fastreid_sskd.clustering FEATURES.npy --out LABELS.npy`."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..engine.files import check_output, write_atomically
from .diagnostics import cluster_agreement
from .methods import find_method
from .options import RADIUS, ClusterOptions
from .refresh import PseudoLabelError, check_usable, pseudo_labels

logger = logging.getLogger("fastreid.sskd.clustering")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what `ClusterOptions` has is left out where it is not given."""
    parser = argparse.ArgumentParser(prog="python -m fastreid_sskd.clustering", description=__doc__)

    def file(name: str, text: str, **how) -> None:
        parser.add_argument(name, type=Path, help=text, **how)

    file("features", "(N, d) array: .npy, read as a memory map, or 'features' in the .npz of --predict")
    file("--out", "the .npy file for the (N,) int64 labels, -1 for noise", required=True)
    file("--centroids", "the .npy file for the (C, d) float32 centroids")
    file("--identities", "(N,) array of true identities, to report agreement")
    file("--cameras", "(N,) array of cameras, whose mean and deviation are taken out first")
    parser.add_argument("--device", help="where the k-NN search runs, e.g. cuda; the CPU unless given")
    ClusterOptions.add_arguments(parser)
    options = parser.parse_args(arguments)
    method = vars(options).get("method", ClusterOptions.method)
    if find_method(method).uses != "radius" and any(hasattr(options, name) for name in RADIUS):
        parser.error(
            f"--method {method} has no radius: leave out --eps, --rho, --pairs-per-image, --eps-rule"
        )
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Cluster the features and save the labels; 3: the labels have collapsed, 2: they cannot be clustered."""
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

    def flag(key: re.Match) -> str:
        return f"--{key[1].lower().replace('_', '-')}"

    record.msg, record.args = re.sub(r"SSKD\.CLUSTER\.(\w+)", flag, record.getMessage()), ()
    return True


def _read(path: Path, name: str) -> np.ndarray:
    """The array of a .npy file, or the one of that name in a .npz."""
    try:
        file = np.load(path, mmap_mode="r")
    except (EOFError, ValueError, zipfile.BadZipFile):  # numpy's message may advise to load the file unsafely
        raise ValueError(
            f"{path} is not a whole .npy or .npz file of numbers: make it with numpy.save or --predict"
        ) from None
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
            f"--{name} is NaN for {len(unknown)} of {len(names)} images (first: row {unknown[0]}): "
            f"name it for each, or leave --{name} out"
        )
    return names


def _cluster(given: argparse.Namespace) -> int:
    outputs = [path for path in (given.out, given.centroids) if path is not None]
    inputs = [path for path in (given.features, given.identities, given.cameras) if path is not None]
    for path in outputs:
        check_output(path, (".npy",), inputs)
    if len({path.absolute() for path in outputs}) < len(outputs):
        raise ValueError(f"--out and --centroids are both {given.out}: give two files")
    options = ClusterOptions.from_arguments(given)
    features = _read(given.features, "features")
    identities, cameras = (_read_names(given, name, features.shape) for name in ("identities", "cameras"))
    result = pseudo_labels(features, options, device=given.device, cameras=cameras)
    for path, array in zip(outputs, (result.labels, result.centroids)):
        write_atomically(str(path), lambda file, array=array: np.save(file, array))
    logger.info("%s", result.report)
    logger.info("seconds: %s", ", ".join(f"{stage} {value:.2f}" for stage, value in result.seconds.items()))
    if identities is not None:
        agreement = cluster_agreement(result.labels, identities)
        logger.info("agreement: %s", ", ".join(f"{name} {value:.3f}" for name, value in agreement.items()))
    try:
        check_usable(result.report, options)
    except PseudoLabelError as error:
        logger.error("%s", error)
        return error.exit_status
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    sys.exit(main())
