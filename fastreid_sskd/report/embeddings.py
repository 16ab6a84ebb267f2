"""Features of a run's test images before and after training."""

import logging
import os

import torch
from fastreid.config import CfgNode
from torch import nn

from ..data import Item, extraction_loader
from ..engine import load_config, resolve, trainer_class
from ..engine.pipeline import load_trained
from ..evaluation.features import Encoder, encode_images
from ..modeling import SSKD, load_source_weights
from ..modeling.weights import load_network, read_state_dict
from .run_files import RunFiles

__all__ = ["embed", "model_after", "model_before", "run_config"]

logger = logging.getLogger("fastreid.sskd.report")


def run_config(run: RunFiles) -> CfgNode:
    """The run's config for a computation here: on a device that is there, without worker processes."""
    cfg = resolve(load_config(os.path.join(run.folder, "config.yaml")))
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.freeze()
    return cfg


def model_after(cfg: CfgNode, run: RunFiles) -> nn.Module:
    """The model with the run's last weights.

    Raises:
        FileNotFoundError: if the run has left none.
    """
    if not run.checkpoint:
        raise FileNotFoundError(f"{run.folder!r} has no model_final.pth and no other checkpoint")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = run.checkpoint
    return load_trained(cfg)


def model_before(cfg: CfgNode, run: RunFiles) -> nn.Module:
    """The model as the run started.

    Raises:
        FileNotFoundError: if its source weights are not found, or it started from none.
    """
    files = [
        _found(path, run) for path in (list(cfg.SSKD.SOURCE.WEIGHTS) or [cfg.MODEL.WEIGHTS or ""]) if path
    ]
    adapts = cfg.MODEL.META_ARCHITECTURE == "SSKD"
    if adapts and not files:
        files = [_source_model(run.folder, k) for k in range(cfg.SSKD.NUM_PEERS)]
    if not adapts and cfg.MODEL.WEIGHTS:
        files = [_found(cfg.MODEL.WEIGHTS, run)]
    if not files or cfg.MODEL.META_ARCHITECTURE not in ("SSKD", "SSKDSource"):
        raise FileNotFoundError("the run did not start from weights of a re-ID model")
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.BACKBONE.PRETRAIN = False
    plain.freeze()
    model = trainer_class(cfg).build_model(plain)
    if adapts:
        load_source_weights(model, files)
    else:
        load_network(model, read_state_dict(files[0]), files[0])
    return model.eval()


def _found(path: str, run: RunFiles) -> str:
    """A file of the config, from the working directory or, for stage 1's own, from the folder as it was moved."""
    parts = os.path.normpath(path).split(os.sep)
    moved = os.path.join(run.folder, *parts[-3:])  # source/peer0/model_best.pth
    for candidate in (path, moved):
        if os.path.isfile(candidate):
            return candidate
    raise FileNotFoundError(f"the source weights {path!r} are not there (looked for {moved!r} too)")


def _source_model(folder: str, k: int) -> str:
    for name in ("model_best.pth", "model_final.pth"):
        path = os.path.join(folder, "source", f"peer{k}", name)
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(
        f"the run names no source weights, and {os.path.join(folder, 'source')!r} has none of peer {k}"
    )


def embed(cfg: CfgNode, model: nn.Module, items: list[Item]) -> torch.Tensor:
    """Features (N, d) of the images, on the CPU, as evaluated: the ensemble's of an SSKD model, else the model's own."""
    encoder = Encoder(model, "ensemble" if isinstance(model, SSKD) else "")
    return encode_images(encoder, extraction_loader(cfg, items), flip=cfg.TEST.FLIP.ENABLED)
