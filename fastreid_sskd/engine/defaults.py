"""From the command line to a frozen config, a log, and seeded generators."""

import argparse
import contextlib
import ctypes
import logging
import os
import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.engine import default_setup
from fastreid.utils import comm
from fastreid.utils.collect_env import collect_env_info
from fastreid.utils.env import seed_all_rng

from ..config import add_sskd_config
from ..config_values import config_path, merge_file, merge_overrides
from ..modeling import peer_config
from ..processes import on_main
from ..refusals import checking
from .files import make_folder, write_atomically

logger = logging.getLogger("fastreid.sskd.defaults")


@checking()
def load_config(config_file: str, opts: Sequence = ()) -> CfgNode:
    """A fast-reid config with the SSKD node, from a file (its ``_BASE_`` included) and overrides; not frozen.

    Where there is no such file, the config of that name which the package ships is taken: "sskd_m2d.yml".

    ``SSKD.SOURCE.CONFIG`` and ``SSKD.PEERS`` become absolute paths: in a file they are relative to that file,
    in ``opts`` to the working directory. Without a test set ``TEST.EVAL_PERIOD`` becomes 0.

    Raises:
        FileNotFoundError: if there is no such file.
        UnknownNameError: if a key is unknown, naming the nearest.
        ValueError: if a file is no YAML, a value is not what its key takes, or ``opts`` are no pairs.
    """
    cfg = get_cfg()
    add_sskd_config(cfg)
    if config_file:
        merge_file(cfg, config_file)
    merge_overrides(cfg, opts)
    if cfg.SSKD.PEERS:
        cfg.SSKD.NUM_PEERS = len(cfg.SSKD.PEERS)
    if not cfg.DATASETS.TESTS:
        cfg.TEST.EVAL_PERIOD = 0
    return cfg


@checking()
def resolve(cfg: CfgNode) -> CfgNode:
    """Fill in what depends on the machine or on chance: a device that is there, and a seed.

    Raises:
        ValueError: if ``MODEL.DEVICE`` is no device of torch.
    """
    check_device(cfg.MODEL.DEVICE)
    if torch.device(cfg.MODEL.DEVICE).type == "cuda" and not torch.cuda.is_available():
        logger.warning(
            "MODEL.DEVICE is %s, and torch finds no CUDA device: the CPU is used (set it to cpu to have no "
            "warning)",
            cfg.MODEL.DEVICE,
        )
        cfg.MODEL.DEVICE = "cpu"
    if cfg.SEED < 0:
        cfg.SEED = on_main(lambda: int(np.random.SeedSequence().generate_state(1)[0] >> 1))
    return cfg


@checking()
def check_device(device: str) -> None:
    """Refuse, by a ValueError, a ``MODEL.DEVICE`` that torch does not know; it need not be there."""
    try:
        torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"MODEL.DEVICE must be a device of torch, such as cpu, cuda or cuda:1; got {device!r}"
        ) from None


#: M_TRIM_THRESHOLD: never; M_MMAP_THRESHOLD: tensors from 1 GB on are given back
_KEEP_FREED_MEMORY = {-1: -1, -3: 2**30}


def use_device(device: str) -> None:
    """Make a CUDA device that is named by its number ("cuda:1") the current one; on a CPU, keep freed memory.

    glibc gives freed feature maps back to the system, whose zeroed pages the next pass has to ask for again:
    a tenth of the CPU time of a step of three OSNet x0.25 at 256x128. The process stays as large as its peak.
    """
    named = torch.device(device)
    if named.type == "cuda" and named.index is not None:
        torch.cuda.set_device(named)
    if named.type == "cpu" and os.name == "posix":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
        for option, value in _KEEP_FREED_MEMORY.items() if mallopt else ():
            mallopt(option, value)


def starts_from_backbone(cfg: CfgNode) -> bool:
    """Whether there is no source: peers are bare backbones, of ``MODEL.BACKBONE.PRETRAIN_PATH`` or random."""
    return cfg.SSKD.SOURCE.SKIP and not cfg.SSKD.SOURCE.WEIGHTS and not cfg.MODEL.WEIGHTS


def without_pretraining(cfg: CfgNode) -> CfgNode:
    """A copy of the config that looks for no ImageNet weights: the network's come from elsewhere."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    return cfg


def as_started(cfg: CfgNode) -> CfgNode:
    """The config of a run's networks as they are built: without ImageNet weights where others are loaded."""
    bare = starts_from_backbone(cfg) if cfg.MODEL.META_ARCHITECTURE == "SSKD" else not cfg.MODEL.WEIGHTS
    return cfg if bare else without_pretraining(cfg)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators of this process, on every device."""
    seed_all_rng(seed)
    torch.manual_seed(seed)


def make_deterministic() -> None:
    """``SSKD.DETERMINISTIC``: deterministic kernels only, for this process from now on."""
    # without it cuBLAS has no deterministic kernel; read with its first use
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


@checking()
def read_config(args: argparse.Namespace) -> CfgNode:
    """The config of a run, frozen; a run that is resumed keeps the seed that it has drawn."""
    cfg = load_config(args.config_file, args.opts)
    written = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    if getattr(args, "resume", False) and cfg.SEED < 0 and os.path.isfile(written):
        cfg.SEED = load_config(written).SEED
    resolve(cfg).freeze()
    return cfg


@checking()
def begin(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Start a run's log, write its config to ``OUTPUT_DIR/config.yaml``, seed all generators.

    The config of an earlier run in the folder stays until this one starts to train (see
    :func:`start_run`), which it never does with ``--eval-only``.
    """
    if not cfg.OUTPUT_DIR:
        raise ValueError("OUTPUT_DIR is empty: name a folder, the log and config.yaml are written there")
    on_main(lambda: make_folder(cfg.OUTPUT_DIR))
    with keep_config(cfg.OUTPUT_DIR):
        # the host logs the file
        default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": config_path(args.config_file)}))
    seed_everything(cfg.SEED)


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of a run, frozen and logged (see :func:`begin`); all generators seeded."""
    cfg = read_config(args)
    begin(cfg, args)
    return cfg


@contextlib.contextmanager
def log_file(folder: str) -> Iterator[None]:
    """Write the log into ``log.txt`` of a folder too; for runs that :func:`begin` does not start."""
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


#: folders of earlier runs inside ``OUTPUT_DIR``
EARLIER = re.compile(r"earlier-(\d+)")

# What a run leaves, first that by which it would be resumed. The log is one for all; source/ is reused.
_OF_A_RUN = re.compile(
    r"last_checkpoint|(model_(\d+|best|final)|step_\d+)\.pth|(results|record|metrics)\.json|metrics\.json\.old"
    r"|events\.out\.tfevents\..*|report\.html"
)


@checking()
def start_run(cfg: CfgNode, *, from_scratch: bool) -> None:
    """Make ``OUTPUT_DIR``, if any, this run's, when nothing can refuse it any more; called by every process.

    Writes ``config.yaml``. A run from scratch first moves the files of an earlier one (checkpoints, results,
    scalars and their ``config.yaml``) to ``earlier-1``, ``earlier-2``, ... inside the folder.

    Raises:
        ValueError: if the run is to start from weights that it would have to move; nothing is changed.
    """

    def start() -> None:
        os.makedirs(folder, exist_ok=True)
        if from_scratch:
            _move_earlier_run(cfg)
        write_atomically(os.path.join(folder, "config.yaml"), lambda file: file.write(cfg.dump().encode()))

    folder = cfg.OUTPUT_DIR
    if folder:
        on_main(start)


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
            f"the run is to start from {starts[0]!r}, a file of the earlier run in OUTPUT_DIR, whose place "
            "it takes: give another OUTPUT_DIR, or --resume to continue the earlier run"
        )
    number = 1 + max((int(match[1]) for match in map(EARLIER.fullmatch, there) if match), default=0)
    aside = os.path.join(folder, f"earlier-{number}")
    os.mkdir(aside)
    size = sum(os.path.getsize(path) for path in files) / 2**20
    for name in [*names, *({"config.yaml"} & set(there))]:
        os.replace(os.path.join(folder, name), os.path.join(aside, name))
    logger.warning(
        "this run starts from scratch: the %d files (%.0f MB) of the earlier run in %s are now in %s, which "
        "may be deleted",
        len(names), size, folder, aside,
    )  # fmt: skip


def _start_weights(cfg: CfgNode) -> list[str]:
    models = [cfg.MODEL, *(peer_config(cfg, k).MODEL for k in range(len(cfg.SSKD.PEERS)))]
    paths = [
        *cfg.SSKD.SOURCE.WEIGHTS,
        *(path for model in models for path in (model.WEIGHTS, model.BACKBONE.PRETRAIN_PATH)),
    ]
    return [path for path in paths if path]


@contextlib.contextmanager
def keep_config(folder: str) -> Iterator[None]:
    """Put ``config.yaml`` in ``OUTPUT_DIR``, if any, back after the body, in which the host replaces it."""
    path, before = os.path.join(folder, "config.yaml"), None
    if folder and os.path.isfile(path):
        with open(path, "rb") as file:
            before = file.read()
    yield
    if before is not None and comm.is_main_process():
        write_atomically(path, lambda file: file.write(before))
