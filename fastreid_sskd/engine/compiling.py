"""``SSKD.COMPILE``: backbones through torch.compile, where that works."""
import logging
from collections.abc import Callable

from torch import nn

from ..processes import agree

__all__ = ["backbones", "compile_backbones"]

logger = logging.getLogger("fastreid.sskd.compiling")


def backbones(model: nn.Module) -> list[nn.Module]:
    """Every module called ``backbone`` of a model: of each student and teacher, or of a plain one."""
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] == "backbone"]


def compile_backbones(model: nn.Module, trial: nn.Module, step: Callable[[nn.Module], object]) -> bool:
    """Compile every backbone in place, if that works with a copy; else say why not and leave the model as it was.

    Parameters, buffers and their names stay as they are. torch compiles when it sees the first batch: what it cannot do, for
    want of a C++ compiler or for an operation that it does not know, shows only then. Hence the copy.

    Args:
        model: in training mode.
        trial: a copy of it, which is spoiled.
        step: runs forward and backward passes of the model that it is given, without effect on another.

    Returns:
        Whether they are compiled; the same in all processes.
    """
    reason = _failure(trial, step)
    (failed,) = agree(reason is not None)
    if failed:
        logger.warning("the backbones are not compiled: %s", reason or "torch.compile fails in another process")
        return False
    for backbone in backbones(model):
        backbone.compile()
    logger.info("%d backbones are compiled", len(backbones(model)))
    return True


def _failure(trial: nn.Module, step: Callable[[nn.Module], object]) -> str | None:
    if not hasattr(nn.Module, "compile"):
        return "SSKD.COMPILE needs torch 2.2 or later"
    try:
        for backbone in backbones(trial):
            backbone.compile()
        step(trial)
    except Exception as error:  # noqa: BLE001 - a compiler may raise anything; an error of the step itself comes again
        return f"torch.compile fails: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    return None
