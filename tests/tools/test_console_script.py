"""The command fastreid-sskd: the same as the scripts of tools/, by their names."""

import sys

import pytest
from tiny_reid import CONFIGS

from fastreid_sskd import __version__
from fastreid_sskd.tools import main

SCRIPTS = {path.stem for path in (CONFIGS.parent / "tools").glob("*.py")}


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command in this process; its status and what it printed."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["/bin/fastreid-sskd", *args])
        try:
            status = main()
        except SystemExit as left:
            status = left.code
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def test_every_script_is_a_command(call):
    status, out = call("--help")
    named = {line.split()[0] for line in out.split("\n\n")[-1].splitlines()}
    assert status == 0
    assert named == {name.replace("_", "-").replace("train-net", "train") for name in SCRIPTS}


@pytest.mark.parametrize("args", [(), ("trian",), ("--config-file", "demo.yml"), ("--", "train")])
def test_no_such_command(call, args):
    status, out = call(*args)
    assert status == 2 and "usage: fastreid-sskd [-h] [--version] COMMAND" in out


def test_a_command_has_its_own_usage_and_status(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("--version") == (0, f"{__version__}\n")
    assert "usage: fastreid-sskd train [-h]" in call("train", "--help")[1]
    status, out = call("report", "missing_run")
    assert status == 2 and "missing_run" in out
