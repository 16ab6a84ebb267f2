"""Writers of a run's scalars: the log, metrics.json and TensorBoard, as in the host, without losing any."""
import datetime
import json
import logging
import os
import re

import torch
from fastreid.utils.events import (
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

__all__ = ["MetricsFile", "ProgressPrinter", "TensorBoard", "build_writers"]

logger = logging.getLogger("fastreid.sskd.writers")

_SMOOTHED = 20  # steps whose median a line gives, as metrics.json does
_TIMED = 200  # steps whose median speed the remaining time is made from


class ProgressPrinter(EventWriter):
    """One line of progress: epoch, iteration, losses (summed over the peers), images a second, learning rate, time left.

    Once an iteration, and plain text, so that it reads the same in a terminal and in log.txt. Puts ``eta_seconds`` and
    ``images_per_second`` for the other writers.

    Args:
        max_iter: iterations of the run. max_epoch: its epochs. 0: not said.
        images: images of a batch, 0 if unknown; each counts once, however many views it has.
    """

    def __init__(self, max_iter: int, max_epoch: int = 0, images: int = 0):
        self._max_iter = max_iter
        self._max_epoch = max_epoch
        self._images = images
        self._printed_at: int | None = None

    def write(self) -> None:
        storage = get_event_storage()
        iteration = storage.iter
        if iteration in (self._printed_at, self._max_iter):
            return
        self._printed_at = iteration
        histories = storage.histories()
        parts = [
            f"epoch {storage.epoch + 1}" + (f"/{self._max_epoch}" if self._max_epoch else ""),
            f"iteration {iteration + 1}/{self._max_iter}",
            *(f"{name} {value:.4g}" for name, value in self._losses(histories).items()),
        ]
        if "time" in histories:  # not in the first steps, which are slower
            seconds = histories["time"].median(_TIMED)
            left = seconds * (self._max_iter - iteration - 1)
            storage.put_scalar("eta_seconds", left, smoothing_hint=False)
            if self._images and seconds:
                storage.put_scalar("images_per_second", self._images / seconds, smoothing_hint=False)
                parts.append(f"{self._images / seconds:.1f} images/s")
            parts.append(f"eta {datetime.timedelta(seconds=int(left))}")
        if "lr" in histories:
            parts.append(f"lr {histories['lr'].latest():.2e}")
        if torch.cuda.is_available():
            parts.append(f"memory {torch.cuda.max_memory_allocated() / 2**20:.0f} MB")
        logger.info("  ".join(parts))

    @staticmethod
    def _losses(histories: dict) -> dict[str, float]:
        """Median of the last steps of the total and of each loss, the peers' summed."""
        losses: dict[str, float] = {}
        for name, history in histories.items():
            if "loss" in name:
                kind = re.sub(r"_peer\d+$", "", name)
                losses[kind] = losses.get(kind, 0.0) + history.median(_SMOOTHED)
        return losses


class _Unwritten:
    """The scalars that have been put since they were last written, each under its own iteration.

    The host's writers remember one iteration for all scalars, so what is put after a write at the same iteration
    (an evaluation at the end of an epoch whose last losses are written already) never gets into their files.
    """

    def __init__(self, window_size: int):
        self.window_size = window_size
        self.written: dict[str, int] = {}

    def take(self) -> dict[int, dict[str, float]]:
        """{iteration: {name: value}}, in the order of the iterations; taken once."""
        by_iteration: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self.window_size).items():
            if iteration > self.written.get(name, -1):
                self.written[name] = iteration
                by_iteration.setdefault(iteration, {})[name] = value
        return dict(sorted(by_iteration.items()))

    def state_dict(self) -> dict[str, int]:
        return dict(self.written)

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.written = dict(state)


class MetricsFile(JSONWriter):
    """metrics.json: one JSON object a line, with its "iteration"; an iteration may have several lines."""

    def __init__(self, json_file: str, window_size: int = 20):
        super().__init__(json_file, window_size)
        self._unwritten = _Unwritten(window_size)

    def write(self) -> None:
        for iteration, scalars in self._unwritten.take().items():
            line = json.dumps({**scalars, "iteration": iteration}, sort_keys=True)
            self._file_handle.write(line + "\n")
        self._file_handle.flush()

    def state_dict(self) -> dict:
        """What a resumed run needs to go on with the file as it is now."""
        self._file_handle.flush()
        os.fsync(self._file_handle.fileno())
        return {"written": self._unwritten.state_dict(), "bytes": os.path.getsize(self._file_handle.name)}

    def load_state_dict(self, state: dict) -> None:
        """Cut off what was written after the checkpoint, to be written again."""
        self._unwritten.load_state_dict(state["written"])
        size = os.path.getsize(self._file_handle.name)
        if size < state["bytes"]:
            logger.warning("%s is shorter than it was: scalars before the checkpoint are missing", self._file_handle.name)
        else:
            self._file_handle.truncate(state["bytes"])


class TensorBoard(TensorboardXWriter):
    """The host's TensorBoard writer with every scalar; images and histograms are the host's matter."""

    def __init__(self, log_dir: str, window_size: int = 20, **kwargs):
        super().__init__(log_dir, window_size, **kwargs)
        self._unwritten = _Unwritten(window_size)

    def write(self) -> None:
        for iteration, scalars in self._unwritten.take().items():
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, iteration)
        self._last_write = get_event_storage().iter  # nothing left to the host but what is no scalar
        super().write()

    def state_dict(self) -> dict:
        return {"written": self._unwritten.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self._unwritten.load_state_dict(state["written"])


def build_writers(
    output_dir: str, max_iter: int, start_iter: int = 0, *, max_epoch: int = 0, images: int = 0
) -> list[EventWriter]:
    """The writers of a run that begins at ``start_iter``; only the log line without an output folder.

    The others are as for :class:`ProgressPrinter`, which is first: it puts scalars that the files get too.
    """
    writers: list[EventWriter] = [ProgressPrinter(max_iter, max_epoch, images)]
    if output_dir:
        writers += [MetricsFile(os.path.join(output_dir, "metrics.json")), TensorBoard(output_dir, purge_step=start_iter or None)]
    return writers
