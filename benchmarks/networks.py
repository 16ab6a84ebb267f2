"""The networks, images and plain batches that the speed scripts measure with."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.data.data_utils import read_image
from fastreid.data.transforms import build_transforms
from PIL import Image

from fastreid_sskd.engine import load_config

#: name: (backbone, depth, channels of its feature, images of a batch, (height, width))
NETWORKS = {
    "resnet50": ("build_resnet_backbone", "50x", 2048, 16, (256, 128)),
    "osnet_x0_25": ("build_osnet_backbone", "x0_25", 128, 64, (256, 128)),
    "mobilenetv2": ("build_mobilenetv2_backbone", "1.0x", 1280, 16, (256, 128)),
    "resnet18": ("build_resnet_backbone", "18x", 512, 32, (64, 32)),
}

_WORKERS = 4  # of configs/base_network.yml


def _workers(device: str) -> int:
    """None on the CPU, whose cores the networks have.

    Those of the shipped configs where they load while a device computes.
    """
    return 0 if torch.device(device).type == "cpu" else _WORKERS


def benchmark_config(
    name: str,
    device: str,
    *,
    batch: int | None = None,
    size: tuple[int, int] | None = None,
    peers: int = 3,
    steps: int = 1,
    dtype: str = "float32",
    channels_last: bool = False,
    compiled: bool = False,
) -> CfgNode:
    """The method's config for one of :data:`NETWORKS`, random weights, an epoch of ``steps`` steps.

    Args:
        batch: images of a batch, a multiple of 4; None: the network's own.
        size: (height, width); None: the network's own.
        dtype: ``SSKD.PRECISION``.

    Raises:
        ValueError: if the network is not known.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}: known are {', '.join(NETWORKS)}")
    backbone, depth, channels, own_batch, own_size = NETWORKS[name]
    height, width = size or own_size
    options = {
        "MODEL.META_ARCHITECTURE": "SSKD",
        "MODEL.DEVICE": device,
        "MODEL.BACKBONE.NAME": backbone,
        "MODEL.BACKBONE.DEPTH": depth,
        "MODEL.BACKBONE.FEAT_DIM": channels,
        "MODEL.BACKBONE.LAST_STRIDE": 1,
        "MODEL.BACKBONE.PRETRAIN": False,
        "MODEL.HEADS.NAME": "EmbeddingHead",
        "MODEL.HEADS.POOL_LAYER": "GlobalAvgPool",
        "MODEL.HEADS.WITH_BNNECK": True,
        "MODEL.HEADS.NECK_FEAT": "before",
        "MODEL.HEADS.CLS_LAYER": "Linear",
        "INPUT.SIZE_TRAIN": [height, width],
        "INPUT.SIZE_TEST": [height, width],
        "INPUT.FLIP.ENABLED": True,
        "INPUT.PADDING.ENABLED": True,
        "INPUT.PADDING.SIZE": max(1, height // 25),
        "INPUT.REA.ENABLED": True,
        "DATALOADER.NUM_WORKERS": _workers(device),
        "DATALOADER.NUM_INSTANCE": 4,
        "CUDNN_BENCHMARK": True,
        "SOLVER.OPT": "Adam",
        "SOLVER.BASE_LR": 3.5e-4,
        "SOLVER.IMS_PER_BATCH": batch or own_batch,
        "SEED": 1,
        "SSKD.PRECISION": dtype,
        "SSKD.NUM_PEERS": peers,
        "SSKD.ITERS_PER_EPOCH": steps,
        "SSKD.CHANNELS_LAST": channels_last,
        "SSKD.COMPILE": compiled,
    }
    return load_config("", [str(part) for option in options.items() for part in option])


def write_crops(
    folder: Path, count: int, size: tuple[int, int] = (128, 64), seed: int = 0
) -> list[tuple[str, int, int]]:
    """Write ``count`` images of (height, width) ``size``.

    (path, identity, camera) of each, four images an identity.
    """
    folder.mkdir(parents=True, exist_ok=True)
    random, (height, width) = np.random.default_rng(seed), size
    items = []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        path = folder / f"{number:06d}.jpg"
        coarse.resize((width, height), Image.BICUBIC).save(path, quality=90)
        items.append((str(path), number // 4, number % 4 % 2))
    return items


def plain_batches(
    cfg: CfgNode, items: Sequence[tuple], draws: Sequence[Sequence[tuple[int, int]]]
) -> Iterator[dict]:
    """Batches of the host's images: each decoded, then K times through all of the host's transforms.

    Args:
        items: (path, identity, camera).
        draws: one list a batch, of (index of an item, its label).
    """
    transforms = build_transforms(cfg, is_train=True)
    for draw in draws:
        views = []
        for index, _ in draw:
            image = read_image(items[index][0])
            views.append(torch.stack([transforms(image) for _ in range(cfg.SSKD.NUM_PEERS)]))
        yield {"images": torch.stack(views), "targets": torch.tensor([label for _, label in draw])}
