"""From the command line to a frozen config, a log, and seeded generators."""
import argparse
import os
from collections.abc import Sequence

import numpy as np
import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.engine import default_setup
from fastreid.utils.env import seed_all_rng

from ..config import add_sskd_config

__all__ = ["load_config", "resolve", "seed_everything", "setup", "without_pretraining"]


def load_config(config_file: str, opts: Sequence = ()) -> CfgNode:
    """A fast-reid config with the SSKD node, from a file (its ``_BASE_`` included) and overrides; not frozen.

    ``SSKD.SOURCE.CONFIG`` becomes an absolute path: in a file it is relative to that file, in ``opts`` to the working
    directory. So a run can be repeated from the ``config.yaml`` in its output folder.

    Raises:
        FileNotFoundError: if there is no such file.
        KeyError: if a key is unknown, naming it.
        ValueError: if a value is of another type than the default, or ``opts`` has an odd length.
    """
    cfg = get_cfg()
    add_sskd_config(cfg)
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"config file {config_file!r} not found")
        cfg.merge_from_file(config_file)
    source = cfg.SSKD.SOURCE.CONFIG
    if source and not os.path.isabs(source):
        cfg.SSKD.SOURCE.CONFIG = os.path.join(os.path.dirname(config_file), source)
    try:
        cfg.merge_from_list(list(opts))
    except AssertionError as error:  # yacs raises a KeyError for the same in a file
        raise (KeyError if "Non-existent" in str(error) else ValueError)(str(error)) from None
    if cfg.SSKD.SOURCE.CONFIG:
        cfg.SSKD.SOURCE.CONFIG = os.path.abspath(cfg.SSKD.SOURCE.CONFIG)
    return cfg


def resolve(cfg: CfgNode) -> CfgNode:
    """Fill in what depends on the machine or on chance: a device that is there, and a seed that can be given again."""
    if torch.device(cfg.MODEL.DEVICE).type == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if cfg.SEED < 0:
        cfg.SEED = int(np.random.SeedSequence().generate_state(1)[0] >> 1)
    return cfg


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


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of a run, frozen, logged and written to ``OUTPUT_DIR/config.yaml``; all generators seeded."""
    cfg = resolve(load_config(args.config_file, args.opts))
    cfg.freeze()
    default_setup(cfg, args)
    seed_everything(cfg.SEED)
    return cfg
