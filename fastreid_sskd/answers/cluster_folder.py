"""Clusters as a folder each, to be looked through and annotated."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Sequence

import numpy as np

from ..clustering import cluster_centroids

TABLE = "clusters.csv"


def check_cluster_folder(folder: str) -> None:
    """Check that :func:`write_clusters` can make a folder; Raises ValueError if not."""
    if os.path.lexists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise ValueError(f"{folder!r} is there and not an empty folder: give the clusters another name")
    above = os.path.dirname(os.path.abspath(folder))
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    if not os.path.isdir(above) or not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(f"{folder!r} cannot be made, {above!r} takes no new folder")


def write_clusters(
    folder: str, paths: Sequence[str], features: np.ndarray, labels: np.ndarray, *, copy: bool = False
) -> None:
    """Make a folder with one folder a cluster, and a table of all images; all or nothing.

    ``FOLDER/0007/003_name.jpg`` is the fourth of cluster 7 by its similarity to the mean; ``FOLDER/noise``
    holds images of no cluster. ``clusters.csv`` has the columns image, cluster ("" for noise), similarity
    (cosine to the cluster's mean) and file (below the folder).

    Args:
        folder: must not be there, or be empty.
        paths: of N images. features: (N, d) of unit length. labels: (N,), -1 for noise.
        copy: copies instead of links.

    Raises:
        ValueError: see :func:`check_cluster_folder`.
        FileNotFoundError: if images are not there.
        OSError: if links or copies cannot be made.
    """
    check_cluster_folder(folder)
    gone = [path for path in paths if not os.path.isfile(path)]
    if gone:
        raise FileNotFoundError(
            f"{len(gone)} of {len(paths)} images are not there any more (first: {gone[0]!r}), so they cannot "
            "be put into folders: bring them back, or build the gallery again without them"
        )
    centroids = cluster_centroids(features, labels)
    folder = os.path.realpath(folder)  # an empty folder, or a link to one, may be in its place
    draft = f"{folder}.{os.getpid()}.tmp"
    try:
        os.makedirs(draft)
        with open(
            os.path.join(draft, TABLE), "w", newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            table = csv.writer(file)
            table.writerow(["image", "cluster", "similarity", "file"])
            for label in np.unique(labels):
                members = np.flatnonzero(labels == label)
                near = features[members] @ centroids[label] if label >= 0 else np.zeros(len(members))
                name = f"{label:04d}" if label >= 0 else "noise"
                os.mkdir(os.path.join(draft, name))
                for place, at in enumerate(np.argsort(-near, kind="stable")):
                    path = os.path.abspath(paths[members[at]])
                    below = os.path.join(name, f"{place:03d}_{os.path.basename(path)}")
                    (shutil.copy2 if copy else os.symlink)(path, os.path.join(draft, below))
                    table.writerow(
                        [path, *((label, f"{near[at]:.4f}") if label >= 0 else ("", "")), below]
                    )  # fmt: skip
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
