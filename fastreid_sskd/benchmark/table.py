"""One table of many results: seeds as mean and standard deviation, what all rows share said once below."""

import csv
import io
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tabulate import tabulate

from ..evaluation.evaluator import METRICS
from .results import Result

_LAYOUTS = {"terminal": "simple", "markdown": "pipe", "latex": "latex_booktabs"}
FORMATS = (*_LAYOUTS, "csv", "json")

# Fields of a result that make it another row; the seed, the hours and the device of two seeds may differ.
_KEY = ("method", "backbone", "source", "target", "selection", "images_per_bn", "epochs", "published")
_LABELS = ("precision", "recall", "noise")


@dataclass
class Summary:
    """A row: the results of one method over seeds. Has the attributes of ``Result`` in which they agree."""

    results: list[Result] = field(default_factory=list)

    def __getattr__(self, name: str):
        return getattr(self.results[0], name)

    def mean(self, metric: str) -> float | None:
        """Mean over the seeds; None where a result lacks the metric."""
        values = self._values(metric)
        return statistics.mean(values) if values else None

    def deviation(self, metric: str) -> float | None:
        """Standard deviation of the sample (n - 1); None of one seed."""
        values = self._values(metric)
        return statistics.stdev(values) if len(values) > 1 else None

    def _values(self, metric: str) -> list[float]:
        values = [result.metrics[metric] for result in self.results if metric in result.metrics]
        return values if len(values) == len(self.results) else []

    @property
    def mean_labels(self) -> dict[str, float]:
        """Means of the results' ``labels``; {} where one has none."""
        if not all(result.labels for result in self.results):
            return {}
        first = self.results[0].labels
        return {what: statistics.mean(r.labels[what] for r in self.results) for what in first}

    def gains(self, other: "Summary", metric: str = "mAP") -> list[float]:
        """Differences to another row on the same test set, seed by seed; [] without seeds in common."""
        if self is other or self.target != other.target:
            return []
        known = [r for r in other.results if r.seed is not None and metric in r.metrics]
        values = {r.seed: r.metrics[metric] for r in known}
        mine = [r for r in self.results if r.seed in values and metric in r.metrics]
        return [r.metrics[metric] - values[r.seed] for r in mine]

    @property
    def seeds(self) -> int | None:
        """How many results the mean is of; None of a published figure, whose number of runs is not known."""
        return None if self.published else len(self.results)

    @property
    def mean_hours(self) -> float | None:
        """Mean hours of a run; None where one is unknown."""
        hours = [result.hours for result in self.results]
        return None if None in hours else statistics.mean(hours)

    @property
    def devices(self) -> str:
        """All devices of the runs."""
        return " + ".join(dict.fromkeys(result.device for result in self.results if result.device))


def summarise(results: Sequence[Result]) -> list[Summary]:
    """Group results that differ only by seed, in the order in which they come; a run given twice counts once.

    Raises:
        ValueError: if two different runs of one row have the same seed: they differ by something a table
            cannot show.
    """
    rows: dict[tuple, Summary] = {}
    for result in results:
        row = rows.setdefault(tuple(getattr(result, name) for name in _KEY), Summary())
        place = os.path.realpath(result.run)  # however the folder is spelled
        same = [r for r in row.results if os.path.realpath(r.run) == place]
        if any(replace(r, run=result.run) == result for r in same):
            continue
        for twin in row.results:
            if twin.seed == result.seed is not None and twin not in same:
                raise ValueError(
                    f"{twin.run!r} and {result.run!r} are both seed {result.seed} of {result.method!r}: "
                    "name them apart, NAME=FOLDER"
                )
        row.results.append(result)
    return list(rows.values())


def write_table(
    results: Sequence[Result], fmt: str = "terminal", *, all_columns: bool = False, against: str = ""
) -> str:
    """The table of all results.

    Args:
        results: of any methods, sets and seeds; may be none.
        fmt: one of ``FORMATS``. "csv" and "json" give every column in plain numbers.
        all_columns: keep the columns in which all rows agree; else they are said once, below the table.
        against: a method of the table. A column of all formats but "csv" and "json" gives each row's gain in
            mAP over it, seed by seed, as mean and standard deviation, and says where the mean is not larger
            than the deviation.
    """
    if fmt not in FORMATS:
        raise ValueError(f"the format is one of {', '.join(FORMATS)}, got {fmt!r}")
    rows = summarise(results)
    if against and against not in {row.method for row in rows}:
        raise ValueError(
            f"no row is of {against!r}: there are {'; '.join(dict.fromkeys(row.method for row in rows))}"
        )
    if fmt == "json":
        return json.dumps([_record(row) for row in rows], indent=1)
    if fmt == "csv":
        return _csv(rows)
    columns = _columns(rows, against)
    shared: dict[str, str] = {}
    if not all_columns:
        columns = {name: cells for name, cells in columns.items() if set(cells) - {"-"}}
        foldable = columns.keys() - {"method", *METRICS} if len(rows) > 1 else ()
        shared = {
            name: cells[0] for name, cells in columns.items() if name in foldable and len({*cells}) == 1
        }
    shown = {name: cells for name, cells in columns.items() if name not in shared}
    table = tabulate(list(zip(*shown.values())), list(shown), _LAYOUTS[fmt], disable_numparse=True)
    notes = _notes(rows, shared, against)
    if fmt == "latex":
        return table.replace("±", "$\\pm$") + "".join(f"\n% {line}" for line in notes) + "\n" * bool(notes)
    return table + "\n\n" * bool(notes) + "\n".join(notes)


def _columns(rows: Sequence[Summary], against: str) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {
        "method": [row.method + (" (as published)" if row.published else "") for row in rows],
        "backbone": [row.backbone or "-" for row in rows],
        "source -> target": [f"{row.source or '?'} -> {row.target or '?'}" for row in rows],
    }
    for metric in METRICS:
        columns[metric] = [_cell(row.mean(metric), row.deviation(metric)) for row in rows]
    if against:
        others = [row for row in rows if row.method == against]
        columns[_gain_column(against)] = [
            _gain([gain for other in others for gain in row.gains(other)]) for row in rows
        ]
    columns |= {
        "labels: precision, recall, noise": [
            ", ".join(f"{v:.2f}" for v in row.mean_labels.values()) or "-" for row in rows
        ],
        "seeds": [_plain(row.seeds) for row in rows],
        "selection": [row.selection or "not said" for row in rows],
        "images per BN": [_plain(row.images_per_bn) for row in rows],
        "epochs": [_plain(row.epochs) for row in rows],
        "hours": ["-" if row.mean_hours is None else f"{row.mean_hours:.2g}" for row in rows],
        "device": [row.devices or "-" for row in rows],
    }
    return columns


def _gain_column(against: str) -> str:
    return f"mAP - {against}, by seed"


def _gain(gains: Sequence[float]) -> str:
    if not gains:
        return "-"
    mean = statistics.mean(gains)
    if len(gains) == 1:
        return f"{mean:+.1f} (1)"
    spread = statistics.stdev(gains)
    return f"{mean:+.1f} ± {spread:.1f} ({len(gains)}){', within spread' * (abs(mean) <= spread)}"


def _cell(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {deviation:.1f}"


def _plain(value) -> str:
    return "-" if value is None else str(value)


def _notes(rows: Sequence[Summary], shared: dict[str, str], against: str) -> list[str]:
    notes = []
    if shared:
        notes.append("All rows: " + "; ".join(f"{name} {value}" for name, value in shared.items()) + ".")
    if any((row.seeds or 0) > 1 for row in rows):
        notes.append("Mean ± standard deviation over seeds.")
    if against:
        notes.append(
            f"{_gain_column(against)}: mean ± standard deviation of the differences between equal seeds "
            "(how many); within spread: the mean is not larger than the deviation. A single seed has no "
            "spread."
        )
    places = dict.fromkeys((row.method, row.published) for row in rows if row.published)
    if places:
        where = "; ".join(f"{method}: {place}" for method, place in places)
        notes.append(f"As published, not run here (a row without seeds): {where}.")
    return notes


def _record(row: Summary) -> dict:
    return {
        **{name: getattr(row, name) for name in _KEY},
        "seeds": row.seeds,
        "seed_numbers": [result.seed for result in row.results],
        "runs": [result.run for result in row.results],
        "mean": {m: row.mean(m) for m in METRICS},
        "standard_deviation": {m: row.deviation(m) for m in METRICS},
        "labels": row.mean_labels,
        "hours": row.mean_hours,
        "device": row.devices,
    }


def _csv(rows: Sequence[Summary]) -> str:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 4)

    names = _KEY[:-1]
    spread = [f"{metric}{end}" for metric in METRICS for end in ("", " sd")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    labels = [f"label {what}" for what in _LABELS]
    writer.writerow([*names, *spread, *labels, "seeds", "hours", "device", "as published in"])
    for row in rows:
        figures = [rounded(v) for metric in METRICS for v in (row.mean(metric), row.deviation(metric))]
        labels = [row.mean_labels.get(what) for what in _LABELS]
        cells = [*(getattr(row, name) for name in names), *figures, *labels]
        writer.writerow([*cells, row.seeds, rounded(row.mean_hours), row.devices, row.published])
    return file.getvalue().removesuffix("\n")
