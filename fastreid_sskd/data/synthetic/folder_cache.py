"""Folders of generated files: written once, whole or not at all, by any number of processes at a time."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger("fastreid.sskd.data")

MANIFEST = "manifest.json"


def ensure_folder(
    name: str, description: dict, fill: Callable[[Path], None], parents: Sequence[Path]
) -> Path:
    """Return a complete folder, filling it first if need be.

    The files are written into a neighbouring folder that takes its name only when all are there; a folder
    that lacks files is replaced. One process fills, others wait for it. On a file system without locks
    several may fill; all but one throw their copy away.

    Args:
        name, description: of the folder, and what decides its contents; kept in its manifest and compared.
        fill: writes the files below the path it is given; called at most once for each parent.
        parents: folders to hold it, in order of preference; the first that has it or can be written is used.

    Raises:
        OSError: when none of the parents can be written, with the reason for each.
    """
    reasons = []
    for number, parent in enumerate(parents):
        folder = parent / name
        if is_complete(folder, description):
            return folder
        try:
            parent.mkdir(parents=True, exist_ok=True)
            with _lock(parent / f".{name}.lock") as alone:
                if not is_complete(folder, description):
                    _build(folder, description, fill, alone)
        except OSError as error:
            reasons.append(f"{parent}: {error}")
            continue
        if number:
            logger.warning(f"wrote {folder} because {'; '.join(reasons)}")
        return folder
    raise OSError(
        f"no folder for {name} ({'; '.join(reasons)}): set FASTREID_DATASETS to a folder that can be written"
    )


def is_complete(folder: Path, description: dict) -> bool:
    """Whether a folder holds what this says, every file of the recorded size (contents are not read)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["description"] != json.loads(json.dumps(description)):
            return False
        return manifest["files"] == _file_sizes(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def fingerprint(description: dict) -> str:
    """Twelve hexadecimal digits that stand for a description (anything that JSON can hold)."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:12]


def fallback_parents() -> list[Path]:
    """Where files go when the folder asked for cannot be written: the user's cache or a temporary folder."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [Path(cache) / "fastreid-sskd", Path(tempfile.gettempdir()) / f"fastreid-sskd-{user}"]


def _file_sizes(folder: Path) -> dict[str, int]:
    sizes = {}
    for directory in sorted(path for path in folder.iterdir() if path.is_dir()):
        with os.scandir(directory) as entries:
            sizes.update({f"{directory.name}/{entry.name}": entry.stat().st_size for entry in entries})
    return sizes


def _build(folder: Path, description: dict, fill: Callable[[Path], None], alone: bool) -> None:
    if alone:  # what is left of processes that were killed
        for stale in folder.parent.glob(f".{folder.name}.*.partial"):
            shutil.rmtree(stale, ignore_errors=True)
    partial = folder.parent / f".{folder.name}.{uuid.uuid4().hex}.partial"
    try:
        partial.mkdir()  # not tempfile.mkdtemp, whose folders nobody else may read
        fill(partial)
        manifest = {"description": description, "files": _file_sizes(partial)}
        (partial / MANIFEST).write_text(json.dumps(manifest, sort_keys=True, indent=1))
        if folder.exists() and not is_complete(folder, description):
            logger.warning(f"{folder} is incomplete: replacing it")
            torn = partial.with_name(f".{folder.name}.{uuid.uuid4().hex}.partial")
            folder.rename(torn)
            shutil.rmtree(torn, ignore_errors=True)
        try:
            partial.rename(folder)
        except OSError:
            if not is_complete(folder, description):  # else somebody without the lock was first
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold a lock that ends with the process; yield False where the file system has none."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info(f"waiting for the process that holds {path}")
        lock.acquire()
    except (OSError, NotImplementedError):  # the second is an older filelock's
        pass
    try:
        yield lock.is_locked
    finally:
        lock.release()
