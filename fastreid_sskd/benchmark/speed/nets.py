"""The networks that a training step is measured with, as configs."""
import torch
from fastreid.config import CfgNode

from ...engine import load_config

__all__ = ["NETWORKS", "benchmark_config"]

#: name: (backbone, depth, channels of its feature, images of a batch, (height, width))
NETWORKS = {
    "resnet50": ("build_resnet_backbone", "50x", 2048, 16, (256, 128)),
    "osnet_x0_25": ("build_osnet_backbone", "x0_25", 128, 64, (256, 128)),
    "mobilenetv2": ("build_mobilenetv2_backbone", "1.0x", 1280, 16, (256, 128)),
    "resnet18": ("build_resnet_backbone", "18x", 512, 32, (64, 32)),
}

_WORKERS = 4  # of configs/base_network.yml


def _workers(device: str) -> int:
    """None on the CPU, whose cores the networks have; those of the shipped configs where they load while a device computes."""
    return 0 if torch.device(device).type == "cpu" else _WORKERS


def benchmark_config(
    name: str, device: str, *, batch: int | None = None, size: tuple[int, int] | None = None, peers: int = 3, steps: int = 1,
    dtype: str = "float32", channels_last: bool = False, compiled: bool = False,
) -> CfgNode:
    """The method's config for one of :data:`NETWORKS`, random weights, an epoch of ``steps`` steps.

    Args:
        batch: images of a batch, a multiple of 4; None: the network's own.
        size: (height, width); None: the network's own.
        dtype: "float32", or a value of ``SSKD.AMP_DTYPE``.

    Raises:
        ValueError: if the network is not known.
    """
    if name not in NETWORKS:
        raise ValueError(f"no network {name!r}: known are {', '.join(NETWORKS)}")
    backbone, depth, channels, own_batch, own_size = NETWORKS[name]
    height, width = size or own_size
    options = {
        "MODEL.META_ARCHITECTURE": "SSKD", "MODEL.DEVICE": device, "MODEL.BACKBONE.NAME": backbone,
        "MODEL.BACKBONE.DEPTH": depth, "MODEL.BACKBONE.FEAT_DIM": channels, "MODEL.BACKBONE.LAST_STRIDE": 1,
        "MODEL.BACKBONE.PRETRAIN": False, "MODEL.HEADS.NAME": "EmbeddingHead", "MODEL.HEADS.POOL_LAYER": "GlobalAvgPool",
        "MODEL.HEADS.WITH_BNNECK": True, "MODEL.HEADS.NECK_FEAT": "before", "MODEL.HEADS.CLS_LAYER": "Linear",
        "INPUT.SIZE_TRAIN": [height, width], "INPUT.SIZE_TEST": [height, width], "INPUT.FLIP.ENABLED": True,
        "INPUT.PADDING.ENABLED": True, "INPUT.PADDING.SIZE": max(1, height // 25), "INPUT.REA.ENABLED": True,
        "DATALOADER.NUM_WORKERS": _workers(device), "DATALOADER.NUM_INSTANCE": 4, "CUDNN_BENCHMARK": True, "SOLVER.OPT": "Adam", "SOLVER.BASE_LR": 3.5e-4,
        "SOLVER.IMS_PER_BATCH": batch or own_batch, "SOLVER.AMP.ENABLED": dtype != "float32", "SEED": 1,
        "SSKD.AMP_DTYPE": "auto" if dtype == "float32" else dtype, "SSKD.NUM_PEERS": peers, "SSKD.ITERS_PER_EPOCH": steps,
        "SSKD.CHANNELS_LAST": channels_last, "SSKD.COMPILE": compiled,
    }  # fmt: skip
    return load_config("", [str(part) for option in options.items() for part in option])
