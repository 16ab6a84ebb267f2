"""setup.py's metadata."""

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
