"""Run the quick tests on every supported Python that this machine has, and keep the results.

    python tools/matrix.py                                  # everything found
    python tools/matrix.py --python 3.10 --only oldest      # one combination
    python tools/matrix.py --table                          # print the table of the record, run nothing

Each combination gets an environment of its own, `.venv-3.X` or `.venv-3.X-oldest` (about 6 GB, removed
afterwards unless --keep is given). Results go to benchmarks/matrix.json, one entry a combination, and as a
Markdown table to the standard output. Combinations not run this time keep theirs. Standard library only.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import environment

ROOT = environment.ROOT
RECORD = ROOT / "benchmarks" / "matrix.json"
QUICK = ["-q", "-n", "2", "--dist", "loadfile", "-m", "not slow"]
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "numba", "faiss-cpu")


class Combination(NamedTuple):
    """A Python and the packages to test on it; `torch` is what tools/environment.py takes as --torch."""

    python: str
    name: str
    torch: str

    @property
    def venv(self) -> Path:
        """Folder of its environment."""
        return ROOT / (
            f".venv-{self.python}" if self.name == "newest" else f".venv-{self.python}-{self.name}"
        )


# The oldest are the lower bounds of setup.py that have wheels for Python 3.10.
OLDEST = "torch==2.1.2 torchvision==0.16.2 numpy==1.26.4 scipy==1.11.4 scikit-learn==1.3.2 numba==0.58.1"
COMBINATIONS = tuple(
    Combination(f"3.{minor}", "newest", environment.DEFAULT_TORCH)
    for minor in range(environment.OLDEST[1], environment.NEWEST[1] + 1)
) + (Combination("3.10", "oldest", OLDEST),)


def find_python(version: str) -> Path | None:
    """An interpreter of the given "3.X": the running one, one on PATH, or one of pyenv's; else None."""
    names = [sys.executable, shutil.which(f"python{version}"), shutil.which("python3")]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    names += [str(path) for path in sorted(pyenv.glob(f"{version}*/bin/python"), reverse=True)]
    for name in names:
        # asked for its version: a pyenv shim may be on PATH and not run
        if name and environment.python_version(Path(name)) == version:
            return Path(name)
    return None


def versions(python: Path) -> dict[str, str | None]:
    """Versions of the interpreter and of PACKAGES in it; None for a package that is missing."""
    code = (
        "import importlib.metadata as m, json, platform, sys\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions() if d.metadata['Name']}\n"
        "print(json.dumps([platform.python_version(), [found.get(name) for name in sys.argv[1:]]]))"
    )
    done = subprocess.run([str(python), "-c", code, *PACKAGES], stdout=subprocess.PIPE, text=True, check=True)
    interpreter, found = json.loads(done.stdout)
    return {"interpreter": interpreter, **dict(zip(PACKAGES, found))}


def count_results(junit: Path) -> dict[str, int]:
    """Numbers of passed, failed and skipped tests in pytest's JUnit file; errors count as failed."""
    suites = list(ElementTree.parse(junit).getroot().iter("testsuite"))
    total, failures, errors, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "failures", "errors", "skipped")
    )
    failed = failures + errors
    return {"passed": total - failed - skipped, "failed": failed, "skipped": skipped}


def run_tests(python: Path, pytest_args: list[str], timeout: float) -> dict:
    """Run pytest under `python`; the counts, the seconds and a word for the result."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={junit}", *pytest_args]
        one_thread = {"OMP_NUM_THREADS": "1", **os.environ}  # for each of pytest's processes, as `make test` gives
        try:
            status = subprocess.run(
                command, cwd=ROOT, timeout=timeout, stdout=sys.stderr, check=False, env=one_thread
            ).returncode
        except subprocess.TimeoutExpired:
            return {"result": f"timed out after {timeout:.0f} s", "seconds": round(time.monotonic() - start)}
        counts = count_results(junit) if junit.exists() else {}
    # pytest's status, not the counts: it also fails when no test was found or one could not be collected
    result = "passed" if status == 0 else "failed" if status == 1 else f"pytest stopped with status {status}"
    return {"result": result, **counts, "seconds": round(time.monotonic() - start)}


def run_combination(combination: Combination, pytest_args: list[str], timeout: float, keep: bool) -> dict:
    """Make the environment, test in it, remove it; one entry of the record."""
    entry = {
        "python": combination.python,
        "combination": combination.name,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "pytest": " ".join(pytest_args),
    }
    python = find_python(combination.python)
    if python is None:
        return {**entry, "result": "not found"}
    print(
        f"== Python {combination.python}, {combination.name}: {combination.torch}",
        file=sys.stderr,
        flush=True,
    )
    try:
        setup = [str(python), str(ROOT / "tools" / "environment.py"), str(combination.venv)]
        setup += ["--torch", combination.torch]
        if subprocess.run(setup, stdout=sys.stderr, check=False).returncode != 0:
            return {**entry, "result": "installation failed"}
        inside = environment.interpreter(combination.venv)
        return {**entry, **versions(inside), **run_tests(inside, pytest_args, timeout)}
    finally:
        if not keep:
            shutil.rmtree(combination.venv, ignore_errors=True)


def read_record(path: Path) -> list[dict]:
    """Entries of the record; none when there is no file yet."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def merge(record: list[dict], entry: dict) -> list[dict]:
    """The record with `entry` in the place of that of its combination, in the order of COMBINATIONS."""
    entries = {(item["python"], item["combination"]): item for item in [*record, entry]}
    order = [(combination.python, combination.name) for combination in COMBINATIONS]
    return sorted(entries.values(), key=lambda item: order.index((item["python"], item["combination"])))


def describe(entry: dict) -> str:
    """The result in words."""
    if "passed" not in entry:
        return entry["result"]
    words = f"{entry['passed']} passed, {entry['failed']} failed, {entry['skipped']} skipped"
    if entry["result"] not in ("passed", "failed"):
        words = f"{entry['result']}: {words}"
    # a part of the tests must not pass for all of them
    return words if entry["pytest"] == " ".join(QUICK) else f"{words} (of `{entry['pytest']}` only)"


def table(record: list[dict]) -> str:
    """The record as Markdown; a combination without an entry is marked untested."""
    lines = ["| Python | torch | torchvision | numpy | date | quick tests |", "|---|---|---|---|---|---|"]
    known = {(entry["python"], entry["combination"]): entry for entry in record}
    for combination in COMBINATIONS:
        entry = known.get((combination.python, combination.name), {"result": "untested"})
        cells = [entry.get("interpreter") or combination.python]
        cells += [entry.get(name) or f"({combination.name})" for name in ("torch", "torchvision", "numpy")]
        cells += [entry.get("date", ""), describe(entry)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help="only this Python, for example 3.12")
    parser.add_argument("--only", choices=sorted({combination.name for combination in COMBINATIONS}))
    parser.add_argument(
        "--output", type=Path, default=RECORD, help="the record (default: benchmarks/matrix.json)"
    )
    parser.add_argument(
        "--timeout", type=float, default=3600, help="seconds for the tests of one combination"
    )
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    parser.add_argument("--table", action="store_true", help="print the table of the record and run nothing")
    parser.add_argument("pytest_args", nargs="*", help='after --; default: -m "not slow"')
    args = parser.parse_args()

    record = read_record(args.output)
    chosen = [c for c in COMBINATIONS if args.python in (None, c.python) and args.only in (None, c.name)]
    if not chosen:
        parser.error("no such combination; known: " + ", ".join(f"{c.python} {c.name}" for c in COMBINATIONS))
    entries = []
    for combination in [] if args.table else chosen:
        entry = run_combination(combination, args.pytest_args or QUICK, args.timeout, args.keep)
        entries.append(entry)
        record = merge(record, entry)
        # written after each one: a run over all of them takes an hour
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record))
    # a Python that is absent is no failure of the package
    sys.exit(any(entry["result"] not in ("passed", "not found") for entry in entries))


if __name__ == "__main__":
    main()
