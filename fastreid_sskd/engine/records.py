"""What the evaluations of an adaptation have given so far: the last, the best, and what the best was chosen on."""
import json
import os
from collections.abc import Sequence

from ..evaluation.table import results_table

__all__ = ["Record"]


class Record:
    """Every evaluation of a run, in the order of time.

    The best teacher is the one with the highest mAP on the first test set after any epoch (direct transfer counts
    only as long as there is nothing else): the selection of the released code, and what ``model_best`` holds. It looks
    at the *test* identities, so it is an optimistic protocol, and ``table`` says so; the last epoch's rows, which need
    no selection, stand beside it.

    Args:
        tests: names of the test sets, ``DATASETS.TESTS``.
    """

    def __init__(self, tests: Sequence[str]):
        self.tests = list(tests)
        self.evaluations: list[dict] = []

    def state_dict(self) -> dict:
        return {"evaluations": self.evaluations}

    def load_state_dict(self, state: dict) -> None:
        self.evaluations = state["evaluations"]

    def add(self, epoch: int, results: dict[str, dict[str, dict[str, float]]]) -> int:
        """Add an evaluation after ``epoch`` epochs (0: direct transfer); returns the best teacher so far."""
        plain = {
            name: {row: {k: float(v) for k, v in metrics.items()} for row, metrics in rows.items()}
            for name, rows in results.items()
        }
        self.evaluations = [e for e in self.evaluations if e["epoch"] < epoch] + [{"epoch": epoch, "results": plain}]
        return int(self.best[1][len("peer"):])

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
        """(evaluation, row) of the teacher with the highest mAP so far; the earliest of equals."""
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
            lines.append(((test, f"best, epoch {evaluation['epoch']}", row), evaluation["results"][test][row]))
        note = (
            f"The best teacher is chosen by mAP on the test split (query and gallery) of {self.tests[0]}, "
            "as in the released code; the last epoch's rows need no choice."
        )
        return results_table(lines, ("test set", "when", "teacher"), tablefmt) + "\n\n" + note

    def _shown(self) -> list[dict]:
        first = [e for e in self.evaluations if e["epoch"] == 0]
        return first + [self.last] if self.last["epoch"] else first

    def write(self, path: str) -> None:
        """Write all evaluations as JSON, atomically."""
        evaluation, row = self.best
        data = {
            "tests": self.tests,
            "evaluations": self.evaluations,
            "best": {"epoch": evaluation["epoch"], "row": row, "chosen_on": f"{self.tests[0]} test split, by mAP"},
        }
        temporary = f"{path}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1)
        os.replace(temporary, path)
