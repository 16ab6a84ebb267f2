r"""Run an SSKD config and what it has to be compared with, over seeds, and print one table.

    tools/compare.py --config-file configs/demo.yml --output runs/demo
    tools/compare.py --config-file configs/sskd_msmt2m_osnet.yml --output runs/osnet --seeds 1,2,3 \
        SSKD.SOURCE.WEIGHTS "['osnet_x0_25_msmt17.pth']"

The grid of configs/comparison/grid.yml. Its rows start from the same source models and, where they train,
have the same network, views and number of steps: direct transfer, direct transfer with batch-norm statistics
of the target, one network with hard pseudo-labels only, SSKD (each teacher and the ensemble, last epoch), and
the supervised upper bound.
Finished runs in the same folder are reused, unfinished ones are resumed; a folder of other settings is
refused. A row that cannot be had (the upper bound of a target without identities) is left out, and said
before training and below the table.

Exit status: 0 done, 1 failed, 2 refused (the command line, a folder of other settings or in use), 3 the
table lacks a row whose pseudo-labels cannot be trained on or that has diverged, 4 stopped by SIGTERM or
SIGINT after saving.
"""

import argparse
import os
import time
from dataclasses import replace

import torch
from fastreid.utils.logger import setup_logger

from fastreid_sskd import benchmark
from fastreid_sskd.engine import load_config, resolve
from fastreid_sskd.engine.files import check_output, write_atomically
from fastreid_sskd.refusals import checking, exit_status

START = "direct transfer"  # the row that every other has to beat, seed by seed


@exit_status
def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="an SSKD config")
    parser.add_argument("--output", required=True, help="folder of all runs of the comparison")
    parser.add_argument("--seeds", type=benchmark.parse_seeds, default=(1,), help="comma-separated")
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], help="overrides: KEY value ...")
    args = parser.parse_args()
    given_elsewhere = {"SEED": "--seeds", "OUTPUT_DIR": "--output"}.keys() & set(args.opts[::2])
    if given_elsewhere:
        parser.error(f"{' and '.join(sorted(given_elsewhere))}: give --seeds and --output instead")

    table_file = os.path.join(args.output, "table.md")
    with checking():
        check_output(table_file)
        grid = replace(benchmark.load_grid("comparison/grid.yml"), config=args.config_file, seeds=args.seeds)
    setup_logger()
    start = time.time()
    outcome = benchmark.run_grid(grid, args.output, opts=args.opts)
    minutes, cfg = (time.time() - start) / 60, resolve(load_config(args.config_file, args.opts))
    against = START if any(result.method == START for result in outcome.results) else ""
    table = benchmark.write_table(outcome.results, "markdown", against=against)
    table = "\n\n".join([table, *outcome.notes()])
    print(
        f"\n{table}\n\nTest set {cfg.DATASETS.TESTS[0]}, seeds {', '.join(map(str, args.seeds))}, "
        f"{cfg.SSKD.NUM_PEERS} peers, "
        f"{cfg.SOLVER.MAX_EPOCH * cfg.SSKD.ITERS_PER_EPOCH} steps of {cfg.SOLVER.IMS_PER_BATCH} images, "
        f"last epoch (nothing chosen on the test set), {torch.get_num_threads()} threads, {minutes:.1f} min."
    )
    write_atomically(table_file, lambda file: file.write(f"{table}\n".encode()))
    return 3 if outcome.stopped else 0
