"""What the speed scripts share: a row of their table, memory, the machine, the command line."""

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

# Waiting OpenMP threads that spin take the cores from everything else: 4-10 times slower beside other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from tabulate import tabulate

import fastreid_sskd  # noqa: F401  mends the host before anything imports it

# isort: split
from fastreid_sskd.engine.files import check_output, write_atomically


@dataclass
class Row:
    """One measurement and what it is compared with.

    Attributes:
        section: "step", "memory", "loader" or "evaluation".
        what: what was measured, with its sizes.
        unit: of the three figures, such as "s/step", "views/s" or "s".
        ours: this package's figure, a median.
        plain: the plain way's figure in the same run; None where there is none.
        floor: the figure that the hardware allows; None where there is none.
        target: the targets and what was reached, as text for the table.
        note: precision, threads, spread: whatever else a reader needs.
        details: further figures for the record, such as every repeat and its parts.
    """

    section: str
    what: str
    unit: str
    ours: float
    plain: float | None = None
    floor: float | None = None
    target: str = ""
    note: str = ""
    details: dict | None = None


def parser(doc: str, repeats: int = 5) -> argparse.ArgumentParser:
    """The options that every script has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=repeats, help="measured rounds")
    made.add_argument("--threads", type=int, default=0, help="of torch [default: its own choice]")
    made.add_argument("--device", default="auto", help="auto: CUDA where there is one")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--json", type=Path, help="file for everything measured")
    made.add_argument("--markdown", type=Path, help="file for the table")
    return made


def add_batch_options(given: argparse.ArgumentParser) -> None:
    """The options of scripts that make batches."""
    given.add_argument("--batch", type=int, help="images of a batch [default: the network's own]")
    given.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of an image [default: the network's own]",
    )
    given.add_argument("--peers", type=int, default=3, help="K")


def main(given: argparse.ArgumentParser, rows: Callable[[argparse.Namespace], list[Row]]) -> None:
    """Parse the command line, measure, and print and write the table."""
    args = given.parse_args()
    try:
        for path in filter(None, (args.json, args.markdown)):
            check_output(path)
    except ValueError as error:
        given.error(str(error))
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    device = (
        torch.cuda.get_device_name(args.device) if torch.device(args.device).type == "cuda" else args.device
    )
    about = {**machine(), "device": device}
    measured = rows(args)
    if args.json:
        arguments = {name: str(value) for name, value in vars(args).items()}
        results = {"machine": about, "arguments": arguments, "rows": [asdict(row) for row in measured]}
        write_atomically(
            str(args.json), lambda file: file.write(f"{json.dumps(results, indent=1)}\n".encode())
        )
    text = f"{described(about)}\n\n{table(measured)}"
    if args.markdown:
        write_atomically(str(args.markdown), lambda file: file.write(f"{text}\n".encode()))
    print(text)


def described(about: dict) -> str:
    """A machine as one sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['device']}, {about['processor']}, {about['cores']} cores, {about['threads']} threads, "
        f"{about['system']}, load at the start {about['load']}, OMP_WAIT_POLICY={about['OMP_WAIT_POLICY']}; "
        f"{versions}."
    )


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"

    columns = [
        {
            "section": row.section,
            "what": row.what,
            "unit": row.unit,
            "ours": figure(row.ours),
            "plain": figure(row.plain),
            "floor": figure(row.floor),
            "reached (target)": row.target,
            "note": row.note,
        }
        for row in rows
    ]
    return tabulate(columns, headers="keys", tablefmt="github", disable_numparse=True)


def machine() -> dict:
    """What was measured on."""
    model = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(
                (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model
            )
    versions = {"python": platform.python_version()}
    for name in ("fastreid-sskd", "torch", "numpy", "scipy", "scikit-learn", "numba", "faiss-cpu"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
        "load": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


class ResidentMemory:
    """Highest resident size from now on, above what is resident now.

    On Linux the high-water mark is set back by /proc/self/clear_refs. Where that is not allowed, or there is
    no /proc, it is what the process's maximum grew by, which is too low if something before reached higher.

    Attributes:
        method: "VmHWM" or "ru_maxrss", accordingly.
        before: bytes resident at the start.
    """

    def __init__(self) -> None:
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
            self.method, self.before = "VmHWM", _status("VmRSS")
        except OSError:
            self.method, self.before = "ru_maxrss", _maxrss()

    def peak(self) -> int:
        """Bytes."""
        return (_status("VmHWM") if self.method == "VmHWM" else _maxrss()) - self.before


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def _maxrss() -> int:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
