"""Writers of a run's scalars: the log, metrics.json and TensorBoard, as in the host."""
import os
from typing import List

from fastreid.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage

__all__ = ["ProgressPrinter", "build_writers"]


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


def build_writers(output_dir: str, max_iter: int) -> List[EventWriter]:
    """The writers of a run; only the log line without an output folder."""
    writers: List[EventWriter] = [ProgressPrinter(max_iter)]
    if output_dir:
        writers += [JSONWriter(os.path.join(output_dir, "metrics.json")), TensorboardXWriter(output_dir)]
    return writers
