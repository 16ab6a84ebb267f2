"""SSKD beside what it has to be compared with, from the same source models, with the same network, views and steps."""

import os
import statistics
from collections.abc import Mapping, Sequence

from fastreid.config import CfgNode
from tabulate import tabulate

from ..engine import run
from ..engine.defaults import starts_from_backbone
from ..engine.pipeline import check_inputs, evaluate_start
from ..engine.refresh import one_network_config, supervised_config
from ..evaluation.table import METRICS
from .run_folder import Job, Rows, check_evaluated, check_jobs, run_jobs

__all__ = ["check_comparison", "compare", "comparison_table"]


def compare(cfgs: Sequence[CfgNode]) -> list[Job]:
    """Make the rows of every seed, on the first test set, last epoch: what is finished is reused, the rest is resumed.

    Direct transfer, direct transfer with batch-norm statistics of the target, one network with hard pseudo-labels only,
    SSKD (each teacher, and the ensemble), and the supervised upper bound.

    Args:
        cfgs: of an SSKD run, one a seed; a folder below ``OUTPUT_DIR`` is made for each part.

    Returns:
        A job a seed: its ``rows()``, and in ``missing`` the parts without one.

    Raises:
        FolderInUseError: if another comparison writes into a folder.
        ValueError, FileNotFoundError, ImportError: as :func:`check_comparison`.
    """
    jobs = check_comparison(cfgs)
    run_jobs(jobs)
    return jobs


def check_comparison(cfgs: Sequence[CfgNode]) -> list[Job]:
    """Find what would only be found out after hours, for all seeds; parts that cannot be had are said and left out.

    Raises:
        OtherConfigError: if ``OUTPUT_DIR`` holds results or source models of other settings.
        ValueError: if nothing would be evaluated or there is no source, or as for :func:`fastreid_sskd.engine.run`.
        FileNotFoundError: if images, or source models that are given, are not there.
    """
    for cfg in cfgs:
        if cfg.MODEL.META_ARCHITECTURE != "SSKD":
            raise ValueError(f"a comparison is of an SSKD config, and MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}")
        check_evaluated(cfg)
        if starts_from_backbone(cfg) or cfg.MODEL.WEIGHTS and not cfg.SSKD.SOURCE.WEIGHTS:
            raise ValueError(
                "a comparison starts from source models: leave MODEL.WEIGHTS empty and SSKD.SOURCE.SKIP False, and give "
                "SSKD.SOURCE.WEIGHTS or SSKD.SOURCE.CONFIG"
            )
    parts = {"transfer": _transfer, "one_network": _one_network, "sskd": _sskd, "supervised": _supervised}
    jobs = [Job("comparison", cfg, parts, _check, source=_part(cfg, "sskd")) for cfg in cfgs]
    check_jobs(jobs)
    return jobs


def _check(job: Job) -> dict[str, str]:
    """Raises where SSKD itself is to be run and cannot be; {baseline: why it cannot}."""
    left, missing = job.left(), {}
    if {"transfer", "sskd"} & set(left):
        check_inputs(_part(job.cfg, "sskd"))
    for name in {"one_network", "supervised"} & set(left):
        try:
            check_inputs(_part(job.cfg, name))
        except (ValueError, FileNotFoundError) as error:
            missing[name] = str(error)
    return missing


def _part(cfg: CfgNode, name: str, weights: Sequence[str] = ()) -> CfgNode:
    """The config of one part of the comparison, in a folder of its own; source models of a run that is resumed are not needed."""
    part = cfg.clone()
    part.defrost()
    part.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, name)
    if name == "one_network":
        part, weights = one_network_config(part), weights[:1]
    if name == "supervised":
        part = supervised_config(part)
        part.MODEL.WEIGHTS = weights[0] if weights else ""
        part.MODEL.BACKBONE.PRETRAIN = False
    elif weights:
        part.SSKD.SOURCE.WEIGHTS = list(weights)
    part.freeze()
    return part


def _transfer(cfg: CfgNode, weights: Sequence[str]) -> Rows:
    part, test = _part(cfg, "transfer"), cfg.DATASETS.TESTS[0]
    return {
        f"direct transfer{', target BN statistics' * batch_norm}": _metrics(
            _ensemble(evaluate_start(part, weights, batch_norm=batch_norm)[test])
        )
        for batch_norm in (False, True)
    }


def _one_network(cfg: CfgNode, weights: Sequence[str]) -> Rows:
    results = run(_part(cfg, "one_network", weights), resume=True)
    return {"one network, hard labels only": _metrics(results[cfg.DATASETS.TESTS[0]]["peer0"])}


def _sskd(cfg: CfgNode, weights: Sequence[str]) -> Rows:
    results = run(_part(cfg, "sskd", weights), resume=True)
    return {
        "SSKD, ensemble" if row == "ensemble" else f"SSKD, teacher {row.removeprefix('peer')}": _metrics(metrics)
        for row, metrics in results[cfg.DATASETS.TESTS[0]].items()
    }


def _supervised(cfg: CfgNode, weights: Sequence[str]) -> Rows:
    results, test = run(_part(cfg, "supervised", weights), resume=True), cfg.DATASETS.TESTS[0]
    return {"supervised upper bound": _metrics(results.get(test, results))}


def _ensemble(rows: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """The ensemble's metrics, or the only network's."""
    return list(rows.values())[-1]


def _metrics(found: Mapping[str, float]) -> dict[str, float]:
    return {name: float(found[name]) for name in METRICS}


_TITLES = {
    "transfer": "direct transfer",
    "one_network": "one network, hard labels only",
    "sskd": "SSKD",
    "supervised": "supervised upper bound",
}


def comparison_table(jobs: Sequence[Job]) -> str:
    """One line a row: the value of one seed, or mean and sample standard deviation over several, in percent.

    Below it, what is missing and why.
    """
    by_seed = [job.rows() for job in jobs]
    lines = []
    for row in dict.fromkeys(row for rows in by_seed for row in rows):
        found = [rows[row] for rows in by_seed if row in rows]
        some = f" ({len(found)} of {len(jobs)} seeds)" if len(found) < len(jobs) else ""
        cells = []
        for name in METRICS:
            values = [metrics[name] for metrics in found]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append([row + some, *cells])
    table = tabulate(lines, headers=["last epoch, %", *METRICS], tablefmt="pipe", disable_numparse=True)
    reasons: dict[tuple[str, str], list[int]] = {}
    for job in jobs:
        for part, reason in job.missing.items():
            reasons.setdefault((_TITLES[part], reason), []).append(job.cfg.SEED)
    notes = [f"No row of {title}, seed {', '.join(map(str, seeds))}: {reason}" for (title, reason), seeds in reasons.items()]
    return "\n\n".join([table, *notes])
