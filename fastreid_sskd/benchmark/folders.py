"""Results of finished run folders, from the files that a run leaves there; nothing is evaluated anew."""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import torch

from ..engine.checkpoint import read_stamp
from ..engine.defaults import EARLIER
from ..engine.events import read_record
from ..evaluation.table import METRICS
from .description import describe, read_config
from .result import Result, read_results
from .run_folder import read_rows
from .scalars import read_scalars, training_hours

__all__ = ["RECORD", "SELECTIONS", "collect", "device_of", "find_runs", "is_run", "read_run"]

SELECTIONS = ("last", "best")
RECORD = "record.json"  # of a grid's finished runs, in its order
_RESULTS = ("rows.json", "results.json", "metrics.json")


def is_run(folder: str) -> bool:
    """Whether a folder is one run's: it holds results."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in _RESULTS)


def collect(folder: str, selections: Collection[str] = ("last",), name: str = "") -> list[Result]:
    """Results of a run folder, or of all below a folder of runs (a grid's, or one that tools/compare.py made).

    Stage 1 folders and earlier runs inside a run are not results of their own. Rows of models as they came stand first; the
    rest is in the order of the grid's record, if there is one.

    Args:
        folder: where to look.
        selections: "last" (the last epoch's rows) and/or "best" (the row that the run chose, by what it says it did).
        name: method's name in place of the one found.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if it holds no finished run with figures, or a selection is not known.
    """
    unknown = sorted(set(selections) - set(SELECTIONS))
    if unknown or not selections:
        raise ValueError(
            f"selections are some of {', '.join(SELECTIONS)}, got {', '.join(unknown) or 'none'}"
        )
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"run folder {folder!r} not found")
    results = [result for run in find_runs(folder) for result in read_run(run, selections)]
    if not results:
        raise ValueError(
            f"no finished run with figures in {folder!r}: looked for {', '.join(_RESULTS)} there and below; --tests evaluates "
            "the model of a run that had no test set"
        )
    if name:
        return _untrained_first([replace(result, method=_renamed(result.method, name)) for result in results])
    record = os.path.join(folder, RECORD)
    if os.path.isfile(record):
        order = list(dict.fromkeys(result.method for result in read_results(record)))
        results.sort(key=lambda result: order.index(result.method) if result.method in order else len(order))
    return _untrained_first(results)


def _untrained_first(results: list[Result]) -> list[Result]:
    return sorted(results, key=lambda result: result.epochs != 0)


def _renamed(method: str, name: str) -> str:
    """Another name for the method, its row ("teacher 1", "ensemble") kept."""
    row = re.search(r", (teacher \d+|ensemble)$", method)
    return name + (row[0] if row else "")


def find_runs(folder: str) -> Iterator[str]:
    """The run folders at and below a folder, by name; those inside a run (its source models, earlier runs) left out."""
    if is_run(folder):
        yield folder
        return
    for entry in sorted(os.listdir(folder)):
        path = os.path.join(folder, entry)
        if os.path.isdir(path) and not (EARLIER.fullmatch(entry) or _holds_source_models(path)):
            yield from find_runs(path)


def _holds_source_models(folder: str) -> bool:
    """Whether a folder is the ``source`` of a run or grid: source/peer0, ..."""
    return os.path.basename(folder) == "source" and any(re.fullmatch(r"peer\d+", name) for name in os.listdir(folder))


def read_run(folder: str, selections: Collection[str] = ("last",), *, named: bool = True) -> list[Result]:
    """Results of one run folder; [] while it has none yet.

    Args:
        folder: of the run.
        selections: as for :func:`collect`.
        named: take the rows that a comparison has named in rows.json, if it has; else all that the run evaluated.

    Raises:
        ValueError: if its config is not to be found.
    """
    config = read_config(_near(folder, "config.yaml"))
    scalars = read_scalars(folder)
    trained = bool(scalars)
    test = config["DATASETS"]["TESTS"][0] if config["DATASETS"]["TESTS"] else ""
    common = {
        **describe(config, test, read_stamp(os.path.join(folder, "model_final.pth")).get("processes", 1)),
        "hours": training_hours(scalars),
        "device": device_of(folder, config),
        "run": folder,
        "labels": _label_quality(scalars),
    }
    rows = (read_rows(folder) or {}) if named else {}
    if len(rows) == 1:
        common["method"] = next(iter(rows))
    if not trained:
        common |= _UNTRAINED
    results = []
    if "last" in selections:
        results += _named_rows(rows, common) or _last_rows(folder, config, scalars, common)
    if "best" in selections:
        results += _best_rows(folder, config, scalars, common)
    return results


_UNTRAINED: dict[str, Any] = {
    "epochs": 0,
    "images_per_bn": None,
    "hours": None,
    "selection": "nothing trained",
    "labels": {},
}
_LABELS = {"precision": "diagnostics/BCubed precision", "recall": "diagnostics/BCubed recall", "noise": "refresh/noise_share"}


def _label_quality(scalars: dict) -> dict[str, float]:
    """Of the last refresh; {} of a training without one, or of a target without identities."""
    if not all(name in scalars for name in _LABELS.values()):
        return {}
    return {what: round(scalars[name][-1][1], 4) for what, name in _LABELS.items()}


def _near(folder: str, name: str) -> str:
    """A file of the run, or of the comparison that it is part of."""
    for place in (folder, os.path.dirname(os.path.abspath(folder))):
        path = os.path.join(place, name)
        if os.path.isfile(path):
            return path
    raise ValueError(
        f"{folder!r} holds results but no {name}, and neither does the folder above: is it a whole run folder?"
    )


def _named_rows(rows: dict, common: dict) -> list[Result]:
    """rows.json, {row: metrics} of the last epoch: what a comparison calls them."""
    return [
        Result(**{"selection": "last epoch", **common, "method": row, "metrics": m})
        for row, m in rows.items()
    ]


def _last_rows(folder: str, config: dict, scalars: dict, common: dict) -> list[Result]:
    """Direct transfer and the last epoch's teachers, or the only model; [] until the last epoch is done."""
    found = read_record(os.path.join(folder, "results.json"))
    if not found:
        return _host_rows(config, scalars, common)
    if not found["evaluations"] or found["evaluations"][-1]["epoch"] < config["SOLVER"]["MAX_EPOCH"]:
        return []
    results = []
    for evaluation in found["evaluations"][:1] + found["evaluations"][-1:]:
        for test, rows in evaluation["results"].items():
            if evaluation["epoch"] == 0:
                row = list(rows)[-1]  # the ensemble, or the only network
                results.append(
                    Result(
                        **{
                            **common,
                            **_UNTRAINED,
                            "method": "direct transfer",
                            "target": test,
                            "metrics": rows[row],
                        }
                    )
                )
                continue
            for row, metrics in rows.items():
                method = common["method"] + row_suffix(row, len(rows))
                results.append(
                    Result(
                        **{
                            **common,
                            "method": method,
                            "target": test,
                            "metrics": metrics,
                            "selection": "last epoch",
                        }
                    )
                )
    return results


def row_suffix(row: str, of: int) -> str:
    """ ", teacher 1" of "peer1"; "" where there is a single network."""
    return "" if of == 1 else f", {row.replace('peer', 'teacher ')}"


def _host_rows(config: dict, scalars: dict, common: dict, best: bool = False) -> list[Result]:
    """An evaluation in metrics.json, of stage 1 and of plain fast-reid models: the last epoch's, or the best one.

    Nothing of a run whose last epoch has no evaluation yet.
    """
    tests = config["DATASETS"]["TESTS"]
    prefixes = {test: f"{test}/" if len(tests) > 1 else "" for test in tests}
    last = max((series[-1][0] for series in scalars.values()), default=0)
    chosen_by = "mAP" if config["MODEL"]["META_ARCHITECTURE"] == "SSKDSource" else "metric"
    quality = scalars.get(prefixes[tests[0]] + chosen_by, []) if tests else []
    if not quality or quality[-1][0] != last or best and len(quality) == 1:
        return []
    at, selection = last, "last epoch"
    if best:
        at = max(quality, key=lambda point: point[1])[0]
        selection = f"best on {tests[0]} test split, by {'mAP' if chosen_by == 'mAP' else '(mAP + Rank-1) / 2'}"
    results = []
    for test, prefix in prefixes.items():
        metrics = {name: dict(scalars.get(prefix + name, {})).get(at) for name in METRICS}
        method = common["method"] if test == common["target"] else describe(config, test)["method"]
        method += ", best epoch" if best else ""
        results.append(
            Result(
                **{
                    **common,
                    "method": method,
                    "target": test,
                    "selection": selection,
                    "metrics": {name: value for name, value in metrics.items() if value is not None},
                }
            )
        )
    return results


def _best_rows(folder: str, config: dict, scalars: dict, common: dict) -> list[Result]:
    """The row that results.json calls the best, and what it was chosen on; [] where there was nothing to choose."""
    found = read_record(os.path.join(folder, "results.json"))
    if not found:
        return _host_rows(config, scalars, common, best=True)
    best = found["best"]
    if best is None:  # selection without labels has chosen none
        return []
    adapted = [e for e in found["evaluations"] if e["epoch"]]
    if sum(len(e["results"][found["tests"][0]]) for e in adapted) < 2:
        return []
    evaluation = next((e for e in found["evaluations"] if e["epoch"] == best["epoch"]), None)
    if evaluation is None:  # chosen in an epoch that was not evaluated
        return []
    return [
        Result(
            **{
                **common,
                "method": f"{common['method']}, best {'teacher' if len(rows) > 1 else 'epoch'}",
                "target": test,
                "metrics": rows[best["row"]],
                "selection": f"best on {best['chosen_on']}",
            }
        )
        for test, rows in evaluation["results"].items()
    ]


def device_of(folder: str, config: dict) -> str:
    """The device of a run: "cpu", or the GPU that its log names."""
    device = torch.device(config["MODEL"]["DEVICE"]).type
    if device != "cuda":
        return device
    for place in (folder, os.path.dirname(os.path.abspath(folder))):
        path = os.path.join(place, "log.txt")
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                gpus = re.findall(r"^GPU [\d,]+ +(.+?) *$", file.read(), re.MULTILINE)
            if gpus:
                return gpus[-1]
    return device
