"""What a run folder holds, read without running anything."""

import os
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from fastreid.utils.collect_env import collect_env_info

from ..benchmark.results import Result, Series, read_config, read_run, read_scalars
from ..engine.events import read_record
from ..modeling.weights import read_file


@dataclass
class RunFiles:
    """What the files of a run say.

    Attributes:
        config, config_text: its config.yaml as a dict, and as it is written.
        scalars: see :func:`fastreid_sskd.benchmark.results.read_scalars`.
        evaluations: [{"epoch", "results": {test: {row: metrics}}}] of an adaptation.
        results: rows of the table, last epoch and best.
        checkpoint: path of the last weights, "" if there are none.
        labels: (N,) pseudo-labels of the last refresh, None without.
        sweep: the radii that eps was last chosen from, [] where it was not.
        environment, environment_of: as the log has it, and whose it is.
    """

    folder: str
    config: dict[str, Any]
    config_text: str
    scalars: dict[str, Series] = field(default_factory=dict)
    evaluations: list[dict] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    checkpoint: str = ""
    labels: np.ndarray | None = None
    sweep: list[dict] = field(default_factory=list)
    environment: str = ""
    environment_of: str = "the run"


def read_run_files(folder: str) -> RunFiles:
    """Read a run folder."""
    path = os.path.join(folder, "config.yaml")
    if not os.path.isfile(path):
        below = sorted(
            at for at, _, names in os.walk(folder) if {"config.yaml", "metrics.json"} <= set(names)
        )
        hint = f"; runs below it: {', '.join(below[:6])}" if below else ""
        raise FileNotFoundError(f"{folder!r} is no run folder: it has no config.yaml{hint}")
    scalars = read_scalars(folder)
    if not scalars:
        raise ValueError(f"{folder!r} has no metrics.json with scalars: nothing has been trained there yet")
    with open(path, encoding="utf-8") as file:
        run = RunFiles(folder, read_config(path), file.read(), scalars)
    record = read_record(os.path.join(folder, "results.json"))
    run.evaluations = record["evaluations"] if record else []
    run.results = read_run(folder, ("last", "best"), named=False)
    run.checkpoint = _checkpoint(folder)
    refresh = read_file(run.checkpoint, mmap=True).get("refresh", {}) if run.checkpoint else {}
    run.labels = None if refresh.get("labels") is None else np.asarray(refresh["labels"])
    run.sweep = next(
        (entry["sweep"] for entry in reversed(refresh.get("history", [])) if "sweep" in entry), []
    )
    run.environment = _environment(folder)
    if not run.environment:
        run.environment = collect_env_info()
        run.environment_of = "this report, because the run's log does not say"
    return run


def _checkpoint(folder: str) -> str:
    """model_final.pth, else the newest of the run's checkpoints, "" without any."""
    names = [name for name in os.listdir(folder) if re.fullmatch(r"model_(final|best|\d+)\.pth", name)]
    paths = [os.path.join(folder, name) for name in names]
    return max(paths, key=lambda path: (path.endswith("model_final.pth"), os.path.getmtime(path)), default="")


def _environment(folder: str) -> str:
    """The first block "Environment info" of the run's log, "" without."""
    path, block = os.path.join(folder, "log.txt"), r"Environment info:\n(.*?)(?=^\[\d\d/\d\d |\Z)"
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        found = re.search(block, file.read(), re.DOTALL | re.MULTILINE)
    return found[1].strip() if found else ""
