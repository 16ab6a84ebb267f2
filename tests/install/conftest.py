"""setup.py's metadata and the modules of tools/, which is no package."""

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def metadata() -> dict:
    """The arguments of setup(), without setuptools: Python 3.12 environments do not have it."""
    fake = type(sys)("setuptools")
    captured = {}
    fake.setup = captured.update
    fake.find_packages = lambda include: include
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "setuptools", fake)
        runpy.run_path(str(ROOT / "setup.py"))
    return captured


def load_tool(name: str, patch: pytest.MonkeyPatch):
    """A module of tools/, which is no package."""
    patch.syspath_prepend(str(ROOT / "tools"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    patch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def environment(monkeypatch):
    return load_tool("environment", monkeypatch)


@pytest.fixture
def matrix(monkeypatch, environment):
    return load_tool("matrix", monkeypatch)
