"""Patches of the host's optimiser: make it impossible that training silently changes nothing."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from .patch import Patch, put, swap, target

logger = logging.getLogger("fastreid.sskd.compat")


def _without_flat_buffer(host_build: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(host_build)
    def build_optimizer(cfg: Any, model: nn.Module, contiguous: bool = False) -> Any:
        if contiguous:
            logger.warning(
                "contiguous=True is ignored: with torch >= 2 it would leave the parameters unchanged"
            )
        return host_build(cfg, model, contiguous=False)

    return build_optimizer


def _patch_buffer_check() -> None:
    """Make the host's check see a flat buffer whose gradient is gone, for those who build one themselves."""
    host_check = target("fastreid.utils.params", "ContiguousParams.buffer_is_valid")

    @functools.wraps(host_check)
    def buffer_is_valid(self: Any) -> bool:
        return all(buffer.grad is not None for buffer in self._param_buffer) and host_check(self)

    put("fastreid.utils.params", "ContiguousParams.buffer_is_valid", buffer_is_valid)


PATCHES = (
    Patch(
        "optimizer",
        "solver/build.py:180, utils/params.py",
        "flat parameter buffer: zero_grad() sets its gradient to None from torch 2.0 on, step() does nothing",
        lambda: swap("fastreid.solver.build", "build_optimizer", _without_flat_buffer),
    ),
    Patch(
        "flat-buffer-check",
        "utils/params.py:85",
        "the check of the flat buffer passes although its gradient is gone",
        _patch_buffer_check,
    ),
)
