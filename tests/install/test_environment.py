"""tools/environment.py installs what is needed, once, and again when a requirement changed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path, environment):
    """A copy of the files that decide what is installed."""
    for name in (*environment.REQUIREMENT_FILES, "fastreid_sskd/__init__.py"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "tree" / name)
    return tmp_path / "tree"


class Installation:
    """Stands in for pip and venv: notes the commands; its environment's Python is the running one."""

    def __init__(self, environment, tree, monkeypatch):
        self.environment, self.tree, self.commands = environment, tree, []
        monkeypatch.setattr(environment, "verify", lambda python: None)

    def __call__(self, command):
        self.commands.append(list(command))
        if "venv" in command:
            python = self.environment.interpreter(Path(command[-1]))
            python.parent.mkdir(parents=True)
            (python.parent.parent / "pyvenv.cfg").touch()
            python.symlink_to(sys.executable)

    def ensure(self, **choice) -> bool:
        self.commands.clear()
        venv = self.tree / ".venv"
        return self.environment.ensure(venv, self.environment.Choice(**choice), run=self, root=self.tree)

    def arguments(self) -> str:
        return "\n".join(" ".join(command) for command in self.commands)


@pytest.fixture
def installation(environment, tree, monkeypatch):
    return Installation(environment, tree, monkeypatch)


def test_installs_once(installation):
    assert installation.ensure()
    venv, plugin, host = installation.commands
    assert "venv" in venv
    assert "torch" in plugin and "torchvision" in plugin and plugin[-1] == f"{installation.tree}[cpu,test]"
    assert host[-2:] == ["--no-deps", "fastreid==1.4.0"]
    assert not installation.ensure() and not installation.commands


def test_changed_requirement_installs_again_into_the_same_environment(installation, environment):
    installation.ensure()
    for name in environment.REQUIREMENT_FILES:
        with open(installation.tree / name, "a", encoding="utf-8") as file:
            file.write("# changed\n")
        assert installation.ensure(), name
        assert "pip install" in installation.arguments() and "venv --clear" not in installation.arguments()
        assert not installation.ensure(), name


def test_changed_version_installs_again_and_other_code_does_not(installation):
    installation.ensure()
    package = installation.tree / "fastreid_sskd" / "__init__.py"
    package.write_text(package.read_text(encoding="utf-8") + "\nimport math\n", encoding="utf-8")
    assert not installation.ensure()
    package.write_text('__version__ = "99.0.0"\n', encoding="utf-8")
    assert installation.ensure()


def test_other_python_makes_a_new_environment(installation, environment, monkeypatch):
    installation.ensure()
    current = "{}.{}".format(*sys.version_info[:2])
    answers = iter(["3.9", current, current])
    monkeypatch.setattr(environment, "python_version", lambda python: next(answers))
    python = environment.interpreter(installation.tree / ".venv")
    shutil.rmtree(python.parent)  # what venv --clear would do
    assert installation.ensure()
    assert "venv --clear" in installation.arguments()


def test_choice_is_remembered_and_can_be_changed(installation):
    installation.ensure(extras="gpu,test", torch="torch==2.4.1 'numpy<2'")
    assert "[gpu,test]" in installation.arguments() and "torch==2.4.1 numpy<2" in installation.arguments()
    assert not installation.ensure()
    assert installation.ensure(extras="cpu,test")
    assert "[cpu,test]" in installation.arguments() and "torch==2.4.1" in installation.arguments()
    # both provide the module faiss
    assert "uninstall --yes faiss-gpu" in installation.arguments()


def test_interrupted_installation_goes_on_next_time(installation):
    class Broken(Exception):
        pass

    def interrupted(command):
        installation(command)
        if "install" in command:
            raise Broken

    venv = installation.tree / ".venv"
    choice = installation.environment.Choice(extras="test")
    with pytest.raises(Broken):
        installation.environment.ensure(venv, choice, run=interrupted, root=installation.tree)
    assert installation.ensure()
    assert "[test]" in installation.arguments() and "venv --clear" not in installation.arguments()
    assert not installation.ensure()


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_damaged_stamp_installs_again(installation, environment, content):
    installation.ensure()
    (installation.tree / ".venv" / environment.STAMP).write_text(content)
    assert installation.ensure() and not installation.ensure()


def test_folder_that_is_no_environment_is_left_alone(installation):
    precious = installation.tree / ".venv" / "thesis.tex"
    precious.parent.mkdir()
    precious.write_text("precious")
    with pytest.raises(SystemExit, match="is not a virtual environment"):
        installation.ensure()
    assert precious.read_text() == "precious" and not installation.commands


def test_pip_stands_in_for_a_missing_ensurepip(environment, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_has_module", lambda name: name == "pip")
    venv, commands = tmp_path / "venv", []

    def run(command):
        commands.append(list(command))
        if "venv" in command:
            subprocess.check_call(command)

    environment.create(venv, run)
    assert "--without-pip" in commands[0]
    assert commands[1][-4:-2] == ["install", "--target"] and commands[1][-1] == "pip"
    folder = Path(commands[1][-2])
    assert folder.name == "site-packages" and folder.is_relative_to(venv.resolve())


def test_neither_ensurepip_nor_pip(environment, tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_has_module", lambda name: False)
    with pytest.raises(SystemExit, match="neither ensurepip nor pip.*python3-venv.*PYTHON="):
        environment.create(tmp_path / "venv", subprocess.check_call)
    assert not (tmp_path / "venv").exists()


def test_torch_that_does_not_fit_is_reported(environment, tmp_path):
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho 'RuntimeError: operator torchvision::nms does not exist' >&2\nexit 1\n"
    )
    python.chmod(0o755)
    with pytest.raises(SystemExit, match=r"torchvision::nms does not exist.*make setup TORCH="):
        environment.verify(python)


def test_this_environment_passes_verification(environment):
    environment.verify(Path(sys.executable))


@pytest.mark.parametrize("version", [(2, 7, 18), (3, 9, 18), (3, 14, 0)])
def test_unsupported_python_is_refused(environment, version):
    with pytest.raises(SystemExit, match=r"Python 3\.10-3\.13 is needed.*PYTHON="):
        environment.check_python(version)


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 13, 9)])
def test_supported_python_is_accepted(environment, version):
    environment.check_python(version)
