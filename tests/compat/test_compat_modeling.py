"""The host's models after the patches: inputs, devices, losses, weights."""

import argparse

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastreid_sskd.compat.modeling import load_weights, to_device


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


@pytest.mark.parametrize(
    ("name", "depth", "wrap"),
    [
        ("build_resnet_backbone", "18x", lambda state: state),
        ("build_shufflenetv2_backbone", "1.0x", lambda state: {"state_dict": state}),
    ],
)
def test_pretrain_path_loads_tensors(cfg, tmp_path, name, depth, wrap):
    from fastreid.modeling import build_backbone

    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH = name, depth
    source = build_backbone(cfg)
    prefix = "module." if "shufflenet" in name else ""
    torch.save(wrap({prefix + key: value for key, value in source.state_dict().items()}), tmp_path / "w.pth")
    cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.BACKBONE.PRETRAIN_PATH = True, str(tmp_path / "w.pth")
    loaded = build_backbone(cfg)
    for (key, value), other in zip(source.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(value, other), key


def test_weights_with_code_are_refused_by_the_hosts_builders(cfg, tmp_path):
    from fastreid.modeling import build_backbone

    cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.BACKBONE.PRETRAIN_PATH = True, str(tmp_path / "w.pth")
    torch.save({"model": torch.zeros(1), "args": argparse.Namespace(lr=1)}, tmp_path / "w.pth")
    for name, depth in (("build_resnet_backbone", "18x"), ("build_mobilenetv3_backbone", "Small")):
        cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH = name, depth
        with pytest.raises(ValueError, match="not a file of tensors only"):
            build_backbone(cfg)


def test_weights_with_code_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"model": torch.zeros(1), "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(ValueError, match=r"w\.pth is not a file of tensors only.*save its state dict alone"):
        load_weights(path)
    torch.save({"weight": torch.ones(2), "epoch": 3}, path)
    assert load_weights(path)["weight"].tolist() == [1, 1]
    torch.save({"array": np.zeros(1)}, path)
    with pytest.raises(ValueError, match="tensors only"):
        load_weights(path)


@pytest.mark.parametrize(
    ("name", "depth"), [("build_regnet_backbone", "200x"), ("build_effnet_backbone", "b0")]
)
def test_regnet_is_built_from_any_working_directory(cfg, monkeypatch, tmp_path, name, depth):
    from fastreid.modeling import build_backbone

    monkeypatch.chdir(tmp_path)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH = name, depth
    assert build_backbone(cfg)(torch.zeros(2, 3, 64, 32)).ndim == 4
