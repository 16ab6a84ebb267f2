"""The losses of the last steps, left on the device until they are read in one go."""
import math

import numpy as np
import torch
from fastreid.utils import comm
from fastreid.utils.events import get_event_storage

__all__ = ["LossRecord"]


class LossRecord:
    """Keeps each step's losses as a tensor; :meth:`read` waits for the device once and puts them under their iterations.

    Reading a value makes the host wait for all that the device has been given so far. A record that is read every
    ``SSKD.LOG_PERIOD`` steps waits that often, and the event storage ends up the same.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[int, list[str], torch.Tensor, float]] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, losses: dict[str, torch.Tensor], data_time: float) -> None:
        """Keep a step's losses, scalars on one device; ``data_time``: seconds that its batch was waited for."""
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        self._steps.append((step, list(losses), values, data_time))

    def read(self) -> None:
        """Put what has been kept into the current event storage, as means over the processes, and keep nothing.

        With several processes, all of them read at the same step.

        Raises:
            FloatingPointError: if a loss is not finite, naming the first such step, its losses and peers.
        """
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        values = iter(torch.cat([step[2] for step in steps]).tolist())
        found = [(step, {name: next(values) for name in names}, waited) for step, names, _, waited in steps]
        for step, losses, _ in found:
            _check_finite(step, losses)
        everywhere = comm.gather(found)
        if comm.is_main_process():
            for of_all in zip(*everywhere):
                _put(of_all)


def _put(of_all: tuple[tuple[int, dict[str, float], float], ...]) -> None:
    """Put one step into the storage, given as every process has seen it."""
    step, losses, _ = of_all[0]
    storage = get_event_storage()
    now, storage.iter = storage.iter, step
    storage.put_scalar("data_time", float(np.max([waited for _, _, waited in of_all])))
    means = {name: float(np.mean([own[name] for _, own, _ in of_all])) for name in losses}
    storage.put_scalar("total_loss", sum(means.values()))
    if len(means) > 1:
        storage.put_scalars(**means)
    storage.iter = now


def _check_finite(step: int, losses: dict[str, float]) -> None:
    if all(map(math.isfinite, losses.values())):
        return
    named = []
    for name, value in losses.items():
        if not math.isfinite(value):
            loss, _, peer = name.partition("_peer")
            named.append(f"{loss} of peer {peer} is {value}" if peer else f"{loss} is {value}")
    raise FloatingPointError(
        f"step {step}: {', '.join(named)}. Training has diverged; the last checkpoint is of before. Lower "
        f"SOLVER.BASE_LR and go on from it (all losses: {losses})"
    )
