"""A map of features in two dimensions."""

import importlib
import importlib.util

import numpy as np
import torch

__all__ = ["project"]

_FEW = 15  # the neighbours that UMAP looks at by default


def project(features: np.ndarray) -> tuple[np.ndarray, str]:
    """Positions (N, 2) of N features (N, d), and the name of the method: UMAP if it is installed, else PCA.

    PCA's axes are the directions of the largest variance, each turned so that its largest weight is positive.
    """
    features = np.asarray(features, dtype=np.float64)
    if len(features) > _FEW and importlib.util.find_spec("umap"):
        umap = importlib.import_module("umap")  # the extra "umap"
        threads = torch.get_num_threads()
        try:
            return umap.UMAP(n_components=2, random_state=0).fit_transform(features), "UMAP"
        finally:
            torch.set_num_threads(threads)  # numba sets the number that torch shares with it
    centred = features - features.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = np.vstack([axes, np.zeros((2, features.shape[1]))])[:2]
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])
    return centred @ (axes * signs[:, None]).T, "PCA"
