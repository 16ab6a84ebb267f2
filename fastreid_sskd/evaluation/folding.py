"""Batch norm folded into the convolutions before it, in a copy of a network that only evaluates."""

import copy
import logging
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..modeling.bn_chunk import ChunkedBatchNorm2d

logger = logging.getLogger("fastreid.sskd.evaluation")

#: relative error of a feature up to which a folded network counts as the same
ROUNDING = 1e-5
_PLAIN_NORMS = (_BatchNorm.forward, ChunkedBatchNorm2d.forward)


@torch.no_grad()
def folded(network: nn.Module, given: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Copy a network in evaluation mode, with batch norms folded into the convolutions before them.

    Found are the convolutions whose output a batch norm was given in one pass, by torch's
    ``fuse_conv_bn_eval``. A network that answers otherwise than up to rounding, as one that uses such an
    output twice, or that is compiled, is returned as it is.

    Args:
        network: in evaluation mode; left alone.
        given: what it is called with, best of one image.
        dtype: of the passes under autocast, which the copy's convolutions have already.

    Returns:
        The copy, with the network's memory layout; or the network.
    """
    if any(getattr(module, "_compiled_call_impl", None) for module in network.modules()):
        return network
    copied = copy.deepcopy(network)
    outputs: list[tuple[torch.Tensor, nn.Conv2d]] = []  # alive, so that no two have one identity
    pairs: dict[tuple[nn.Conv2d, str], None] = {}  # each once, however often a network calls it
    hooks = []

    def match(name: str, given: torch.Tensor) -> None:
        pairs.update({(conv, name): None for output, conv in outputs if output is given})

    for name, module in copied.named_modules():
        if isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward:
            hooks.append(module.register_forward_hook(lambda conv, _, out: outputs.append((out, conv))))
        elif (
            isinstance(module, nn.BatchNorm2d)
            and type(module).forward in _PLAIN_NORMS
            and module.running_mean is not None  # else the batch's statistics, in evaluation mode too
        ):
            hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: match(name, args[0])))
    expected = copied(copy.deepcopy(given))  # which a network may normalise in place
    for hook in hooks:
        hook.remove()
    outputs.clear()
    if len({name for _, name in pairs}) < len(pairs):  # one batch norm of several convolutions
        return network
    for conv, name in pairs:
        parent, _, child = name.rpartition(".")
        fused = fuse_conv_bn_eval(conv, copied.get_submodule(name))
        conv.weight, conv.bias = fused.weight, fused.bias
        setattr(copied.get_submodule(parent), child, nn.Identity())
    error = (copied(copy.deepcopy(given)) - expected).norm() / expected.norm()
    if not error <= ROUNDING:
        logger.info("features: batch norm is not folded, as features would differ by %.1g", error)
        return network
    for module in copied.modules():
        if isinstance(module, nn.Conv2d) and dtype != torch.float32:  # which is also that of no autocast
            module.to(dtype)
    return copied
