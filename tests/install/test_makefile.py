"""The Makefile picks a Python that works, installs what is locked, once, and again when a requirement or a
choice changed.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CURRENT = "{}.{}".format(*sys.version_info[:2])
# Decide what is installed, beside the lock.
REQUIREMENT_FILES = ("Makefile", "setup.py", "pyproject.toml", "fastreid_sskd/__init__.py")

# A Python that answers questions as the running one does, but for its version; its venv and pip only take
# notes.
STAND_IN = """#!/bin/sh
case "$1:$2" in
  -c:*version_info?:2?\\)) echo {version}; exit;;
  -c:"import ensurepip") [ -z "$NO_ENSUREPIP" ]; exit;;
  -c:*nms*) if [ -n "$TORCH_DOES_NOT_FIT" ]; then
    echo "operator torchvision::nms does not exist" >&2; exit 1; fi; exit;;
  -c:*) exec {python} "$@";;
esac
echo "{version} $*" >>"$LOG"
case "$*" in
  *venv*) for folder; do :; done
    mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python"; touch "$folder/pyvenv.cfg";;
  *"$FAILING"*) exit 1;;
esac
"""


class Tree:
    """A copy of the files that make reads, and a PATH with the given stand-ins for interpreters only."""

    def __init__(self, folder: Path):
        self.folder, self.log, self.programs = folder, folder / "log", folder / "programs"
        for name in REQUIREMENT_FILES:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        shutil.copytree(ROOT / "constraints", folder / "constraints")
        self.programs.mkdir()
        for name in ("awk", "cat", "cp", "ls", "mkdir", "rm", "touch"):
            (self.programs / name).symlink_to(shutil.which(name))

    def python(self, name: str, version: str = CURRENT, script: str = "") -> None:
        """Put an interpreter on PATH, or a script in its place."""
        path = self.programs / name
        path.write_text(
            f"#!/bin/sh\n{script}\n" if script else STAND_IN.format(python=sys.executable, version=version)
        )
        path.chmod(0o755)

    def make(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        self.log.write_text("")
        # of the caller's environment, nothing: this may itself be a child of make
        variables = {
            "FAILING": "nothing of the kind",
            **variables,
            "PATH": str(self.programs),
            "LOG": str(self.log),
        }
        program = shutil.which("make")
        assert program, "make is not installed"
        return subprocess.run(
            [program, *arguments], cwd=self.folder, env=variables, capture_output=True, text=True, check=False
        )

    def setup(self, *arguments: str, **variables: str) -> list[str]:
        """What was asked of venv and pip, a line each, in a run of `make setup` that must succeed."""
        done = self.make("setup", *arguments, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.log.read_text().splitlines()


@pytest.fixture
def tree(tmp_path):
    made = Tree(tmp_path)
    made.python("python3")
    return made


def lock(version: str) -> str:
    return f"constraints/py{version.replace('.', '')}.txt"


# ---- which Python --------------------------------------------------------------------------------


def test_interpreters_that_do_not_run_are_skipped(tree):
    """A pyenv shim is on PATH for every version that pyenv knows, and fails for those not activated."""
    tree.python("python3.13", script="exit 127")
    tree.python("python3.12", script="exit 1")
    assert tree.setup()[0] == f"{CURRENT} -m venv --clear .venv"


def test_the_newest_is_preferred(tree):
    for version in ("3.10", "3.12"):
        tree.python(f"python{version}", version)
    assert tree.setup()[0] == "3.12 -m venv --clear .venv"


def test_no_python(tree):
    tree.python("python3", script="exit 1")
    done = tree.make("test")
    assert done.returncode != 0 and "no Python 3.10-3.13" in done.stderr and "PYTHON=" in done.stderr


def test_python_that_does_not_run_is_refused(tree):
    tree.python("old", script="exit 1")
    done = tree.make("setup", "PYTHON=old")
    assert done.returncode != 0 and "PYTHON=old does not run, is not Python 3.10-3.13 or" in done.stderr


@pytest.mark.parametrize(("version", "accepted"), [((3, 9), 0), ((3, 10), 1), ((3, 13), 1), ((3, 14), 0)])
def test_supported_versions(version, accepted):
    check = re.search(
        r"^USABLE := (.*?)\n\n?PYTHONS", (ROOT / "Makefile").read_text(), re.MULTILINE | re.DOTALL
    ).group(1)
    code = f"import sys; sys.version_info = {(*version, 1)}\n" + check.replace("\\\n", "")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 1 - accepted


# ---- what is installed, and when -----------------------------------------------------------------


def test_installs_once_from_the_lock(tree):
    venv, tools, rival, plugin, host = tree.setup()
    assert venv == f"{CURRENT} -m venv --clear .venv"
    assert tools.endswith(f"--constraint {lock(CURRENT)} --upgrade pip setuptools")
    assert rival.endswith("uninstall -qq --yes faiss-gpu")  # both packages install the module faiss
    assert plugin.endswith(f"--constraint {lock(CURRENT)} --no-build-isolation --editable .[cpu,test]")
    assert host.endswith("--no-deps fastreid==1.4.0")
    assert tree.setup() == []


@pytest.mark.parametrize("name", [*REQUIREMENT_FILES, lock(CURRENT)])
def test_changed_requirement_installs_again_into_the_same_environment(tree, name):
    tree.setup()
    later = (tree.folder / ".venv" / "installed").stat().st_mtime + 10
    other = tree.folder / "fastreid_sskd" / "other.py"
    other.touch()
    os.utime(other, (later, later))
    assert tree.setup() == []
    os.utime(tree.folder / name, (later, later))
    again = tree.setup()
    assert any("--editable" in line for line in again) and not any("venv --clear" in line for line in again)


def test_other_python_makes_a_new_environment_from_its_own_lock(tree):
    tree.setup()
    other = "3.10" if CURRENT != "3.10" else "3.11"
    tree.python("other", other)
    again = tree.setup("PYTHON=other")
    assert again[0] == f"{other} -m venv --clear .venv" and lock(other) in again[-2]
    assert tree.setup() == []  # an environment keeps its Python


def test_environment_whose_python_is_gone_is_made_anew(tree):
    tree.setup()
    (tree.folder / ".venv" / "bin" / "python").unlink()
    assert "venv --clear" in tree.setup()[0]


def test_choice_is_remembered_and_can_be_changed(tree):
    tree.setup("EXTRAS=gpu,test")
    assert tree.setup() == []
    again = tree.setup("TORCH=torch==2.2.2 'numpy<2'")
    # the lock fits no other torch
    assert again[-2].endswith(
        "--no-warn-conflicts --no-build-isolation torch==2.2.2 numpy<2 --editable .[gpu,test]"
    )
    assert tree.setup() == []
    again = tree.setup("EXTRAS=cpu,test")
    assert again[-2].endswith("torch==2.2.2 numpy<2 --editable .[cpu,test]") and "faiss-gpu" in again[-3]
    again = tree.setup("TORCH=", "EXTRAS=gpu,test")
    assert (
        lock(CURRENT) in again[-2] and "torch==2" not in again[-2] and again[-3].endswith("--yes faiss-cpu")
    )


@pytest.mark.parametrize("failing", ["--upgrade pip", "--editable", "fastreid==1.4.0"])
def test_interrupted_installation_goes_on_next_time(tree, failing):
    done = tree.make("setup", "EXTRAS=test", FAILING=failing)
    assert done.returncode != 0
    again = tree.setup()
    assert not any("venv --clear" in line for line in again) and again[-2].endswith("--editable .[test]")
    assert tree.setup() == []


def test_torch_that_does_not_fit_is_reported_and_not_done(tree):
    done = tree.make("setup", TORCH_DOES_NOT_FIT="1")
    assert done.returncode != 0 and "torchvision::nms does not exist" in done.stderr
    assert "do not fit together" in done.stderr and "make setup TORCH=" in done.stderr
    assert tree.setup()


def test_folder_that_is_no_environment_is_left_alone(tree):
    precious = tree.folder / ".venv" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("precious")
    done = tree.make("setup")
    assert done.returncode != 0 and ".venv is not a virtual environment" in done.stderr
    assert precious.read_text() == "precious" and not tree.log.read_text()


def test_pip_stands_in_for_a_missing_ensurepip(tree):
    """Debian and Ubuntu ship it apart from Python."""
    venv, pip, *_ = tree.setup(NO_ENSUREPIP="1")
    assert venv.endswith("-m venv --clear --without-pip .venv")
    assert re.search(r"-m pip install --quiet pip --target /\S+/site-packages$", pip)


# ---- what is run with it -------------------------------------------------------------------------

PYTEST = "-m pytest -n 2 --dist loadfile"


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("demo", "tools/compare.py --config-file configs/demo.yml --output runs/demo"),
        ("test", f"{PYTEST} --only-listed-skips"),
        ("test-quick", f"{PYTEST} --only-listed-skips -m not slow"),
        ("lint", "-m ruff check ."),
    ],
)
def test_targets_set_up_first(tree, target, command):
    assert tree.make(target).returncode == 0
    lines = tree.log.read_text().splitlines()
    assert lines[-1] == f"{CURRENT} {command}" and "fastreid==1.4.0" in lines[-2]
    for name in re.findall(r"\b(?:tools|configs)/\S+", command):
        assert (ROOT / name).exists()


def test_versions_that_are_not_locked_may_skip(tree):
    tree.make("test", "TORCH=torch==2.4.1")
    assert tree.log.read_text().splitlines()[-1] == f"{CURRENT} {PYTEST}"


def test_newest_versions_have_an_environment_of_their_own(tree):
    tree.setup("EXTRAS=gpu,test", "TORCH=torch==2.4.1")
    for _ in range(2):  # a week later there are newer ones
        assert tree.make("newest").returncode == 0
        lines = tree.log.read_text().splitlines()
        assert lines[0] == f"{CURRENT} -m venv --clear .venv-newest"
        assert lines[-3].endswith("install --no-warn-conflicts --no-build-isolation --editable .[cpu,test]")
        assert lines[-1] == f"{CURRENT} {PYTEST} -m not slow"
    assert tree.setup() == []


def test_failure_on_the_newest_versions_is_one(tree):
    assert tree.make("newest", FAILING="-m pytest").returncode != 0


def test_matrix_runs_on_what_there_is(tree):
    """From PATH or pyenv's folder; environments are removed; one failure fails the whole."""
    tree.python("python3.12", "3.12")
    pyenv = tree.folder / "versions" / "3.13.1" / "bin" / "python"
    pyenv.parent.mkdir(parents=True)
    shutil.copy(tree.programs / "python3.12", pyenv)
    pyenv.write_text(pyenv.read_text().replace("3.12", "3.13"))
    done = tree.make("matrix", PYENV_ROOT=str(tree.folder))
    assert done.returncode == 0, done.stderr
    tests = [line for line in tree.log.read_text().splitlines() if PYTEST in line]
    assert tests == [f"{version} {PYTEST} --only-listed-skips -m not slow" for version in ("3.12", "3.13")]
    assert "no Python 3.10 here" in done.stdout and "no Python 3.11 here" in done.stdout
    assert not list(tree.folder.glob(".venv-*"))
    done = tree.make("matrix", FAILING="-m pytest")
    assert done.returncode != 0 and "failed on Python 3.12" in done.stderr


def test_oldest_versions_are_the_declared_lower_bounds(tree, metadata):
    tree.python("python3.10", "3.10")
    assert tree.make("oldest").returncode == 0
    plugin = next(line for line in tree.log.read_text().splitlines() if "--editable" in line)
    assert plugin.startswith("3.10 ") and "--constraint" not in plugin
    pinned = dict(re.findall(r"(\S+)==(\S+)", plugin))
    bounds = dict(requirement.split(">=") for requirement in metadata["install_requires"])
    assert {"torch", "torchvision", "numpy", "scipy"} <= set(pinned)
    assert all(version.split(".")[:2] == bounds[name].split(".")[:2] for name, version in pinned.items())


def test_make_alone_lists_the_targets(tree):
    shown = tree.make().stdout
    targets = ("setup", "demo", "test", "test-quick", "lint", "lock", "newest", "oldest", "matrix")
    assert all(f"make {target} " in shown for target in targets)


def test_ci_runs_the_suite():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "set -euo pipefail" in script
    # pytest's closing line must be the last of the output
    assert script.strip().splitlines()[-1] == "make test"
    if shutil.which("bash"):
        subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
