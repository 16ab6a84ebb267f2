"""The families of fast-reid's backbones, each as small as it goes, as peers of an SSKD model."""

import fastreid_sskd  # noqa: F401  first of all: it mends the host before anything else imports it

# isort: split
import torch
import torch.nn.functional as F
from fastreid.config import CfgNode, get_cfg

from fastreid_sskd import add_sskd_config
from fastreid_sskd.engine.train_step import build_optimizer
from fastreid_sskd.modeling import SSKD

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
    cfg.merge_from_list([
        "MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "SSKD", "MODEL.BACKBONE.NAME", name,
        "MODEL.BACKBONE.DEPTH", depth, "MODEL.BACKBONE.FEAT_DIM", width, "MODEL.BACKBONE.PRETRAIN", False,
        "MODEL.HEADS.WITH_BNNECK", True, "MODEL.HEADS.POOL_LAYER", "GlobalAvgPool",
        "MODEL.HEADS.NECK_FEAT", "before", "INPUT.SIZE_TRAIN", SIZE, "INPUT.SIZE_TEST", SIZE,
        "SSKD.NUM_PEERS", num_peers, *keys, *opts,
    ])  # fmt: skip
    return cfg


def one_step(cfg: CfgNode, model: SSKD, size: int) -> None:
    """Take the classifiers of a refresh, a step, the teachers' first update, and features of `size` values.

    Losses are finite, the students move, and the first update makes the teachers of them.
    """
    model.train().reset_classifiers(F.normalize(torch.randn(4, model.centroid_size), dim=1))
    before = [parameter.detach().clone() for parameter in model.students.parameters()]
    optimizer = build_optimizer(cfg, list(model.students))
    images = torch.rand(8, model.num_peers, 3, *cfg.INPUT.SIZE_TRAIN) * 255
    losses = model({"images": images, "targets": torch.arange(4).repeat_interleave(2)})
    sum(losses.values()).backward()
    optimizer.step()
    model.update_teachers(0, 0.9)
    assert all(torch.isfinite(loss) for loss in losses.values()) and len(losses) == 4 * model.num_peers
    moved = [not torch.equal(old, new) for old, new in zip(before, model.students.parameters())]
    assert sum(moved) > 0.9 * len(moved)
    for student, teacher in zip(model.students.parameters(), model.teachers.parameters()):
        assert torch.equal(student, teacher)
    features = model.eval()({"images": torch.rand(3, 3, *cfg.INPUT.SIZE_TEST) * 255})
    assert features.shape == (3, size) and torch.isfinite(features).all()
