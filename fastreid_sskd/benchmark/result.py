"""One measured (or published) result: a method on a test set, and all that its figures depend on."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from numbers import Real

from ..engine.files import write_atomically
from ..evaluation.evaluator import METRICS

__all__ = ["Result", "read_results", "write_results"]


@dataclass(frozen=True)
class Result:
    """A row of one seed.

    Attributes:
        method: what was evaluated, as a table names it.
        target: the test set.
        metrics: {"mAP", "Rank-1", "Rank-5", "Rank-10", "mINP"} in percent; those that are unknown are absent.
        source: what the model was trained on before, data sets or the name of a file of weights; "" if unknown.
        backbone: the network.
        selection: how the epoch and the network were chosen.
        images_per_bn: images that shared batch-norm statistics in training; None: nothing was trained, or unknown.
        epochs: of this training; 0: nothing was trained; None: unknown.
        hours: spent in training steps and pseudo-label refreshes of this run, evaluation and stage 1 left out.
        device: what it was trained on, or evaluated on where nothing was trained.
        seed: of the run, None if unknown.
        run: folder or file of weights that it comes from.
        labels: "precision" and "recall" (BCubed) of the last pseudo-labels against the target's identities and the share that is
            "noise", each [0, 1]; {} where they are not known.
        published: where the figures can be read, for those that were not measured here; else "".
    """

    method: str
    target: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    backbone: str = ""
    selection: str = ""
    images_per_bn: int | None = None
    epochs: int | None = None
    hours: float | None = None
    device: str = ""
    seed: int | None = None
    run: str = ""
    published: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        metrics = {name: self.metrics[name] for name in METRICS if name in self.metrics}
        wrong = {name: value for name, value in metrics.items() if not (isinstance(value, Real) and 0 <= value <= 100)}
        if wrong:
            raise ValueError(
                f"metrics of {self.method!r} must be percentages, 0 to 100, got {wrong} in {self.run!r}"
            )
        object.__setattr__(self, "metrics", {name: round(float(value), 4) for name, value in metrics.items()})


def write_results(results: Iterable[Result], path: str) -> None:
    """Write results as a JSON list, atomically; fields that say nothing are left out."""
    rows = [{k: v for k, v in asdict(result).items() if v not in ("", None, {})} for result in results]
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    text = json.dumps(rows, indent=1) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_results(path: str) -> list[Result]:
    """Read what :func:`write_results` wrote.

    Raises:
        ValueError: if it is another kind of file, or has fields that are not known.
    """
    with open(path, encoding="utf-8") as file:
        try:
            rows = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path!r} is not JSON: {error}") from error
    known = {f.name for f in fields(Result)}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) <= known for row in rows):
        raise ValueError(
            f"{path!r} is no list of results: each is an object with some of {', '.join(sorted(known))}"
        )
    return [Result(**row) for row in rows]
