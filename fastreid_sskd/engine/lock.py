"""One run at a time in an output folder, by a lock that no killed process can leave behind."""
import contextlib
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator

from fastreid.utils import comm

from ..processes import on_main
from ..refusals import REFUSED, checking
from .atomic import remove_unfinished

__all__ = ["LOCK_FILE", "FolderInUseError", "make_folder", "output_folder"]

logger = logging.getLogger("fastreid.sskd.lock")

LOCK_FILE = ".lock"

_held: dict[str, int] = {}  # real paths of the folders that this process holds, with their file descriptors


class FolderInUseError(RuntimeError):
    """Another run writes into the output folder."""

    exit_status = REFUSED


def _close_in_child() -> None:
    # a loader's workers are forked: they would keep the lock for seconds after a run was killed
    for descriptor in _held.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def output_folder(folder: str) -> Iterator[None]:
    """Make the folder and hold it for this run, by its main process; what killed runs left half-written there is removed.

    The lock is the kernel's (``flock`` on ``.lock``, which stays): it ends with the process, however that ends. May be
    nested. Without a folder there is nothing to hold; on a file system without locks a warning says so.

    Args:
        folder: ``OUTPUT_DIR``; "" for none.

    Raises:
        FolderInUseError: if another run holds it.
        NotADirectoryError: if a file is there.
        PermissionError: if nothing can be written there.
    """
    taken = bool(folder) and on_main(lambda: _take(folder))
    try:
        yield
    finally:
        if taken and comm.is_main_process():
            os.close(_held.pop(os.path.realpath(folder)))


@checking()
def make_folder(folder: str, key: str = "OUTPUT_DIR") -> None:
    """Make a folder that can be written into, those above it too; ``key`` names it. Raises as :func:`output_folder`."""
    try:
        os.makedirs(folder, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"{folder!r} cannot be an output folder, a file is in its place: give another {key}") from None
    except OSError as error:
        raise PermissionError(f"{folder!r} cannot be made ({error.strerror}): give another {key}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder!r} cannot be written into: give another {key}, or change its permissions")


def _take(folder: str) -> bool:
    """Hold a folder; False if it is held already."""
    real = os.path.realpath(folder)
    if real in _held:
        return False
    make_folder(folder)
    descriptor = os.open(os.path.join(folder, LOCK_FILE), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if _lock(descriptor, folder):
            for path in remove_unfinished(folder):
                logger.warning("removed %s, which a killed run left half-written", path)
    except BaseException:
        os.close(descriptor)
        raise
    _held[real] = descriptor
    return True


def _lock(descriptor: int, folder: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        raise FolderInUseError(
            f"another run writes into {folder!r} ({holder or 'unknown process'}): wait for it, stop it, or give this "
            "run another OUTPUT_DIR"
        ) from None
    except OSError as error:
        logger.warning(
            "%r is on a file system without locks (%s): take care that no other run writes there", folder, error.strerror
        )
        return False
    os.ftruncate(descriptor, 0)
    holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
    os.pwrite(descriptor, holder.encode(), 0)
    return True
