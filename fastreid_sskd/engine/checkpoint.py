"""Checkpoints that are whole or not there, hold plain tensors only, and load strictly into the peers."""
import os
import re
from collections import Counter
from typing import Any

import torch
from fastreid.utils.checkpoint import Checkpointer as HostCheckpointer

from ..modeling import SSKD, Peer

__all__ = ["Checkpointer"]


def _plain(state: Any) -> Any:
    """A copy of a state without classes that ``torch.load(weights_only=True)`` refuses (a scheduler's Counter)."""
    if isinstance(state, dict):
        items = {key: _plain(value) for key, value in state.items()}
        return items if isinstance(state, Counter) or type(state) is dict else type(state)(items)
    if isinstance(state, (list, tuple)):
        return type(state)(_plain(value) for value in state)
    return state


class Checkpointer(HostCheckpointer):
    """The host's checkpointer with atomic writes, safe reads and no silently skipped weights of the peers.

    ``save`` writes to a temporary name, flushes to the disk and renames, so that a file under a checkpoint's name is
    complete. Anything with ``state_dict`` and ``load_state_dict`` can be added to ``checkpointables``.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": self.model.state_dict()}
        data.update({key: _plain(obj.state_dict()) for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        os.makedirs(self.save_dir, exist_ok=True)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        self._write(path, lambda file: torch.save(data, file))
        self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        self._write(path, lambda file: file.write(last_filename_basename.encode()))

    @staticmethod
    def _write(path: str, write) -> None:
        temporary = f"{path}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)

    def remove_all_but(self, keep: int) -> list[str]:
        """Delete the oldest periodic checkpoints (``model_0007.pth``, ...) beyond ``keep``; returns their paths.

        The oldest by the time they were written: a folder may still hold later epochs of an earlier run.
        """
        if not self.save_dir:
            return []
        names = sorted(name for name in os.listdir(self.save_dir) if re.fullmatch(r"model_\d+\.pth", name))
        paths = [os.path.join(self.save_dir, name) for name in names]
        gone = sorted(paths, key=lambda path: os.stat(path).st_mtime_ns)[:-keep]
        for path in gone:
            os.remove(path)
        return gone

    def _load_file(self, f: str) -> dict[str, Any]:
        checkpoint = torch.load(f, map_location="cpu", weights_only=True)
        return checkpoint if "model" in checkpoint else {"model": checkpoint}

    def _load_model(self, checkpoint: dict[str, Any]):
        if not isinstance(self.model, (SSKD, Peer)):
            return super()._load_model(checkpoint)
        # The host would skip what does not fit, which for a resumed run is a random classifier.
        state = checkpoint.pop("model")
        try:
            return self.model.load_state_dict(state, strict=True) and None
        except RuntimeError as error:
            raise ValueError(f"the checkpoint is of another model than the config describes: {error}") from error
