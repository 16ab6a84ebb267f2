"""Files that are whole or not there, and output folders that one run at a time writes into."""

import contextlib
import errno
import glob
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

from filelock import FileLock, Timeout

from ..processes import on_main
from ..refusals import REFUSED, checking

_UNFINISHED = re.compile(r".+\.\d+\.tmp")


def check_output(
    path: str | os.PathLike, endings: Sequence[str] = (), reads: Iterable[str | os.PathLike] = ()
) -> str:
    """Refuse a file that could not be written, or must not be, before the work that it is for.

    A missing folder is only looked at. Returns the ending, in small letters.

    Args:
        path: of the file. An older one may be there.
        endings: those allowed, in small letters; empty: any.
        reads: files that the same command reads.

    Raises:
        ValueError: for another ending, a folder or device in the file's place, a folder that cannot be made
            or written into, and a file of ``reads``.
    """
    path = os.fspath(path)
    ending = os.path.splitext(path)[1].lower()
    if endings and ending not in endings:
        one_of = "one of " if len(endings) > 1 else ""
        raise ValueError(f"the file to write has to end in {one_of}{', '.join(endings)}; got {path!r}")
    if os.path.exists(path) and not os.path.isfile(path):
        what = "a folder" if os.path.isdir(path) else "no regular file"
        raise ValueError(f"{path!r} is {what}: give the name of a file to write")
    if os.path.exists(path) and any(os.path.samefile(path, other) for other in filter(os.path.exists, reads)):
        raise ValueError(
            f"{path!r} is read by this command, which would overwrite it: give the output another name"
        )
    folder, name = os.path.split(os.path.abspath(path))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    probe = os.path.join(folder, f"{name}.{os.getpid()}.tmp")
    try:
        open(probe, "xb").close()
        os.remove(probe)
    except OSError as error:
        raise ValueError(
            f"{path!r} cannot be written, {folder!r} takes no new file: {error.strerror}"
        ) from error
    return ending


@contextlib.contextmanager
def written_together(*paths: str) -> Iterator[list[str]]:
    """Give temporary names to files of one folder, and their own when the block ends without an error.

    So they can be read and checked before they replace older ones. The folder is made.
    """
    folder = os.path.dirname(os.path.abspath(paths[0]))
    temporary = f"{os.path.abspath(paths[0])}.{os.getpid()}.tmp"
    drafts = [os.path.join(temporary, os.path.basename(path)) for path in paths]
    try:
        os.makedirs(temporary, exist_ok=True)
        yield drafts
        for draft in drafts:
            with open(draft, "rb") as file:
                os.fsync(file.fileno())
        for draft, path in zip(drafts, paths):
            os.replace(draft, path)
        _flush_folder(folder)
    except OSError as error:
        if error.errno is None or error.filename not in (None, temporary, *drafts):
            raise
        raise OSError(error.errno, error.strerror, paths[0]) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomically(path: str, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name, flush it to the disk, rename it and flush the folder's entry.

    The folder is made; an older file stays if anything fails. ``write`` is given the open binary file.

    Raises:
        OSError: if it cannot be written, naming the file; no temporary file is left.
    """
    with written_together(path) as (draft,), open(draft, "wb") as opened:
        file = _Noting(opened)
        try:
            write(file)
        except Exception as error:
            if file.error in (None, error):
                raise
            raise file.error from error


class _Noting:
    """A file that remembers its first failed write: torch.save reports it as an error of its own."""

    def __init__(self, file: IO[bytes]):
        self.file = file
        self.error: OSError | None = None

    def write(self, data) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def __getattr__(self, name: str):
        return getattr(self.file, name)


def _flush_folder(folder: str) -> None:
    """Make a rename survive a power cut; file systems that cannot flush a folder are left alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)


def remove_unfinished(folder: str) -> list[str]:
    """Delete what killed processes left half-written in a folder; only for the one run that holds it."""
    gone = list(filter(_UNFINISHED.fullmatch, glob.glob(os.path.join(glob.escape(folder), "*.tmp"))))
    for path in gone:
        shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
    return gone


logger = logging.getLogger("fastreid.sskd.lock")

LOCK_FILE = ".lock"

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems


class FolderInUseError(RuntimeError):
    """Another run writes into the output folder."""

    exit_status = REFUSED


@contextlib.contextmanager
def output_folder(folder: str) -> Iterator[None]:
    """Make a folder, if any, and lock it, by the main process; remove what killed runs left there.

    The lock is the kernel's (``flock`` on ``.lock``, which stays). It ends with the process, however that
    ends; forked loader workers do not keep it. May be nested. A file system without locks is warned of.

    Raises:
        FolderInUseError: if another run holds it.
        NotADirectoryError, PermissionError: as :func:`make_folder`.
    """
    with contextlib.ExitStack() as held:
        if folder:
            on_main(lambda: _lock(folder, held))
        yield


@checking()
def make_folder(folder: str, key: str = "OUTPUT_DIR") -> None:
    """Make a folder that can be written into; ``key`` names it. Raises as :func:`output_folder`."""
    try:
        os.makedirs(folder, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(
            f"{folder!r} cannot be an output folder, a file is in its place: give another {key}"
        ) from None
    except OSError as error:
        raise PermissionError(f"{folder!r} cannot be made ({error.strerror}): give another {key}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{folder!r} cannot be written into: give another {key}, or change its permissions"
        )


def _lock(folder: str, held: contextlib.ExitStack) -> None:
    """Lock a folder until ``held`` is closed, where its file system has locks."""
    make_folder(folder)
    path = os.path.join(os.path.realpath(folder), LOCK_FILE)
    lock = FileLock(path, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        with open(path, encoding="utf-8", errors="replace") as file:
            holder = file.read(200).strip()
        raise FolderInUseError(
            f"another run writes into {folder!r} ({holder or 'unknown process'}): wait for it, stop it, or "
            "give this run another OUTPUT_DIR"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        text = "%r is on a file system without locks (%s): take care that no other run writes there"
        logger.warning(text, folder, error.strerror)
        return
    held.callback(lock.release)
    if lock.lock_counter == 1:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        for left in remove_unfinished(folder):
            logger.warning("removed %s, which a killed run left half-written", left)
