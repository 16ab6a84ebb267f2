"""Networks of other toolboxes start ours: the outputs are those of the original, whatever its names."""

import pytest
import torch
import torchvision
from fastreid.modeling import build_model
from host_backbones import config
from torch import nn

from fastreid_sskd.modeling import build_peer
from fastreid_sskd.modeling.layouts import find_backbone
from fastreid_sskd.modeling.weights import WeightsError, load_backbone, load_network, read_state_dict


def random(network: nn.Module, seed: int = 3) -> nn.Module:
    """Weights and statistics that a network does not begin with, so that what is not loaded shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in network.state_dict().values():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                value.copy_(noise * 0.5 + 0.75 if value.ndim == 1 else (noise - 0.5) * 0.2)
    return network.eval()


def named(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def moco(state):
    """LUPerson: the query encoder, its projection, and the momentum encoder beside it."""
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    both = {**named("module.encoder_k.", other), **named("module.encoder_q.", state)}
    return {
        "state_dict": {
            **both,
            "module.queue": torch.zeros(4, 4),
            "module.encoder_q.fc.0.weight": torch.ones(9, 9),
        }
    }


def moco3(state):
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    both = {**named("module.momentum_encoder.", other), **named("module.base_encoder.", state)}
    return {"state_dict": {**both, "module.predictor.0.weight": torch.ones(9, 9)}}


def dino(state):
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    own = {**named("module.backbone.", state), "module.head.mlp.0.weight": torch.ones(9, 9)}
    return {"student": named("module.backbone.", other), "teacher": own, "epoch": 99}


LAYOUTS = {
    "torchvision": lambda state: state,
    "MoCo": moco,
    "MoCo v3": moco3,
    "DINO": dino,
    "TransReID": lambda state: {**named("base.", state), "classifier.weight": torch.ones(9, 9)},
    "torchreid": lambda state: {
        "state_dict": named("module.", {**state, "classifier.weight": torch.ones(9, 9)})
    },
    "fast-reid": lambda state: {"model": {**named("backbone.", state), "heads.weight": torch.ones(9, 512)}},
}
RESNET = torchvision.models.resnet18
KEYS = ("MODEL.BACKBONE.LAST_STRIDE", 2, "INPUT.SIZE_TRAIN", [64, 32], "INPUT.SIZE_TEST", [64, 32])


def timm_keys(name, width, *opts):
    pytest.importorskip("timm", reason='needs the extra timm: pip install "fastreid-sskd[timm]"')
    keys = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.DEPTH", name)
    return *keys, "MODEL.BACKBONE.FEAT_DIM", width, "MODEL.HEADS.POOL_LAYER", "Identity", *KEYS, *opts


@pytest.fixture(params=["fast-reid's ResNet", "timm's ResNet"])
def resnet(request):
    """The config of a ResNet-18 of two toolboxes."""
    ours = request.param.startswith("fast-reid")
    return config(
        "resnet",
        *(KEYS if ours else (*timm_keys("resnet18", 512), "MODEL.HEADS.POOL_LAYER", "GlobalAvgPool")),
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resnet_of_any_layout(resnet, tmp_path, layout):
    """By PRETRAIN_PATH and SSKD.SOURCE.WEIGHTS alike: the maps are the original's."""
    theirs = random(RESNET(weights=None))
    if resnet.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        theirs.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)  # the host's own
    images = torch.rand(2, 3, 64, 32)
    expected = nn.Sequential(*list(theirs.children())[:-2])(images)
    path = str(tmp_path / "w.pth")
    torch.save(LAYOUTS[layout](theirs.state_dict()), path)
    peer, backbone = build_peer(resnet).eval(), build_peer(resnet).backbone.eval()
    load_network(peer, read_state_dict(path), path)
    load_backbone(backbone, path)
    for network in (peer.backbone, backbone):
        torch.testing.assert_close(network(images), expected)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("neck", ["bottleneck", "feat_bn", "heads.bnneck"])
def test_the_neck_of_other_toolboxes_is_taken(relu, neck):
    """With the backbone kept as one nn.Sequential, as in MMT and SpCL."""
    theirs, norm = random(RESNET(weights=None)), random(nn.BatchNorm1d(512), 4)
    parts = [part for part in list(theirs.children())[:-2] if relu or not isinstance(part, nn.ReLU)]
    base = nn.Sequential(*parts).state_dict()
    state = {**named("module.base.", base), **named(f"module.{neck}.", norm.state_dict())}
    peer = build_peer(config("resnet", *KEYS)).eval()
    assert not load_network(peer, named("state_dict.", state), "somewhere")
    maps = torch.rand(2, 512, 1, 1)
    torch.testing.assert_close(peer.heads.bottleneck[0](maps)[:, :, 0, 0], norm(maps[:, :, 0, 0]))


def test_a_neck_of_another_size_is_left_out():
    state = {
        **named("base.", RESNET(weights=None).state_dict()),
        **named("bottleneck.", nn.BatchNorm1d(9).state_dict()),
    }
    assert "heads.bottleneck.0.weight" in load_network(
        build_peer(config("resnet", *KEYS)), state, "somewhere"
    )


def small_vit(size):
    vit = torchvision.models.VisionTransformer(
        image_size=size, patch_size=16, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=5
    )
    return random(vit)


def test_torchvisions_vit(tmp_path):
    """Through a network of timm of the same image size."""
    theirs = small_vit(64)
    keys = timm_keys("vit_tiny_patch16_224", 192, "INPUT.SIZE_TRAIN", [64, 64], "INPUT.SIZE_TEST", [64, 64])
    backbone = build_peer(config("resnet", *keys)).backbone.eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    load_backbone(backbone, str(tmp_path / "w.pth"))
    images = torch.rand(2, 3, 64, 64)
    theirs.heads = nn.Identity()
    torch.testing.assert_close(backbone(images)[:, :, 0, 0], theirs(images), rtol=1e-4, atol=1e-5)


def test_torchvisions_convnext(tmp_path):
    theirs = random(torchvision.models.convnext_tiny(weights=None))
    keys = (*timm_keys("convnext_tiny", 768), "MODEL.HEADS.POOL_LAYER", "GlobalAvgPool")
    backbone = build_peer(config("resnet", *keys)).backbone.eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    load_backbone(backbone, str(tmp_path / "w.pth"))
    images = torch.rand(1, 3, 64, 32)
    torch.testing.assert_close(backbone(images), theirs.features(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(96, 96), (128, 64)])
def test_positions_are_resampled_as_timm_does(size):
    """Of a square grid and of another of the own shape, in a file of TransReID."""
    timm = pytest.importorskip("timm", reason='needs the extra timm: pip install "fastreid-sskd[timm]"')
    theirs = random(timm.create_model("test_vit", img_size=size))
    backbone = build_peer(config("resnet", *timm_keys("test_vit", 64))).backbone
    found = find_backbone(backbone, named("base.", theirs.state_dict()))
    assert found.whole and found.prefix == "base."
    expected = timm.layers.resample_abs_pos_embed(
        theirs.pos_embed, [4, 2], [side // 16 for side in size], num_prefix_tokens=1
    )
    torch.testing.assert_close(found.found["pos_embed"], expected)


def test_a_refusal_lists_names_of_both_sides():
    peer, before = (build_peer(config("resnet", *KEYS)) for _ in range(2))
    before.load_state_dict(peer.state_dict())
    state = torchvision.models.alexnet(weights=None).state_dict()
    with pytest.raises(
        WeightsError, match="(?s)0 of 100 backbone .*missing: conv1.weight.*only in the file: features.0"
    ):
        load_network(peer, state, "somewhere")
    for one, other in zip(peer.state_dict().values(), before.state_dict().values()):
        assert torch.equal(one, other)


def test_a_layer_that_no_file_has_starts_at_random_but_is_not_evaluated(tmp_path):
    """MobileNetV3's last layer is the host's own."""
    keys = ("MODEL.BACKBONE.NAME", "build_mobilenetv3_backbone", "MODEL.BACKBONE.DEPTH", "Small")
    cfg = config("resnet", *keys, "MODEL.BACKBONE.FEAT_DIM", 576, *KEYS)
    state = torchvision.models.mobilenet_v3_small(weights=None).state_dict()
    load_network(build_peer(cfg), state, "somewhere")
    cfg.MODEL.META_ARCHITECTURE = "Baseline"
    with pytest.raises(WeightsError, match="5 missing: conv.0.weight"):
        load_network(build_model(cfg), state, "somewhere", evaluation=True)
