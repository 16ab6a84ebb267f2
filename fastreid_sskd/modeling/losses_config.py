"""From the ``SSKD.LOSSES`` node of a config to the losses of a student."""
from collections.abc import Mapping

from fastreid.config import CfgNode

from ..losses import LossSet, build_loss_set

__all__ = ["build_losses"]


def build_losses(cfg: CfgNode) -> LossSet:
    """Every node of ``SSKD.LOSSES`` is a registered loss: its ``WEIGHT`` and, in lower case, its parameters.

    Raises:
        ValueError: if a node has no ``WEIGHT``, a loss needs another ``MODEL.HEADS.NECK_FEAT``, one trains the classifier
            that another moves, or see :func:`..losses.build_loss_set`.
    """
    specs = []
    for name, node in cfg.SSKD.LOSSES.items():
        if not isinstance(node, Mapping) or "WEIGHT" not in node:
            raise ValueError(f"SSKD.LOSSES.{name} must be a node with a WEIGHT (0: not computed), got {node!r}")
        parameters = {key.lower(): value for key, value in node.items() if key != "WEIGHT"}
        specs.append((name, node.WEIGHT, parameters))
    losses = build_loss_set(specs, gather=cfg.SSKD.GATHER_LOSSES)
    for _, loss in losses.active:
        if loss.features_after_neck and cfg.MODEL.HEADS.NECK_FEAT != "after":
            raise ValueError(
                f"{type(loss).__name__} takes features from behind the BN-neck, and MODEL.HEADS.NECK_FEAT is "
                f"{cfg.MODEL.HEADS.NECK_FEAT!r}: set it to after, or the loss's weight to 0"
            )
    active = [loss for _, loss in losses.active]
    moving = [type(loss).__name__ for loss in active if "memory" in loss.requires]
    training = [type(loss).__name__ for loss in active if loss.reads_logits]
    if moving and training:
        raise ValueError(
            f"{', '.join(moving)} moves the classifier, which {', '.join(training)} would train: set the WEIGHT of one side in "
            "SSKD.LOSSES to 0"
        )
    return losses
