"""Results of runs, one record each, from the files that a run leaves in its folder; no model is evaluated."""

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Real
from typing import Any

import torch
import yaml
from fastreid.config import CfgNode

from ..data.samplers import images_per_bn
from ..engine import load_config
from ..engine.checkpoint import read_stamp
from ..engine.defaults import EARLIER
from ..engine.events import read_record
from ..engine.files import write_atomically
from ..evaluation.evaluator import METRICS

Rows = Mapping[str, Mapping[str, float]]  # {row of the table: {"mAP": percent, ...}}
Series = list[tuple[int, float]]

SELECTIONS = ("last", "best")
#: a list of results: of a finished run of a grid, in its folder, and of all of them in the grid's
RECORD = "record.json"
_FILES = ("results.json", "metrics.json")
#: row of the start of a run of its own, without a grid
_START = "direct transfer"
#: end of a method's name that :func:`row_suffix` gave it
_ROW = re.compile(r"(, (teacher \d+|ensemble))?$")


@dataclass(frozen=True)
class Result:
    """A row of one seed.

    Attributes:
        method: what was evaluated, as a table names it.
        target: the test set.
        metrics: {"mAP", "Rank-1", "Rank-5", "Rank-10", "mINP"} in percent; those that are unknown are absent.
        source: what the model was trained on before, data sets or the name of a file of weights; "" if
            unknown.
        backbone: the network.
        selection: how the epoch and the network were chosen.
        images_per_bn: images that shared batch-norm statistics in training; None: nothing was trained, or
            unknown.
        epochs: of this training; 0: nothing was trained; None: unknown.
        hours: spent in training steps and pseudo-label refreshes of this run, evaluation and stage 1 left
            out.
        device: what it was trained on, or evaluated on where nothing was trained.
        seed: of the run, None if unknown.
        run: folder or file of weights that it comes from.
        labels: "precision" and "recall" (BCubed) of the last pseudo-labels against the target's identities
            and the ratio that is "noise", each [0, 1]; {} where they are not known.
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
        wrong = {n: v for n, v in metrics.items() if not (isinstance(v, Real) and 0 <= v <= 100)}
        if wrong:
            raise ValueError(
                f"metrics of {self.method!r} must be percentages, 0 to 100, got {wrong} in {self.run!r}"
            )
        object.__setattr__(self, "metrics", {name: round(float(value), 4) for name, value in metrics.items()})


def write_results(results: Iterable[Result], path: str) -> None:
    """Write results as a JSON list, atomically; unknown fields are left out."""
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


# ---- folders -------------------------------------------------------------------------------------


def collect(folder: str, selections: Collection[str] = ("last",), name: str = "") -> list[Result]:
    """Read the results of a run folder, or of all runs below a folder, such as a grid's.

    Source models and earlier runs inside a run are not results of their own. Untrained models stand first;
    the rest is in the order of the grid's record, if there is one.

    Args:
        folder: where to look.
        selections: "last" (the last epoch's rows) and/or "best" (the row that the run chose, by what it says
            it did).
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
            f"no finished run with figures in {folder!r}: looked for {', '.join((RECORD, *_FILES))} there "
            "and below; --tests evaluates the model of a run that had no test set"
        )
    record, order = os.path.join(folder, RECORD), []
    if name:  # with the row that the method's own name ends with, and the start told from what was trained
        ends = [f", {_START}" if r.method == _START else _ROW.search(r.method)[0] for r in results]
        results = [replace(result, method=name + end) for result, end in zip(results, ends)]
    elif os.path.isfile(record):
        order = list(dict.fromkeys(result.method for result in read_results(record)))
    results.sort(key=lambda result: order.index(result.method) if result.method in order else len(order))
    return sorted(results, key=lambda result: result.epochs != 0)


def find_runs(folder: str) -> Iterator[str]:
    """The run folders at and below a folder, by name, without source models and earlier runs in them."""
    names = sorted(os.listdir(folder))
    if {*names} & {*_FILES} or {RECORD, "config.yaml"} <= {*names}:
        yield folder
        return
    for path in (os.path.join(folder, name) for name in names if not EARLIER.fullmatch(name)):
        if os.path.isdir(path):
            holds_source_models = path.endswith(f"{os.sep}source") and any(
                re.fullmatch(r"peer\d+", name) for name in os.listdir(path)
            )
            if not holds_source_models:
                yield from find_runs(path)


def is_recorded(folder: str) -> bool:
    """Whether a run of a grid is finished: its folder holds its record."""
    return os.path.isfile(os.path.join(folder, RECORD))


def read_run(folder: str, selections: Collection[str] = ("last",), *, named: bool = True) -> list[Result]:
    """Results of one run folder; [] while it has none yet. ``selections`` as for :func:`collect`.

    ``named``: take the record that a grid has written, with its names, if there is one; else all that the
    run evaluated.
    """
    if not named or not is_recorded(folder):
        return run_results(folder, selections)
    results = [replace(r, run=folder) for r in read_results(os.path.join(folder, RECORD))]  # if it was moved
    return [r for r in results if ("best" if r.selection.startswith("best") else "last") in selections]


def run_results(folder: str, selections: Collection[str], rows: Rows | None = None) -> list[Result]:
    """Results of one run folder from what its training wrote. ``selections`` as for :func:`collect`.

    ``rows``: {name in the table: metrics} of the last epoch; None: all that results.json or metrics.json has.
    """
    path = os.path.join(folder, "config.yaml")
    if not os.path.isfile(path):
        raise ValueError(f"{folder!r} holds results but no config.yaml: is it a whole run folder?")
    config, scalars = read_config(path), read_scalars(folder)
    test = config["DATASETS"]["TESTS"][0] if config["DATASETS"]["TESTS"] else ""
    common = {
        **describe(config, test, read_stamp(os.path.join(folder, "model_final.pth")).get("processes", 1)),
        "selection": "last epoch",
        "hours": training_hours(scalars),
        "device": device_of(folder, config),
        "run": folder,
        "labels": _label_quality(scalars),
    }
    if rows:
        common["method"] = _ROW.sub("", next(iter(rows)))
    if not scalars:
        common |= _UNTRAINED
    record = read_record(os.path.join(folder, "results.json"))

    def results(best: bool) -> Iterator[dict[str, Any]]:
        if rows and not best:
            return ({"method": row, "metrics": metrics} for row, metrics in rows.items())
        if record is None:
            return _host_rows(config, scalars, common["method"], best)
        return _best_rows(record, common["method"]) if best else _last_rows(record, config, common["method"])

    return [
        Result(**{**common, **found})
        for selection in SELECTIONS
        if selection in selections
        for found in results(selection == "best")
    ]


_UNTRAINED = {"epochs": 0, "images_per_bn": None, "hours": None, "selection": "nothing trained", "labels": {}}
_LABELS = {
    "precision": "diagnostics/BCubed precision",
    "recall": "diagnostics/BCubed recall",
    "noise": "refresh/noise_share",
}


def _label_quality(scalars: Mapping[str, Series]) -> dict[str, float]:
    """Of the last refresh; {} of a training without one, or of a target without identities."""
    if not all(name in scalars for name in _LABELS.values()):
        return {}
    return {what: round(scalars[name][-1][1], 4) for what, name in _LABELS.items()}


def _last_rows(record: dict, config: Mapping, method: str) -> Iterator[dict[str, Any]]:
    """Direct transfer and the last epoch's teachers, or the only model; none until the last epoch is done."""
    evaluations = record["evaluations"]
    if not evaluations or evaluations[-1]["epoch"] < config["SOLVER"]["MAX_EPOCH"]:
        return
    for evaluation in evaluations[:1] + evaluations[-1:]:
        for test, rows in evaluation["results"].items():
            if evaluation["epoch"] == 0:  # the ensemble, or the only network
                metrics = list(rows.values())[-1]
                yield {**_UNTRAINED, "method": _START, "target": test, "metrics": metrics}
                continue
            for row, metrics in rows.items():
                yield {"method": method + row_suffix(row, len(rows)), "target": test, "metrics": metrics}


def row_suffix(row: str, of: int) -> str:
    """End of a row's name: ", teacher 1" of "teacher1"; "" where there is a single network."""
    return "" if of == 1 else f", {row.replace('teacher', 'teacher ')}"


def _best_rows(record: dict, method: str) -> Iterator[dict[str, Any]]:
    """The row that results.json calls the best, and what it was chosen on; none without a choice."""
    best, test = record["best"], record["tests"][0]
    rows = sum(len(e["results"][test]) for e in record["evaluations"] if e["epoch"])
    if best is None or rows < 2:  # a selection without labels has chosen none, or there was nothing to choose
        return
    for evaluation in record["evaluations"]:
        if evaluation["epoch"] == best["epoch"]:
            for test, rows in evaluation["results"].items():
                what = "teacher" if len(rows) > 1 else "epoch"
                yield {
                    "method": f"{method}, best {what}",
                    "target": test,
                    "metrics": rows[best["row"]],
                    "selection": f"best on {best['chosen_on']}",
                }


def _host_rows(
    config: Mapping, scalars: Mapping[str, Series], method: str, best: bool
) -> Iterator[dict[str, Any]]:
    """The last epoch's evaluation in metrics.json, or the best: of stage 1 and of plain fast-reid models.

    Nothing of a run whose last epoch has no evaluation yet.
    """
    tests = config["DATASETS"]["TESTS"]
    prefixes = {test: f"{test}/" if len(tests) > 1 else "" for test in tests}
    at = max((series[-1][0] for series in scalars.values()), default=0)
    chosen_by = "mAP" if config["MODEL"]["META_ARCHITECTURE"] == "SSKDSource" else "metric"
    quality = scalars.get(prefixes[tests[0]] + chosen_by, []) if tests else []
    if not quality or quality[-1][0] != at or best and len(quality) == 1:
        return
    chosen = {}
    if best:
        at = max(quality, key=lambda point: point[1])[0]
        by = "mAP" if chosen_by == "mAP" else "(mAP + Rank-1) / 2"
        chosen = {"selection": f"best on {tests[0]} test split, by {by}"}
    for test, prefix in prefixes.items():
        own = method if test == tests[0] else describe(config, test)["method"]
        metrics = {name: dict(scalars.get(prefix + name, {})).get(at) for name in METRICS}
        yield {
            **chosen,
            "method": own + ", best epoch" * best,
            "target": test,
            "metrics": {name: value for name, value in metrics.items() if value is not None},
        }


def device_of(folder: str, config: Mapping) -> str:
    """The device of a run: "cpu", or the GPU that its log names."""
    device, path = torch.device(config["MODEL"]["DEVICE"]).type, os.path.join(folder, "log.txt")
    if device != "cuda" or not os.path.isfile(path):
        return device
    with open(path, encoding="utf-8", errors="replace") as file:
        return (re.findall(r"^GPU [\d,]+ +(.+?) *$", file.read(), re.MULTILINE) or [device])[-1]


# ---- metrics.json --------------------------------------------------------------------------------


def read_scalars(folder: str) -> dict[str, Series]:
    """{name: [(iteration, value), ...]} of the metrics.json in a run folder, ascending; {} without one.

    A resumed run has written some iterations twice: the later line counts. A last line that a killed run left
    unfinished is skipped.
    """
    path = os.path.join(folder, "metrics.json")
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line for line in file.read().split("\n") if line.strip()]
    found: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            scalars = json.loads(line)
            iteration = scalars.pop("iteration")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(
                f"line {number} of {path!r} is not what a run writes, a JSON object with an iteration: "
                f"{error}"
            ) from error
        for name, value in scalars.items():
            found.setdefault(name, {})[iteration] = value
    return {name: sorted(values.items()) for name, values in found.items()}


def training_hours(scalars: Mapping[str, Series]) -> float | None:
    """Hours of training steps and pseudo-label refreshes; None where no step was timed.

    Each line gives the median seconds of a step up to it, counted for the steps since the line before.
    """
    steps = scalars.get("time", [])
    if not steps:
        return None
    seconds, done = 0.0, 0
    for iteration, per_step in steps:
        seconds, done = seconds + per_step * (iteration + 1 - done), iteration + 1
    for name, series in scalars.items():
        if name.startswith("refresh/seconds_"):
            seconds += sum(value for _, value in series)
    return seconds / 3600


# ---- config.yaml ---------------------------------------------------------------------------------


def read_config(path: str) -> dict[str, Any]:
    """The ``config.yaml`` of a run as a dict, also one with keys that are no longer known."""
    with open(path, encoding="utf-8") as file:
        try:
            config = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path!r} is no YAML: {error}") from error
    there = config if isinstance(config, dict) else {}
    missing = [key for key in ("MODEL", "DATASETS", "SOLVER") if key not in there]
    if missing:
        raise ValueError(f"{path!r} is no config of a run: it has no {' and no '.join(missing)}")
    return config


def as_dict(cfg: CfgNode) -> dict[str, Any]:
    """A config as the dict that its ``config.yaml`` would be read as."""
    return yaml.safe_load(cfg.dump())


def describe(config: Mapping[str, Any], test: str, processes: int = 1) -> dict[str, Any]:
    """The fields of a ``Result`` that a config gives, for one test set and number of processes."""
    architecture = config["MODEL"]["META_ARCHITECTURE"]
    trained_on = "supervised" if test in config["DATASETS"]["NAMES"] else "source only"
    return {
        "method": "SSKD" if architecture == "SSKD" else f"{trained_on}, {architecture}",
        "target": test,
        "source": source_name(config),
        "backbone": backbone_name(config),
        "images_per_bn": images_per_bn(config, processes),
        "epochs": config["SOLVER"]["MAX_EPOCH"],
        "seed": config.get("SEED"),
    }


def backbone_name(config: Mapping[str, Any]) -> str:
    """Name a backbone by the host's builder and its DEPTH: "resnet50", "osnet x0.25", "resnet50-ibn"."""
    backbone = config["MODEL"]["BACKBONE"]
    name = re.sub(r"^build_|_backbone$", "", backbone["NAME"])
    depth = str(backbone["DEPTH"])
    name = name + depth[:-1] if re.fullmatch(r"\d+x", depth) else f"{name} {depth.replace('_', '.')}"
    kinds = [kind for kind in ("ibn", "se", "nl") if backbone.get(f"WITH_{kind.upper()}")]
    return "-".join([name, *kinds])


def source_name(config: Mapping[str, Any]) -> str:
    """What the start weights (or their file) are named after, else the data sets of stage 1 or of the run."""
    source = config.get("SSKD", {}).get("SOURCE", {})
    names: list[str] = []
    if config["MODEL"]["META_ARCHITECTURE"] in ("SSKD", "SSKDSource"):
        weights = [*source.get("WEIGHTS", []), config["MODEL"].get("WEIGHTS", "")]
        names = [name for path in weights if path for name in _trained_on(path, source)]
    if not names:
        names = _stage_1(source) or config["DATASETS"]["NAMES"]
    return " + ".join(dict.fromkeys(names))


def _trained_on(path: str, source: Mapping[str, Any]) -> list[str]:
    own, name = (
        os.path.join(os.path.dirname(path), "config.yaml"),
        os.path.splitext(os.path.basename(path))[0],
    )
    if not re.search(r"source/peer\d+/[^/]+$", path.replace(os.sep, "/")):
        return [name]
    if os.path.isfile(own):
        return list(read_config(own)["DATASETS"]["NAMES"])
    return _stage_1(source) or [name]  # the source models were removed


def _stage_1(source: Mapping[str, Any]) -> list[str]:
    config = source.get("CONFIG")
    if not config or not os.path.isfile(config):
        return []
    return list(load_config(config, source.get("OPTS", [])).DATASETS.NAMES)
