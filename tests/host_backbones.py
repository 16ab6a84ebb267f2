"""The families of fast-reid's backbones, each as small as it goes, as peers of an SSKD model."""

import fastreid_sskd  # noqa: F401  first of all: it mends the host before anything else imports it

# isort: split
from fastreid.config import CfgNode, get_cfg

from fastreid_sskd import add_sskd_config

SIZE = [32, 16]
# name, depth, size of its features, further keys
BACKBONES = {
    "resnet": ("build_resnet_backbone", "18x", 512, []),
    "resnet_ibn": ("build_resnet_backbone", "18x", 512, ["MODEL.BACKBONE.WITH_IBN", True]),
    "osnet": ("build_osnet_backbone", "x0_25", 128, []),
    "mobilenet": ("build_mobilenetv2_backbone", "0.5x", 1280, []),
    "repvgg": ("build_repvgg_backbone", "A0", 1280, []),
    "vit": ("build_vit_backbone", "small", 768, ["MODEL.HEADS.POOL_LAYER", "Identity"]),
}


def config(backbone: str, *opts, num_peers: int = 2) -> CfgNode:
    """An SSKD config of one of them on the CPU, from random weights."""
    name, depth, width, keys = BACKBONES[backbone]
    cfg = get_cfg()
    add_sskd_config(cfg)
    cfg.merge_from_list(
        [
            "MODEL.DEVICE",
            "cpu",
            "MODEL.META_ARCHITECTURE",
            "SSKD",
            "MODEL.BACKBONE.NAME",
            name,
            "MODEL.BACKBONE.DEPTH",
            depth,
            "MODEL.BACKBONE.FEAT_DIM",
            width,
            "MODEL.BACKBONE.PRETRAIN",
            False,
            "MODEL.HEADS.WITH_BNNECK",
            True,
            "MODEL.HEADS.POOL_LAYER",
            "GlobalAvgPool",
            "MODEL.HEADS.NECK_FEAT",
            "before",
            "INPUT.SIZE_TRAIN",
            SIZE,
            "INPUT.SIZE_TEST",
            SIZE,
            "SSKD.NUM_PEERS",
            num_peers,
            *keys,
            *opts,
        ]
    )
    return cfg
