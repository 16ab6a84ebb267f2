"""From the ``SSKD.LOSSES`` node of a config to the losses of a student."""
from fastreid.config import CfgNode

from ..losses import LossSet, build_loss_set

__all__ = ["build_losses"]


def build_losses(cfg: CfgNode) -> LossSet:
    """Every node of ``SSKD.LOSSES`` is a registered loss: its ``WEIGHT`` and, in lower case, its parameters."""
    specs = []
    for name, node in cfg.SSKD.LOSSES.items():
        parameters = {key.lower(): value for key, value in node.items() if key != "WEIGHT"}
        specs.append((name, node.WEIGHT, parameters))
    return build_loss_set(specs)
