"""Networks of timm as backbones: maps and tokens, sizes, layouts of weights, refusals, a step of peers."""

import copy
import sys

import pytest
import torch
from fastreid.modeling import build_model
from fastreid.modeling.backbones import build_backbone
from fastreid.utils.events import EventStorage
from host_backbones import config, one_step
from torch import nn

from fastreid_sskd.engine.check_config import build_network, check_network, check_settings
from fastreid_sskd.engine.hooks import FreezeLayers
from fastreid_sskd.modeling import build_peer, chunk_batch_norm
from fastreid_sskd.modeling.bn_chunk import has_batch_norm, say_without_batch_norm
from fastreid_sskd.modeling.weights import WeightsError, load_network, read_state_dict

timm = pytest.importorskip("timm", reason='needs the extra timm: pip install "fastreid-sskd[timm]"')
safetensors = pytest.importorskip("safetensors.torch", reason="timm requires it")

# timm's name -> values of a feature, shape of the maps of an image of 64 x 32
NETWORKS = {
    "test_vit": (64, (1, 1)),
    "test_vit3": (96, (1, 1)),  # pools by attention
    "test_convnext": (64, (4, 2)),
    "test_resnet": (96, (4, 2)),
    "test_efficientnet": (256, (4, 2)),
    "mobilenetv3_small_050": (288, (2, 1)),
}


@pytest.fixture
def make():
    """A config of peers with a network of timm."""

    def make(name, *opts, width=None, num_peers=2):
        width = width or NETWORKS[name][0]
        return config(
            "resnet", "MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.DEPTH", name,
            "MODEL.BACKBONE.FEAT_DIM", width, "INPUT.SIZE_TRAIN", [64, 32], "INPUT.SIZE_TEST", [64, 32],
            *opts, num_peers=num_peers,
        )  # fmt: skip

    return make


@pytest.fixture
def save(tmp_path):
    """Writes a state dict, and gives the options that load it."""

    def save(state, name="weights.pth"):
        torch.save(state, tmp_path / name)
        return "MODEL.BACKBONE.PRETRAIN", True, "MODEL.BACKBONE.PRETRAIN_PATH", str(tmp_path / name)

    return save


def random(network: nn.Module) -> nn.Module:
    """No tensor of a network is as it was made, so that one which is not loaded shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) * 0.2 + 0.1)
    return network.eval()


# ---- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_maps(make, name):
    """Maps, whatever the network gives; every parameter learns; copies work."""
    backbone = build_backbone(make(name))
    assert backbone.training
    images = torch.rand(2, 3, 64, 32)
    maps = copy.deepcopy(backbone)(images)
    width, places = NETWORKS[name]
    assert maps.shape == (2, width, *places)
    backbone(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_tokens_are_pooled_as_in_timm(make):
    """By the class token; the features are those of timm's own network without a classifier."""
    backbone = random(build_backbone(make("test_vit")))
    theirs = timm.create_model("test_vit", num_classes=0, img_size=(64, 32)).eval()
    theirs.load_state_dict(backbone.state_dict())
    images = torch.rand(2, 3, 64, 32)
    assert torch.equal(backbone(images)[:, :, 0, 0], theirs(images))
    assert torch.equal(backbone(images)[:, :, 0, 0], theirs.forward_features(images)[:, 0])


def test_maps_are_those_of_timm(make):
    backbone = random(build_backbone(make("test_resnet", "MODEL.BACKBONE.LAST_STRIDE", 2)))
    theirs = timm.create_model("test_resnet", num_classes=0).eval()
    theirs.load_state_dict(backbone.state_dict())
    images = torch.rand(2, 3, 64, 32)
    assert torch.equal(backbone(images), theirs.forward_features(images))
    assert backbone(images).shape[2:] == (2, 1)


def test_other_sizes_in_evaluation(make):
    cfg = make("test_vit", "INPUT.SIZE_TEST", [96, 48])
    check_network(cfg, 0)
    assert build_backbone(cfg)(torch.rand(1, 3, 96, 48)).shape == (1, 64, 1, 1)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "opts", "said"),
    [
        (
            "test_vti",
            (),
            "must name a network of timm .* got 'test_vti'; the nearest that there is: test_vit",
        ),
        ("hf-hub:someone/something", (), "must name a network of timm"),  # would go to the network
        ("", (), "must name a network of timm"),
        ("test_vit", ("MODEL.BACKBONE.FEAT_DIM", 2048), "FEAT_DIM is 2048.*have 64 values: set it to 64"),
        ("test_vit", ("INPUT.SIZE_TRAIN", [60, 32]), r"cannot take images .* 60 x 32.*as \[64, 32\]"),
        ("test_vit", ("MODEL.HEADS.POOL_LAYER", "GeneralizedMeanPoolingP"), "clips negative values"),
    ],
)
def test_refused(make, name, opts, said):
    with pytest.raises(ValueError, match=said):
        build_network(make(name, *opts, width=64))


def test_timm_is_missing(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        build_network(make("test_vit"))


def test_nothing_is_downloaded(make):
    with pytest.raises(FileNotFoundError, match="nothing is downloaded: set MODEL.BACKBONE.PRETRAIN_PATH"):
        build_backbone(make("test_vit", "MODEL.BACKBONE.PRETRAIN", True))


def test_a_name_passes_the_check_of_settings(make):
    cfg = make("test_vit.r160_in1k", width=64)
    check_settings(cfg, "MODEL.")
    check_network(cfg, 0)


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "state_dict.module.", "backbone.", "teacher.backbone."])
@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "mobilenetv3_small_050"])
def test_weights_of_timm(make, save, name, prefix):
    """A file of the whole network, with its classifier, behind any prefix."""
    theirs = random(timm.create_model(name, **({"img_size": (64, 32)} if name == "test_vit" else {})))
    backbone = build_backbone(make(name, *save({prefix + key: v for key, v in theirs.state_dict().items()})))
    found = backbone.state_dict()
    assert found and all(torch.equal(value, theirs.state_dict()[key]) for key, value in found.items())


def test_safetensors(make, tmp_path):
    theirs = random(timm.create_model("test_resnet"))
    path = str(tmp_path / "model.safetensors")
    safetensors.save_file(theirs.state_dict(), path)
    cfg = make("test_resnet", "MODEL.BACKBONE.PRETRAIN", True, "MODEL.BACKBONE.PRETRAIN_PATH", path)
    found = build_backbone(cfg).state_dict()
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in found.items())


@pytest.mark.parametrize("size", [(160, 160), (96, 32)])
def test_positions_are_resized(make, save, size):
    """From a square grid, and from one of about the same shape; all else is loaded as it is."""
    theirs = random(timm.create_model("test_vit", img_size=size))
    backbone = build_backbone(make("test_vit", *save(theirs.state_dict()))).state_dict()
    positions = backbone.pop("pos_embed")
    assert positions.shape == (1, 1 + 4 * 2, 64)
    assert torch.equal(positions[:, 0], theirs.pos_embed[:, 0])
    assert torch.isfinite(positions).all() and 0.1 <= positions.min() and positions.max() <= 0.3
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in backbone.items())


def test_layout_of_dinov2(make, save):
    """Registers, another order of positions and a mask token, which timm's own rules convert."""
    name = "vit_small_patch14_reg4_dinov2"
    cfg = make(name, "INPUT.SIZE_TRAIN", [56, 28], width=384)
    own = random(build_backbone(cfg)).state_dict()
    token, positions = own["cls_token"], own["pos_embed"]
    state = {key: value for key, value in own.items() if key not in ("reg_token", "pos_embed", "cls_token")}
    state |= {"register_tokens": own["reg_token"] + 1, "mask_token": torch.zeros(1, 384), "cls_token": token}
    state["pos_embed"] = torch.cat([torch.ones(1, 1, 384), positions], dim=1)
    cfg.merge_from_list([*save(state)])
    found = build_backbone(cfg).state_dict()
    assert torch.equal(found["reg_token"], own["reg_token"] + 1)
    assert torch.equal(found["cls_token"], token + 1)
    assert torch.equal(found["pos_embed"], positions)


@pytest.mark.parametrize("other", ["test_resnet", "test_vit2", "test_convnext2"])
def test_weights_of_another_network(make, save, other):
    with pytest.raises(WeightsError, match="another network than the config describes"):
        build_backbone(make("test_vit", *save(timm.create_model(other).state_dict())))


def test_a_part_is_refused(make, save):
    state = {
        key: v for key, v in timm.create_model("test_convnext").state_dict().items() if "stages.3" not in key
    }
    with pytest.raises(WeightsError, match="missing"):
        build_backbone(make("test_convnext", *save(state)))


def test_source_weights_of_another_size(make, tmp_path):
    """A fast-reid checkpoint at one image size starts peers at another; the neck comes along."""
    source = random(build_peer(make("test_vit")))
    path = str(tmp_path / "source.pth")
    torch.save({"model": source.state_dict()}, path)
    peer = build_peer(make("test_vit", "INPUT.SIZE_TRAIN", [96, 48]))
    assert not load_network(peer, read_state_dict(path), path)
    assert torch.equal(peer.heads.bottleneck[0].running_mean, source.heads.bottleneck[0].running_mean)
    assert torch.equal(peer.backbone.norm.weight, source.backbone.norm.weight)


# ---- the method ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("statistics", ["batch", "student"])
def test_a_step_of_two_peers(make, name, statistics):
    torch.manual_seed(0)
    cfg = make(name, "SSKD.SOFT_LABELS.BN", statistics)
    one_step(cfg, build_model(cfg), NETWORKS[name][0])


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_batch_norm_in_chunks(make, name):
    """Each chunk as a batch of its own, of timm's norms with an activation too."""
    whole = build_backbone(make(name)).train()
    chunked = copy.deepcopy(whole)
    assert chunk_batch_norm(chunked, 4) == sum("BatchNorm" in type(m).__name__ for m in whole.modules()) > 0
    images = torch.rand(8, 3, 64, 32)
    expected = torch.cat([copy.deepcopy(whole)(half) for half in images.split(4)])
    torch.testing.assert_close(chunked(images), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(chunked.eval()(images[:1]).isfinite(), torch.ones_like(expected[:1]).bool())


def test_without_batch_norm_the_neck_is_left(make, caplog):
    peer = build_peer(make("test_vit", "SSKD.BN_CHUNK", 4))
    assert not has_batch_norm(peer.backbone) and has_batch_norm(peer.heads)
    bare = build_peer(make("test_convnext", "MODEL.HEADS.WITH_BNNECK", False))
    resnet = build_peer(make("test_resnet"))
    with caplog.at_level("INFO", "fastreid.sskd.batch_norm"):
        say_without_batch_norm([peer, peer, bare, resnet])
    first, second = caplog.messages
    assert first.startswith("TimmVisionTransformer") and first.endswith("act on the neck alone")
    assert second.startswith("TimmConvNeXt") and second.endswith("nothing, as the head has none either")


def test_source_stage_without_any_batch_norm(make):
    """Target images have nothing to pass through, so they do not."""
    cfg = make("test_vit", "MODEL.HEADS.WITH_BNNECK", False, "MODEL.META_ARCHITECTURE", "SSKDSource")
    cfg.SSKD.LOSSES.SoftCE.WEIGHT = 0.0
    cfg.MODEL.HEADS.NUM_CLASSES = 4
    model = build_model(cfg).train()
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(1))
    images = torch.rand(8, 3, 64, 32) * 255
    model({"images": images, "targets": torch.arange(4).repeat_interleave(2), "bn_images": images})
    assert len(passes) == 1


def test_layers_are_frozen_by_name(make):
    model = build_model(make("test_vit", num_peers=1))
    with pytest.raises(ValueError, match="names 'patch_embed'"):
        FreezeLayers(list(model.students), ["patch_embed"], 1)
    assert FreezeLayers(list(model.students), ["backbone"], 1).modules == [model.students[0].backbone]


def test_a_plain_model_of_the_host(make):
    """Baseline, fast-reid's own, trains on it as well."""
    cfg = make("test_vit", "MODEL.META_ARCHITECTURE", "Baseline", "MODEL.HEADS.NUM_CLASSES", 4)
    model = build_model(cfg).train()
    batch = {"images": torch.rand(8, 3, 64, 32) * 255, "targets": torch.arange(4).repeat_interleave(2)}
    with EventStorage():
        sum(model(batch).values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.backbone.parameters())
