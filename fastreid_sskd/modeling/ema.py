"""The mean teachers' moving average (method: after the optimiser step of every iteration)."""
import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["ema_decay", "ema_momentum", "update_teacher"]

_STATISTICS = ("running_mean", "running_var")


def ema_decay(step: int, momentum: float) -> float:
    """alpha = min(1 - 1/(t+1), momentum): at t = 0 the teacher becomes the student, later it hardly moves.

    Args:
        step: t, the global step counted from 0, refreshes do not restart it.
        momentum: the upper bound of alpha, in [0, 1].

    Raises:
        ValueError: if an argument is out of its range.
    """
    if step < 0:
        raise ValueError(f"the step of the teachers' decay must be >= 0, got {step}")
    if not 0.0 <= momentum <= 1.0:
        raise ValueError(f"SSKD.EMA.MOMENTUM must be in [0, 1], got {momentum}")
    return min(1.0 - 1.0 / (step + 1), momentum)


def ema_momentum(momentum: float, window: float, steps: int) -> float:
    """The upper bound of alpha: ``momentum``, or that of an average over ``window`` of all steps, where it is given.

    Args:
        momentum: ``SSKD.EMA.MOMENTUM``. window: ``SSKD.EMA.WINDOW``, share of the steps in (0, 1]; 0: not given.
        steps: of the whole run, >= 1.
    """
    return max(1.0 - 1.0 / (window * steps), 0.0) if window else momentum


def _tensors(network: nn.Module, statistics: bool) -> list[torch.Tensor]:
    buffers = network.named_buffers() if statistics else ()
    return [p.detach() for p in network.parameters()] + [b for name, b in buffers if name.endswith(_STATISTICS)]


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float, statistics: bool = False) -> None:
    """teacher <- decay * teacher + (1 - decay) * student, for the parameters.

    Other buffers are left alone: in the method a teacher's batch-norm statistics come from its own forward passes (torch's
    ``AveragedModel`` would copy the student's).

    Args:
        teacher, student: networks of the same shape; the teacher's tensors are changed in place.
        decay: alpha in [0, 1], see :func:`ema_decay`.
        statistics: average the running means and variances of batch norm too.
    """
    get_ema_multi_avg_fn(decay)(_tensors(teacher, statistics), _tensors(student, statistics), 0)
