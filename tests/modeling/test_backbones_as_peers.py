"""Every family of fast-reid's backbones trains as a peer: one step on the CPU, as small as it goes."""

import pytest
import torch
from fastreid.modeling import build_model
from host_backbones import BACKBONES, SIZE, config

from fastreid_sskd.engine.train_step import build_optimizer


def one_step(cfg, model, num_classes=4):
    """A refresh's classifiers, a step of the optimiser, the teachers' update; returns the losses."""
    images = torch.rand(8, model.num_peers, 3, *SIZE) * 255
    model.train()
    model.reset_classifiers(
        torch.nn.functional.normalize(torch.randn(num_classes, model.centroid_size), dim=1)
    )
    optimizer = build_optimizer(cfg, list(model.students))
    losses = model({"images": images, "targets": torch.arange(4).repeat_interleave(2)})
    sum(losses.values()).backward()
    optimizer.step()
    model.update_teachers(0, 0.9)
    return losses


SHUFFLENET = (
    "MODEL.BACKBONE.NAME",
    "build_shufflenetv2_backbone",
    "MODEL.BACKBONE.DEPTH",
    "0.5x",
    "MODEL.BACKBONE.FEAT_DIM",
    1024,
)
CLAS_HEAD = ("MODEL.HEADS.NAME", "ClasHead", "MODEL.HEADS.CLS_LAYER", "CosSoftmax")
EMBEDDING = ("MODEL.HEADS.EMBEDDING_DIM", 16, "MODEL.HEADS.CLS_LAYER", "ArcSoftmax")
CASES = {name: (name, (), BACKBONES[name][2]) for name in BACKBONES} | {
    "shufflenet": ("resnet", SHUFFLENET, 1024),
    "ClasHead, CosSoftmax": ("resnet", CLAS_HEAD, 512),
    "embedding, ArcSoftmax": ("resnet", EMBEDDING, 16),
}


@pytest.mark.parametrize("case", CASES)
def test_one_step(case):
    torch.manual_seed(0)
    backbone, opts, size = CASES[case]
    cfg = config(backbone, *opts, num_peers=2 if backbone != "vit" else 1)
    model = build_model(cfg)
    before = [parameter.detach().clone() for parameter in model.students.parameters()]
    losses = one_step(cfg, model)
    assert all(torch.isfinite(loss) for loss in losses.values()) and len(losses) == 4 * model.num_peers
    moved = [not torch.equal(old, new) for old, new in zip(before, model.students.parameters())]
    assert sum(moved) > 0.9 * len(moved)
    # the first update makes the teacher the student
    for student, teacher in zip(model.students.parameters(), model.teachers.parameters()):
        assert torch.equal(student, teacher)
    features = model.eval()({"images": torch.rand(3, 3, *SIZE) * 255})
    assert features.shape == (3, size) and torch.isfinite(features).all()


@pytest.mark.parametrize("backbone", ["resnet_ibn", "osnet", "mobilenet", "repvgg"])
def test_batch_norm_in_chunks(backbone):
    """They have plain batch norm throughout, so that SSKD.BN_CHUNK can stand in for the authors' GPUs."""
    cfg = config(backbone, "SSKD.BN_CHUNK", 4, num_peers=1)
    assert all(torch.isfinite(loss) for loss in one_step(cfg, build_model(cfg)).values())
