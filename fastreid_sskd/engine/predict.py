"""Features of the images of a folder, by any model that a config describes."""
import os

import numpy as np
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode
from fastreid.evaluation.evaluator import inference_context

from ..data import extraction_loader
from .pipeline import load_trained

__all__ = ["image_paths", "predict"]

IMAGE_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def image_paths(folder: str) -> list[str]:
    """All images below a folder, by their endings, sorted.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no image.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"folder {folder!r} not found")
    paths = sorted(
        os.path.join(at, name)
        for at, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMAGE_ENDINGS)
    )
    if not paths:
        raise ValueError(f"no image below {folder!r}: looked for {', '.join(IMAGE_ENDINGS)}")
    return paths


def predict(cfg: CfgNode, folder: str) -> tuple[list[str], np.ndarray]:
    """The paths of N images and their features (N, d), float32 of unit length.

    Args:
        cfg: describes the model; ``MODEL.WEIGHTS`` its checkpoint, ``SSKD.EVAL_WITH`` which teacher of an SSKD model.
        folder: searched with its sub-folders.
    """
    paths = image_paths(folder)
    model = load_trained(cfg)
    loader = extraction_loader(cfg, [(path, 0, 0) for path in paths])
    with inference_context(model), torch.no_grad():
        features = [F.normalize(model(batch).float(), dim=1).cpu() for batch in loader]
    return paths, torch.cat(features).numpy()
