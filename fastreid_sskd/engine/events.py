"""A run's evaluations, and the writers of its scalars: log, metrics.json, TensorBoard."""

import datetime
import json
import logging
import os
import re
from collections.abc import Sequence

import torch
from fastreid.utils.events import (
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from ..evaluation.evaluator import results_table
from .files import write_atomically

logger = logging.getLogger("fastreid.sskd.events")

#: what ``SSKD.SELECT_BY`` takes beside "mAP", each with its score in [-1, 1], of which the largest is best
LABEL_FREE = {
    "silhouette": lambda signals: signals["silhouette"],
    "noise": lambda signals: 1 - signals["noise_share"],
    "stability": lambda signals: 1 - signals["changed_share"],
}


class Record:
    """Every evaluation of a run, in the order of time.

    The best teacher is the one with the highest mAP on the first test set after any epoch, the start (epoch
    0, direct transfer) included. The released code selects so among its epochs. It looks at the *test*
    identities, so it is an optimistic protocol, and ``table`` says so. With one of :data:`LABEL_FREE` the
    best is what :meth:`select` was told of.

    Args:
        tests: names of the test sets, ``DATASETS.TESTS``.
        select_by: ``SSKD.SELECT_BY``, "mAP" or a key of :data:`LABEL_FREE`.

    Attributes:
        selected: {"epoch", "peer", "score"} of the best state without labels; its score is None before any.
    """

    def __init__(self, tests: Sequence[str], select_by: str = "mAP"):
        self.tests = list(tests)
        self.select_by = select_by
        self.evaluations: list[dict] = []
        self.selected: dict = {"epoch": 0, "peer": 0, "score": None}

    @property
    def label_free(self) -> bool:
        """Whether the best is chosen without labels."""
        return self.select_by in LABEL_FREE

    def state_dict(self) -> dict:
        return {"evaluations": self.evaluations, "selected": self.selected}

    def load_state_dict(self, state: dict) -> None:
        self.evaluations, self.selected = state["evaluations"], state["selected"]

    def select(self, epoch: int, peer: int, score: float) -> bool:
        """Offer the state after ``epoch`` epochs and its best teacher; whether it is the best so far."""
        if self.selected["score"] is not None and not score > self.selected["score"]:
            return False
        self.selected = {"epoch": epoch, "peer": peer, "score": score}
        return True

    def add(self, epoch: int, results: dict[str, dict[str, dict[str, float]]]) -> int:
        """Add an evaluation after ``epoch`` epochs (0: direct transfer); returns the best teacher so far."""
        plain = {
            name: {row: {k: float(v) for k, v in metrics.items()} for row, metrics in rows.items()}
            for name, rows in results.items()
        }
        self.evaluations = [e for e in self.evaluations if e["epoch"] < epoch] + [
            {"epoch": epoch, "results": plain}
        ]
        return int((self.best[1] or "teacher0").removeprefix("teacher"))

    @property
    def last(self) -> dict:
        """The last evaluation: {"epoch", "results"}."""
        return self.evaluations[-1]

    @property
    def metric(self) -> float:
        """mAP of the best teacher of the last evaluation on the first test set, in percent."""
        return max(m["mAP"] for row, m in self._rows(self.last).items() if row != "ensemble")

    @property
    def best(self):
        """(evaluation, row) of the best teacher so far, the earliest of equals.

        The evaluation is None for an epoch without one; both are where what needs no labels has chosen none.
        """
        if self.label_free:
            if self.selected["score"] is None:
                return None, None
            at = (e for e in self.evaluations if e["epoch"] == self.selected["epoch"])
            return next(at, None), f"teacher{self.selected['peer']}"
        candidates = [
            (evaluation, row)
            for evaluation in self.evaluations
            for row in self._rows(evaluation)
            if row != "ensemble"
        ]
        return max(candidates, key=lambda found: self._rows(found[0])[found[1]]["mAP"])

    @property
    def no_better_than_start(self) -> bool:
        """Whether the best state is the one before any epoch, although epochs have been compared with it."""
        if self.label_free:
            return self.selected["score"] is not None and self.selected["epoch"] == 0
        return bool(self.evaluations) and self.last["epoch"] > 0 and self.best[0]["epoch"] == 0

    def _rows(self, evaluation: dict) -> dict[str, dict[str, float]]:
        return evaluation["results"][self.tests[0]]

    def table(self, tablefmt: str = "pipe") -> str:
        """Direct transfer, the last epoch's teachers and ensemble, and the best teacher of all epochs."""
        lines = []
        for test in self.tests:
            for evaluation in self.evaluations:
                epoch = evaluation["epoch"]
                if epoch and evaluation is not self.last:
                    continue
                what = f"last, epoch {epoch}" if epoch else "direct transfer"
                rows = evaluation["results"][test]
                lines += [((test, what, row), metrics) for row, metrics in rows.items()]
            evaluation, row = self.best
            if evaluation:
                what = f"best, epoch {evaluation['epoch']}"
                lines.append(((test, what, row), evaluation["results"][test][row]))
        note = (
            f"The best teacher is chosen by mAP on the test split (query and gallery) of {self.tests[0]}, "
            "as in the released code; the last epoch's rows need no choice."
        )
        if self.label_free:
            none = self.selected["score"] is None
            chosen = "No epoch has been" if none else "The best epoch and teacher are"
            note = f"{chosen} chosen by {self.select_by}, without labels."
        return results_table(lines, ("test set", "when", "teacher"), tablefmt) + "\n\n" + note

    def write(self, path: str) -> None:
        """Write all evaluations as JSON, atomically; "best" is null where none is chosen."""
        evaluation, row = self.best
        epoch, chosen_on = self.selected["epoch"], f"{self.select_by}, without labels"
        if not self.label_free:
            epoch, chosen_on = evaluation["epoch"], f"{self.tests[0]} test split, by mAP"
        best = row and {"epoch": epoch, "row": row, "chosen_on": chosen_on}
        data = {"tests": self.tests, "evaluations": self.evaluations, "best": best}
        write_atomically(path, lambda file: file.write(json.dumps(data, indent=1).encode()))


def read_record(path: str) -> dict | None:
    """What :meth:`Record.write` has written: {"tests", "evaluations", "best"}; None without a file."""
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        try:
            data = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path!r} is not JSON: {error}") from error
    try:
        whole = all(
            entry["results"][test] and entry["epoch"] >= 0
            for entry in data["evaluations"]
            for test in data["tests"]
        )
        whole &= data["best"] is None or {"epoch", "row", "chosen_on"} <= set(data["best"])
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(
            f"{path!r} is not the record of a run's evaluations: it needs tests, evaluations and best"
        )
    return data


_SMOOTHED = 20  # steps whose median a line gives, as metrics.json does
_TIMED = 200  # steps whose median speed the remaining time is made from


class ProgressPrinter(EventWriter):
    """One line: epoch, iteration, losses (summed over the peers), images a second, time left, learning rate.

    Once an iteration, in plain text. Puts ``eta_seconds`` and ``images_per_second`` for the other writers.

    Args:
        max_iter: iterations of the run. max_epoch: its epochs. 0: not said.
        images: images of a batch, 0 if unknown; each counts once, however many views it has.
    """

    def __init__(self, max_iter: int, max_epoch: int = 0, images: int = 0):
        self._max_iter, self._max_epoch, self._images = max_iter, max_epoch, images
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


class _EveryScalar:
    """A writer's scalars that have been put since they were last written, each under its own iteration.

    The host's writers remember one iteration for all scalars, so what is put after a write at the same
    iteration (an evaluation at the end of an epoch whose last losses are written already) never gets into
    their files.
    """

    def __init__(self, place: str, window_size: int = 20, **kwargs):
        super().__init__(place, window_size, **kwargs)
        self._window, self._written = window_size, {}

    def take(self) -> dict[int, dict[str, float]]:
        """{iteration: {name: value}}, in the order of the iterations; taken once."""
        by_iteration: dict[int, dict[str, float]] = {}
        found = get_event_storage().latest_with_smoothing_hint(self._window)
        for name, (value, iteration) in found.items():
            if iteration > self._written.get(name, -1):
                self._written[name] = iteration
                by_iteration.setdefault(iteration, {})[name] = value
        return dict(sorted(by_iteration.items()))

    def state_dict(self) -> dict:
        return {"written": dict(self._written)}

    def load_state_dict(self, state: dict) -> None:
        self._written = dict(state["written"])


class MetricsFile(_EveryScalar, JSONWriter):
    """metrics.json: one JSON object a line, with its "iteration"; an iteration may have several lines."""

    def write(self) -> None:
        for iteration, scalars in self.take().items():
            line = json.dumps({**scalars, "iteration": iteration}, sort_keys=True)
            self._file_handle.write(line + "\n")
        self._file_handle.flush()

    def state_dict(self) -> dict:
        """What a resumed run needs to continue the file as it is now."""
        self._file_handle.flush()
        os.fsync(self._file_handle.fileno())
        return {**super().state_dict(), "bytes": os.path.getsize(self._file_handle.name)}

    def load_state_dict(self, state: dict) -> None:
        """Cut off what was written after the checkpoint, to be written again."""
        super().load_state_dict(state)
        if os.path.getsize(self._file_handle.name) < state["bytes"]:
            text = "%s is shorter than it was: scalars before the checkpoint are missing"
            logger.warning(text, self._file_handle.name)
        else:
            self._file_handle.truncate(state["bytes"])


class TensorBoard(_EveryScalar, TensorboardXWriter):
    """The host's TensorBoard writer with every scalar; images and histograms are the host's matter."""

    def write(self) -> None:
        for iteration, scalars in self.take().items():
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, iteration)
        self._last_write = get_event_storage().iter  # nothing left to the host but what is no scalar
        super().write()


def build_writers(
    output_dir: str, max_iter: int, start_iter: int = 0, *, max_epoch: int = 0, images: int = 0
) -> list[EventWriter]:
    """The writers of a run that begins at ``start_iter``; only the log line without an output folder."""
    # the printer first: it puts scalars that the files get too
    writers: list[EventWriter] = [ProgressPrinter(max_iter, max_epoch, images)]
    if output_dir:
        writers += [
            MetricsFile(os.path.join(output_dir, "metrics.json")),
            TensorBoard(output_dir, purge_step=start_iter or None),
        ]
    return writers


# values of each scalar that are kept: the widest window that anything but the remaining time is smoothed over
_WINDOW = 200


def storage_state(storage: EventStorage) -> dict:
    """Last values and iterations (n, 2) of each scalar, their number and mean, and whether it is smoothed."""
    return {
        name: {
            "values": torch.tensor(history.values()[-_WINDOW:], dtype=torch.float64).reshape(-1, 2),
            "count": history._count,
            "mean": float(history._global_avg),
            "smoothed": storage.smoothing_hints()[name],
        }
        for name, history in storage.histories().items()
        if history.values()
    }


def restore_storage(storage: EventStorage, state: dict) -> None:
    """Put the scalars of :func:`storage_state` into a new storage."""
    for name, saved in state.items():
        history = storage._history[name]
        history._data = [(value, int(iteration)) for value, iteration in saved["values"].tolist()]
        history._count, history._global_avg = saved["count"], saved["mean"]
        storage._smoothing_hints[name] = saved["smoothed"]
        storage._latest_scalars[name] = history._data[-1]
