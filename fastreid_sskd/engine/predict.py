"""Features of images by any model that a config describes."""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from fastreid.config import CfgNode
from torch import nn

from ..data import extraction_loader
from ..data.datasets import image_paths
from ..evaluation.features import Encoder, encode_images
from .pipeline import load_trained

__all__ = ["image_features", "image_paths", "predict"]


def image_features(cfg: CfgNode, model: nn.Module, paths: Sequence[str]) -> np.ndarray:
    """Compute features (N, d) of N >= 1 images, float32 of unit length, as the model's evaluation does."""
    loader = extraction_loader(cfg, [(path, 0, 0) for path in paths])
    return F.normalize(encode_images(Encoder(model), loader, flip=cfg.TEST.FLIP.ENABLED), dim=1).numpy()


def predict(cfg: CfgNode, folder: str) -> tuple[list[str], np.ndarray]:
    """The paths of N images and their features (N, d), float32 of unit length.

    Args:
        cfg: describes the model; ``MODEL.WEIGHTS`` its checkpoint, ``SSKD.EVAL_WITH`` which teacher of an
            SSKD model.
        folder: searched with its sub-folders.
    """
    paths = image_paths(folder)
    return paths, image_features(cfg, load_trained(cfg), paths)
