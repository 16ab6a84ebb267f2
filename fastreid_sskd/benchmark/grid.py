"""Variants of one config, each trained over seeds; what is finished is kept, so a grid goes on where it stopped."""

import argparse
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from fastreid.config import CfgNode

from ..engine import load_config, resolve, run, seed_everything
from ..engine.pipeline import check_inputs, evaluate_start, pretrains
from ..evaluation.evaluator import METRICS
from .folders import RECORD, SELECTIONS, read_run
from .result import Result, write_results
from .run_folder import Job, Rows, check_evaluated, check_jobs, check_same_settings, keep_settings, run_jobs

__all__ = ["Cell", "Grid", "load_grid", "parse_seeds", "repeat", "run_grid"]


@dataclass(frozen=True)
class Cell:
    """One variant.

    Attributes:
        name: in the table.
        opts: the overrides that make it, KEY value ...
        run: "train"; or a baseline of which nothing is trained: "start", the ensemble of the source models as they are, or
            "batch_norm", the same with the target's batch-norm statistics.
        steps: times as many iterations an epoch as the config has [>= 1].
    """

    name: str
    opts: tuple = ()
    run: str = "train"
    steps: int = 1


@dataclass(frozen=True)
class Grid:
    """Variants of a config and the seeds that each is run with.

    Attributes:
        config: file of the base config.
        cells: the variants.
        seeds: every cell is run with each.
        share_source: start from source models that are made with the base config: all cells and seeds from one set ("all"),
            the cells of a seed from a set of that seed ("seed"), or each run from its own ("").
    """

    config: str
    cells: Sequence[Cell]
    seeds: Sequence[int] = (1, 2, 3)
    share_source: str = ""


def load_grid(path: str) -> Grid:
    """Read a grid: ``config`` (relative to the file), ``seeds``, ``share_source``, ``cells`` of ``name``, ``opts``, ``run``.

    Raises:
        ValueError: if a key or value is not known, or two cells have one name.
    """
    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise ValueError(f"grid {path!r} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or not {"config", "cells"} <= set(data) <= {
        "config",
        "cells",
        "seeds",
        "share_source",
    }:
        raise ValueError(
            f"{path!r} is no grid: it needs config and cells, and knows besides only seeds and share_source"
        )
    cells = []
    for entry in data["cells"]:
        if not isinstance(entry, dict) or "name" not in entry or not set(entry) <= {"name", "opts", "run", "steps"}:
            raise ValueError(
                f"a cell of {path!r} has a name and may have opts, {{KEY: value}}, run and steps; got {entry!r}"
            )
        if entry.get("run", "train") not in _RUNS:
            raise ValueError(f"run of {entry['name']!r} in {path!r} is one of {', '.join(_RUNS)}; got {entry['run']!r}")
        steps = entry.get("steps", 1)
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps of {entry['name']!r} in {path!r} is a whole number >= 1; got {steps!r}")
        opts = tuple(item for pair in (entry.get("opts") or {}).items() for item in pair)
        cells.append(Cell(entry["name"], opts, entry.get("run", "train"), steps))
    folders = [_slug(cell.name) for cell in cells]
    twice = sorted({name for name in folders if folders.count(name) > 1})
    if twice or not cells:
        raise ValueError(
            f"cells of {path!r} need names that differ in letters and digits: {', '.join(twice) or 'there is none'}"
        )
    share = data.get("share_source", "")
    share = "all" if share is True else share or ""
    if share not in ("", "all", "seed"):
        raise ValueError(f"share_source of {path!r} is all, seed, or left out; got {share!r}")
    config = os.path.join(os.path.dirname(path), data["config"])
    return Grid(config, tuple(cells), tuple(data.get("seeds", (1, 2, 3))), share)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Of "1,2,3"; for argparse's ``type``.

    Raises:
        argparse.ArgumentTypeError: if one is no whole number from 0 on, or is given twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"seeds are whole numbers from 0 on, joined by commas, as in 1,2,3; got {text!r}")
    found = tuple(map(int, parts))
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"a seed given twice is no second run: got {text!r}")
    return found


def repeat(config: str, runs: int, name: str = "", opts: Sequence = ()) -> Grid:
    """One config over the seeds 1 to ``runs``: a grid of one cell."""
    if runs < 1:
        raise ValueError(f"the number of runs must be at least 1, got {runs}")
    name = name or os.path.splitext(os.path.basename(config))[0]
    return Grid(config, (Cell(name, tuple(opts)),), tuple(range(1, runs + 1)))


def run_grid(
    grid: Grid, output: str, only: Sequence[str] = (), opts: Sequence = ()
) -> tuple[list[Result], dict[str, str]]:
    """Train every cell with every seed that is not finished yet.

    A cell's folder is ``OUTPUT/<name>/seed<i>``. ``record.json`` in ``OUTPUT`` always holds the results of all finished runs
    of the grid's cells, whichever were asked for. A run whose training cannot go on is left out with a warning; any other
    error ends the grid, and the next call goes on from there.

    Args:
        grid: what to run.
        output: folder of the grid.
        only: names of cells; (): all.
        opts: overrides for all cells, before their own.

    Returns:
        The results of the finished runs of the cells and seeds asked for, and why others have none: {cell, seed: reason}.

    Raises:
        ValueError: if a name is not one of a cell's, a cell's config cannot work, or a folder holds a run with other settings.
    """
    unknown = sorted(set(only) - {cell.name for cell in grid.cells})
    if unknown:
        raise ValueError(
            f"no cell {', '.join(unknown)}: there are {'; '.join(cell.name for cell in grid.cells)}"
        )
    names = only or [cell.name for cell in grid.cells]
    check = functools.partial(_check, checked=set())
    jobs = [
        _job(grid, cell, seed, output, opts, check)
        for cell in grid.cells
        for seed in sorted({*grid.seeds, *_seeds(os.path.join(output, _slug(cell.name)))})
    ]
    asked = [job for job in jobs if job.title in names and job.cfg.SEED in grid.seeds]
    finished = [job for job in jobs if job not in asked and job.rows()]
    for job in finished:  # they get into the record too
        check_same_settings(job)
    check_jobs(asked)
    try:
        run_jobs(asked)
    finally:
        results = [result for job in jobs if job.rows() for result in read_run(job.cfg.OUTPUT_DIR, SELECTIONS)]
        if results:
            write_results(results, os.path.join(output, RECORD))
    missing = {f"{job.title}, seed {job.cfg.SEED}": reason for job in asked for reason in job.missing.values()}
    return [result for job in asked if job.rows() for result in read_run(job.cfg.OUTPUT_DIR)], missing


def _seeds(folder: str) -> list[int]:
    """Of the runs in a cell's folder."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    return [int(match[1]) for match in map(re.compile(r"seed(\d+)").fullmatch, names) if match]


def _job(grid: Grid, cell: Cell, seed: int, output: str, opts: Sequence, check: Callable[[Job], dict[str, str]]) -> Job:
    folder = os.path.join(output, _slug(cell.name), f"seed{seed}")
    cfg = resolve(load_config(grid.config, [*opts, *cell.opts, "SEED", seed, "OUTPUT_DIR", folder]))
    cfg.SSKD.ITERS_PER_EPOCH *= cell.steps
    check_evaluated(cfg)
    source = cfg if cfg.MODEL.META_ARCHITECTURE == "SSKD" else None
    if grid.share_source and _starts_from_source(cfg):
        if len(cfg.SSKD.SOURCE.WEIGHTS) > 1:  # the base config's, for all its peers
            cfg.SSKD.SOURCE.WEIGHTS = cfg.SSKD.SOURCE.WEIGHTS[: cfg.SSKD.NUM_PEERS]
        if source is None or pretrains(cfg):
            source = _shared_source(grid, seed, output, opts)
            if 1 < source.SSKD.NUM_PEERS < cfg.SSKD.NUM_PEERS:
                raise ValueError(
                    f"{cell.name!r} has SSKD.NUM_PEERS {cfg.SSKD.NUM_PEERS}, and the source models that are shared are those of the "
                    f"{source.SSKD.NUM_PEERS} peers of {grid.config!r}: set it there to the most that a cell has"
                )
    cfg.freeze()
    return Job(cell.name, cfg, {"": functools.partial(_RUNS[cell.run], cell.name)}, check, source)


def _starts_from_source(cfg: CfgNode) -> bool:
    """Whether a cell starts from source models: an adaptation, or one network that is given the target's identities."""
    return cfg.MODEL.META_ARCHITECTURE == "SSKD" or cfg.MODEL.META_ARCHITECTURE == "SSKDSource" and not cfg.MODEL.WEIGHTS


def _shared_source(grid: Grid, seed: int, output: str, opts: Sequence) -> CfgNode:
    if grid.share_source == "seed":
        opts, output = [*opts, "SEED", seed], os.path.join(output, "source-models", f"seed{seed}")
    cfg = load_config(grid.config, [*opts, "OUTPUT_DIR", output])
    if cfg.SEED < 0:
        raise ValueError(
            f"share_source needs a SEED in {grid.config!r}: another call would draw another, and could not use the source models"
        )
    resolve(cfg).freeze()
    return cfg


def _check(job: Job, checked: set[str]) -> dict[str, str]:
    """A run of its own has no part that could be left out, but a bound of a target without identities can be left out."""
    if job.title in checked:  # the seeds of a cell do not differ in this
        return {}
    checked.add(job.title)
    bound = job.source is not None and job.cfg.MODEL.META_ARCHITECTURE == "SSKDSource"
    if bound:
        try:
            check_inputs(_with_weights(job.cfg, []))
        except (ValueError, FileNotFoundError) as error:
            checked.discard(job.title)
            return {"": str(error)}
    elif job.source:
        check_inputs(job.cfg)
    return {}


def _with_weights(cfg: CfgNode, weights: Sequence[str]) -> CfgNode:
    """A cell's config with the source models that it starts from; one network starts from the first."""
    cfg = cfg.clone()
    cfg.defrost()
    if cfg.MODEL.META_ARCHITECTURE != "SSKD":
        cfg.MODEL.WEIGHTS = weights[0] if weights else ""
        cfg.MODEL.BACKBONE.PRETRAIN = False
    elif weights:
        cfg.SSKD.SOURCE.WEIGHTS = list(weights if len(weights) == 1 else weights[: cfg.SSKD.NUM_PEERS])
    cfg.freeze()
    return cfg


def _train(name: str, cfg: CfgNode, weights: Sequence[str]) -> Rows:
    if weights:
        cfg = _with_weights(cfg, weights)
    seed_everything(cfg.SEED)
    return {name: _last_metrics(run(cfg, resume=True), cfg)}


def _start(name: str, cfg: CfgNode, weights: Sequence[str], batch_norm: bool = False) -> Rows:
    keep_settings(cfg)
    return {name: _last_metrics(evaluate_start(cfg, weights, batch_norm=batch_norm), cfg)}


#: what a cell's ``run`` does, given the row's name, the config and the source models
_RUNS: dict[str, Callable[..., Rows]] = {
    "train": _train, "start": _start, "batch_norm": functools.partial(_start, batch_norm=True),
}  # fmt: skip


def _last_metrics(found: Mapping[str, Any], cfg: CfgNode) -> dict[str, float]:
    """The ensemble's metrics on the first test set, or those of the only network."""
    rows = found.get(cfg.DATASETS.TESTS[0], found)
    last = list(rows.values())[-1]
    return {name: float((last if isinstance(last, dict) else rows)[name]) for name in METRICS}


def _slug(name: str) -> str:
    """A folder's name: letters and digits, words joined by a hyphen."""
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower()))
