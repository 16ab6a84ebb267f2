"""Writers of a run's scalars: the log, metrics.json and TensorBoard, as in the host, without losing any."""
import json
import os

from fastreid.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

__all__ = ["MetricsFile", "ProgressPrinter", "TensorBoard", "build_writers"]


class ProgressPrinter(CommonMetricPrinter):
    """The host's progress line, once an iteration.

    The host writes after a step and again after the epoch: the same line twice, and a division by zero where the
    epoch is shorter than its timer's warm-up.
    """

    _printed_at = None

    def write(self) -> None:
        iteration = get_event_storage().iter
        if iteration != self._printed_at:
            self._printed_at = iteration
            super().write()


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


def build_writers(output_dir: str, max_iter: int) -> list[EventWriter]:
    """The writers of a run; only the log line without an output folder."""
    writers: list[EventWriter] = [ProgressPrinter(max_iter)]
    if output_dir:
        writers += [MetricsFile(os.path.join(output_dir, "metrics.json")), TensorBoard(output_dir)]
    return writers
