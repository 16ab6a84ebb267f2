"""Infomap (Rosvall and Bergstrom, PNAS 2008) on the graph of near pairs, by the authors' package."""

from __future__ import annotations

import numpy as np

from .dbscan import NOISE
from .methods import ClusterProblem, numbered, register_clustering


def import_infomap() -> type:
    """The package's class Infomap.

    Raises:
        ImportError: it is not installed.
    """
    try:
        from infomap import Infomap
    except ImportError as error:
        raise ImportError(
            "SSKD.CLUSTER.METHOD is 'infomap', whose package is not installed: pip install infomap (GPL-3.0), or set "
            "it to 'dbscan'"
        ) from error
    return Infomap


@register_clustering("infomap")
def infomap(problem: ClusterProblem) -> np.ndarray:
    """Modules of the graph of pairs with J <= eps, weighted 1 - J; modules below min_samples images are noise.

    Raises:
        ImportError: the package infomap is not installed.
    """
    infomap_class = import_infomap()
    pairs, count = problem.pairs, len(problem.rows)
    near = pairs.data <= np.float32(problem.eps)
    labels = np.full(count, NOISE, dtype=np.int64)
    if not near.any():
        return labels
    row = np.repeat(np.arange(count), np.diff(pairs.indptr))[near]
    search = infomap_class(silent=True, two_level=True, seed=problem.seed + 1, num_trials=1)
    column, weight = pairs.indices[near], 1 - pairs.data[near].astype(np.float64)
    order = np.lexsort((column, row))  # the order of links would change what the seed draws
    search.add_links(list(zip(row[order].tolist(), column[order].tolist(), weight[order].tolist(), strict=True)))
    result = search.run()
    # infomap 2.16 gives a result that is to be asked; before, the search itself is
    modules = result.modules() if hasattr(result, "modules") else search.get_modules()
    for image, module in dict(modules).items():
        labels[image] = module
    sizes = np.bincount(labels[labels >= 0])
    labels[(labels >= 0) & (sizes[labels] < problem.min_samples)] = NOISE
    return numbered(labels)
