"""From the command line to a frozen config, a log, and seeded generators."""
import argparse
import logging
import os
from collections.abc import Sequence

import numpy as np
import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.engine import default_setup
from fastreid.utils.env import seed_all_rng

from ..config import add_sskd_config
from ..config_values import merge_file, merge_overrides
from ..processes import on_main
from ..refusals import checking
from .files import make_folder
from .output_dir import keep_config

__all__ = [
    "begin", "check_device", "load_config", "make_deterministic", "read_config", "resolve", "seed_everything", "setup", "use_device",
    "without_pretraining",
]

logger = logging.getLogger("fastreid.sskd.setup")


@checking()
def load_config(config_file: str, opts: Sequence = ()) -> CfgNode:
    """A fast-reid config with the SSKD node, from a file (its ``_BASE_`` included) and overrides; not frozen.

    ``SSKD.SOURCE.CONFIG`` and ``SSKD.PEERS`` become absolute paths: in a file they are relative to that file, in ``opts`` to
    the working directory. So a run can be repeated from the ``config.yaml`` in its output folder. Without a test set
    (``DATASETS.TESTS`` empty) ``TEST.EVAL_PERIOD`` becomes 0: there is nothing to evaluate.

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
    """Fill in what depends on the machine or on chance: a device that is there, and a seed that can be given again.

    Raises:
        ValueError: if ``MODEL.DEVICE`` is no device of torch.
    """
    check_device(cfg.MODEL.DEVICE)
    if torch.device(cfg.MODEL.DEVICE).type == "cuda" and not torch.cuda.is_available():
        logger.warning("MODEL.DEVICE is %s, and torch finds no CUDA device: the CPU is used (set it to cpu to have no warning)",
                       cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    if cfg.SEED < 0:
        cfg.SEED = on_main(lambda: int(np.random.SeedSequence().generate_state(1)[0] >> 1))
    return cfg


@checking()
def check_device(device: str) -> None:
    """Whether ``MODEL.DEVICE`` is one that torch knows, which need not be there.

    Raises:
        ValueError: if it is not.
    """
    try:
        torch.device(device)
    except RuntimeError:
        raise ValueError(f"MODEL.DEVICE must be a device of torch, such as cpu, cuda or cuda:1; got {device!r}") from None


def use_device(device: str) -> None:
    """Make a CUDA device that is named by its number ("cuda:1") this process's current one.

    Generators, peak memory, waits for the device and what asks for its abilities are those of the current device.
    """
    named = torch.device(device)
    if named.type == "cuda" and named.index is not None:
        torch.cuda.set_device(named)


def starts_from_backbone(cfg: CfgNode) -> bool:
    """Whether there is no source: the peers are bare backbones, of ``MODEL.BACKBONE.PRETRAIN_PATH`` or random."""
    return cfg.SSKD.SOURCE.SKIP and not cfg.SSKD.SOURCE.WEIGHTS and not cfg.MODEL.WEIGHTS


def without_pretraining(cfg: CfgNode) -> CfgNode:
    """A copy of the config for a network whose weights come from elsewhere: no ImageNet weights are looked for."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN = False
    return cfg


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's generators of this process, on every device."""
    seed_all_rng(seed)
    torch.manual_seed(seed)


def make_deterministic() -> None:
    """``SSKD.DETERMINISTIC``: deterministic kernels only, for this process from now on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS has none; read with its first use
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

    The config of an earlier run in the folder stays until this one starts to train (see :func:`.output_dir.start_run`),
    which it never does with ``--eval-only`` and ``--predict``.
    """
    if not cfg.OUTPUT_DIR:
        raise ValueError("OUTPUT_DIR is empty: name a folder, the log and config.yaml are written there")
    on_main(lambda: make_folder(cfg.OUTPUT_DIR))
    put_back = keep_config(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    put_back()
    seed_everything(cfg.SEED)


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of a run, frozen and logged (see :func:`begin`); all generators seeded."""
    cfg = read_config(args)
    begin(cfg, args)
    return cfg
