#!/usr/bin/env python3
"""Run the tests and the benchmarks that a GPU is wanted for, and keep what they found as one record.

    benchmarks/gpu.py                 # `make gpu`: the record, and its lines in docs/speed.md
    benchmarks/gpu.py --device cpu --record cpu.json --docs ''     # the same commands without a GPU: slow

Without a GPU it says what it would do. A part that fails or takes too long is in the record as such, the rest
runs, and the exit status is 1.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measure import Row, described, machine, table

from fastreid_sskd.engine.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RECORD, DOCS = ROOT / "benchmarks" / "records" / "gpu.json", ROOT / "docs" / "speed.md"

#: what is run, with the most seconds that it may take: 8 minutes in all
PARTS = {
    "tests": (["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "tests"], 180),
    "step": (["benchmarks/step.py", "--models", "resnet50", "osnet_x0_25", "--precision", "auto"], 120),
    "loader": (["benchmarks/loader.py", "--repeats", "3"], 60),
    "refresh": (["benchmarks/refresh.py", "--images", "12936", "32621"], 120),
}


def run_part(name: str, device: str) -> dict:
    """Run one part on a device; what its JSON file holds, or the last line of the tests.

    Returns:
        "result" of the tests, else the contents of the file; "failed" says why where it did.
    """
    command, limit = PARTS[name]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "found.json"
        given = [] if name == "tests" else ["--device", device, "--json", str(file)]
        try:
            done = subprocess.run(
                [sys.executable, *command, *given],
                cwd=ROOT, timeout=limit, text=True, stdout=subprocess.PIPE, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"failed": f"took more than {limit} s"}
        print(done.stdout, flush=True)
        found = {"failed": f"exit status {done.returncode}"} if done.returncode else {}
        if name == "tests":
            return {**found, "result": "".join(done.stdout.splitlines()[-1:]).strip("= ")}
        return {**found, **(json.loads(file.read_text()) if file.exists() else {})}


def lines(record: dict) -> str:
    """A record as the lines of docs/speed.md: the machine, the tests and a table."""
    rows = [Row(**row) for name in ("step", "loader") for row in record[name].get("rows", ())]
    for case in record["refresh"].get("cases", ()):
        what = f"{case['images']:,} x {case['dim']}, exact"
        ours, product = case["seconds"]["total"], case["product"]["seconds"]
        rows.append(Row("refresh", what, "s", ours, None, product, f"{case['wall_ratio']:.2f} X @ X.T"))
    failed = [f"{name}: {part['failed']}" for name, part in record.items() if "failed" in part]
    text = f"{described(record['machine'])} Tests: {record['tests'].get('result', 'none')}.\n\n{table(rows)}"
    return text + "".join(f"\n\nNot measured, {reason}." for reason in failed)


def in_page(page: str, text: str) -> str:
    """A page with its lines between the marks ``gpu`` and ``end of gpu`` replaced."""
    marked = re.compile(r"(<!-- gpu -->\n).*(\n<!-- end of gpu -->)", re.DOTALL)
    return marked.sub(lambda match: match[1] + text + match[2], page)


def main() -> int:
    """Run every part; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto: the GPU; cpu: the commands without one")
    parser.add_argument("--record", type=Path, default=RECORD, help="file to write")
    parser.add_argument("--docs", default=str(DOCS), help="page whose lines are replaced; '': none")
    args = parser.parse_args()
    if args.device == "auto" and not torch.cuda.is_available():
        print("There is no GPU that torch can use. On one, this would run, with these limits in seconds:")
        for command, limit in PARTS.values():
            print(f"  {limit:>3}  python {' '.join(command)}")
        print(f"and write {os.path.relpath(args.record, ROOT)} and its lines in docs/speed.md.")
        return 0
    device = "cuda" if args.device == "auto" else args.device
    name = torch.cuda.get_device_name(device) if device != "cpu" else device
    record = {"machine": {**machine(), "device": name}}
    for part in PARTS:
        record[part] = run_part(part, device)
        write_atomically(str(args.record), lambda file: file.write(json.dumps(record, indent=1).encode()))
    text = lines(record)
    print(text)
    if args.docs:
        page = in_page(Path(args.docs).read_text(encoding="utf-8"), text)
        write_atomically(args.docs, lambda file: file.write(page.encode()))
    return int(any("failed" in part for part in record.values()))


if __name__ == "__main__":
    sys.exit(main())
