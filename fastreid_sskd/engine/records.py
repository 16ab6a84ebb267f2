"""What the evaluations of an adaptation have given so far: the last, the best, and what the best was chosen on."""
import json
import os
from collections.abc import Sequence

from ..evaluation.evaluator import results_table
from .files import write_atomically

__all__ = ["LABEL_FREE", "Record", "read_record"]

#: what ``SSKD.SELECT_BY`` takes beside "mAP", each with the score that a larger value of is better, in [-1, 1]
LABEL_FREE = {
    "silhouette": lambda signals: signals["silhouette"],
    "noise": lambda signals: 1 - signals["noise_share"],
    "stability": lambda signals: 1 - signals["changed_share"],
}


class Record:
    """Every evaluation of a run, in the order of time.

    The best teacher is the one with the highest mAP on the first test set after any epoch (direct transfer counts
    only as long as there is nothing else): the selection of the released code, and what ``model_best`` holds. It looks
    at the *test* identities, so it is an optimistic protocol, and ``table`` says so; the last epoch's rows, which need
    no selection, stand beside it. With one of :data:`LABEL_FREE` it is the one that :meth:`select` was told of.

    Args:
        tests: names of the test sets, ``DATASETS.TESTS``.
        select_by: ``SSKD.SELECT_BY``, "mAP" or a key of :data:`LABEL_FREE`.

    Attributes:
        selected: {"epoch", "peer", "score"} of the best state by what needs no labels; epoch 0 before any.
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
        self.evaluations = state["evaluations"]
        self.selected = state["selected"]

    def select(self, epoch: int, peer: int, score: float) -> bool:
        """Offer the state after ``epoch`` epochs, ``peer`` its best teacher; True if it is the best so far."""
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
        self.evaluations = [e for e in self.evaluations if e["epoch"] < epoch] + [{"epoch": epoch, "results": plain}]
        return int((self.best[1] or "peer0")[len("peer"):])

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
        """(evaluation, row) of the best teacher so far, the earliest of equals; None for an epoch without evaluation.

        (None, None) where what needs no labels has chosen none.
        """
        if self.label_free:
            if self.selected["score"] is None:
                return None, None
            at = (evaluation for evaluation in self.evaluations if evaluation["epoch"] == self.selected["epoch"])
            return next(at, None), f"peer{self.selected['peer']}"
        adapted = [evaluation for evaluation in self.evaluations if evaluation["epoch"]]
        candidates = [
            (metrics["mAP"], evaluation, row)
            for evaluation in adapted or self.evaluations
            for row, metrics in self._rows(evaluation).items()
            if row != "ensemble"
        ]
        top = max(value for value, _, _ in candidates)
        return next((evaluation, row) for value, evaluation, row in candidates if value == top)

    def _rows(self, evaluation: dict) -> dict[str, dict[str, float]]:
        return evaluation["results"][self.tests[0]]

    def table(self, tablefmt: str = "pipe") -> str:
        """Direct transfer, the last epoch's teachers and ensemble, and the best teacher of all epochs."""
        lines = []
        for test in self.tests:
            for evaluation in self._shown():
                what = "direct transfer" if evaluation["epoch"] == 0 else f"last, epoch {evaluation['epoch']}"
                lines += [((test, what, row), metrics) for row, metrics in evaluation["results"][test].items()]
            evaluation, row = self.best
            if evaluation:
                lines.append(((test, f"best, epoch {evaluation['epoch']}", row), evaluation["results"][test][row]))
        note = (
            f"The best teacher is chosen by mAP on the test split (query and gallery) of {self.tests[0]}, "
            "as in the released code; the last epoch's rows need no choice."
        )
        if self.label_free:
            chosen = "The best epoch and teacher are" if self.selected["score"] is not None else "No epoch has been"
            note = f"{chosen} chosen by {self.select_by}, without labels."
        return results_table(lines, ("test set", "when", "teacher"), tablefmt) + "\n\n" + note

    def _shown(self) -> list[dict]:
        first = [e for e in self.evaluations if e["epoch"] == 0]
        return first + [self.last] if self.last["epoch"] else first

    def write(self, path: str) -> None:
        """Write all evaluations as JSON, atomically; "best" is null where none is chosen."""
        evaluation, row = self.best
        best = row and {
            "epoch": self.selected["epoch"] if self.label_free else evaluation["epoch"],
            "row": row,
            "chosen_on": f"{self.select_by}, without labels" if self.label_free else f"{self.tests[0]} test split, by mAP",
        }
        data = {"tests": self.tests, "evaluations": self.evaluations, "best": best}
        write_atomically(path, lambda file: file.write(json.dumps(data, indent=1).encode()))


def read_record(path: str) -> dict | None:
    """What :meth:`Record.write` has written: {"tests", "evaluations", "best"}; None if there is no such file.

    Raises:
        ValueError: if the file is damaged, or another kind of file.
    """
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        try:
            data = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path!r} is not JSON: {error}") from error
    try:
        whole = all(entry["results"][test] and entry["epoch"] >= 0 for entry in data["evaluations"] for test in data["tests"])
        whole &= data["best"] is None or {"epoch", "row", "chosen_on"} <= set(data["best"])
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise ValueError(f"{path!r} is not the record of a run's evaluations: it needs tests, evaluations and best")
    return data
