"""Evaluation of any model that a config describes, kept as records so that nothing is evaluated twice."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from fastreid.config import CfgNode

from ..engine import evaluate, load_config, resolve
from ..engine.checkpoint import read_stamp
from ..engine.events import read_record
from .results import (
    Result,
    as_dict,
    describe,
    device_of,
    find_runs,
    read_results,
    read_scalars,
    row_suffix,
    training_hours,
    write_results,
)

logger = logging.getLogger("fastreid.sskd.benchmark")


def evaluate_pair(
    config_file: str,
    weights: str,
    tests: Sequence[str] = (),
    *,
    name: str = "",
    opts: Sequence = (),
    records: str = "",
) -> list[Result]:
    """Evaluate a model on test sets: fast-reid's, a source model, or every teacher and the ensemble of SSKD.

    Args:
        config_file, weights: describe the model.
        tests: registered data sets; () for the config's ``DATASETS.TESTS``.
        name: method's name in the table; "": made from the config.
        opts: overrides of the config, KEY value ...
        records: folder for JSON records, by config, file of weights and test sets; what is there is not
            evaluated again.

    Returns:
        A row a network and test set. Epochs and hours are those of the run that the weights lie in, if they
        do.
    """
    cfg = resolve(load_config(config_file, [*opts, "MODEL.WEIGHTS", weights]))
    if tests:
        cfg.DATASETS.TESTS = tuple(tests)
    if not cfg.DATASETS.TESTS:
        raise ValueError(f"no test set: {config_file!r} has no DATASETS.TESTS, and none was given")
    cfg.freeze()
    config = as_dict(load_config(config_file, opts))  # with the weights that the training started from
    if not os.path.isfile(weights):
        raise FileNotFoundError(f"weights {weights!r} not found")
    path = os.path.join(records, f"{_key(cfg, weights)}.json") if records else ""
    if path and os.path.isfile(path):
        logger.info("%s on %s: recorded in %s", weights, ", ".join(cfg.DATASETS.TESTS), path)
        results = read_results(path)
    else:
        results = _evaluate(cfg, weights, config)
        if path:
            write_results(results, path)
    if not name:
        return results
    return [
        replace(r, method=name + r.method.removeprefix(describe(config, r.target)["method"])) for r in results
    ]


def evaluate_folder(folder: str, tests: Sequence[str], **kwargs) -> list[Result]:
    """Evaluate ``model_final.pth`` of a run, or of every run below a folder, as :func:`evaluate_pair`."""
    names = "config.yaml", "model_final.pth"
    files = [[os.path.join(run, name) for name in names] for run in find_runs(folder)]
    pairs = [pair for pair in files if all(map(os.path.isfile, pair))]
    if not pairs:
        raise FileNotFoundError(f"no run with config.yaml and model_final.pth in {folder!r}")
    return [result for config, weights in pairs for result in evaluate_pair(config, weights, tests, **kwargs)]


def _key(cfg: CfgNode, weights: str) -> str:
    """Changes with whatever changes the result: config, test sets, the file of weights."""
    config = as_dict(cfg)
    config["MODEL"]["WEIGHTS"] = os.path.abspath(weights)
    config.pop("OUTPUT_DIR")
    stat = os.stat(weights)
    text = json.dumps([config, stat.st_size, stat.st_mtime_ns], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _evaluate(cfg: CfgNode, weights: str, config: dict) -> list[Result]:
    found, tests = evaluate(cfg), cfg.DATASETS.TESTS
    if len(tests) == 1 and tests[0] not in found:
        found = {tests[0]: found}  # the host's answer for a single test set
    folder, stamp = os.path.dirname(os.path.abspath(weights)), read_stamp(weights)
    common = {
        "selection": _selection(weights, folder),
        "epochs": stamp["epoch"] + 1 if "epoch" in stamp else None,
        "hours": training_hours(read_scalars(folder)),
        "device": device_of(folder, as_dict(cfg)),
        "run": weights,
    }
    results = []
    for test in filter(found.__contains__, tests):
        rows = {"teacher0": found[test]} if "mAP" in found[test] else found[test]
        described = describe(config, test, stamp.get("processes", 1))
        for row, metrics in rows.items():
            method = described["method"] + row_suffix(row, len(rows))
            results.append(Result(**{**described, **common, "method": method, "metrics": metrics}))
    return results


def _selection(weights: str, folder: str) -> str:
    """How the file was chosen, by its name: the names that a run gives."""
    name = os.path.splitext(os.path.basename(weights))[0]
    if name == "model_best":
        record = read_record(os.path.join(folder, "results.json"))
        if record is None:
            return "best on the run's own test split"
        # The run that wrote the results chose none: the file is not of that run.
        return f"best on {record['best']['chosen_on']}" if record["best"] else f"file {name}"
    return "last epoch" if name == "model_final" else f"file {name}"
