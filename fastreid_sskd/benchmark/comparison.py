"""SSKD beside what it has to be compared with, from the same source models, with the same network, views and steps."""

import logging
import os
import statistics
from collections.abc import Mapping, Sequence

from fastreid.config import CfgNode
from tabulate import tabulate

from ..data import training_items
from ..engine import AdaptationTrainer, run, seed_everything
from ..engine.baselines import one_network_config, reestimate_batch_norm, supervised_config
from ..engine.lock import output_folder
from ..engine.pipeline import check_inputs, source_weights
from ..engine.same_run import config_kept_on_refusal
from ..engine.setup import starts_from_backbone
from ..evaluation.peers import evaluate_peers
from ..evaluation.table import METRICS
from ..modeling import load_source_weights
from ..processes import listen, stop_if_asked
from .run_folder import (
    Rows,
    check_evaluated,
    check_same_settings,
    keep_settings,
    log_file,
    read_rows,
    write_rows,
)

__all__ = ["check_comparison", "compare", "comparison_table"]

logger = logging.getLogger("fastreid.sskd.benchmark")


def check_comparison(cfg: CfgNode) -> None:
    """What would only be found out after hours.

    Raises:
        OtherConfigError: if ``OUTPUT_DIR`` holds results of other settings.
        ValueError: if nothing would be evaluated or there is no source, or as for :func:`fastreid_sskd.engine.run`.
    """
    if cfg.MODEL.META_ARCHITECTURE != "SSKD":
        raise ValueError(f"a comparison is of an SSKD config, and MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}")
    check_evaluated(cfg)
    if starts_from_backbone(cfg) or cfg.MODEL.WEIGHTS and not cfg.SSKD.SOURCE.WEIGHTS:
        raise ValueError(
            "a comparison starts from source models: leave MODEL.WEIGHTS empty and SSKD.SOURCE.SKIP False, and give "
            "SSKD.SOURCE.WEIGHTS or SSKD.SOURCE.CONFIG"
        )
    check_same_settings(cfg, tuple(_PARTS))
    check_inputs(cfg)


def compare(cfg: CfgNode) -> Rows:
    """The rows of one seed, on the first test set, last epoch: what is finished in ``OUTPUT_DIR`` is reused, the rest goes on.

    Direct transfer, direct transfer with batch-norm statistics of the target, one network with hard pseudo-labels only,
    SSKD (each teacher, and the ensemble), and the supervised upper bound.

    Args:
        cfg: of an SSKD run; a folder below ``OUTPUT_DIR`` is made for each part.

    Raises:
        OtherConfigError: if the folder holds source models of other settings, or as :func:`check_comparison`.
        FolderInUseError: if another comparison writes into the folder.
        FileNotFoundError: if source models that are given are not there.
        PseudoLabelError: if the pseudo-labels cannot be trained on.
        Stopped: a ``SystemExit``, if SIGTERM or SIGINT came; what is done is kept, and gone on from.
    """
    check_comparison(cfg)
    with output_folder(cfg.OUTPUT_DIR), config_kept_on_refusal(cfg.OUTPUT_DIR), log_file(cfg.OUTPUT_DIR), listen():
        check_same_settings(cfg, tuple(_PARTS))  # another one may have finished meanwhile
        keep_settings(cfg)
        weights = source_weights(_part(cfg, "sskd"))
        rows: Rows = {}
        for name, part in _PARTS.items():
            folder = os.path.join(cfg.OUTPUT_DIR, name)
            found = read_rows(folder)
            if found is None:
                stop_if_asked()
                found = part(cfg, name, weights)
                write_rows(folder, found)
            rows.update(found)
        logger.info("seed %d:\n%s", cfg.SEED, comparison_table([rows]))
    return rows


def _part(cfg: CfgNode, name: str) -> CfgNode:
    """The config of one part of the comparison, in a folder of its own; not frozen."""
    part = cfg.clone()
    part.defrost()
    part.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, name)
    os.makedirs(part.OUTPUT_DIR, exist_ok=True)
    return part


def _transfer(cfg: CfgNode, name: str, weights: Sequence[str]) -> Rows:
    part, test = _part(cfg, name), cfg.DATASETS.TESTS[0]
    seed_everything(cfg.SEED)
    model = AdaptationTrainer.build_model(part)
    load_source_weights(model, weights)
    before = evaluate_peers(part, model)[test]
    reestimate_batch_norm(part, model, training_items(part.DATASETS.NAMES, part.SSKD.FOLDERS))
    after = evaluate_peers(part, model)[test]
    return {
        "direct transfer": _metrics(_ensemble(before)),
        "direct transfer, target BN statistics": _metrics(_ensemble(after)),
    }


def _one_network(cfg: CfgNode, name: str, weights: Sequence[str]) -> Rows:
    part = one_network_config(_part(cfg, name))
    part.SSKD.SOURCE.WEIGHTS = list(weights[:1])
    results = _run(part)
    return {"one network, hard labels only": _metrics(results[cfg.DATASETS.TESTS[0]]["peer0"])}


def _sskd(cfg: CfgNode, name: str, weights: Sequence[str]) -> Rows:
    part = _part(cfg, name)
    part.SSKD.SOURCE.WEIGHTS = list(weights)
    return {
        "SSKD, ensemble" if row == "ensemble" else f"SSKD, teacher {row.removeprefix('peer')}": _metrics(metrics)
        for row, metrics in _run(part)[cfg.DATASETS.TESTS[0]].items()
    }


def _supervised(cfg: CfgNode, name: str, weights: Sequence[str]) -> Rows:
    part = supervised_config(_part(cfg, name))
    part.MODEL.WEIGHTS = weights[0]
    results, test = _run(part), cfg.DATASETS.TESTS[0]
    return {"supervised upper bound": _metrics(results.get(test, results))}


def _run(part: CfgNode) -> Mapping:
    part.freeze()
    return run(part, resume=True)


# The parts by their folders, in the table's order.
_PARTS = {"transfer": _transfer, "one_network": _one_network, "sskd": _sskd, "supervised": _supervised}


def _ensemble(rows: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """The ensemble's metrics, or the only network's."""
    return list(rows.values())[-1]


def _metrics(found: Mapping[str, float]) -> dict[str, float]:
    return {name: float(found[name]) for name in METRICS}


def comparison_table(by_seed: Sequence[Rows]) -> str:
    """One line a row: the value of one seed, or mean and sample standard deviation over several, in percent."""
    lines = []
    for row in by_seed[0]:
        cells = []
        for name in METRICS:
            values = [rows[row][name] for rows in by_seed]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append([row, *cells])
    return tabulate(lines, headers=["last epoch, %", *METRICS], tablefmt="pipe", disable_numparse=True)
