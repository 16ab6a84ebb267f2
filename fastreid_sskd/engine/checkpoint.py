"""Checkpoints that are whole or not there, hold plain tensors only, and are resumed from exactly."""
import logging
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from fastreid.utils.checkpoint import Checkpointer as HostCheckpointer

from ..modeling.weights import WeightsError, load_exactly, read_file
from .files import write_atomically

__all__ = ["Checkpointer", "damage", "last_checkpoint", "read_stamp"]

logger = logging.getLogger("fastreid.sskd.checkpoint")

_RESUMABLE = re.compile(r"(model_\d+|step_\d+|model_best|model_final)\.pth")


def _plain(state: Any) -> Any:
    """A copy of a state without classes that ``torch.load(weights_only=True)`` refuses (a scheduler's Counter)."""
    if isinstance(state, dict):
        items = {key: _plain(value) for key, value in state.items()}
        return items if isinstance(state, Counter) or type(state) is dict else type(state)(items)
    if isinstance(state, (list, tuple)):
        return type(state)(_plain(value) for value in state)
    return state


def damage(path: str) -> str | None:
    """What is wrong with a checkpoint file: None if it is whole by the checksums (CRC-32) that torch.save put in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            # an entry that is compressed or a folder is none of torch's, which would read something else from it
            odd = [info.filename for info in archive.infolist()
                   if info.file_size != info.compress_size or info.external_attr & 0x10]
            broken = archive.testzip() or (odd[0] if odd else None)
    except Exception as error:  # noqa: BLE001 - a damaged archive raises UnicodeDecodeError, struct.error, ... as well
        return str(error) or type(error).__name__
    return None if broken is None else f"{broken} is not as it was written"


def read_stamp(path: str) -> dict[str, Any]:
    """The numbers beside a checkpoint's tensors, which are left on the disk: "epoch", "processes"; {} where there is no such file."""
    if not zipfile.is_zipfile(path):
        return {}
    saved = read_file(path, mmap=True)
    return {key: value for key, value in saved.items() if isinstance(value, int)} if isinstance(saved, dict) else {}


def last_checkpoint(folder: str) -> str:
    """The checkpoint that a run in the folder goes on from; "" where there is none, that is, no ``last_checkpoint``.

    That is the file ``last_checkpoint`` names; if it is damaged or gone, the newest whole one beside it, with a warning.
    """
    pointer = os.path.join(folder, "last_checkpoint")
    if not folder or not os.path.isfile(pointer):
        return ""
    with open(pointer, encoding="utf-8", errors="replace") as file:
        named = os.path.join(folder, os.path.basename(file.read().strip()))
    others = [os.path.join(folder, name) for name in os.listdir(folder) if _RESUMABLE.fullmatch(name)]
    others.sort(key=lambda path: os.stat(path).st_mtime_ns, reverse=True)
    for path in (named, *(path for path in others if path != named)):
        fault = damage(path)
        if fault is None:
            return path
        logger.warning("checkpoint %s cannot be used (%s): trying the one before it", path, fault)
    logger.warning("no whole checkpoint in %s: the run starts from its beginning", folder)
    return ""


class Checkpointer(HostCheckpointer):
    """The host's checkpointer with atomic writes, safe reads and no silently skipped weights.

    A file under a checkpoint's name is complete, and the one before it stays until then. Anything with ``state_dict`` and
    ``load_state_dict`` can be added to ``checkpointables``.

    Attributes:
        stamp: plain values written into every file, as the run's config.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.stamp: dict[str, Any] = {}

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` and make it the last checkpoint.

        Raises:
            FloatingPointError: if the model is not finite; the file before stays the last one.
            OSError: if it cannot be written, likewise.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        model = self.model.state_dict()
        for key, value in model.items():
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise FloatingPointError(
                    f"{key} of the model is not finite: training has diverged. {name}.pth is not written; lower "
                    "SOLVER.BASE_LR and go on from the checkpoint before"
                )
        data: dict[str, Any] = {"model": model}
        data.update({key: _plain(obj.state_dict()) for key, obj in self.checkpointables.items()})
        data.update(self.stamp)
        data.update(kwargs)
        os.makedirs(self.save_dir, exist_ok=True)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_atomically(path, lambda file: torch.save(data, file))
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_atomically(path, lambda file: file.write(last_filename_basename.encode()))

    def has(self, name: str) -> bool:
        """Whether ``<name>.pth`` is there."""
        return os.path.isfile(os.path.join(self.save_dir, f"{name}.pth"))

    def remove_all_but(self, keep: int, kind: str = "model") -> list[str]:
        """Delete the oldest checkpoints of a kind beyond ``keep``; returns their paths.

        The oldest by the time they were written: a folder may still hold later epochs of an earlier run.

        Args:
            keep: how many stay, >= 0.
            kind: "model", those of an epoch's end (``model_0007.pth``), or "step", those inside one.
        """
        if not self.save_dir or not self.save_to_disk or not os.path.isdir(self.save_dir):
            return []
        names = sorted(name for name in os.listdir(self.save_dir) if re.fullmatch(rf"{kind}_\d+\.pth", name))
        paths = [os.path.join(self.save_dir, name) for name in names]
        paths.sort(key=lambda path: os.stat(path).st_mtime_ns)
        gone = paths[:max(0, len(paths) - keep)]
        for path in gone:
            os.remove(path)
        return gone

    def resume(self, path: str, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Load the model and everything in ``checkpointables``; returns the rest of the file.

        Args:
            path: a file that ``save`` wrote.
            check: is given the file's content before anything is loaded, and raises if it does not belong here.

        Raises:
            ValueError: if the file is damaged, or of another model: what does not fit is not skipped.
        """
        self.logger.info("Loading checkpoint from %s", path)
        checkpoint = self._load_file(path)
        check(checkpoint)
        load_exactly(self.model, checkpoint.pop("model"), path)
        for key, part in self.checkpointables.items():
            if key in checkpoint:
                part.load_state_dict(checkpoint.pop(key))
        return checkpoint

    def _load_file(self, f: str) -> dict[str, Any]:
        checkpoint = read_file(f)
        if not isinstance(checkpoint, dict):
            raise WeightsError(f"{f!r} holds a {type(checkpoint).__name__}, and no checkpoint of a run")
        return checkpoint if "model" in checkpoint else {"model": checkpoint}
