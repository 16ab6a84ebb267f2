"""One run at a time in an output folder."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest
from tiny_reid import tiny_baseline

from fastreid_sskd.engine import run
from fastreid_sskd.engine.files import LOCK_FILE, FolderInUseError, output_folder

HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
os.write(fd, b"process 4242 on elsewhere")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other_run(tmp_path):
    """A process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / LOCK_FILE)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def is_free(folder):
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def test_second_run_is_refused(tmp_path, other_run):
    """Before it has touched anything; the message names the folder and who holds it."""
    (tmp_path / "model_0001.pth.9.tmp").touch()  # the other run's, perhaps
    with pytest.raises(FolderInUseError, match=r"another run writes into .*process 4242 on elsewhere.*OUTPUT_DIR"):
        run(tiny_baseline(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [LOCK_FILE, "model_0001.pth.9.tmp"]


def test_killed_run_leaves_no_lock(tmp_path, other_run):
    other_run.send_signal(signal.SIGKILL)
    other_run.wait()
    (tmp_path / "model_0001.pth.9.tmp").touch()
    with output_folder(str(tmp_path)):
        assert not is_free(tmp_path)
        assert str(os.getpid()) in (tmp_path / LOCK_FILE).read_text()
    assert is_free(tmp_path) and os.listdir(tmp_path) == [LOCK_FILE]


def test_folder_is_made_and_freed_after_an_error(tmp_path):
    folder = tmp_path / "a" / "b"
    with pytest.raises(ZeroDivisionError), output_folder(str(folder)):
        raise ZeroDivisionError
    assert is_free(folder)


def test_nested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with output_folder("out"):
        with output_folder(str(tmp_path / "out")):
            assert not is_free(tmp_path / "out")
        assert not is_free(tmp_path / "out")
    assert is_free(tmp_path / "out")


def test_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with output_folder(""):
        assert os.listdir(tmp_path) == []


def test_loader_workers_do_not_keep_the_lock(tmp_path):
    """They are forked, and may outlive a killed run by seconds."""
    ready, started = os.pipe()
    with output_folder(str(tmp_path)):
        worker = os.fork()
        if worker == 0:
            os.write(started, b"1")
            signal.pause()
            os._exit(0)
        assert os.read(ready, 1) == b"1"
    try:
        assert is_free(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        os.close(ready), os.close(started)


def test_file_system_without_locks(tmp_path, monkeypatch, caplog):
    """Some network file systems: the run goes on, warned, and leaves what may be another run's alone."""
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / "model_0001.pth.9.tmp").touch()
    with caplog.at_level("WARNING"), output_folder(str(tmp_path)):
        pass
    assert "without locks" in caplog.text and (tmp_path / "model_0001.pth.9.tmp").exists()


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "out").write_text("mine")
    for folder in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(NotADirectoryError, match="another OUTPUT_DIR"), output_folder(str(folder)):
            pass
    assert (tmp_path / "out").read_text() == "mine"
