"""Train variants of one config over seeds; finished runs are kept, the others are resumed."""

import argparse
import contextlib
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from fastreid.config import CfgNode

from ..clustering import PseudoLabelError
from ..config import names_with
from ..config_values import config_path
from ..engine import load_config, resolve, run
from ..engine.checkpoint import OtherConfigError, last_checkpoint, plain_config, same_value
from ..engine.defaults import log_file, starts_from_backbone
from ..engine.files import make_folder, output_folder, write_atomically
from ..engine.pipeline import check_inputs, check_source, evaluate_start, pretrains, source_weights
from ..engine.refresh import one_network_config, supervised_config
from ..evaluation.evaluator import METRICS
from ..processes import listen, stop_if_asked
from ..refusals import UnknownNameError, checking
from .results import RECORD, SELECTIONS, Result, Rows, is_recorded, read_run, run_results, write_results

logger = logging.getLogger("fastreid.sskd.benchmark")

_NOTHING_TRAINED = ("start", "batch_norm")
_VARIANTS = {"one_network": one_network_config, "supervised": supervised_config}
_RUNS = ("train", *_NOTHING_TRAINED, *_VARIANTS)

# also a path, since source models are compared with what the file says, and what the data set tells
_HARMLESS = (*names_with("any"), "SSKD.SOURCE.CONFIG", "MODEL.HEADS.NUM_CLASSES")


@dataclass(frozen=True)
class Cell:
    """One variant.

    Attributes:
        name: in the table.
        opts: the overrides that make it, KEY value ...
        run: "train", or a baseline from the same source models: "start", the ensemble of the source models as
            they are; "batch_norm", the same with the target's batch-norm statistics; "one_network", a network
            with hard pseudo-labels only; "supervised", a network that is given the target's identities.
        steps: times as many iterations an epoch as the config has [>= 1].
        teachers: a row for each teacher too, not for the ensemble alone.
    """

    name: str
    opts: tuple = ()
    run: str = "train"
    steps: int = 1
    teachers: bool = False


@dataclass(frozen=True)
class Grid:
    """Variants of a config and the seeds that each is run with.

    Attributes:
        config: file of the base config.
        cells: the variants.
        seeds: every cell is run with each.
        share_source: start from source models that are made with the base config: all cells and seeds from
            one set ("all"), the cells of a seed from a set of that seed ("seed"), or each run from its own
            ("").
    """

    config: str
    cells: Sequence[Cell]
    seeds: Sequence[int] = (1, 2, 3)
    share_source: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a call of :func:`run_grid` ends with.

    Attributes:
        results: of the finished runs that were asked for, last epoch.
        unavailable: {(cell, seed): why}, runs that cannot be had: a bound of a target without identities.
        stopped: {(cell, seed): why}, runs whose training could not continue; the next call tries them again.
    """

    results: list[Result]
    unavailable: dict[tuple[str, int], str]
    stopped: dict[tuple[str, int], str]

    def notes(self) -> list[str]:
        """One sentence for each reason for which a row is missing."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for (cell, seed), reason in (self.unavailable | self.stopped).items():
            reasons.setdefault((cell, reason), []).append(str(seed))
        return [
            f"No row of {cell}, seed {', '.join(seeds)}: {reason}"
            for (cell, reason), seeds in reasons.items()
        ]


def load_grid(path: str) -> Grid:
    """Read a grid: ``config`` (relative to the file), ``seeds``, ``share_source``, ``cells`` as of ``Cell``.

    Raises:
        ValueError: if a key or value is not known, or two cells have one name.
    """
    path = config_path(path)
    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.safe_load(file)
    except yaml.YAMLError as error:
        raise ValueError(f"grid {path!r} is no YAML: {' '.join(str(error).split())}") from None
    known = {"config", "cells", "seeds", "share_source"}
    if not isinstance(data, dict) or not {"config", "cells"} <= set(data) <= known:
        raise ValueError(
            f"{path!r} is no grid: it needs config and cells, and knows besides only seeds and share_source"
        )
    cells = [_cell(entry, path) for entry in data["cells"]]
    folders = [_slug(cell.name) for cell in cells]
    twice = sorted({name for name in folders if folders.count(name) > 1})
    if twice or not cells:
        raise ValueError(
            f"cells of {path!r} need names that differ in letters and digits: "
            f"{', '.join(twice) or 'there is none'}"
        )
    share = data.get("share_source", "")
    share = "all" if share is True else share or ""
    if share not in ("", "all", "seed"):
        raise ValueError(f"share_source of {path!r} is all, seed, or left out; got {share!r}")
    config = config_path(data["config"], os.path.dirname(path))
    return Grid(config, tuple(cells), tuple(data.get("seeds", Grid.seeds)), share)


def _cell(entry: Any, path: str) -> Cell:
    if not isinstance(entry, dict) or "name" not in entry or not set(entry) <= set(Cell.__dataclass_fields__):
        raise ValueError(
            f"a cell of {path!r} has a name and may have opts, {{KEY: value}}, run, steps and teachers; got "
            f"{entry!r}"
        )
    opts = (entry.get("opts") or {}).items()
    cell = Cell(**{**entry, "opts": tuple(part for pair in opts for part in pair)})
    if cell.run not in _RUNS:
        raise ValueError(f"run of {cell.name!r} in {path!r} is one of {', '.join(_RUNS)}; got {cell.run!r}")
    if not isinstance(cell.steps, int) or cell.steps < 1:
        raise ValueError(f"steps of {cell.name!r} in {path!r} is a whole number >= 1; got {cell.steps!r}")
    return cell


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds of "1,2,3"; for argparse's ``type``.

    Raises:
        argparse.ArgumentTypeError: if one is no whole number from 0 on, or is given twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(
            f"seeds are whole numbers from 0 on, joined by commas, as in 1,2,3; got {text!r}"
        )
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


def run_grid(grid: Grid, output: str, only: Sequence[str] = (), opts: Sequence = ()) -> Outcome:
    """Train every cell with every seed that is not finished yet.

    A run's folder is ``OUTPUT/<cell>/seed<i>``, and holds its ``record.json`` when it is finished.
    ``record.json`` in ``OUTPUT`` holds the results of all finished runs of the grid's cells. A run whose
    training cannot continue is left out with a warning; any other error ends the grid, and the next call
    resumes it.

    Args:
        grid, output: what to run, and its folder.
        only: names of cells; (): all.
        opts: overrides for all cells, before their own.

    Raises:
        ValueError: if a name is not one of a cell's, a cell's config cannot work, or a folder holds a run
            with other settings.
        FileNotFoundError, ImportError: as :func:`fastreid_sskd.engine.run`.
        FolderInUseError: if another process writes into a run's folder.
        Stopped: a ``SystemExit``, if SIGTERM or SIGINT came; what is done is kept.
    """
    with checking():
        jobs, asked = _plan(grid, output, only, opts)
        _check_jobs(asked)
        make_folder(output, "--output")
    try:
        _run_jobs(asked)
    finally:
        results = [result for job in jobs for result in job.results(SELECTIONS)]
        if results:
            write_results(results, os.path.join(output, RECORD))
    return Outcome(
        [result for job in asked for result in job.results()],
        {(job.cell.name, job.cfg.SEED): job.unavailable for job in asked if job.unavailable},
        {(job.cell.name, job.cfg.SEED): job.stopped for job in asked if job.stopped},
    )


# ---- one run of a grid ---------------------------------------------------------------------------


@dataclass(eq=False)
class _Job:
    """One cell with one seed.

    Attributes:
        cell: the variant.
        cfg: frozen; its ``OUTPUT_DIR`` is the job's folder.
        source: config of the source models that it starts from, made once in its ``OUTPUT_DIR``, if any.
        unavailable: why it cannot be run, "" if it can.
        stopped: why its training could not continue, "" if it did.
    """

    cell: Cell
    cfg: CfgNode
    source: CfgNode | None
    unavailable: str = ""
    stopped: str = ""

    @property
    def folder(self) -> str:
        return self.cfg.OUTPUT_DIR

    @property
    def left(self) -> bool:
        return not self.unavailable and not is_recorded(self.folder)

    @property
    def needs_source(self) -> bool:
        """Whether it has to be given source models; a run that is resumed holds its own."""
        return self.source is not None and self.left and not last_checkpoint(self.folder)

    @property
    def bound(self) -> bool:
        """Whether it is one network that is given the target's identities, from a source model."""
        return self.source is not None and self.cfg.MODEL.META_ARCHITECTURE == "SSKDSource"

    def results(self, selections: Sequence[str] = ("last",)) -> list[Result]:
        """Of the finished run; [] before."""
        return read_run(self.folder, selections) if is_recorded(self.folder) else []


def _plan(grid: Grid, output: str, only: Sequence[str], opts: Sequence) -> tuple[list[_Job], list[_Job]]:
    """All jobs of the grid that are asked for or finished, and those that are asked for."""
    unknown = sorted(set(only) - {cell.name for cell in grid.cells})
    if unknown:
        raise ValueError(
            f"no cell {', '.join(unknown)}: there are {'; '.join(cell.name for cell in grid.cells)}"
        )
    jobs = []
    for cell in grid.cells:
        folder = os.path.join(output, _slug(cell.name))
        names = os.listdir(folder) if os.path.isdir(folder) else []
        there = [int(match[1]) for match in map(re.compile(r"seed(\d+)").fullmatch, names) if match]
        jobs += [_job(grid, cell, seed, output, opts) for seed in sorted({*grid.seeds, *there})]
    asked = [job for job in jobs if (not only or job.cell.name in only) and job.cfg.SEED in grid.seeds]
    for job in jobs:
        if job in asked or is_recorded(job.folder):  # the finished ones get into the record too
            _check_same_settings(job)
    return jobs, asked


def _slug(name: str) -> str:
    """A folder's name: letters and digits, words joined by a hyphen."""
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower()))


def _job(grid: Grid, cell: Cell, seed: int, output: str, opts: Sequence) -> _Job:
    folder = os.path.join(output, _slug(cell.name), f"seed{seed}")
    cfg = resolve(load_config(grid.config, [*opts, *cell.opts, "SEED", seed, "OUTPUT_DIR", folder]))
    cfg.SSKD.ITERS_PER_EPOCH *= cell.steps
    _check_evaluated(cfg)
    source = cfg.clone() if cfg.MODEL.META_ARCHITECTURE == "SSKD" else None
    if cell.run != "train":
        _check_baseline(cell, cfg)
        cfg = _VARIANTS.get(cell.run, CfgNode.clone)(cfg)
        cfg.defrost()
    bare = cfg.MODEL.META_ARCHITECTURE == "SSKDSource" and not cfg.MODEL.WEIGHTS
    starts_from_source = cfg.MODEL.META_ARCHITECTURE == "SSKD" or bare
    if starts_from_source and (grid.share_source or cell.run != "train"):
        for config in filter(None, (cfg, source)):
            if len(config.SSKD.SOURCE.WEIGHTS) > 1:  # the base config's, for all its peers
                config.SSKD.SOURCE.WEIGHTS = config.SSKD.SOURCE.WEIGHTS[: config.SSKD.NUM_PEERS]
        if grid.share_source and (source is None or pretrains(source)):
            source = _shared_source(grid, seed, output, opts)
            if 1 < source.SSKD.NUM_PEERS < cfg.SSKD.NUM_PEERS:
                raise ValueError(
                    f"{cell.name!r} has SSKD.NUM_PEERS {cfg.SSKD.NUM_PEERS}, and the source models that are "
                    f"shared are those of the {source.SSKD.NUM_PEERS} peers of {grid.config!r}: set it "
                    "there to the most that a cell has"
                )
    for config in filter(None, (cfg, source)):
        config.freeze()
    return _Job(cell, cfg, source)


def _check_evaluated(cfg: CfgNode) -> None:
    """A run has to end with an evaluation, or it has no row."""
    if not cfg.DATASETS.TESTS:
        raise ValueError("DATASETS.TESTS is empty, so the table would have no figures: name a test set")
    if cfg.TEST.EVAL_PERIOD < 1:
        raise ValueError(
            f"TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}, so the last epoch would not be evaluated: set it "
            "to 1 or more"
        )


def _check_baseline(cell: Cell, cfg: CfgNode) -> None:
    if cfg.MODEL.META_ARCHITECTURE != "SSKD":
        raise ValueError(
            f"{cell.name!r} is a baseline of an SSKD config, and MODEL.META_ARCHITECTURE is "
            f"{cfg.MODEL.META_ARCHITECTURE}"
        )
    if starts_from_backbone(cfg) or cfg.MODEL.WEIGHTS and not cfg.SSKD.SOURCE.WEIGHTS:
        raise ValueError(
            f"{cell.name!r} starts from source models: leave MODEL.WEIGHTS empty and SSKD.SOURCE.SKIP "
            "False, and give SSKD.SOURCE.WEIGHTS or SSKD.SOURCE.CONFIG"
        )


def _shared_source(grid: Grid, seed: int, output: str, opts: Sequence) -> CfgNode:
    if grid.share_source == "seed":
        opts, output = [*opts, "SEED", seed], os.path.join(output, "source-models", f"seed{seed}")
    cfg = load_config(grid.config, [*opts, "OUTPUT_DIR", output])
    if cfg.SEED < 0:
        raise ValueError(
            f"share_source needs a SEED in {grid.config!r}: another call would draw another, and could not "
            "use the source models"
        )
    return resolve(cfg)


def _check_same_settings(job: _Job) -> None:
    """Refuse to report as new, or to resume, what a job's folder has learned with other settings."""
    if not is_recorded(job.folder) and not os.path.isfile(os.path.join(job.folder, "last_checkpoint")):
        return
    path = os.path.join(job.folder, "config.yaml")
    instead = "choose another output folder, or remove that one"
    if not os.path.isfile(path):
        raise OtherConfigError(
            f"{job.folder!r} holds results, but no config.yaml to say what settings they are of: {instead}"
        )
    try:
        there, wanted = plain_config(load_config(path)), plain_config(job.cfg)
    except UnknownNameError as error:
        raise OtherConfigError(
            f"{path!r} is of another version of this package ({error}): {instead}"
        ) from None
    given = []  # with the weights of job.source
    if job.source and not job.cfg.SSKD.SOURCE.WEIGHTS:
        given.append("SSKD.SOURCE.WEIGHTS")
    if job.bound:
        given += ["MODEL.WEIGHTS", "MODEL.BACKBONE.PRETRAIN"]
    counts = [key for key in wanted if key not in (*_HARMLESS, *given)]
    differ = [key for key in counts if not same_value(there.get(key), wanted[key])]
    if differ:
        shown = ", ".join(f"{key} {there.get(key)!r}, now {wanted[key]!r}" for key in differ[:3])
        raise OtherConfigError(
            f"{job.folder!r} holds a run of other settings ({len(differ)}: {shown}): {instead} "
            "(SSKD.SOURCE.WEIGHTS takes the source models that it holds)"
        )


def _check_jobs(jobs: Sequence[_Job]) -> None:
    """Find what would only be found after hours; finished jobs need neither images nor source models."""
    passed: set[str] = set()  # the seeds of a cell do not differ in what is checked
    for job in filter(lambda job: job.source and job.left, jobs):
        if job.cell.name in passed:
            continue
        try:
            check_inputs(_with_weights(job, []))
            passed.add(job.cell.name)
        except (ValueError, FileNotFoundError) as error:
            if not job.bound:
                raise
            job.unavailable = str(error)
            logger.warning("%s, seed %d will have no row: %s", job.cell.name, job.cfg.SEED, error)
    sources = {(job.source.OUTPUT_DIR, job.needs_source): job.source for job in jobs if job.source}
    for (_, needed), source in sources.items():
        with contextlib.suppress(*() if needed else (FileNotFoundError,)):  # else those still there
            check_source(source)


def _run_jobs(jobs: Sequence[_Job]) -> None:
    """Make the missing records of all jobs, resuming what was begun; :func:`_check_jobs` comes first."""
    weights: dict[str, list[str]] = {}  # by the folder of the source models
    with listen():  # one signal ends all runs
        for job in filter(lambda job: job.left, jobs):
            with output_folder(job.folder), log_file(job.folder):
                _check_same_settings(job)  # another process may have finished it meanwhile
                if not job.left:
                    continue
                if job.needs_source and job.source.OUTPUT_DIR not in weights:
                    weights[job.source.OUTPUT_DIR] = source_weights(job.source)
                stop_if_asked()
                logger.info("%s, seed %d, in %s", job.cell.name, job.cfg.SEED, job.folder)
                try:
                    rows = _rows(job, weights.get(job.source.OUTPUT_DIR, []) if job.source else [])
                except (PseudoLabelError, FloatingPointError) as error:
                    job.stopped = str(error)
                    run_name = f"{job.cell.name}, seed {job.cfg.SEED}"
                    logger.warning("%s stopped in %s and has no row: %s", run_name, job.folder, error)
                    continue
                write_results(run_results(job.folder, SELECTIONS, rows), os.path.join(job.folder, RECORD))


def _rows(job: _Job, weights: Sequence[str]) -> Rows:
    """Train or evaluate; {name in the table: metrics on the first test set}."""
    name = job.cell.name
    if job.cell.run in _NOTHING_TRAINED:
        path = os.path.join(job.folder, "config.yaml")
        write_atomically(path, lambda file: file.write(job.cfg.dump().encode()))
        found = evaluate_start(job.cfg, weights, batch_norm=job.cell.run == "batch_norm")
    else:
        found = run(_with_weights(job, weights), resume=True)
    # {"teacher0": metrics, ..., "ensemble": ...}, or metrics
    found = found.get(job.cfg.DATASETS.TESTS[0], found)
    if "mAP" in found:
        rows = {name: found}
    elif job.cell.teachers:
        rows = {f"{name}, {row.replace('teacher', 'teacher ')}": metrics for row, metrics in found.items()}
    else:
        rows = {name: list(found.values())[-1]}  # the ensemble's, or the only network's
    return {row: {metric: float(metrics[metric]) for metric in METRICS} for row, metrics in rows.items()}


def _with_weights(job: _Job, weights: Sequence[str]) -> CfgNode:
    """A job's config with the source models that it starts from; the bound starts from the first."""
    cfg = job.cfg.clone()
    cfg.defrost()
    if job.bound:
        cfg.MODEL.WEIGHTS = weights[0] if weights else ""
        cfg.MODEL.BACKBONE.PRETRAIN = False
    elif weights:
        cfg.SSKD.SOURCE.WEIGHTS = list(weights if len(weights) == 1 else weights[: cfg.SSKD.NUM_PEERS])
    cfg.freeze()
    return cfg
