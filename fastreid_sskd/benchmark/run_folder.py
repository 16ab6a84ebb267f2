"""The folder of a run that is made for a table: its settings, its log, and the rows it ended with."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping

from fastreid.config import CfgNode
from fastreid.utils.collect_env import collect_env_info

from ..engine import load_config
from ..engine.atomic import write_atomically
from ..engine.same_run import OtherConfigError, plain_config

__all__ = ["Rows", "check_evaluated", "check_same_settings", "keep_settings", "log_file", "read_rows", "write_rows"]

Rows = dict[str, dict[str, float]]  # {row of the table: {"mAP": percent, ...}}

logger = logging.getLogger("fastreid.sskd.benchmark")

# Keys of a config that do not change a run's result.
_HARMLESS = (
    "OUTPUT_DIR",
    "VERSION",
    "SSKD.LOG_PERIOD",
    "SSKD.CACHE_IMAGES",
    "SSKD.AUGMENT_ON",
    "SSKD.KEEP_CHECKPOINTS",
    "SSKD.CHECKPOINT_SECONDS",
    "SSKD.CHECKPOINT_ITERS",
    "SSKD.SOURCE.CONFIG",  # a path; the source models are held against what it says
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "MODEL.HEADS.NUM_CLASSES",
)


def check_evaluated(cfg: CfgNode) -> None:
    """A table's run has to end with an evaluation, which is no matter to find out about after it.

    Raises:
        ValueError: if there is no test set, or nothing is evaluated.
    """
    if not cfg.DATASETS.TESTS:
        raise ValueError("DATASETS.TESTS is empty, so the table would have no figures: name a test set")
    if not cfg.TEST.EVAL_PERIOD:
        raise ValueError("TEST.EVAL_PERIOD is 0, so the last epoch would not be evaluated: set it to 1 or more")


def check_same_settings(cfg: CfgNode) -> None:
    """Refuse to go on with, or to report as new, what ``OUTPUT_DIR`` holds of a run with other settings.

    Raises:
        OtherConfigError: if a key differs that has an effect on the result, naming the first three with both values.
    """
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if not os.path.isfile(path):
        return
    try:
        there, wanted = plain_config(load_config(path)), plain_config(cfg)
    except KeyError as error:
        raise OtherConfigError(
            f"{path!r} is of another version of this package ({error.args[0]}): choose another output folder"
        ) from None
    differ = [key for key in wanted if there.get(key) != wanted[key] and key not in _HARMLESS]
    if differ:
        shown = ", ".join(f"{key} {there.get(key)!r}, now {wanted[key]!r}" for key in differ[:3])
        raise OtherConfigError(
            f"{cfg.OUTPUT_DIR!r} holds a run of other settings ({len(differ)}: {shown}): choose another output "
            "folder, or remove that one"
        )


def keep_settings(cfg: CfgNode) -> None:
    """Write ``config.yaml``, which :func:`check_same_settings` reads, to ``OUTPUT_DIR``; the folder is made."""
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    write_atomically(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), lambda file: file.write(cfg.dump().encode()))


def read_rows(folder: str) -> Rows | None:
    """The rows of a finished run; None of one that is not finished.

    Raises:
        ValueError: if the file is not what :func:`write_rows` has written.
    """
    path = os.path.join(folder, "rows.json")
    if not os.path.isfile(path):
        return None
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path!r} is not JSON: {error}") from error


def write_rows(folder: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Mark a run as finished, with the rows it ended with."""
    text = json.dumps(rows, indent=1)
    write_atomically(os.path.join(folder, "rows.json"), lambda file: file.write(text.encode()))


@contextlib.contextmanager
def log_file(folder: str) -> Iterator[None]:
    """The log of one run in its own folder, beside wherever else it goes."""
    os.makedirs(folder, exist_ok=True)
    handler = logging.FileHandler(os.path.join(folder, "log.txt"), encoding="utf-8")
    handler.setFormatter(
        logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S")
    )
    host = logging.getLogger("fastreid")
    host.addHandler(handler)
    level = host.level
    if not host.isEnabledFor(logging.INFO):
        host.setLevel(logging.INFO)
    try:
        logger.info("Environment info:\n%s", collect_env_info())
        yield
    finally:
        host.removeHandler(handler)
        host.setLevel(level)
        handler.close()
