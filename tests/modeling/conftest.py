"""Networks small enough to check by hand, built from the host's head and a backbone of two convolutions."""

import pytest
import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import ClasHead, EmbeddingHead
from torch import nn

from fastreid_sskd import add_sskd_config
from fastreid_sskd.losses import build_loss_set
from fastreid_sskd.modeling import SSKD, Peer

HEADS = {"EmbeddingHead": EmbeddingHead, "ClasHead": ClasHead}
METHOD = (("LabelSmoothCE", 0.5), ("SoftCE", 0.5), ("MultiSimilarity", 3.0), ("NuclearNorm", 1.5))
MEAN, STD = (120.0, 115.0, 105.0), (58.0, 57.0, 56.0)


class TinyBackbone(nn.Module):
    """(B, 3, 12, 6) -> (B, 8, 6, 3), with two batch norms."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)

    def forward(self, images):
        return self.bn2(self.conv2(self.bn1(self.conv1(images)).relu())).relu()


@BACKBONE_REGISTRY.register()
def build_tiny_backbone_of_the_tests(cfg):
    return TinyBackbone()


def _head(num_classes: int, cls_type: str, kind: str, neck_feat: str) -> nn.Module:
    return HEADS[kind](
        feat_dim=8,
        embedding_dim=0,
        num_classes=num_classes,
        neck_feat=neck_feat,
        pool_type="GlobalAvgPool",
        cls_type=cls_type,
        scale=1,
        margin=0.0,
        with_bnneck=True,
        norm_type="BN",
    )


@pytest.fixture
def make_peer():
    """Build a peer whose weights, classifier and running statistics are all random, by a seed."""

    def make(seed=0, num_classes=4, cls_type="Linear", head="EmbeddingHead", neck_feat="before") -> Peer:
        torch.manual_seed(seed)
        peer = Peer(TinyBackbone(), _head(num_classes, cls_type, head, neck_feat))
        nn.init.normal_(peer.heads.weight)  # the host's 0.01 makes every softmax flat
        for module in peer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        return peer

    return make


@pytest.fixture
def make_model(make_peer):
    """Build an SSKD model in train mode, its teachers moved away from their students, without the config."""

    def make(num_peers=3, losses=METHOD, eval_with="best", num_classes=4, cls_type="Linear") -> SSKD:
        model = SSKD(
            students=[make_peer(k, num_classes, cls_type) for k in range(num_peers)],
            losses=build_loss_set([(name, weight, {}) for name, weight in losses]),
            pixel_mean=MEAN,
            pixel_std=STD,
            eval_with=eval_with,
        )
        with torch.no_grad():
            for parameter in model.teachers.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model.train()

    return make


@pytest.fixture
def make_batch():
    """Build a training batch of 4 identities x 4 images in K different views."""

    def make(num_peers=3, seed=0) -> dict:
        generator = torch.Generator().manual_seed(seed)
        return {
            "images": torch.randint(0, 256, (16, num_peers, 3, 12, 6), generator=generator).float(),
            "targets": torch.arange(4).repeat_interleave(4),
        }

    return make


@pytest.fixture
def normalised():
    """(x - mean) / std by hand."""

    def normalise(images):
        return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)

    return normalise


@pytest.fixture
def cfg() -> CfgNode:
    """The host's configuration with ``SSKD``, for the tiny backbone on the CPU."""
    cfg = get_cfg()
    add_sskd_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "SSKD"
    cfg.MODEL.BACKBONE.NAME = "build_tiny_backbone_of_the_tests"
    cfg.MODEL.BACKBONE.FEAT_DIM = 8
    cfg.MODEL.BACKBONE.NORM = "BN"
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.HEADS.NORM = "BN"
    cfg.MODEL.HEADS.WITH_BNNECK = True
    cfg.MODEL.HEADS.POOL_LAYER = "GlobalAvgPool"
    cfg.MODEL.HEADS.NUM_CLASSES = 4
    return cfg


@pytest.fixture
def assert_same_state():
    """Compare two state dicts exactly, or say how to compare their tensors."""

    def compare(state, expected, **tolerance):
        assert list(state) == list(expected)
        for name, value in expected.items():
            if tolerance:
                torch.testing.assert_close(
                    state[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
                )
            else:
                assert torch.equal(state[name], value), name

    return compare


@pytest.fixture
def copy_state():
    """A state dict that later training does not change."""
    return lambda module: {name: value.clone() for name, value in module.state_dict().items()}
