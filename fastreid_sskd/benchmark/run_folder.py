"""The folder of a run that is made for a table: its settings, its log, the rows it ended with, and making what is missing."""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fastreid.config import CfgNode
from fastreid.utils.collect_env import collect_env_info

from ..clustering import PseudoLabelError
from ..config import names_with
from ..engine import load_config
from ..engine.atomic import write_atomically
from ..engine.checkpoint import OtherConfigError, last_checkpoint, plain_config, same_value
from ..engine.lock import output_folder
from ..engine.pipeline import check_source, source_weights
from ..processes import listen, stop_if_asked
from ..refusals import UnknownNameError

__all__ = ["Job", "Rows", "check_evaluated", "check_jobs", "check_same_settings", "keep_settings", "read_rows", "run_jobs", "write_rows"]

Rows = dict[str, dict[str, float]]  # {row of the table: {"mAP": percent, ...}}

logger = logging.getLogger("fastreid.sskd.benchmark")

_ROWS = "rows.json"

# Also harmless here: a path, since source models are held against what the file says, and what the data set tells.
_HARMLESS = (*names_with("any"), "SSKD.SOURCE.CONFIG", "MODEL.HEADS.NUM_CLASSES")


@dataclass(eq=False)
class Job:
    """The rows that one variant has with one seed, and how those that are missing are made.

    Attributes:
        title: of the variant, for the log.
        cfg: frozen; its ``OUTPUT_DIR`` is the job's folder, and what the folder holds has to be of these settings.
        parts: {folder below ``OUTPUT_DIR``, "" for itself: trains or evaluates, given ``cfg`` and the source models}.
        check: before anything is trained, raises, or says why some parts that are not finished cannot be had: {part: reason}.
        source: config of the source models that all parts start from, made once in its ``OUTPUT_DIR``; None: of none.
        missing: {part: why it has no row}, of those that cannot be had and of those that were stopped.
    """

    title: str
    cfg: CfgNode
    parts: Mapping[str, Callable[[CfgNode, Sequence[str]], Rows]]
    check: Callable[["Job"], dict[str, str]]
    source: CfgNode | None = None
    missing: dict[str, str] = field(default_factory=dict)

    def folder(self, part: str) -> str:
        """Where a part is."""
        return os.path.join(self.cfg.OUTPUT_DIR, part) if part else self.cfg.OUTPUT_DIR

    def rows(self) -> Rows:
        """Of the finished parts."""
        return {row: metrics for part in self.parts for row, metrics in (read_rows(self.folder(part)) or {}).items()}

    def left(self) -> list[str]:
        """The parts that are not finished and can be had."""
        return [part for part in self.parts if part not in self.missing and read_rows(self.folder(part)) is None]

    def needs_source(self) -> bool:
        """Whether a part starts that has to be given source models; one that is resumed holds its own."""
        return self.source is not None and any(not last_checkpoint(self.folder(part)) for part in self.left())


def check_jobs(jobs: Sequence[Job]) -> None:
    """Find what would only be found after hours, in all jobs; finished ones need neither images nor source models.

    Rows that cannot be had are noted in the jobs' ``missing``, with a warning.

    Raises:
        OtherConfigError: if a folder holds results or source models of other settings.
        ValueError, FileNotFoundError, ImportError: if a job cannot work.
    """
    for job in jobs:
        check_same_settings(job)
    sources: set[tuple[str, bool]] = set()
    for job in jobs:
        if job.left():
            job.missing |= job.check(job)
        for part, reason in job.missing.items():
            logger.warning("%s, seed %d will have no row of %s: %s", job.title, job.cfg.SEED, part, reason)
        needed = job.needs_source()
        if job.source and (job.source.OUTPUT_DIR, needed) not in sources:
            sources.add((job.source.OUTPUT_DIR, needed))
            with contextlib.nullcontext() if needed else contextlib.suppress(FileNotFoundError):  # else those still there
                check_source(job.source)


def run_jobs(jobs: Sequence[Job]) -> None:
    """Make the missing rows of all jobs, resuming what was begun; see :func:`check_jobs`, which comes first.

    A row whose training cannot go on (its pseudo-labels cannot be trained on, or it has diverged) is noted in its job's
    ``missing``, and the others are made.

    Raises:
        FolderInUseError: if another process makes rows in a folder.
        Stopped: a ``SystemExit``, if SIGTERM or SIGINT came; what is done is kept, and resumed.
    """
    weights: dict[str, list[str]] = {}  # by the folder of the source models
    with listen():  # one signal ends all runs
        for job in jobs:
            if not job.left():
                continue
            with output_folder(job.cfg.OUTPUT_DIR), _log_file(job.cfg.OUTPUT_DIR):
                check_same_settings(job)  # another process may have finished it meanwhile
                if "" not in job.parts:
                    keep_settings(job.cfg)
                if job.needs_source() and job.source.OUTPUT_DIR not in weights:
                    weights[job.source.OUTPUT_DIR] = source_weights(job.source)
                for part in job.left():
                    stop_if_asked()
                    logger.info("%s, seed %d, in %s", job.title, job.cfg.SEED, job.folder(part))
                    try:
                        rows = job.parts[part](job.cfg, weights.get(job.source.OUTPUT_DIR, []) if job.source else [])
                    except (PseudoLabelError, FloatingPointError) as error:
                        job.missing[part] = str(error)
                        logger.warning("%s, seed %d stopped in %s and has no row: %s", job.title, job.cfg.SEED, job.folder(part), error)
                        continue
                    write_rows(job.folder(part), rows)


def check_evaluated(cfg: CfgNode) -> None:
    """A table's run has to end with an evaluation, which is no matter to find out about after it.

    Raises:
        ValueError: if there is no test set, or nothing is evaluated.
    """
    if not cfg.DATASETS.TESTS:
        raise ValueError("DATASETS.TESTS is empty, so the table would have no figures: name a test set")
    if cfg.TEST.EVAL_PERIOD < 1:
        raise ValueError(f"TEST.EVAL_PERIOD is {cfg.TEST.EVAL_PERIOD}, so the last epoch would not be evaluated: set it to 1 or more")


def check_same_settings(job: Job) -> None:
    """Refuse to report as new, or to go on with, what a job's folder holds of a run with other settings.

    A folder in which nothing has been learned yet may be given other settings. Paths may be spelled differently.

    Raises:
        OtherConfigError: if a key differs that has an effect on the result, naming the first three with both values.
    """
    cfg, folder = job.cfg, job.cfg.OUTPUT_DIR
    if not any(os.path.isfile(os.path.join(job.folder(part), name)) for part in job.parts for name in (_ROWS, "last_checkpoint")):
        return
    path, instead = os.path.join(folder, "config.yaml"), "choose another output folder, or remove that one"
    if not os.path.isfile(path):
        raise OtherConfigError(f"{folder!r} holds results, but no config.yaml to say what settings they are of: {instead}")
    try:
        there, wanted = plain_config(load_config(path)), plain_config(cfg)
    except UnknownNameError as error:
        raise OtherConfigError(f"{path!r} is of another version of this package ({error}): {instead}") from None
    shared = ("SSKD.SOURCE.WEIGHTS",) if job.source and not cfg.SSKD.SOURCE.WEIGHTS else ()  # those of job.source
    differ = [
        key for key in wanted if key not in (*_HARMLESS, *shared) and not same_value(there.get(key), wanted[key])
    ]
    if differ:
        shown = ", ".join(f"{key} {there.get(key)!r}, now {wanted[key]!r}" for key in differ[:3])
        raise OtherConfigError(
            f"{folder!r} holds a run of other settings ({len(differ)}: {shown}): {instead} "
            "(SSKD.SOURCE.WEIGHTS takes the source models that it holds)"
        )


def keep_settings(cfg: CfgNode) -> None:
    """Write ``config.yaml``, which :func:`check_same_settings` reads, to ``OUTPUT_DIR``."""
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
            rows = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path!r} is not JSON: {error}") from error
    if not isinstance(rows, dict) or not all(isinstance(metrics, dict) for metrics in rows.values()):
        raise ValueError(f"{path!r} does not hold the rows of a table, {{row: {{metric: percent}}}}: remove it to make them again")
    return rows


def write_rows(folder: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Mark a run as finished, with the rows it ended with; the folder is made."""
    os.makedirs(folder, exist_ok=True)
    text = json.dumps(rows, indent=1)
    write_atomically(os.path.join(folder, _ROWS), lambda file: file.write(text.encode()))


@contextlib.contextmanager
def _log_file(folder: str) -> Iterator[None]:
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
