"""A trained peer as a plain fast-reid ``Baseline``: a checkpoint and a yml that need nothing of this package."""
import os

import torch
import yaml
from fastreid.config import CfgNode, get_cfg
from fastreid.modeling import build_model
from fastreid.utils.checkpoint import Checkpointer
from torch import nn

from ..modeling import SSKD
from ..modeling.peer_config import peer_config
from .deployed import deployed
from .parity import check_parity, random_images

__all__ = ["baseline_config", "export_baseline"]

# of these sections, what differs from fast-reid's defaults goes into the yml
_SECTIONS = ("MODEL", "INPUT", "TEST")
#: largest difference of a feature between the peer and the exported model, relative to the largest feature
TOLERANCE = 1e-5


def baseline_config(cfg: CfgNode, k: int, num_classes: int, weights: str) -> dict:
    """What a yml has to say, over fast-reid's defaults, to describe peer k as a ``Baseline``.

    Args:
        cfg: the run's config.
        k: the peer; 0 for a model with one network.
        num_classes: rows of its classifier.
        weights: ``MODEL.WEIGHTS``.
    """
    cfg = peer_config(cfg, k)
    model = cfg.MODEL
    model.META_ARCHITECTURE, model.DEVICE = cfg.SSKD.PEER_ARCHITECTURE, get_cfg().MODEL.DEVICE  # whoever loads it has another device
    model.WEIGHTS = weights
    model.BACKBONE.PRETRAIN, model.BACKBONE.PRETRAIN_PATH = False, ""
    model.HEADS.NUM_CLASSES = num_classes
    if model.HEADS.NAME == "ClasHead":
        model.HEADS.NAME = "EmbeddingHead"  # a ClasHead returns logits; a peer is read as this one
    cfg.TEST.EVAL_PERIOD = get_cfg().TEST.EVAL_PERIOD  # of the training
    return {key: part for key in _SECTIONS if (part := _differences(cfg[key], get_cfg()[key]))}


def _differences(node: CfgNode, default: CfgNode) -> dict:
    found = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            value = _differences(value, default[key])
            if value:
                found[key] = value
        elif value != default[key]:
            found[key] = list(value) if isinstance(value, tuple) else value
    return found


def export_baseline(cfg: CfgNode, model: nn.Module, path: str, peer: str = "best") -> tuple[str, float]:
    """Write ``path`` (.pth) and the yml beside it, load both as fast-reid does, and compare features.

    Args:
        cfg: the config that the model was built from.
        model: see :func:`.deployed.deployed`.
        path: of the checkpoint; the yml gets the same name.
        peer: "best" or a number. The ensemble is several networks and no Baseline.

    Returns:
        The path of the yml, and the largest difference of a feature, relative to the largest feature.

    Raises:
        ValueError: if ``path`` does not end in .pth, or the ensemble is asked for.
        RuntimeError: if the exported model gives other features.
    """
    if not path.endswith(".pth"):
        raise ValueError(f"a fast-reid checkpoint ends in .pth, got {path!r}")
    network = deployed(model, peer)
    if len(network.networks) > 1:
        raise ValueError(
            "the ensemble is several networks, and a Baseline holds one: export a teacher (best or its number), or the "
            "ensemble as onnx"
        )
    (teacher,) = network.networks
    k = model.chosen_peer(peer) if isinstance(model, SSKD) else 0
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    state = {key: value.cpu() for key, value in teacher.state_dict().items()}
    torch.save({"model": state}, path)
    yml = f"{path.removesuffix('.pth')}.yml"
    with open(yml, "w", encoding="utf-8") as file:
        yaml.safe_dump(baseline_config(cfg, k, teacher.num_classes, path), file, sort_keys=False)

    plain = get_cfg()
    plain.merge_from_file(yml)
    plain.MODEL.DEVICE = cfg.MODEL.DEVICE
    again = build_model(plain)
    Checkpointer(again).load(path)
    images = random_images(cfg.INPUT.SIZE_TEST)
    error = check_parity(network, lambda batch: again.eval()(batch), [images], TOLERANCE, what=path)
    return yml, error
