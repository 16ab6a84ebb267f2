"""Checkpoints that are whole or not there, hold plain tensors only, and are resumed from exactly."""

import logging
import os
import random
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.utils.checkpoint import Checkpointer as HostCheckpointer

from ..config import is_below, names_with
from ..modeling.weights import WeightsError, load_exactly, read_file
from ..refusals import REFUSED
from .defaults import load_config
from .files import write_atomically

logger = logging.getLogger("fastreid.sskd.checkpoint")

_RESUMABLE = re.compile(r"(model_\d+|step_\d+|model_best|model_final)\.pth")


def _plain(state: Any) -> Any:
    """Copy a state without classes that ``torch.load(weights_only=True)`` refuses (a Counter)."""
    if isinstance(state, dict):
        items = {key: _plain(value) for key, value in state.items()}
        return items if isinstance(state, Counter) or type(state) is dict else type(state)(items)
    if isinstance(state, (list, tuple)):
        return type(state)(_plain(value) for value in state)
    return state


def damage(path: str) -> str | None:
    """What is wrong with a checkpoint file, by the checksums that torch.save put in it; None if whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
            for info in archive.infolist():  # compressed or a folder: none of torch's, which would misread it
                if info.file_size != info.compress_size or info.external_attr & 0x10:
                    broken = broken or info.filename
    except Exception as error:  # noqa: BLE001 - a damaged archive raises UnicodeDecodeError, struct.error, ... as well
        return str(error) or type(error).__name__
    return None if broken is None else f"{broken} is not as it was written"


def read_stamp(path: str) -> dict[str, Any]:
    """The numbers beside a checkpoint's tensors, "epoch", "processes"; {} where there is no such file."""
    saved = read_file(path, mmap=True) if zipfile.is_zipfile(path) else {}
    if not isinstance(saved, dict):
        return {}
    return {key: value for key, value in saved.items() if isinstance(value, int)}


def last_checkpoint(folder: str) -> str:
    """The checkpoint that a run in the folder resumes from; "" where there is no ``last_checkpoint``.

    If the file that it names is damaged or gone, the newest whole one beside it, with a warning.
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
            stamp = read_stamp(path)
            if stamp.get("epoch") != -1 or "step" in stamp:
                return path
            fault = "it is the start, of before the run's first hooks"
        logger.warning("checkpoint %s cannot be used (%s): trying the one before it", path, fault)
    logger.warning("no whole checkpoint in %s: the run starts from its beginning", folder)
    return ""


class Checkpointer(HostCheckpointer):
    """The host's checkpointer with atomic writes, safe reads and no silently skipped weights.

    ``stamp`` holds plain values that are written into every file, as the run's config.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.stamp: dict[str, Any] = {}

    def save(self, name: str, *, last: bool = True, **kwargs: Any) -> None:
        """Write ``<name>.pth`` and, with ``last``, make it the one that a run is resumed from.

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
                    f"{key} of the model is not finite: training has diverged. {name}.pth is not written; "
                    "lower SOLVER.BASE_LR and resume from the checkpoint before"
                )
        states = {key: _plain(obj.state_dict()) for key, obj in self.checkpointables.items()}
        data = {"model": model, **states, **self.stamp, **kwargs}
        os.makedirs(self.save_dir, exist_ok=True)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_atomically(path, lambda file: torch.save(data, file))
        if last:
            self.tag_last_checkpoint(os.path.basename(path))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_atomically(path, lambda file: file.write(last_filename_basename.encode()))

    def has(self, name: str) -> bool:
        """Whether ``<name>.pth`` is there."""
        return os.path.isfile(os.path.join(self.save_dir, f"{name}.pth"))

    def remove_all_but(self, keep: int, kind: str = "model") -> list[str]:
        """Delete the checkpoints of a kind that were written before the last ``keep``; returns their paths.

        ``kind``: "model", those of an epoch's end (``model_0007.pth``), or "step", those inside one.
        """
        if not self.save_dir or not self.save_to_disk or not os.path.isdir(self.save_dir):
            return []
        names = sorted(name for name in os.listdir(self.save_dir) if re.fullmatch(rf"{kind}_\d+\.pth", name))
        paths = [os.path.join(self.save_dir, name) for name in names]
        paths.sort(key=lambda path: os.stat(path).st_mtime_ns)
        gone = paths[: max(0, len(paths) - keep)]
        for path in gone:
            os.remove(path)
        return gone

    def resume(self, path: str, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Load the model and everything in ``checkpointables``; returns the rest of the file.

        ``check`` is given the file's content before anything is loaded, and may refuse it.

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


_ABSENT = "(absent)"


class OtherConfigError(ValueError):
    """A checkpoint is of a run with another config, or on other images."""

    exit_status = REFUSED


def plain_config(cfg: Mapping, prefix: str = "") -> dict[str, Any]:
    """A config as {"SOLVER.BASE_LR": 0.1, ...}, for a checkpoint: numbers, text and lists only."""
    found: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            found.update(plain_config(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = _as_lists(value)
    return found


def _as_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_lists(entry) for key, entry in value.items()}
    return [_as_lists(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def same_value(one: Any, other: Any) -> bool:
    """Whether two values of a key mean the same: texts also if they are two paths of one file or folder."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    if isinstance(one, str) and isinstance(other, str) and one and other:
        return os.path.realpath(one) == os.path.realpath(other)
    return one == other


def _differing(saved: dict[str, Any], given: dict[str, Any], but: tuple[str, ...]) -> list[str]:
    defaults = plain_config(load_config(""))  # a file of an earlier version lacks the keys that came later
    return [
        key
        for key in sorted(set(given) | (set(saved) & set(defaults)))
        if not is_below(key, but)
        and not same_value(saved.get(key, defaults.get(key, _ABSENT)), given.get(key, _ABSENT))
    ]


def check_same_run(
    checkpoint: dict[str, Any], given: dict[str, Any], what: str, *, from_scratch: bool = False
) -> None:
    """Check that a checkpoint was written under a config that means the same run.

    The table :data:`..config.KEYS` says which keys may differ, and so does ``SSKD.MAY_DIFFER``.
    ``SOLVER.MAX_EPOCH`` may if neither the learning rate nor the teachers' window depends on it. Another
    value of a key that acts only at the start is logged as a warning.

    Args:
        checkpoint: a file's content.
        given: :func:`plain_config` of the run's config, as it was given.
        what: names the file and what is to be done with it, for the messages.
        from_scratch: the checkpoint stands for a run from its start, so keys that act there count too.

    Raises:
        OtherConfigError: if other keys differ, naming each with both values.
    """
    saved = checkpoint.get("config")
    if saved is None:
        text = "%s does not say what config it was trained with (an earlier version wrote it): taken as it is"
        logger.warning(text, what)
        return
    differing = _differing(saved, given, (*names_with("any", "continue"), *given["SSKD.MAY_DIFFER"]))
    at_start = [] if from_scratch else [key for key in differing if is_below(key, names_with("start"))]
    others = [key for key in differing if key not in at_start]
    epochs, done = "SOLVER.MAX_EPOCH", checkpoint.get("epoch", -1) + 1
    # the rate anneals over all epochs, the window is a share of them
    of_all = given["SOLVER.SCHED"] == "CosineAnnealingLR" or given["SSKD.EMA.WINDOW"]
    if of_all and saved.get(epochs) != given[epochs] and not is_below(epochs, given["SSKD.MAY_DIFFER"]):
        others.append(epochs)
    elif given[epochs] < done:
        raise OtherConfigError(f"{what}: it has {done} epochs, which is more than {epochs} = {given[epochs]}")

    def values(keys: list[str]) -> str:
        return "; ".join(
            f"{key}: {saved.get(key, _ABSENT)!r} there, {given.get(key, _ABSENT)!r} here" for key in keys
        )

    if others:
        raise OtherConfigError(
            f"{what}: it is of another config ({values(others)}). Give these keys their old values, or "
            "another OUTPUT_DIR to start from scratch; keys changed on purpose go into SSKD.MAY_DIFFER"
        )
    if at_start:
        logger.warning("%s: %s act only at the start of a run and are not looked at", what, values(at_start))


def image_names(paths: Sequence[str]) -> torch.Tensor:
    """(N,) int64, CRC-32 of each path below the folder that all N share, so that it may be moved."""
    paths = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath({os.path.dirname(path) for path in paths}) if paths else ""
    names = (path[len(common) :].lstrip(os.sep).encode(errors="replace") for path in paths)
    return torch.tensor([zlib.crc32(name) for name in names], dtype=torch.int64)


def check_same_images(
    checkpoint: dict[str, Any], images: Mapping[str, Sequence[str]], what: str, may_differ: Sequence[str] = ()
) -> None:
    """Check that a checkpoint is of the images that are there now, by their names and order only.

    Args:
        checkpoint: a file's content.
        images: {key that names the data sets: paths}.
        what: as for :func:`check_same_run`.
        may_differ: ``SSKD.MAY_DIFFER``; a key of ``images`` is not looked at, unless there are pseudo-labels
            of its images.
    """
    if "images" not in checkpoint:
        text = "%s does not say which images it was trained on (an earlier version wrote it): taken as it is"
        logger.warning(text, what)
        return
    for key, paths in images.items():
        saved, now = checkpoint["images"].get(key, torch.empty(0, dtype=torch.int64)), image_names(paths)
        if torch.equal(saved, now) or ("refresh" not in checkpoint and is_below(key, may_differ)):
            continue
        new, gone = ~torch.isin(now, saved), int((~torch.isin(saved, now)).sum())
        both = min(len(saved), len(now))
        moved = torch.cat([saved[:both] != now[:both], torch.ones(len(now) - both, dtype=torch.bool)])
        odd = [path for at in (new, moved) for path, differs in zip(paths, at.tolist()) if differs]
        first = f", first {odd[0]}" if odd else ""
        raise OtherConfigError(
            f"{what}: it was trained on other images of {key}: {len(saved)} then, {len(now)} now, "
            f"{int(new.sum())} of them new, {gone} gone{first}. Resume with the images that the run began "
            "with, or give another OUTPUT_DIR to start from scratch"
        )


def random_state() -> dict:
    """Python's, NumPy's and torch's generators, and that of the current CUDA device where one is in use."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    return {
        "python": [version, torch.tensor(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *map(float, rest)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_random_state(state: dict) -> None:
    """Put the generators back to where :func:`random_state` found them."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
