"""A whole re-ID world that trains in seconds.

Two data sets of a few dozen tiny images, and a network of 5,000 weights.

The data sets lie on disk as Market-1501 and DukeMTMC-reID do, so that the host's own classes read them. An
identity is two colours (upper and lower half of a 32 x 16 image); cameras differ in brightness and every
image in its noise.
"""

import fastreid_sskd  # noqa: F401  first of all: it mends the host before anything else imports it

# isort: split
import re
from pathlib import Path

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from PIL import Image
from torch import nn

from fastreid_sskd.engine import load_config

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
MARKET, DUKE = "Market-1501-v15.09.15", "DukeMTMC-reID"
HEIGHT, WIDTH = 32, 16


@BACKBONE_REGISTRY.register()
def build_tiny_reid_backbone(cfg):
    """Two convolutions with batch norm: (B, 3, H, W) -> (B, FEAT_DIM, H / 4, W / 4)."""
    width = cfg.MODEL.BACKBONE.FEAT_DIM
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
    )  # fmt: skip


def draw(identity: int, camera: int, shot: int, seed: int) -> Image.Image:
    """One image of an identity."""
    colours = np.random.default_rng([seed, identity]).integers(30, 226, (2, 3))
    noise = np.random.default_rng([seed, identity, camera, shot, 7]).normal(0, 12, (HEIGHT, WIDTH, 3))
    image = np.repeat(colours, HEIGHT // 2, axis=0)[:, None, :] * (0.8 + 0.2 * camera) + noise
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


def write_split(folder: Path, identities, cameras, shots: int, seed: int) -> None:
    """`shots` images of every identity under every camera (numbered from 0), named as in Market-1501."""
    folder.mkdir(parents=True)
    for identity in identities:
        for camera in cameras:
            for shot in range(shots):
                name = f"{identity:04d}_c{camera + 1}s1_{shot:06d}_00.jpg"
                draw(identity, camera, shot, seed).save(folder / name, quality=95)


def write_data_set(folder: Path, *, seed: int, identities: int = 6, shots: int = 4) -> None:
    """Training images of `identities` people under two cameras, and as many other people to be tested on."""
    people, others = range(1, identities + 1), range(101, identities + 101)
    write_split(folder / "bounding_box_train", people, (0, 1), shots, seed)
    write_split(folder / "query", others, (0,), 1, seed)
    write_split(folder / "bounding_box_test", others, (0, 1), 2, seed)


def write_world(root: Path) -> Path:
    """Market-1501 (48 training images, the target) and DukeMTMC-reID (the source) below `root`."""
    write_data_set(root / MARKET, seed=1)
    write_data_set(root / DUKE, seed=2)
    return root


def load_checkpoint(path) -> dict:
    """A checkpoint of tensors and plain values."""
    return torch.load(path, map_location="cpu", weights_only=True)


def overrides(*opts: str) -> list[str]:
    """The flat list of keys and values that configs take, of which `opts` may hold pairs as "KEY value"."""
    return [part for opt in opts for part in (opt.split(" ", 1) if re.match(r"[A-Z][\w.]* ", opt) else [opt])]


# The overrides that make any config of this package tiny.
TINY = overrides(
    "MODEL.DEVICE cpu",
    "MODEL.BACKBONE.NAME build_tiny_reid_backbone",
    "MODEL.BACKBONE.FEAT_DIM 16",
    "MODEL.BACKBONE.PRETRAIN False",
    "INPUT.SIZE_TRAIN [32, 16]",
    "INPUT.SIZE_TEST [32, 16]",
    "INPUT.PADDING.SIZE 2",
    "DATALOADER.NUM_WORKERS 0",
    "SOLVER.IMS_PER_BATCH 8",
    "TEST.IMS_PER_BATCH 32",
    "SSKD.LOG_PERIOD 1",
    "CUDNN_BENCHMARK False",
    "SEED 1",
)

# Clusters of 8 images in 48: small neighbourhoods.
TINY_TARGET = [
    *TINY,
    *overrides("SSKD.NUM_PEERS 2", "SSKD.ITERS_PER_EPOCH 3", "SOLVER.MAX_EPOCH 2"),
    *overrides("SSKD.CLUSTER.K1 6", "SSKD.CLUSTER.K2 2", "SSKD.CLUSTER.PAIRS_PER_IMAGE 2.0"),
]

TINY_SOURCE = [
    *TINY,
    *overrides("SSKD.ITERS_PER_EPOCH 2", "SOLVER.MAX_EPOCH 2", "SOLVER.WARMUP_ITERS 2", "SOLVER.STEPS []"),
    *overrides("SOLVER.CHECKPOINT_PERIOD 1", "TEST.EVAL_PERIOD 1"),
]

# What makes the host's Baseline of it, on Market-1501.
TINY_BASELINE = [
    *TINY,
    *overrides("MODEL.META_ARCHITECTURE Baseline", "MODEL.HEADS.POOL_LAYER GlobalAvgPool"),
    *overrides("MODEL.HEADS.WITH_BNNECK True", "MODEL.LOSSES.NAME ('CrossEntropyLoss', 'TripletLoss')"),
    *overrides("DATALOADER.NUM_INSTANCE 4", "DATALOADER.SAMPLER_TRAIN NaiveIdentitySampler"),
    *overrides("SOLVER.MAX_EPOCH 2", "SOLVER.WARMUP_ITERS 0", "SOLVER.CHECKPOINT_PERIOD 1"),
    *overrides("TEST.EVAL_PERIOD 1", "DATASETS.NAMES ('Market1501',)", "DATASETS.TESTS ('Market1501',)"),
]


def _frozen(file: str, *opts: str) -> CfgNode:
    cfg = load_config(str(CONFIGS / file) if file else "", overrides(*opts))
    cfg.freeze()
    return cfg


def tiny_adaptation(output: Path, *opts: str) -> CfgNode:
    """The config of DukeMTMC-reID -> Market-1501 with the tiny network, frozen; `opts` override it."""
    source = ("SSKD.SOURCE.OPTS", str(TINY_SOURCE[len(TINY) :]))
    return _frozen("sskd_d2m.yml", *TINY_TARGET, *source, "OUTPUT_DIR", str(output), *opts)


def tiny_source(output: Path, *opts: str) -> CfgNode:
    """The config of its source pre-training, frozen."""
    return _frozen("source_d2m.yml", *TINY_SOURCE, "OUTPUT_DIR", str(output), *opts)


def tiny_baseline(output: Path, *opts: str) -> CfgNode:
    """A plain fast-reid config: its Baseline on Market-1501, frozen."""
    return _frozen("", *TINY_BASELINE, "OUTPUT_DIR", str(output), *opts)
