"""Results of runs, one record each, from the files that a run leaves in its folder; no model is evaluated."""

import functools
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
_ROWS = "rows.json"  # what earlier versions wrote in place of a run's record: its last epoch's rows
_FILES = (_ROWS, "results.json", "metrics.json")


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
        wrong = {
            name: value
            for name, value in metrics.items()
            if not (isinstance(value, Real) and 0 <= value <= 100)
        }
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
    rows, known = _read_json(path), {f.name for f in fields(Result)}
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(row) <= known for row in rows):
        raise ValueError(
            f"{path!r} is no list of results: each is an object with some of {', '.join(sorted(known))}"
        )
    return [Result(**row) for row in rows]


def _read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"{path!r} is not JSON: {error}") from error


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
    if name:
        results = [replace(result, method=_renamed(result.method, name)) for result in results]
    elif os.path.isfile(record):
        order = list(dict.fromkeys(result.method for result in read_results(record)))
    results.sort(key=lambda result: order.index(result.method) if result.method in order else len(order))
    return sorted(results, key=lambda result: result.epochs != 0)


def _renamed(method: str, name: str) -> str:
    """Another name for the method, its row ("teacher 1", "ensemble") kept."""
    row = re.search(r", (teacher \d+|ensemble)$", method)
    return name + (row[0] if row else "")


def find_runs(folder: str) -> Iterator[str]:
    """The run folders at and below a folder, by name.

    Those inside a run (its source models, earlier runs) left out.
    """
    names = set(os.listdir(folder))
    if names & set(_FILES) or {RECORD, "config.yaml"} <= names:
        yield folder
        return
    for entry in sorted(names):
        path = os.path.join(folder, entry)
        if os.path.isdir(path) and not (EARLIER.fullmatch(entry) or _holds_source_models(path)):
            yield from find_runs(path)


def _holds_source_models(folder: str) -> bool:
    """Whether a folder is the ``source`` of a run or grid: source/peer0, ..."""
    return os.path.basename(folder) == "source" and any(
        re.fullmatch(r"peer\d+", name) for name in os.listdir(folder)
    )


def is_recorded(folder: str) -> bool:
    """Whether a run of a grid is finished: its folder holds its record."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (RECORD, _ROWS))


def read_run(folder: str, selections: Collection[str] = ("last",), *, named: bool = True) -> list[Result]:
    """Results of one run folder; [] while it has none yet.

    Args:
        folder: of the run.
        selections: as for :func:`collect`.
        named: take the record that a grid has written, with its names, if there is one; else all that the run
            evaluated.

    Raises:
        ValueError: if a file is damaged, or its config is not to be found.
    """
    record = os.path.join(folder, RECORD)
    if not named or not os.path.isfile(record):
        return run_results(folder, selections, _read_rows(folder) if named else {})
    results = [replace(result, run=folder) for result in read_results(record)]  # wherever the folder is now
    return [r for r in results if ("best" if r.selection.startswith("best") else "last") in selections]


def _read_rows(folder: str) -> Rows:
    path = os.path.join(folder, _ROWS)
    rows = _read_json(path) if os.path.isfile(path) else {}
    if not isinstance(rows, dict) or not all(
        isinstance(found, dict) and "mAP" in found for found in rows.values()
    ):
        raise ValueError(
            f"{path!r} does not hold the rows of a table, {{row: {{metric: percent}}}}: remove it to make "
            "them again"
        )
    return rows


def run_results(folder: str, selections: Collection[str], rows: Rows) -> list[Result]:
    """Results of one run folder from what its training wrote.

    Args:
        folder: of the run.
        selections: as for :func:`collect`.
        rows: {name in the table: metrics} of the last epoch; {}: all that results.json or metrics.json has.
    """
    config, scalars = read_config(_near(folder, "config.yaml")), read_scalars(folder)
    test = config["DATASETS"]["TESTS"][0] if config["DATASETS"]["TESTS"] else ""
    common = {
        **describe(config, test, read_stamp(os.path.join(folder, "model_final.pth")).get("processes", 1)),
        "selection": "last epoch",
        "hours": training_hours(scalars),
        "device": device_of(folder, config),
        "run": folder,
        "labels": _label_quality(scalars),
    }
    if len(rows) == 1:
        common["method"] = next(iter(rows))
    if not scalars:
        common |= _UNTRAINED
    make = functools.partial(_result, common)
    record = read_record(os.path.join(folder, "results.json"))
    results = []
    if "last" in selections and rows:
        results += [make(method=row, metrics=metrics) for row, metrics in rows.items()]
    elif "last" in selections:
        results += _last_rows(record, config, make) if record else _host_rows(config, scalars, make)
    if "best" in selections:
        results += _best_rows(record, make) if record else _host_rows(config, scalars, make, best=True)
    return results


def _result(common: Mapping[str, Any], method: str = "", suffix: str = "", **given: Any) -> Result:
    return Result(**{**common, "method": (method or common["method"]) + suffix, **given})


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


def _near(folder: str, name: str) -> str:
    """A file of the run, or of the comparison of an earlier version that it is part of."""
    for place in (folder, os.path.dirname(os.path.abspath(folder))):
        path = os.path.join(place, name)
        if os.path.isfile(path):
            return path
    raise ValueError(
        f"{folder!r} holds results but no {name}, and neither does the folder above: is it a whole run "
        "folder?"
    )


def _last_rows(record: dict, config: Mapping, make: Callable[..., Result]) -> list[Result]:
    """Direct transfer and the last epoch's teachers, or the only model; [] until the last epoch is done."""
    if not record["evaluations"] or record["evaluations"][-1]["epoch"] < config["SOLVER"]["MAX_EPOCH"]:
        return []
    results = []
    for evaluation in record["evaluations"][:1] + record["evaluations"][-1:]:
        for test, rows in evaluation["results"].items():
            if evaluation["epoch"] == 0:
                row = list(rows)[-1]  # the ensemble, or the only network
                results.append(make(**_UNTRAINED, method="direct transfer", target=test, metrics=rows[row]))
            else:
                results += [
                    make(suffix=row_suffix(row, len(rows)), target=test, metrics=found)
                    for row, found in rows.items()
                ]
    return results


def row_suffix(row: str, of: int) -> str:
    """End of a row's name: ", teacher 1" of "teacher1"; "" where there is a single network."""
    return "" if of == 1 else f", {row.replace('teacher', 'teacher ')}"


def _best_rows(record: dict, make: Callable[..., Result]) -> list[Result]:
    """The row that results.json calls the best, and what it was chosen on.

    [] where there was nothing to choose.
    """
    best, adapted = (
        record["best"],
        [evaluation for evaluation in record["evaluations"] if evaluation["epoch"]],
    )
    if best is None:  # selection without labels has chosen none
        return []
    if sum(len(evaluation["results"][record["tests"][0]]) for evaluation in adapted) < 2:
        return []
    chosen = next(
        (e["results"] for e in record["evaluations"] if e["epoch"] == best["epoch"]), {}
    )  # {}: not evaluated
    return [
        make(
            suffix=f", best {'teacher' if len(rows) > 1 else 'epoch'}",
            target=test,
            metrics=rows[best["row"]],
            selection=f"best on {best['chosen_on']}",
        )
        for test, rows in chosen.items()
    ]


def _host_rows(
    config: Mapping, scalars: Mapping[str, Series], make: Callable[..., Result], best: bool = False
) -> list[Result]:
    """An evaluation in metrics.json, of stage 1 and of plain fast-reid models.

    The last epoch's, or the best one.

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
        selection = (
            f"best on {tests[0]} test split, by {'mAP' if chosen_by == 'mAP' else '(mAP + Rank-1) / 2'}"
        )
    results = []
    for test, prefix in prefixes.items():
        metrics = {name: dict(scalars.get(prefix + name, {})).get(at) for name in METRICS}
        results.append(
            make(
                method="" if test == tests[0] else describe(config, test)["method"],
                suffix=", best epoch" * best,
                target=test,
                selection=selection,
                metrics={name: value for name, value in metrics.items() if value is not None},
            )
        )
    return results


def device_of(folder: str, config: Mapping) -> str:
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


# ---- metrics.json --------------------------------------------------------------------------------


def read_scalars(folder: str) -> dict[str, Series]:
    """{name: [(iteration, value), ...]} of the metrics.json in a run folder, ascending; {} without one.

    A resumed run has written some iterations twice: the later line counts. A last line that a killed run left
    unfinished is skipped.

    Raises:
        ValueError: if a line before the last is not JSON.
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
        seconds += per_step * (iteration + 1 - done)
        done = iteration + 1
    for name, series in scalars.items():
        if name.startswith("refresh/seconds_"):
            seconds += sum(value for _, value in series)
    return seconds / 3600


# ---- config.yaml ---------------------------------------------------------------------------------


def read_config(path: str) -> dict[str, Any]:
    """The ``config.yaml`` of a run as a dict.

    Also that of an older version, whose keys are no longer known.
    """
    with open(path, encoding="utf-8") as file:
        try:
            config = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path!r} is no YAML: {error}") from error
    missing = [
        key
        for key in ("MODEL", "DATASETS", "SOLVER")
        if key not in (config if isinstance(config, dict) else {})
    ]
    if missing:
        raise ValueError(f"{path!r} is no config of a run: it has no {' and no '.join(missing)}")
    return config


def as_dict(cfg: CfgNode) -> dict[str, Any]:
    """A config as the dict that its ``config.yaml`` would be read as."""
    return yaml.safe_load(cfg.dump())


def describe(config: Mapping[str, Any], test: str, processes: int = 1) -> dict[str, Any]:
    """The fields of a ``Result`` that a config gives, for one test set and number of processes."""
    architecture = config["MODEL"]["META_ARCHITECTURE"]
    if architecture == "SSKD":
        method = "SSKD"
    else:
        method = f"{'supervised' if test in config['DATASETS']['NAMES'] else 'source only'}, {architecture}"
    return {
        "method": method,
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
    """What the start weights were trained on, else the data sets of stage 1, else those of the run.

    Of weights that are not this package's source models, the names of the files.
    """
    source = config.get("SSKD", {}).get("SOURCE", {})
    names: list[str] = []
    if config["MODEL"]["META_ARCHITECTURE"] in ("SSKD", "SSKDSource"):
        weights = [*source.get("WEIGHTS", []), config["MODEL"].get("WEIGHTS", "")]
        names = [name for path in weights if path for name in _trained_on(path, source)]
    if not names:
        names = _stage_1(source) or config["DATASETS"]["NAMES"]
    return " + ".join(dict.fromkeys(names))


def _trained_on(path: str, source: Mapping[str, Any]) -> list[str]:
    own = os.path.join(os.path.dirname(path), "config.yaml")
    if not re.search(r"source/peer\d+/[^/]+$", path.replace(os.sep, "/")):
        return [os.path.splitext(os.path.basename(path))[0]]
    if os.path.isfile(own):
        return list(read_config(own)["DATASETS"]["NAMES"])
    return _stage_1(source) or [os.path.splitext(os.path.basename(path))[0]]  # the source models were removed


def _stage_1(source: Mapping[str, Any]) -> list[str]:
    config = source.get("CONFIG")
    return (
        list(load_config(config, source.get("OPTS", [])).DATASETS.NAMES)
        if config and os.path.isfile(config)
        else []
    )
