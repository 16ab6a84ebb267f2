"""Whether a checkpoint belongs to the run that a config describes, and is of the images that are there."""
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fastreid.config import CfgNode

from ..refusals import REFUSED
from .setup import load_config

__all__ = [
    "HARMLESS", "OtherConfigError", "check_same_images", "check_same_run", "image_names", "plain_config", "same_value",
]

logger = logging.getLogger("fastreid.sskd.same_run")

#: keys that change nothing that is learned or reported: where things are, how fast, how often they are saved
HARMLESS = (
    "OUTPUT_DIR", "VERSION", "MODEL.DEVICE", "CUDNN_BENCHMARK", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD",
    "SSKD.LOG_PERIOD", "SSKD.KEEP_CHECKPOINTS", "SSKD.CHECKPOINT_SECONDS", "SSKD.CHECKPOINT_ITERS", "SSKD.EVAL_WITH",
    "SSKD.MAY_DIFFER", "SSKD.CACHE_IMAGES",
    "SSKD.AUGMENT_ON",  # of earlier checkpoints
)
# Keys that may differ where a run is gone on with: also how often it is looked at, and what its clusters may be.
_WITHOUT_EFFECT = (
    *HARMLESS, "TEST.EVAL_PERIOD", "TEST.IMS_PER_BATCH",
    "SOLVER.MAX_EPOCH",  # see check_same_run
    "SSKD.CLUSTER.EPS",  # what a run that stopped for its clusters is resumed with
    "SSKD.CLUSTER.ON_COLLAPSE", "SSKD.CLUSTER.ON_LIMIT", "SSKD.CLUSTER.MAX_NOISE_SHARE", "SSKD.CLUSTER.MAX_LARGEST_SHARE",
    "SSKD.CLUSTER.EPS_MIN", "SSKD.CLUSTER.EPS_MAX",
)
# Keys that have had their effect before the first step.
_AT_THE_START = ("MODEL.WEIGHTS", "MODEL.BACKBONE.PRETRAIN", "MODEL.BACKBONE.PRETRAIN_PATH", "SSKD.SOURCE")

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
            found[f"{prefix}{key}"] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def same_value(one: Any, other: Any) -> bool:
    """Whether two values of a key mean the same: texts also if they are two paths of one file or folder."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    if isinstance(one, str) and isinstance(other, str) and one and other:
        return os.path.realpath(one) == os.path.realpath(other)
    return one == other


def _is_below(key: str, names: tuple[str, ...] | list[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _differing(saved: dict[str, Any], given: dict[str, Any], but: tuple[str, ...]) -> list[str]:
    defaults = plain_config(load_config(""))  # a file of an earlier version lacks the keys that came later
    return [
        key
        for key in sorted(set(given) | (set(saved) & set(defaults)))
        if not _is_below(key, but) and not same_value(saved.get(key, defaults.get(key, _ABSENT)), given.get(key, _ABSENT))
    ]


def check_same_run(checkpoint: dict[str, Any], given: dict[str, Any], what: str, *, anew: bool = False) -> None:
    """Check that a checkpoint was written under a config that means the same run.

    Keys without an effect on what is learned may differ, those that ``SSKD.MAY_DIFFER`` names too (and the keys below
    them); ``SOLVER.MAX_EPOCH`` may if neither the learning rate nor the teachers' window depends on it. Keys that only act at the start of a run
    are warned of, where the run is gone on with.

    Args:
        checkpoint: a file's content.
        given: :func:`plain_config` of the run's config, as it was given.
        what: names the file and what is to be done with it, for the messages.
        anew: the checkpoint is to stand for a run from its start, so keys that act there count too.

    Raises:
        OtherConfigError: if other keys differ, naming each with both values.
    """
    saved = checkpoint.get("config")
    if saved is None:
        logger.warning("%s does not say what config it was trained with (an earlier version wrote it): taken as it is", what)
        return
    differing = _differing(saved, given, (*_WITHOUT_EFFECT, *given["SSKD.MAY_DIFFER"]))
    at_start = [] if anew else [key for key in differing if _is_below(key, _AT_THE_START)]
    others = [key for key in differing if key not in at_start]
    epochs, done = "SOLVER.MAX_EPOCH", checkpoint.get("epoch", -1) + 1
    if (given["SOLVER.SCHED"] == "CosineAnnealingLR" or given["SSKD.EMA.WINDOW"]) and saved.get(epochs) != given[epochs]:
        others.append(epochs)  # the rate anneals over all epochs, the window is a share of them
    elif given[epochs] < done:
        raise OtherConfigError(f"{what}: it has {done} epochs, which is more than {epochs} = {given[epochs]}")

    def values(keys: list[str]) -> str:
        return "; ".join(f"{key}: {saved.get(key, _ABSENT)!r} there, {given.get(key, _ABSENT)!r} here" for key in keys)

    if others:
        raise OtherConfigError(
            f"{what}: it is of another config ({values(others)}). Give these keys their old values, or another "
            "OUTPUT_DIR to start anew; keys changed on purpose go into SSKD.MAY_DIFFER"
        )
    if at_start:
        logger.warning("%s: %s act only at the start of a run and are not looked at", what, values(at_start))


def image_names(paths: Sequence[str]) -> torch.Tensor:
    """(N,) int64, CRC-32 of each path below the folder that all N have in common, so that the folder may be moved."""
    paths = [os.path.abspath(path) for path in paths]
    common = os.path.commonpath({os.path.dirname(path) for path in paths}) if paths else ""
    return torch.tensor([zlib.crc32(path[len(common):].lstrip(os.sep).encode(errors="replace")) for path in paths], dtype=torch.int64)


def check_same_images(checkpoint: dict[str, Any], images: Mapping[str, Sequence[str]], what: str, may_differ: Sequence[str] = ()) -> None:
    """Check that a checkpoint is of the images that are there now, by their names and order; what they show is not looked at.

    Args:
        checkpoint: a file's content.
        images: {key that names the data sets: paths}.
        what: as for :func:`check_same_run`.
        may_differ: ``SSKD.MAY_DIFFER``; a key of ``images`` is not looked at, unless there are pseudo-labels of its images.

    Raises:
        OtherConfigError: if they are others, with their numbers and the first that differs.
    """
    if "images" not in checkpoint:
        logger.warning("%s does not say which images it was trained on (an earlier version wrote it): taken as it is", what)
        return
    for key, paths in images.items():
        saved, now = checkpoint["images"].get(key, torch.empty(0, dtype=torch.int64)), image_names(paths)
        if torch.equal(saved, now) or ("refresh" not in checkpoint and _is_below(key, may_differ)):
            continue
        new, gone = ~torch.isin(now, saved), int((~torch.isin(saved, now)).sum())
        both = min(len(saved), len(now))
        moved = torch.cat([saved[:both] != now[:both], torch.ones(len(now) - both, dtype=torch.bool)])
        first = next((f", first {path}" for at in (new, moved) for path, differs in zip(paths, at.tolist()) if differs), "")
        raise OtherConfigError(
            f"{what}: it was trained on other images of {key}: {len(saved)} then, {len(now)} now, {int(new.sum())} of them new, {gone} "
            f"gone{first}. Go on with the images that the run began with, or give another "
            "OUTPUT_DIR to start anew"
        )
