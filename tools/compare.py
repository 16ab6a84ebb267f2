#!/usr/bin/env python3
"""Run an SSKD config and what it has to be compared with, over seeds, and print one table.

    tools/compare.py --config-file configs/demo.yml --output runs/demo
    tools/compare.py --config-file configs/sskd_msmt2m_osnet.yml --output runs/osnet --seeds 1,2,3 \\
        SSKD.SOURCE.WEIGHTS "['osnet_x0_25_msmt17.pth']"

Rows, all from the same source weights and, where they train, with the same network, views and number of steps:
direct transfer, direct transfer with batch-norm statistics of the target, one network with hard pseudo-labels only,
SSKD (each teacher and the ensemble, last epoch), and the supervised upper bound. Finished parts of an earlier run in
the same folder are reused, unfinished ones go on.
"""
import argparse
import json
import logging
import os
import statistics
import sys
import time

# Waiting OpenMP threads that spin take the cores from everything else: 4-10 times slower beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from tabulate import tabulate

from fastreid_sskd.data import training_items
from fastreid_sskd.engine import AdaptationTrainer, load_config, resolve, run, seed_everything, setup
from fastreid_sskd.engine.baselines import (
    one_network_config,
    reestimate_batch_norm,
    supervised_config,
)
from fastreid_sskd.engine.pipeline import source_weights
from fastreid_sskd.evaluation.peers import evaluate_peers
from fastreid_sskd.evaluation.table import METRICS
from fastreid_sskd.modeling import load_source_weights

logger = logging.getLogger("fastreid.sskd.compare")


def part(base, folder: str, name: str, **changes):
    """A config for one part of the comparison, in a folder of its own."""
    cfg = base.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = os.path.join(folder, name)
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    cfg.freeze()
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    return cfg


def finished(cfg, name: str = "rows.json"):
    path = os.path.join(cfg.OUTPUT_DIR, name)
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    return None


def keep(cfg, rows: dict) -> dict:
    with open(os.path.join(cfg.OUTPUT_DIR, "rows.json"), "w", encoding="utf-8") as file:
        json.dump(rows, file, indent=1)
    return rows


def plain(metrics: dict) -> dict:
    return {name: float(metrics[name]) for name in METRICS}


def one_seed(cfg, folder: str) -> dict:
    """{row: metrics} of one seed."""
    test = cfg.DATASETS.TESTS[0]
    rows = {}

    sskd = part(cfg, folder, "sskd")
    weights = source_weights(sskd)

    transfer = part(cfg, folder, "transfer")
    found = finished(transfer)
    if found is None:
        seed_everything(cfg.SEED)
        model = AdaptationTrainer.build_model(transfer)
        load_source_weights(model, weights)
        found = {"direct transfer": evaluate_peers(transfer, model)[test]}
        reestimate_batch_norm(transfer, model, training_items(transfer.DATASETS.NAMES, transfer.SSKD.FOLDERS))
        found["direct transfer, target BN statistics"] = evaluate_peers(transfer, model)[test]
        found = keep(transfer, {what: plain(last_row(rows)) for what, rows in found.items()})
    rows.update(found)

    one = part(one_network_config(cfg), folder, "one_network", SSKD__SOURCE__WEIGHTS=weights[:1])
    found = finished(one)
    if found is None:
        results = run(one, resume=True)
        found = keep(one, {"one network, hard labels only": plain(results[test]["peer0"])})
    rows.update(found)

    found = finished(sskd)
    if found is None:
        adapted = part(sskd, folder, "sskd", SSKD__SOURCE__WEIGHTS=weights)
        results = run(adapted, resume=True)[test]
        found = keep(sskd, {
            ("SSKD, ensemble" if row == "ensemble" else f"SSKD, teacher {row[len('peer'):]}"): plain(metrics)
            for row, metrics in results.items()
        })
    rows.update(found)

    bound = part(supervised_config(cfg), folder, "supervised", MODEL__WEIGHTS=weights[0])
    found = finished(bound)
    if found is None:
        seed_everything(cfg.SEED)
        results = run(bound, resume=True)
        found = keep(bound, {"supervised upper bound": plain(results)})
    rows.update(found)
    return rows


def last_row(rows: dict) -> dict:
    """The ensemble's metrics, or the only network's."""
    return list(rows.values())[-1]


def summary(by_seed: list) -> str:
    """One line a row: the value of one seed, or mean and standard deviation over several."""
    lines = []
    for row in by_seed[0]:
        cells = []
        for name in METRICS:
            values = [rows[row][name] for rows in by_seed]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        lines.append([row, *cells])
    return tabulate(lines, headers=["last epoch, %", *METRICS], tablefmt="pipe", disable_numparse=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="an SSKD config")
    parser.add_argument("--output", required=True, help="folder of all runs of the comparison")
    parser.add_argument("--seeds", default="1", help="comma-separated")
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="overrides: KEY value ...")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]

    start = time.time()
    by_seed = []
    for i, seed in enumerate(seeds):
        folder = os.path.join(args.output, f"seed{seed}")
        opts = [*args.opts, "SEED", str(seed), "OUTPUT_DIR", folder]
        if i == 0:
            cfg = setup(argparse.Namespace(config_file=args.config_file, opts=opts))
        else:
            cfg = resolve(load_config(args.config_file, opts))
        by_seed.append(one_seed(cfg, folder))
        logger.info("seed %d:\n%s", seed, summary(by_seed[-1:]))
    table = summary(by_seed)
    minutes = (time.time() - start) / 60
    print(f"\n{table}\n\nTest set {cfg.DATASETS.TESTS[0]}, seeds {args.seeds}, {cfg.SSKD.NUM_PEERS} peers, "
          f"{cfg.SOLVER.MAX_EPOCH * cfg.SSKD.ITERS_PER_EPOCH} steps of {cfg.SOLVER.IMS_PER_BATCH} images, "
          f"last epoch (nothing chosen on the test set), {torch.get_num_threads()} threads, {minutes:.1f} min.")
    with open(os.path.join(args.output, "table.md"), "w", encoding="utf-8") as file:
        file.write(table + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
