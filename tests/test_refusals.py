"""A refusal is told in one message with its status, a failure with its traceback."""

import io
import sys

import pytest

from fastreid_sskd.clustering import PseudoLabelError
from fastreid_sskd.engine.checkpoint import OtherConfigError
from fastreid_sskd.engine.files import FolderInUseError
from fastreid_sskd.processes import Stopped
from fastreid_sskd.refusals import UnknownNameError, checking, exit_status, is_refusal, nearest


def status_of(error, *, checked):
    @exit_status
    def main():
        if checked:
            with checking():
                raise error
        raise error

    return main()


@pytest.mark.parametrize(
    "kind", [ValueError, FileNotFoundError, PermissionError, ImportError, UnknownNameError]
)
def test_what_is_raised_while_checking_is_refused(capsys, kind):
    assert status_of(kind("a sentence"), checked=True) == 2
    assert capsys.readouterr().err == "a sentence\n"


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, ImportError])
def test_the_same_while_working_is_a_failure(capsys, kind):
    with pytest.raises(kind):
        status_of(kind("deep inside"), checked=False)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("kind", [RuntimeError, KeyError, ZeroDivisionError, AssertionError])
def test_what_is_no_input_is_a_failure_while_checking_too(kind):
    with pytest.raises(kind):
        status_of(kind("a mistake of ours"), checked=True)


@pytest.mark.parametrize(
    "error, status", [(OtherConfigError("x"), 2), (FolderInUseError("x"), 2), (PseudoLabelError("x"), 3)]
)
@pytest.mark.parametrize("checked", [True, False])
def test_errors_with_a_status_of_their_own(error, status, checked):
    assert status_of(error, checked=checked) == status


def test_a_files_name_that_is_no_text_is_printed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    exit_status(lambda: print(b"\xff.png".decode(errors="surrogateescape"), flush=True))()
    assert sys.stdout.buffer.getvalue() == b"\xff.png\n"


def test_a_stopped_run_ends_with_4():
    with pytest.raises(SystemExit) as raised:
        status_of(Stopped(), checked=False)
    assert raised.value.code == 4


def test_more_kinds_where_they_are_refusals():
    with pytest.raises(TypeError) as raised, checking(TypeError):
        raise TypeError
    assert is_refusal(raised.value)


@pytest.mark.parametrize("rank, said", [("0", "a sentence\n"), ("1", "")])
def test_the_first_process_on_a_machine_speaks(capsys, monkeypatch, rank, said):
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert status_of(ValueError("a sentence"), checked=True) == 2
    assert capsys.readouterr().err == said


def test_nearest():
    assert nearest("adam", ["SGD", "Adam", "AdamW"]) == "; the nearest that there is: Adam"
    assert nearest("xyz", ["SGD", "Adam"]) == ""
