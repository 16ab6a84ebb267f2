"""The folder of a run that is made for a table: its settings, its log, and the rows it ended with."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence

from fastreid.config import CfgNode
from fastreid.utils.collect_env import collect_env_info

from ..engine import load_config
from ..engine.atomic import write_atomically
from ..engine.same_run import HARMLESS, OtherConfigError, plain_config
from ..refusals import UnknownNameError

__all__ = ["Rows", "check_evaluated", "check_same_settings", "keep_settings", "log_file", "read_rows", "write_rows"]

Rows = dict[str, dict[str, float]]  # {row of the table: {"mAP": percent, ...}}

logger = logging.getLogger("fastreid.sskd.benchmark")

_ROWS = "rows.json"

# Also harmless here: a path, since source models are held against what the file says, and what the data set tells.
_HARMLESS = (*HARMLESS, "SSKD.SOURCE.CONFIG", "MODEL.HEADS.NUM_CLASSES")


def check_evaluated(cfg: CfgNode) -> None:
    """A table's run has to end with an evaluation, which is no matter to find out about after it.

    Raises:
        ValueError: if there is no test set, or nothing is evaluated.
    """
    if not cfg.DATASETS.TESTS:
        raise ValueError("DATASETS.TESTS is empty, so the table would have no figures: name a test set")
    if cfg.TEST.EVAL_PERIOD < 1:
        raise ValueError(f"TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}, so the last epoch would not be evaluated: set it to 1 or more")


def check_same_settings(cfg: CfgNode, parts: Sequence[str] = ("",)) -> None:
    """Refuse to report as new, or to go on with, what ``OUTPUT_DIR`` holds of a run with other settings.

    A folder in which nothing has been learned yet may be given other settings.

    Args:
        cfg: of what is to be run.
        parts: the folders below ``OUTPUT_DIR`` in which its runs are.

    Raises:
        OtherConfigError: if a key differs that has an effect on the result, naming the first three with both values.
    """
    folder = cfg.OUTPUT_DIR
    if not any(os.path.isfile(os.path.join(folder, part, name)) for part in parts for name in (_ROWS, "last_checkpoint")):
        return
    path, instead = os.path.join(folder, "config.yaml"), "choose another output folder, or remove that one"
    if not os.path.isfile(path):
        raise OtherConfigError(f"{folder!r} holds results, but no config.yaml to say what settings they are of: {instead}")
    try:
        there, wanted = plain_config(load_config(path)), plain_config(cfg)
    except UnknownNameError as error:
        raise OtherConfigError(f"{path!r} is of another version of this package ({error}): {instead}") from None
    differ = [key for key in wanted if there.get(key) != wanted[key] and key not in _HARMLESS]
    if differ:
        shown = ", ".join(f"{key} {there.get(key)!r}, now {wanted[key]!r}" for key in differ[:3])
        raise OtherConfigError(
            f"{folder!r} holds a run of other settings ({len(differ)}: {shown}): {instead} "
            "(SSKD.SOURCE.WEIGHTS takes the source models that it holds)"
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
    path = os.path.join(folder, _ROWS)
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
    write_atomically(os.path.join(folder, _ROWS), lambda file: file.write(text.encode()))


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
