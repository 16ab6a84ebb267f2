"""``OUTPUT_DIR`` belongs to one run: until a new one really starts, what an earlier one left there stays as it is."""
import logging
import os
import re
from collections.abc import Callable

from fastreid.config import CfgNode
from fastreid.utils import comm

from ..modeling import peer_config
from ..processes import on_main
from ..refusals import checking
from .files import write_atomically

__all__ = ["EARLIER", "keep_config", "start_run"]

logger = logging.getLogger("fastreid.sskd.output_dir")

#: folders of earlier runs inside ``OUTPUT_DIR``
EARLIER = re.compile(r"earlier-(\d+)")

# What a run leaves, first that by which it would be resumed. The log is one for all; source/ is reused.
_OF_A_RUN = re.compile(
    r"last_checkpoint|(model_(\d+|best|final)|step_\d+)\.pth|(results|rows|record|metrics)\.json|metrics\.json\.old"
    r"|events\.out\.tfevents\..*|report\.html"
)


@checking()
def start_run(cfg: CfgNode, *, from_scratch: bool) -> None:
    """Make ``OUTPUT_DIR`` this run's, at the moment that nothing can refuse it any more; to be called by every process.

    Writes ``config.yaml``. A run from scratch first moves the files of an earlier one (checkpoints, results, scalars and
    their ``config.yaml``) to ``earlier-1``, ``earlier-2``, ... inside the folder, so that none is taken for its own.

    Args:
        cfg: of the run; without ``OUTPUT_DIR`` there is nothing to do.
        from_scratch: it does not resume what is there.

    Raises:
        ValueError: if the run is to start from weights that it would have to move; nothing is changed.
    """
    if cfg.OUTPUT_DIR:
        on_main(lambda: _start(cfg, from_scratch))


def _start(cfg: CfgNode, from_scratch: bool) -> None:
    folder = cfg.OUTPUT_DIR
    os.makedirs(folder, exist_ok=True)
    if from_scratch:
        _move_earlier_run(cfg)
    write_atomically(os.path.join(folder, "config.yaml"), lambda file: file.write(cfg.dump().encode()))


def _move_earlier_run(cfg: CfgNode) -> None:
    folder = cfg.OUTPUT_DIR
    there = os.listdir(folder)
    names = sorted(filter(_OF_A_RUN.fullmatch, there), key=lambda name: (name != "last_checkpoint", name))
    if not names:
        return
    files = {os.path.realpath(os.path.join(folder, name)) for name in names}
    starts = [path for path in _start_weights(cfg) if os.path.realpath(path) in files]
    if starts:
        raise ValueError(
            f"the run is to start from {starts[0]!r}, a file of the earlier run in OUTPUT_DIR, whose place it takes: give "
            "another OUTPUT_DIR, or --resume to continue the earlier run"
        )
    number = 1 + max((int(match[1]) for match in map(EARLIER.fullmatch, there) if match), default=0)
    aside = os.path.join(folder, f"earlier-{number}")
    os.mkdir(aside)
    size = sum(os.path.getsize(path) for path in files) / 2**20
    for name in [*names, *({"config.yaml"} & set(there))]:
        os.replace(os.path.join(folder, name), os.path.join(aside, name))
    logger.warning(
        "this run starts from scratch: the %d files (%.0f MB) of the earlier run in %s are now in %s, which may be deleted",
        len(names), size, folder, aside,
    )  # fmt: skip


def _start_weights(cfg: CfgNode) -> list[str]:
    models = [cfg.MODEL, *(peer_config(cfg, k).MODEL for k in range(len(cfg.SSKD.PEERS)))]
    paths = [*cfg.SSKD.SOURCE.WEIGHTS, *(path for model in models for path in (model.WEIGHTS, model.BACKBONE.PRETRAIN_PATH))]
    return [path for path in paths if path]


def keep_config(folder: str) -> Callable[[], None]:
    """Remember ``config.yaml`` in ``OUTPUT_DIR``; the function returned puts it back, if there was one."""
    path, before = os.path.join(folder, "config.yaml"), None
    if folder and os.path.isfile(path):
        with open(path, "rb") as file:
            before = file.read()

    def put_back() -> None:
        if before is not None and comm.is_main_process():
            write_atomically(path, lambda file: file.write(before))

    return put_back
