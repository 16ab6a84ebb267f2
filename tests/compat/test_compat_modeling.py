"""The host's models after the patches: inputs, devices, losses, weights."""

import argparse

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastreid_sskd.compat.modeling import to_device


@pytest.fixture(params=["Baseline", "MGN", "MoCo"])
def model(request, cfg):
    from fastreid.modeling import build_model

    cfg.MODEL.META_ARCHITECTURE = request.param
    cfg.MODEL.QUEUE_SIZE = 16
    if request.param == "MGN":
        cfg.MODEL.BACKBONE.DEPTH = "50x"
        cfg.MODEL.BACKBONE.FEAT_DIM = 2048
        cfg.MODEL.HEADS.EMBEDDING_DIM = 16
    torch.manual_seed(0)
    return build_model(cfg)


def test_forward_backward_and_the_batch_is_left_alone(model, batch):
    from fastreid.utils.events import EventStorage

    before = {
        key: value.clone() if isinstance(value, torch.Tensor) else list(value) for key, value in batch.items()
    }
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    for parameter in model.backbone.parameters():
        assert parameter.grad is not None
    assert set(batch) == set(before)
    for key, value in before.items():
        assert torch.equal(batch[key], value) if isinstance(value, torch.Tensor) else batch[key] == value


def test_normalisation_by_hand(model, batch):
    images = model.preprocess_image(batch)
    mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
    torch.testing.assert_close(images, (batch["images"] - mean) / std)
    torch.testing.assert_close(model.preprocess_image(batch["images"]), images)
    torch.testing.assert_close(model.preprocess_image(batch["images"].byte()), images)
    with pytest.raises(TypeError, match="list"):
        model.preprocess_image([1])


class Keep:
    """An evaluator that keeps what it is given."""

    def reset(self):
        self.features = []

    def process(self, inputs, outputs):
        self.features.append(outputs)

    def evaluate(self):
        return {"features": torch.cat(self.features)}


def test_flip_test_is_the_mean_of_image_and_mirror(model, batch):
    from fastreid.evaluation import inference_on_dataset

    class Loader(list):
        dataset = range(8)

    images = batch["images"].clone()
    results = inference_on_dataset(model, Loader([batch]), Keep(), flip_test=True)
    model.eval()
    with torch.no_grad():
        by_hand = (model(images.clone()) + model(images.flip(3))) / 2
    torch.testing.assert_close(results["features"], by_hand, rtol=0, atol=1e-5)
    assert not torch.allclose(by_hand, model(images).detach(), atol=1e-3)


def test_negative_targets_stay_negative_in_the_callers_batch(model, batch):
    from fastreid.utils.events import EventStorage

    batch["targets"] = torch.full((8,), -1)
    with EventStorage():
        model.train()(batch)  # the host's flag for precise BN: a negative sum stands for "all 0"
    assert batch["targets"].tolist() == [-1] * 8


def test_to_device_makes_a_new_dict():
    batch = {"images": torch.zeros(2), "targets": torch.ones(2), "img_paths": ["a", "b"]}
    moved = to_device(batch, torch.device("meta"))
    assert (moved["images"].device.type, moved["targets"].device.type) == ("meta", "meta")
    assert moved["img_paths"] == ["a", "b"]
    assert batch["images"].device.type == "cpu"
    tensor = torch.zeros(1)
    assert to_device(tensor, torch.device("meta")) is tensor


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_a_batch_on_the_cpu_trains_a_model_on_cuda(model, batch):
    from fastreid.utils.events import EventStorage

    model.to("cuda").train()
    with EventStorage():
        losses = model(batch)
    assert all(loss.device.type == "cuda" for loss in losses.values())
    assert batch["images"].device.type == "cpu"


@pytest.mark.parametrize("eps", [0.0, 0.1, -1.0])
def test_cross_entropy_is_the_hosts(host, eps):
    from fastreid.modeling.losses import cross_entropy_loss

    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(6) % 5
    if eps >= 0:
        soft = torch.full((6, 5), eps / 4).scatter(1, targets[:, None], 1 - eps)  # the host's eps / (C - 1)
        expected = -(soft * F.log_softmax(logits, dim=1)).sum(1).mean()
        torch.testing.assert_close(cross_entropy_loss(logits, targets, eps), expected)
    assert torch.equal(
        cross_entropy_loss(logits, targets, eps), cross_entropy_loss.__wrapped__(logits, targets, eps, 0.2)
    )


@pytest.mark.parametrize("eps", [0.1, -1.0])
def test_cross_entropy_of_one_class_is_zero_on_the_graph(host, eps):
    from fastreid.modeling.losses import cross_entropy_loss
    from fastreid.modeling.meta_arch import baseline, mgn

    assert baseline.cross_entropy_loss is mgn.cross_entropy_loss is cross_entropy_loss
    logits = torch.randn(3, 1, requires_grad=True)
    loss = cross_entropy_loss(logits, torch.zeros(3, dtype=torch.int64), eps)
    loss.backward()
    assert (loss.item(), logits.grad.abs().sum().item()) == (0, 0)


BACKBONES = {
    "resnet": ("build_resnet_backbone", "18x"),
    "osnet": ("build_osnet_backbone", "x0_25"),
    "resnext": ("build_resnext_backbone", "50x"),
    "resnest": ("build_resnest_backbone", "50x"),
    "mobilenetv2": ("build_mobilenetv2_backbone", "0.25x"),
    "mobilenetv3": ("build_mobilenetv3_backbone", "Small"),
    "shufflenet": ("build_shufflenetv2_backbone", "0.5x"),
    "repvgg": ("build_repvgg_backbone", "A0"),
    "vit": ("build_vit_backbone", "small"),
    "regnet": ("build_regnet_backbone", "200x"),
    "effnet": ("build_effnet_backbone", "b0"),
}


def named(state, prefix):
    return {prefix + key: value for key, value in state.items()}


# A state dict as public files have it.
LAYOUTS = {
    "torchvision": lambda state: {**state, "fc.weight": torch.zeros(5, 3), "fc.bias": torch.zeros(5)},
    "timm": lambda state: {
        "state_dict": {**state, "head.weight": torch.zeros(5, 3)},
        "epoch": 3,
        "optimizer": {"state": {}},
    },
    "data parallel": lambda state: {"state_dict": named(state, "module."), "best_acc1": np.float64(76.1)},
    "torchreid": lambda state: named({**state, "classifier.weight": torch.zeros(5, 3)}, "module."),
    "fast-reid": lambda state: {"model": {**named(state, "backbone."), "heads.weight": torch.zeros(5, 3)}},
    "transreid": lambda state: {**named(state, "base."), "bottleneck.weight": torch.zeros(3)},
    "moco": lambda state: {
        "state_dict": {
            **named({key: torch.zeros_like(value) for key, value in state.items()}, "module.encoder_k."),
            **named({**state, "fc.0.weight": torch.zeros(5, 3)}, "module.encoder_q."),
            "module.queue": torch.zeros(4, 8),
        }
    },
    "moco v3": lambda state: {
        "state_dict": {
            **named(
                {key: torch.zeros_like(value) for key, value in state.items()}, "module.momentum_encoder."
            ),
            **named(state, "module.base_encoder."),
        }
    },
    "dino": lambda state: {
        "student": named({key: torch.zeros_like(value) for key, value in state.items()}, "module.backbone."),
        "teacher": {**named(state, "backbone."), "head.mlp.0.weight": torch.zeros(5, 3)},
        "args": argparse.Namespace(lr=1),
    },
    "pycls": lambda state: {"epoch": 9, "model_state": {**state, "head.fc.weight": torch.zeros(5, 3)}},
    "arrays": lambda state: {"net": {key: value.numpy() for key, value in state.items()}},
    "counters of one value": lambda state: {
        key: value[None] if value.ndim == 0 else value for key, value in state.items()
    },
    "no counters": lambda state: {key: value for key, value in state.items() if "num_batches" not in key},
}


@pytest.fixture(scope="module")
def sources(host):
    """Makes a backbone of random weights and statistics, by its name in BACKBONES; the same one each time."""
    from fastreid.config import get_cfg
    from fastreid.modeling import build_backbone

    made = {}

    def make(family):
        if family not in made:
            cfg = get_cfg()
            cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH = BACKBONES[family]
            cfg.MODEL.BACKBONE.PRETRAIN, cfg.INPUT.SIZE_TRAIN = False, [64, 32]
            torch.manual_seed(3)
            made[family] = build_backbone(cfg)
            for buffer in made[family].buffers():
                if buffer.is_floating_point():
                    buffer.uniform_(0.5, 2.0)
        return made[family].state_dict()

    return make


@pytest.fixture
def pretrained(cfg, tmp_path):
    """Builds a backbone with what is saved as its PRETRAIN_PATH; returns its state."""
    from fastreid.modeling import build_backbone

    def build(family, content, *opts):
        torch.save(content, tmp_path / "w.pth")
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH = BACKBONES[family]
        cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.BACKBONE.PRETRAIN_PATH = True, str(tmp_path / "w.pth")
        cfg.merge_from_list(list(opts))
        return build_backbone(cfg).state_dict()

    return build


def assert_loaded(loaded, source):
    assert loaded.keys() == source.keys()
    for key, value in source.items():
        assert torch.equal(loaded[key], value) or "num_batches" in key, key


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", ["resnet", "osnet"])
def test_pretrain_path_in_any_layout(sources, pretrained, family, layout):
    if (
        layout == "arrays"
        and torch.__version__ < (2, 6)
        or layout in ("data parallel", "dino")
        and torch.__version__ < (2, 6)
    ):
        pytest.skip("weights_only refuses numpy's values before torch 2.6")
    assert_loaded(pretrained(family, LAYOUTS[layout](sources(family))), sources(family))


@pytest.mark.parametrize("family", BACKBONES)
def test_pretrain_path_of_every_backbone(sources, pretrained, family):
    for layout in ("timm", "pycls"):
        assert_loaded(pretrained(family, LAYOUTS[layout](sources(family))), sources(family))


@pytest.mark.parametrize("family", BACKBONES)
def test_pretrain_path_of_another_backbone_is_refused(sources, pretrained, family):
    other = "osnet" if family != "osnet" else "resnet"
    with pytest.raises(
        ValueError, match=r"w\.pth' holds weights of another network.* of \d+ backbone tensors.*\n"
    ) as error:
        pretrained(family, {"state_dict": named(sources(other), "module.")})
    assert (
        "MODEL.BACKBONE.NAME" in str(error.value)
        and len(str(error.value)) < 800
        and str(error.value).count("\n") <= 4
    )


def test_pretrain_path_of_the_networks_of_torchvision(pretrained):
    import torchvision

    for family, name in (
        ("resnet", "resnet18"),
        ("mobilenetv2", "mobilenet_v2"),
        ("mobilenetv3", "mobilenet_v3_small"),
    ):
        state = getattr(torchvision.models, name)(weights=None).state_dict()
        state = {key: torch.full_like(value, 0.25) for key, value in state.items()}
        loaded = pretrained(
            family, state, *(("MODEL.BACKBONE.DEPTH", "1.0x") if family == "mobilenetv2" else ())
        )
        left = [
            key for key, value in loaded.items() if not (value == 0.25).all() and "num_batches" not in key
        ]
        assert all(key.startswith("conv.") for key in left) and (bool(left) == (family == "mobilenetv3"))


@pytest.mark.parametrize(
    ("opts", "theirs", "cause"),
    [
        (("MODEL.BACKBONE.DEPTH", "34x"), "18x", "smaller network"),
        (("MODEL.BACKBONE.DEPTH", "18x"), "34x", "larger network"),
        (("MODEL.BACKBONE.DEPTH", "50x"), "18x", "another depth or width"),
        (("MODEL.BACKBONE.WITH_IBN", "True"), "18x", "WITH_IBN, which would have to be False"),
        (("MODEL.BACKBONE.WITH_SE", "True"), "18x", "WITH_SE, which would have to be False"),
    ],
)
def test_pretrain_path_of_a_resnet_like_it(cfg, pretrained, opts, theirs, cause):
    from fastreid.modeling import build_backbone

    cfg.MODEL.BACKBONE.DEPTH = theirs
    state = build_backbone(cfg).state_dict()
    with pytest.raises(ValueError, match=cause):
        pretrained("resnet", {"model": state}, *opts)


def test_non_local_blocks_have_no_public_weights(cfg, pretrained):
    from fastreid.modeling import build_backbone

    cfg.MODEL.BACKBONE.DEPTH = "50x"
    source = build_backbone(cfg).state_dict()
    loaded = pretrained("resnet", source, "MODEL.BACKBONE.DEPTH", "50x", "MODEL.BACKBONE.WITH_NL", "True")
    assert all(torch.equal(loaded[key], value) for key, value in source.items() if "num_batches" not in key)


@pytest.mark.parametrize(
    ("rows", "columns", "distilled"), [(14, 14, False), (14, 14, True), (8, 4, False), (4, 2, True)]
)
def test_positions_of_a_vit_are_resized(sources, pretrained, rows, columns, distilled):
    """Those of a plane stay a plane: the value of a patch is its relative height, whatever the grid."""
    height = ((torch.arange(rows) + 0.5) / rows).repeat_interleave(columns)
    tokens = torch.tensor([7.0, 9.0] if distilled else [7.0])
    positions = torch.cat([tokens, height])[None, :, None].expand(1, -1, 768)
    extra = {"dist_token": torch.zeros(1, 1, 768)} if distilled else {}
    loaded = pretrained("vit", {"model": {**sources("vit"), "pos_embed": positions, **extra}})["pos_embed"]
    own = ((torch.arange(4) + 0.5) / 4).repeat_interleave(2)  # 64 x 32 pixels
    expected = torch.cat([torch.tensor([7.0]), own])[None, :, None].expand(1, -1, 768)
    inner = slice(3, 7)  # at the border the interpolation is flat
    torch.testing.assert_close(loaded[:, 0], expected[:, 0])
    torch.testing.assert_close(loaded[:, inner], expected[:, inner], rtol=0, atol=0.01)


@pytest.mark.parametrize("patches", [196, 8, 1 + 127], ids=["no token", "no token, own size", "no grid"])
def test_positions_of_no_grid_are_refused(sources, pretrained, patches):
    with pytest.raises(ValueError, match="1 of another shape: pos_embed"):
        pretrained("vit", {**sources("vit"), "pos_embed": torch.zeros(1, patches, 768)})


def test_pretrain_path_that_is_not_finite_or_not_there(sources, pretrained, cfg):
    from fastreid.modeling import build_backbone

    bad = {**sources("resnet"), "layer2.0.bn1.bias": torch.full((128,), float("nan"))}
    with pytest.raises(ValueError, match="has values that are not finite in its tensor layer2.0.bn1.bias"):
        pretrained("resnet", {"state_dict": bad})
    cfg.MODEL.BACKBONE.PRETRAIN_PATH = "nowhere.pth"
    with pytest.raises(FileNotFoundError, match="'nowhere.pth' not found"):
        build_backbone(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH, cfg.MODEL.BACKBONE.PRETRAIN_PATH = (
        *BACKBONES["repvgg"],
        "",
    )
    with pytest.raises(
        FileNotFoundError, match="PRETRAIN is on, and MODEL.BACKBONE.PRETRAIN_PATH names no weights"
    ):
        build_backbone(cfg)


def test_builder_of_a_user_loads_as_it_does(cfg):
    from fastreid.modeling import build_backbone
    from fastreid.modeling.backbones import BACKBONE_REGISTRY

    @BACKBONE_REGISTRY.register()
    def build_own_backbone_of_the_tests(cfg):
        return cfg.MODEL.BACKBONE.PRETRAIN_PATH

    cfg.MODEL.BACKBONE.NAME = "build_own_backbone_of_the_tests"
    cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.BACKBONE.PRETRAIN_PATH = True, "hub://own"
    assert build_backbone(cfg) == "hub://own"


class Code:
    """An object that only its own code can make."""


def test_weights_with_code_are_refused_by_the_hosts_builders(cfg, tmp_path):
    from fastreid.modeling import build_backbone

    cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.BACKBONE.PRETRAIN_PATH = True, str(tmp_path / "w.pth")
    torch.save({"model": torch.zeros(1), "code": Code()}, tmp_path / "w.pth")
    for name, depth in (("build_resnet_backbone", "18x"), ("build_mobilenetv3_backbone", "Small")):
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH = name, depth
        with pytest.raises(ValueError, match="holds an object of Python"):
            build_backbone(cfg)


def test_downloaded_weights_with_code_are_refused(host, tmp_path):
    from fastreid.modeling.backbones import resnet, shufflenet

    path = tmp_path / "w.pth"
    torch.save({"model": torch.zeros(1), "code": Code()}, path)
    for module in (resnet, shufflenet):
        with pytest.raises(
            ValueError, match=r"w\.pth' holds an object of Python, .*Code.*save the tensors alone"
        ):
            module.torch.load(path)
    torch.save({"weight": torch.ones(2), "epoch": 3}, path)
    assert resnet.torch.load(path, map_location="cpu")["weight"].tolist() == [1, 1]


def test_the_hosts_checkpointer_refuses_another_network(cfg, tmp_path):
    """And leaves the model as it is; a classifier of other identities is the host's own use of it."""
    from fastreid.modeling import build_model
    from fastreid.utils.checkpoint import Checkpointer

    source, other = build_model(cfg), build_model(cfg)
    Checkpointer(source, str(tmp_path)).save("one", epoch=3)
    cfg.MODEL.HEADS.NUM_CLASSES, cfg.MODEL.HEADS.WITH_BNNECK = 9, True
    other = build_model(cfg)
    assert Checkpointer(other).load(str(tmp_path / "one.pth")) == {"epoch": 3}
    assert torch.equal(other.backbone.conv1.weight, source.backbone.conv1.weight)
    torch.save({"model": {"a": torch.zeros(2)}}, tmp_path / "none.pth")
    with pytest.raises(ValueError, match="0 of 100 backbone tensors of this ResNet fit"):
        Checkpointer(other).load(str(tmp_path / "none.pth"))
    assert torch.equal(other.backbone.conv1.weight, source.backbone.conv1.weight)


@pytest.mark.parametrize(
    ("name", "depth"), [("build_regnet_backbone", "200x"), ("build_effnet_backbone", "b0")]
)
def test_regnet_is_built_from_any_working_directory(cfg, monkeypatch, tmp_path, name, depth):
    from fastreid.modeling import build_backbone

    monkeypatch.chdir(tmp_path)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH = name, depth
    assert build_backbone(cfg)(torch.zeros(2, 3, 64, 32)).ndim == 4
