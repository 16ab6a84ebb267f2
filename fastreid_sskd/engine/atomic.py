"""Files that are whole or not there, whatever ends the process or fills the disk meanwhile."""
import contextlib
import glob
import os
import re
from collections.abc import Callable
from typing import IO

__all__ = ["remove_unfinished", "write_atomically"]

_UNFINISHED = re.compile(r".+\.\d+\.tmp")


class _Noting:
    """A file whose first failed write is remembered: torch.save reports it as an error of its own."""

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


def write_atomically(path: str, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name, flush it to the disk, rename it and flush the folder's entry.

    Args:
        path: of the file; an older one is replaced, and stays if anything fails.
        write: is given the open binary file.

    Raises:
        OSError: if it cannot be written (disk full, read-only, ...), naming the file; no temporary file is left.
    """
    temporary = f"{path}.{os.getpid()}.tmp"
    failed = None
    try:
        with open(temporary, "wb") as opened:
            file = _Noting(opened)
            try:
                write(file)
            except Exception:
                failed = file.error
                raise
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(temporary, path)
        _flush_folder(os.path.dirname(path) or ".")
    except Exception as error:
        cause = failed or error
        if isinstance(cause, OSError) and cause.errno is not None:
            raise OSError(cause.errno, cause.strerror, path) from error
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def _flush_folder(folder: str) -> None:
    """Make a rename survive a power cut; file systems that cannot flush a folder are left alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def remove_unfinished(folder: str) -> list[str]:
    """Delete what killed processes left half-written in a folder; only for the one run that holds it."""
    gone = [path for path in glob.glob(os.path.join(glob.escape(folder), "*.tmp")) if _UNFINISHED.fullmatch(path)]
    for path in gone:
        os.remove(path)
    return gone
