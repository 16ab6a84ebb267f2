"""Create the virtual environment of the Makefile's targets, or bring it up to date.

    python tools/environment.py .venv
    python tools/environment.py .venv --extras gpu,test --torch "torch==2.4.1 torchvision==0.19.1"

It runs under the interpreter that the environment is to have and needs the standard library only. A stamp in
the environment holds a hash of everything that decides what is installed: a second run returns at once, and a
changed requirement installs again. The stamp also keeps --extras and --torch: what was chosen once stays.
"""

from __future__ import annotations  # an older Python must get as far as the message that it is too old

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 10), (3, 13)
HOST = "fastreid==1.4.0"
DEFAULT_TORCH = "torch torchvision"
DEFAULT_EXTRAS = "cpu,test"
STAMP = ".fastreid-sskd.json"
# The files that name requirements. A change in one of them installs again.
REQUIREMENT_FILES = ("setup.py", "pyproject.toml", "tools/environment.py")
# Both packages of a pair install the module `faiss` and overwrite each other's files.
RIVALS = {"cpu": "faiss-gpu", "gpu": "faiss-cpu"}
# One operator of torchvision's own, and one array across the border between torch and numpy.
VERIFY = "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5).numpy()"


class Choice(NamedTuple):
    """What the user asked for explicitly; None leaves the default."""

    extras: str | None = None
    torch: str | None = None


def check_python(version: tuple[int, ...]) -> None:
    """Raise SystemExit unless `version` is an interpreter that the package supports."""
    if not OLDEST <= tuple(version[:2]) <= NEWEST:
        raise SystemExit(
            f"Python 3.{OLDEST[1]}-3.{NEWEST[1]} is needed, and this is {'.'.join(map(str, version[:3]))}: "
            "name another one, for example `make PYTHON=python3.12`"
        )


def interpreter(venv: Path) -> Path:
    """Path of the environment's Python."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def python_version(python: Path) -> str | None:
    """ "3.11" of an interpreter, or None when it does not run."""
    try:
        done = subprocess.run(
            [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def install_commands(python: Path, choice: Choice, root: Path = ROOT) -> list[list[str]]:
    """The pip commands that fill the environment, in order."""
    # The host goes without its dependencies: they pin torch 1.13, of which pip would warn at every turn.
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-warn-conflicts"]
    extras = DEFAULT_EXTRAS if choice.extras is None else choice.extras
    torch = shlex.split(DEFAULT_TORCH if choice.torch is None else choice.torch)
    plugin = f"{root}[{extras}]" if extras else str(root)
    # One command for torch and the rest: pip then settles the numpy that all of them accept.
    return [pip + torch + ["--editable", plugin], pip + ["--no-deps", HOST]]


def fingerprint(python: Path, choice: Choice, root: Path = ROOT) -> str:
    """Hash of all that decides what is installed: Python, pip commands, place of the tree, files."""
    parts = [python_version(python) or "", json.dumps(install_commands(python, choice, root))]
    parts += [(root / name).read_text(encoding="utf-8") for name in REQUIREMENT_FILES]
    package = (root / "fastreid_sskd" / "__init__.py").read_text(encoding="utf-8")
    parts += re.findall(r"^__version__.*$", package, re.MULTILINE)
    return hashlib.sha256("\0".join(parts).encode("utf-8")).hexdigest()


def read_stamp(venv: Path) -> dict:
    """The environment's stamp; empty when there is none or it is damaged."""
    try:
        stamp = json.loads((venv / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def write_stamp(venv: Path, digest: str | None, choice: Choice) -> None:
    """Write the stamp in one step; `digest` None marks an installation that has not finished."""
    stamp = {"fingerprint": digest, "extras": choice.extras, "torch": choice.torch}
    draft = venv / (STAMP + ".tmp")
    draft.write_text(json.dumps(stamp) + "\n", encoding="utf-8")
    os.replace(str(draft), str(venv / STAMP))


def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def create(venv: Path, run: Callable[[Sequence[str]], object]) -> None:
    """Make an empty environment with pip in it, in place of what is there.

    Raises:
        SystemExit: the folder holds something else, or this Python has neither ensurepip nor pip.
    """
    if venv.exists() and any(venv.iterdir()) and not (venv / "pyvenv.cfg").exists():
        raise SystemExit(f"{venv} is not a virtual environment and would be overwritten: move it away")
    command = [sys.executable, "-m", "venv", "--clear", str(venv)]
    if _has_module("ensurepip"):
        run(command)
    elif _has_module("pip"):
        # Debian and Ubuntu ship ensurepip apart from Python; this Python's own pip can fill in for it.
        run(command[:-1] + ["--without-pip", str(venv)])
        folder = subprocess.check_output(
            [str(interpreter(venv)), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            text=True,
        )
        run([sys.executable, "-m", "pip", "install", "--target", folder.strip(), "pip"])
    else:
        raise SystemExit(
            f"{sys.executable} has neither ensurepip nor pip, so no environment can be made with it: install "
            "them (Debian, Ubuntu: `apt-get install python3-venv`) or name another Python, `make PYTHON=...`"
        )


def verify(python: Path) -> None:
    """Raise SystemExit unless the torch, torchvision and numpy that were installed work together."""
    done = subprocess.run([str(python), "-c", VERIFY], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(
            f"torch, torchvision and numpy were installed but do not fit together ({reason}). A '+cpu' build "
            "of torch from a pip configuration does not load PyPI's torchvision, and torch before 2.3 needs "
            "numpy<2: name a set that fits, for example make setup TORCH='torch==2.4.1 torchvision==0.19.1'"
        )


def ensure(
    venv: Path,
    choice: Choice,
    run: Callable[[Sequence[str]], object] = subprocess.check_call,
    root: Path = ROOT,
) -> bool:
    """Bring `venv` to the state that the requirements describe; True when something had to be installed.

    An environment of another Python (major.minor) than the running one is made anew.
    """
    stamp = read_stamp(venv)
    choice = Choice(
        stamp.get("extras") if choice.extras is None else choice.extras,
        stamp.get("torch") if choice.torch is None else choice.torch,
    )
    python = interpreter(venv)
    present = python_version(python)
    wanted = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if present == wanted and stamp.get("fingerprint") == fingerprint(python, choice, root):
        return False

    if present != wanted:
        print(f"creating {venv} with {sys.executable}", flush=True)
        create(venv, run)
    write_stamp(venv, None, choice)
    extras = (DEFAULT_EXTRAS if choice.extras is None else choice.extras).split(",")
    rivals = [rival for extra, rival in RIVALS.items() if extra in extras]
    if present == wanted and rivals:
        run([str(python), "-m", "pip", "uninstall", "--yes", *rivals])
    for command in install_commands(python, choice, root):
        run(command)
    verify(python)
    write_stamp(venv, fingerprint(python, choice, root), choice)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("venv", type=Path, help="folder of the environment")
    parser.add_argument("--extras", help=f"extras of setup.py, comma-separated (default: {DEFAULT_EXTRAS})")
    parser.add_argument(
        "--torch", help=f"what pip is given for torch and its pins (default: {DEFAULT_TORCH})"
    )
    args = parser.parse_args()
    check_python(tuple(sys.version_info))
    # pip refuses --user inside an environment; a configuration of the user's may ask for it.
    os.environ["PIP_USER"] = "0"
    try:
        # not resolve(): the environment may be a link, and its own bin/python always is one
        if ensure(Path(os.path.abspath(str(args.venv))), Choice(args.extras, args.torch)):
            print(f"{args.venv} is ready", flush=True)
    except subprocess.CalledProcessError as error:
        command = " ".join(str(part) for part in error.cmd)
        raise SystemExit(
            f"`{command}` failed with exit status {error.returncode}: see above, then run make again to go on"
        ) from error


if __name__ == "__main__":
    main()
