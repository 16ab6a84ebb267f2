#!/usr/bin/env python3
"""Measure a training step, the loader and the evaluation beside the plain way and what the hardware allows, in one run.

    tools/benchmark_step.py --json speed.json --markdown speed.md
    tools/benchmark_step.py --sections step --models resnet50 osnet_x0_25 --repeats 5 --precision auto

A section is a module of fastreid_sskd.benchmark.speed with `rows(args) -> list[Row]`. Figures are medians of repeats that are
measured in turn; a ratio is the median of the repeats' ratios. "-" is what a section has nothing to compare with.
"""
import argparse
import importlib
import json
import os
import sys
from pathlib import Path

# Waiting OpenMP threads that spin take the cores from everything else: 4-10 times slower beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import torch
from measure import machine
from tabulate import tabulate

import fastreid_sskd  # noqa: F401  mends the host before anything imports it

# isort: split
from fastreid_sskd.benchmark.speed.nets import NETWORKS
from fastreid_sskd.benchmark.speed.row import Row
from fastreid_sskd.engine.atomic import check_output, write_atomically

SECTIONS = ("step", "memory", "loader", "evaluation")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="of the step")
    parser.add_argument("--batch", type=int, help="images of a batch [default: the network's own]")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of an image [default: the network's own]")
    parser.add_argument("--peers", type=int, default=3, help="K")
    parser.add_argument("--classes", type=int, default=500, help="C, clusters")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds")
    parser.add_argument("--threads", type=int, default=0, help="of torch [default: its own choice]")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16", "auto"), default="float32",
                        help="of our step and the floor; the plain step is float32")
    parser.add_argument("--channels-last", action="store_true", help="SSKD.CHANNELS_LAST for our step and the floor")
    parser.add_argument("--compile", action="store_true", help="SSKD.COMPILE for our step and the floor")
    parser.add_argument("--device", default="auto", help="auto: CUDA where there is one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for everything measured")
    parser.add_argument("--markdown", type=Path, help="file for the table")
    args = parser.parse_args()
    try:
        for path in filter(None, (args.json, args.markdown)):
            check_output(path)
    except ValueError as error:
        parser.error(str(error))
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    return args


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"

    columns = [
        {"section": row.section, "what": row.what, "unit": row.unit, "ours": figure(row.ours), "plain": figure(row.plain),
         "floor": figure(row.floor), "reached (target)": row.target, "note": row.note}
        for row in rows
    ]  # fmt: skip
    return tabulate(columns, headers="keys", tablefmt="github", disable_numparse=True)


def text(results: dict, rows: list[Row]) -> str:
    """Machine and table, in Markdown."""
    about = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    where = (
        f"{about['device']}, {about['processor']}, {about['cores']} cores, {about['threads']} threads, {about['system']}, load "
        f"at the start {about['load']}, OMP_WAIT_POLICY={about['OMP_WAIT_POLICY']}; {versions}."
    )
    return f"{where}\n\n{table(rows)}"


def main() -> None:
    """Run the sections one after the other; what is measured is saved after each."""
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.cuda.get_device_name(args.device) if torch.device(args.device).type == "cuda" else args.device
    results = {"machine": {**machine(), "device": device}, "arguments": {k: str(v) for k, v in vars(args).items()}, "rows": []}
    rows: list[Row] = []
    for section in args.sections:
        rows += importlib.import_module(f"fastreid_sskd.benchmark.speed.{section}").rows(args)
        print(f"{section}: done", file=sys.stderr, flush=True)
        results["rows"] = [row.as_dict() for row in rows]
        if args.json:
            write_atomically(str(args.json), lambda file: file.write(f"{json.dumps(results, indent=1)}\n".encode()))
        if args.markdown:
            write_atomically(str(args.markdown), lambda file, rows=rows: file.write(f"{text(results, rows)}\n".encode()))
    print(text(results, rows))


if __name__ == "__main__":
    main()
