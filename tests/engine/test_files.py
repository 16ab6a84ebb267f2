"""Files that are whole or not there, whatever happens, and one run at a time in an output folder."""

import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from own_processes import exit_status
from tiny_reid import tiny_baseline

from fastreid_sskd.engine import run
from fastreid_sskd.engine.files import (
    LOCK_FILE,
    FolderInUseError,
    check_output,
    output_folder,
    remove_unfinished,
    write_atomically,
    written_together,
)


def write(content):
    return lambda file: file.write(content)


def test_file_is_written_and_replaced(tmp_path, monkeypatch):
    path = tmp_path / "file"
    for content in (b"one", b"another", b""):
        write_atomically(str(path), write(content))
        assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]
    monkeypatch.chdir(tmp_path)
    for relative in ("file", "a/b/file"):
        write_atomically(relative, write(b"content"))
        assert (tmp_path / relative).read_bytes() == b"content"


def test_file_and_folder_are_flushed_in_this_order(tmp_path, monkeypatch):
    """The content before the name: a power cut leaves the old or the new file."""
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: events.append(os.path.isdir(f"/proc/self/fd/{fd}")) or fsync(fd)
    )
    monkeypatch.setattr(os, "replace", lambda *paths: events.append("rename") or replace(*paths))
    write_atomically(str(tmp_path / "file"), write(b"content"))
    assert events == [False, "rename", True]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("where", ["open", "write", "fsync", "replace"])
def test_failure_of_the_disk(tmp_path, monkeypatch, number, where):
    """The error names the file and its cause, the old file stays, nothing half-written is left."""
    path = tmp_path / "model.pth"
    write_atomically(str(path), write(b"old"))
    failure = OSError(number, os.strerror(number))

    def fail(*args, **kwargs):
        raise failure

    if where == "open":
        monkeypatch.setattr("builtins.open", fail)
    elif where != "write":
        monkeypatch.setattr(os, where, fail)
    with pytest.raises(OSError, match=f"{os.strerror(number)}.*model.pth") as raised:
        write_atomically(str(path), fail if where == "write" else write(b"new"))
    monkeypatch.undo()
    assert raised.value.errno == number
    assert os.listdir(tmp_path) == ["model.pth"] and path.read_bytes() == b"old"


def test_other_errors_are_left_as_they_are(tmp_path):
    def fail(file):
        raise ZeroDivisionError("the real one")

    with pytest.raises(ZeroDivisionError, match="the real one"):
        write_atomically(str(tmp_path / "file"), fail)
    assert os.listdir(tmp_path) == []


def save_with_a_quota(folder):
    """torch.save under the kernel's own limit of a file's size."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    path = os.path.join(folder, "model.pth")
    try:
        write_atomically(path, lambda file: torch.save({"weight": torch.zeros(1_000_000)}, file))
    except OSError as error:
        os._exit(7 if error.errno == errno.EFBIG and error.filename == path else 8)


def test_full_disk(tmp_path):
    """A quota refuses the write in the middle: torch's own error says nothing of the disk, ours does."""
    (tmp_path / "model.pth").write_bytes(b"old")
    assert exit_status(save_with_a_quota, str(tmp_path)) == 7
    assert os.listdir(tmp_path) == ["model.pth"] and (tmp_path / "model.pth").read_bytes() == b"old"


def test_what_killed_runs_left_is_removed(tmp_path):
    left = ["model_0001.pth.123.tmp", "last_checkpoint.9.tmp", "results.json.77.tmp"]
    stays = ["model_0001.pth", "notes.tmp", "tmp", "123.tmp.bak"]
    for name in (*left, *stays):
        (tmp_path / name).touch()
    gone = remove_unfinished(str(tmp_path))
    assert sorted(map(os.path.basename, gone)) == sorted(left)
    assert sorted(os.listdir(tmp_path)) == sorted(stays)


def test_folder_with_a_name_like_a_pattern(tmp_path):
    folder = tmp_path / "run[1]"
    folder.mkdir()
    (folder / "model.pth.1.tmp").touch()
    assert len(remove_unfinished(str(folder))) == 1
    (folder / "m.onnx.77.tmp").mkdir()
    (folder / "m.onnx.77.tmp" / "m.onnx").touch()
    assert len(remove_unfinished(str(folder))) == 1 and not os.listdir(folder)


# ---- several files -------------------------------------------------------------------------------


def test_files_get_their_names_together(tmp_path):
    one, other = tmp_path / "new" / "a.pth", tmp_path / "new" / "a.yml"
    for content in ("old", "new"):
        with written_together(str(one), str(other)) as drafts:
            assert [os.path.basename(draft) for draft in drafts] == ["a.pth", "a.yml"]
            for draft in drafts:
                with open(draft, "w", encoding="utf-8") as file:
                    file.write(content)
            with open(os.path.join(os.path.dirname(drafts[0]), "weights.data"), "w", encoding="utf-8"):
                pass  # what a library puts beside them goes
            assert one.exists() == (content == "new")
    assert one.read_text() == other.read_text() == "new" and len(os.listdir(tmp_path / "new")) == 2


@pytest.mark.parametrize(
    "error", [ValueError("refused"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()]
)
def test_older_files_stay(tmp_path, error):
    (tmp_path / "a.pth").write_text("old")
    with (
        pytest.raises(type(error)) as raised,
        written_together(str(tmp_path / "a.pth"), str(tmp_path / "a.yml")) as (draft, _),
    ):
        with open(draft, "w", encoding="utf-8") as file:
            file.write("new")
        raise error
    assert os.listdir(tmp_path) == ["a.pth"] and (tmp_path / "a.pth").read_text() == "old"
    assert not isinstance(error, OSError) or raised.value.filename == str(tmp_path / "a.pth")


# ---- before the work -----------------------------------------------------------------------------


def test_outputs_that_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "older.npy").touch()
    for path in ("new.npy", "older.npy", "a/b/new.NPY", str(tmp_path / "c" / "new.npy")):
        assert check_output(path, (".npy", ".npz"), reads=["read.npy", "nowhere"]) == ".npy"
    assert check_output("any") == "" and os.listdir(tmp_path) == ["older.npy"]


@pytest.mark.parametrize(
    "path, message",
    [
        ("f.csv", "end in one of .npy, .npz; got 'f.csv'"), ("", "end in one of"),
        ("folder/", "end in one of"), (".npy", "end in one"),
        ("folder.npy", "'folder.npy' is a folder"),
        ("file/f.npy", "'file/f.npy' cannot be written, .*Not a directory"),
        ("file/a/f.npy", "cannot be written"), ("read.npy", "is read by this command"),
        ("link.npy", "is read by this command"),
        ("./folder/../read.npy", "is read by this command"), ("/dev/null/f.npy", "cannot be written"),
        ("pipe.npy", "no regular file"), (f"{'n' * 250}.npy", "cannot be written, .*name too long"),
        ("/proc/f.npy", "cannot be written"),
    ],
)  # fmt: skip
def test_outputs_that_cannot(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder", "folder.npy"):
        os.mkdir(folder)
    for file in ("file", "read.npy"):
        open(file, "x").close()
    os.symlink("read.npy", "link.npy")
    os.mkfifo("pipe.npy")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ValueError, match=message):
        check_output(path, (".npy", ".npz"), reads=["folder", "read.npy"])
    assert sorted(os.listdir(tmp_path)) == before


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
        [sys.executable, "-c", HOLD, str(tmp_path / LOCK_FILE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
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
    with pytest.raises(
        FolderInUseError, match=r"another run writes into .*process 4242 on elsewhere.*OUTPUT_DIR"
    ):
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


def test_folder_is_made_and_freed_after_an_error(tmp_path, monkeypatch):
    """By the outer of two nested ones; without a folder nothing is."""
    monkeypatch.chdir(tmp_path)
    with output_folder(""):
        assert os.listdir(tmp_path) == []
    folder = tmp_path / "a" / "b"
    with pytest.raises(ZeroDivisionError), output_folder("a/b"):
        with output_folder(str(folder)):
            assert not is_free(folder)
        assert not is_free(folder)
        raise ZeroDivisionError
    assert is_free(folder)


def test_loader_workers_do_not_keep_the_lock(tmp_path):
    """They are forked, and may outlive a killed run by seconds."""
    ready, started = os.pipe()
    killed = os.fork()
    if killed == 0:
        with output_folder(str(tmp_path)):
            if os.fork() == 0:
                os.write(started, str(os.getpid()).encode())
            signal.pause()
    worker = int(os.read(ready, 20))
    assert not is_free(tmp_path)
    os.kill(killed, signal.SIGKILL)
    os.waitpid(killed, 0)
    try:
        assert is_free(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)
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
