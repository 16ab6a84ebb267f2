"""Write one trained network as a plain fast-reid model: a checkpoint and a yml."""

import os
from collections.abc import Sequence

import torch
import yaml
from fastreid.config import CfgNode, get_cfg
from fastreid.modeling import build_model
from fastreid.modeling.meta_arch import Baseline, MoCo
from fastreid.utils.checkpoint import Checkpointer
from torch import nn

from ..data.loaders import image_size
from ..engine.files import check_output, written_together
from ..modeling import SSKD, Peer
from ..modeling.peer import peer_config
from .deployed import check_parity, deployed, random_images

# of these sections, what differs from fast-reid's defaults goes into the yml
_SECTIONS = ("MODEL", "INPUT", "TEST")
#: largest difference of a feature between the model and the exported model, relative to the largest feature
TOLERANCE = 1e-5


def check_baseline_files(path: str, reads: Sequence[str] = ()) -> str:
    """Check that :func:`export_baseline` can write its two files; returns the path of the yml.

    An older export is replaced. A checkpoint or a yml that stands alone is no export: it may be the only copy
    of a trained model.
    """
    yml = f"{path[: -len(check_output(path, ('.pth',), reads))]}.yml"
    check_output(yml, reads=reads)
    alone = [file for file in (path, yml) if os.path.exists(file)]
    if len(alone) == 1:
        raise ValueError(
            f"{alone[0]!r} is there and is no export, which has a .pth and a .yml of one name: give the "
            "output another name, or remove that file"
        )
    return yml


def baseline_config(
    cfg: CfgNode, k: int, num_classes: int, weights: str, architecture: str = "Baseline"
) -> dict:
    """Describe one network by what differs from fast-reid's defaults, for a yml.

    Args:
        cfg: the run's config.
        k: the peer; 0 for a model with one network.
        num_classes: rows of its classifier.
        weights: ``MODEL.WEIGHTS``.
        architecture: ``MODEL.META_ARCHITECTURE``.
    """
    of_peers = cfg.MODEL.META_ARCHITECTURE in ("SSKD", "SSKDSource")
    cfg = peer_config(cfg, k)
    model = cfg.MODEL
    # whoever loads it has another device
    model.META_ARCHITECTURE, model.DEVICE = architecture, get_cfg().MODEL.DEVICE
    model.WEIGHTS = weights
    model.BACKBONE.PRETRAIN, model.BACKBONE.PRETRAIN_PATH = False, ""
    model.HEADS.NUM_CLASSES = num_classes
    if of_peers and model.HEADS.NAME == "ClasHead":
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
    """Write a checkpoint and its yml, load both as fast-reid does, and compare with the model's evaluation.

    A network that is backbone and head becomes a ``Baseline``, another keeps its meta-architecture. The files
    get their names when the features agree; older ones stay where they do not.

    Args:
        cfg: the config that the model was built from.
        model: see :func:`.deployed.deployed`.
        path: of the checkpoint; the yml gets the same name. Their folder is made.
        peer: "best" or a number. The ensemble is several networks and no Baseline.

    Returns:
        The path of the yml, and the largest difference of a feature, relative to the largest feature.

    Raises:
        ValueError: see :func:`check_baseline_files`; if the ensemble is asked for.
        RuntimeError: if the exported model gives other features.
    """
    yml = check_baseline_files(path, [cfg.MODEL.WEIGHTS, *cfg.SSKD.PEERS])
    if isinstance(model, SSKD) and model.chosen_peer(peer) is None:
        raise ValueError(
            "the ensemble is several networks, and a Baseline holds one: export a teacher (best or its "
            "number), or the ensemble as onnx"
        )
    network = deployed(model, peer)
    (single,) = network.encoder.networks
    k = model.chosen_peer(peer) if isinstance(model, SSKD) else 0
    if isinstance(single, Peer):
        architecture, num_classes = peer_config(cfg, k).SSKD.PEER_ARCHITECTURE, single.num_classes
        own_forward = single.architecture is not None
    else:
        architecture, num_classes = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.HEADS.NUM_CLASSES
        own_forward = type(single) not in (Baseline, MoCo)  # of MoCo only the losses differ
    state = {key: value.cpu() for key, value in single.state_dict().items()}
    if not own_forward:
        architecture = "Baseline"
        state = {key: value for key, value in state.items() if key.startswith(("backbone.", "heads."))}
    with written_together(path, yml) as (weights, config):
        torch.save({"model": state}, weights)
        with open(config, "w", encoding="utf-8") as file:
            yaml.safe_dump(baseline_config(cfg, k, num_classes, path, architecture), file, sort_keys=False)
        plain = get_cfg()
        plain.merge_from_file(config)
        plain.MODEL.DEVICE = cfg.MODEL.DEVICE
        again = build_model(plain).eval()
        Checkpointer(again).load(weights)
        images = [random_images(image_size(cfg))]
        error = check_parity(
            network.expected, lambda batch: again({"images": batch}), images, TOLERANCE, what=path
        )
    return yml, error
