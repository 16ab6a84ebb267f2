"""Variants of one config, each trained over seeds; what is finished is kept, so a grid goes on where it stopped."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml
from fastreid.config import CfgNode

from ..clustering import PseudoLabelError
from ..engine import load_config, resolve, run, seed_everything
from ..engine.pipeline import check_inputs, source_weights
from ..evaluation.table import METRICS
from ..processes import listen, stop_if_asked
from .folders import RECORD, read_run
from .result import Result, write_results
from .run_folder import check_evaluated, check_same_settings, log_file, read_rows, write_rows

__all__ = ["Cell", "Grid", "load_grid", "repeat", "run_grid"]

logger = logging.getLogger("fastreid.sskd.benchmark")


@dataclass(frozen=True)
class Cell:
    """One variant: its name in the table and the overrides that make it, KEY value ..."""

    name: str
    opts: tuple = ()


@dataclass(frozen=True)
class Grid:
    """Variants of a config and the seeds that each is run with.

    Attributes:
        config: file of the base config.
        cells: the variants.
        seeds: every cell is run with each.
        share_source: start all cells and seeds from one set of source models, made once with the base config.
    """

    config: str
    cells: Sequence[Cell]
    seeds: Sequence[int] = (1, 2, 3)
    share_source: bool = False


def load_grid(path: str) -> Grid:
    """Read a grid: ``config`` (relative to the file), ``seeds``, ``share_source``, ``cells`` of ``name`` and ``opts``.

    Raises:
        ValueError: if a key is not known, or two cells have one name.
    """
    with open(path, encoding="utf-8") as file:
        data = yaml.safe_load(file)
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
        if not isinstance(entry, dict) or "name" not in entry or not set(entry) <= {"name", "opts"}:
            raise ValueError(
                f"a cell of {path!r} has a name and may have opts, {{KEY: value}}; got {entry!r}"
            )
        opts = entry.get("opts") or {}
        cells.append(Cell(entry["name"], tuple(item for pair in opts.items() for item in pair)))
    folders = [_slug(cell.name) for cell in cells]
    twice = sorted({name for name in folders if folders.count(name) > 1})
    if twice or not cells:
        raise ValueError(
            f"cells of {path!r} need names that differ in letters and digits: {', '.join(twice) or 'there is none'}"
        )
    config = os.path.join(os.path.dirname(path), data["config"])
    return Grid(
        config, tuple(cells), tuple(data.get("seeds", (1, 2, 3))), bool(data.get("share_source", False))
    )


def repeat(config: str, runs: int, name: str = "", opts: Sequence = ()) -> Grid:
    """One config over the seeds 1 to ``runs``: a grid of one cell."""
    if runs < 1:
        raise ValueError(f"the number of runs must be at least 1, got {runs}")
    name = name or os.path.splitext(os.path.basename(config))[0]
    return Grid(config, (Cell(name, tuple(opts)),), tuple(range(1, runs + 1)))


def run_grid(grid: Grid, output: str, only: Sequence[str] = (), opts: Sequence = ()) -> list[Result]:
    """Train every cell with every seed that is not finished yet; the results of all that are.

    A cell's folder is ``OUTPUT/<name>/seed<i>``, its results are ``record.json`` there, and those of all in ``OUTPUT``. A run whose pseudo-labels
    cannot be trained on is left out with a warning; any other error, or a signal, ends the grid, and the next call goes on from there.

    Args:
        grid: what to run.
        output: folder of the grid.
        only: names of cells; (): all.
        opts: overrides for all cells, before their own.

    Raises:
        ValueError: if a name is not one of a cell's, a cell's config cannot work, or a folder holds a run with other settings.
    """
    unknown = sorted(set(only) - {cell.name for cell in grid.cells})
    if unknown:
        raise ValueError(
            f"no cell {', '.join(unknown)}: there are {'; '.join(cell.name for cell in grid.cells)}"
        )
    cells = [cell for cell in grid.cells if not only or cell.name in only]
    for cell in cells:  # the last one's too, before the first is trained
        left = [seed for seed in grid.seeds if read_rows(_folder(output, cell, seed)) is None]
        for seed in left[:1]:  # what is finished needs no data any more
            _check(_cell_config(grid, cell, seed, _folder(output, cell, seed), (), opts))
    weights: list[str] = []
    results: list[Result] = []
    with listen():  # one signal ends all runs
        for cell in cells:
            for seed in grid.seeds:
                if grid.share_source and not weights:
                    weights = _shared_source(grid, output, opts)
                cfg = _cell_config(grid, cell, seed, _folder(output, cell, seed), weights, opts)
                results += _finish(cell, cfg)
    if not only:
        write_results(results, os.path.join(output, RECORD))  # in the grid's order, which folders do not tell
    return results


def _shared_source(grid: Grid, output: str, opts: Sequence) -> list[str]:
    cfg = resolve(load_config(grid.config, [*opts, "OUTPUT_DIR", output]))
    cfg.freeze()
    return source_weights(cfg)


def _cell_config(
    grid: Grid, cell: Cell, seed: int, folder: str, weights: Sequence[str], opts: Sequence
) -> CfgNode:
    cfg = load_config(grid.config, [*opts, *cell.opts, "SEED", seed, "OUTPUT_DIR", folder])
    if weights:
        cfg.SSKD.SOURCE.WEIGHTS = list(weights if len(weights) == 1 else weights[: cfg.SSKD.NUM_PEERS])
    resolve(cfg).freeze()
    return cfg


def _check(cfg: CfgNode) -> None:
    check_evaluated(cfg)
    if cfg.MODEL.META_ARCHITECTURE == "SSKD":
        check_inputs(cfg)


def _finish(cell: Cell, cfg: CfgNode) -> list[Result]:
    """The cell's results of one seed, from its record or from a run that is started or taken up."""
    folder = cfg.OUTPUT_DIR
    check_same_settings(cfg)
    if read_rows(folder) is None:
        stop_if_asked()
        with log_file(folder):
            logger.info("%s, seed %d, in %s", cell.name, cfg.SEED, folder)
            seed_everything(cfg.SEED)
            try:
                found = run(cfg, resume=True)
            except PseudoLabelError as error:
                logger.warning("%s, seed %d stopped and has no row: %s", cell.name, cfg.SEED, error)
                return []
        write_rows(folder, {cell.name: _last_metrics(found, cfg)})
    results = [replace(result, method=cell.name) for result in read_run(folder)]
    write_results(results, os.path.join(folder, RECORD))
    return results


def _last_metrics(found: Mapping[str, Any], cfg: CfgNode) -> dict[str, float]:
    """The ensemble's metrics on the first test set, or those of the only network."""
    rows = found.get(cfg.DATASETS.TESTS[0], found)
    last = list(rows.values())[-1]
    return {name: float((last if isinstance(last, dict) else rows)[name]) for name in METRICS}


def _folder(output: str, cell: Cell, seed: int) -> str:
    return os.path.join(output, _slug(cell.name), f"seed{seed}")


def _slug(name: str) -> str:
    """A folder's name: letters and digits, words joined by a hyphen."""
    return "-".join(re.findall(r"[a-z0-9.]+", name.lower()))
