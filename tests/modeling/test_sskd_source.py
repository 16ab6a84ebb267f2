"""Source pre-training: losses by hand, the target's pass through batch norm, checkpoints in the host."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import get_cfg
from fastreid.modeling import build_model

from fastreid_sskd import add_sskd_config
from fastreid_sskd.losses import build_loss_set
from fastreid_sskd.modeling import Peer, SSKDSource

METHOD = [("LabelSmoothCE", 1.0, {}), ("MultiSimilarity", 1.0, {}), ("NuclearNorm", 2.0, {})]


@pytest.fixture
def make_source(make_peer):
    def make(seed=0, losses=METHOD, **peer) -> SSKDSource:
        return SSKDSource(
            peer=make_peer(seed, **peer),
            losses=build_loss_set(losses),
            pixel_mean=(120.0, 115.0, 105.0),
            pixel_std=(58.0, 57.0, 56.0),
        ).train()

    return make


def source_config(std: float):
    cfg = get_cfg()
    add_sskd_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "SSKDSource", "cpu"
    cfg.MODEL.BACKBONE.DEPTH, cfg.MODEL.BACKBONE.FEAT_DIM = "18x", 512
    cfg.MODEL.HEADS.NUM_CLASSES = 100
    cfg.SSKD.SOURCE.CLASSIFIER_STD = std
    return cfg


def test_initial_classifier():
    weight = build_model(source_config(0.001)).heads.weight
    assert weight.shape == (100, 512) and weight.requires_grad
    assert weight.std().item() == pytest.approx(0.001, rel=0.02) and abs(weight.mean().item()) < 2e-5
    with pytest.raises(
        ValueError, match="SSKD.SOURCE.CLASSIFIER_STD must be a standard deviation > 0, got 0.0"
    ):
        build_model(source_config(0.0))


@pytest.fixture
def batch(make_batch):
    source = make_batch(2)
    return {"images": source["images"][:, 0].contiguous(), "targets": source["targets"]}


@pytest.fixture
def bn_images(make_batch):
    """Seven darker images: another domain, and another batch size."""
    return make_batch(1, seed=7)["images"][:7, 0] * 0.3


def test_losses_by_hand(make_source, batch):
    model = make_source()
    out = Peer(copy.deepcopy(model.backbone), copy.deepcopy(model.heads)).train()(
        model.pixels(batch["images"]), batch["targets"]
    )
    losses = model(batch)
    assert set(losses) == {"loss_id", "loss_ms", "loss_nn"}
    logits, soft = out["cls_outputs"], F.one_hot(batch["targets"], 4) * 0.9 + 0.1 / 4
    torch.testing.assert_close(
        losses["loss_id"], -(soft * logits.log_softmax(1)).sum(1).mean(), rtol=1e-5, atol=1e-6
    )
    nuclear = torch.linalg.svdvals(logits.softmax(1)).sum()
    torch.testing.assert_close(losses["loss_nn"], -2 * nuclear / 16, rtol=1e-5, atol=1e-6)
    assert losses["loss_ms"] > 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.abs().max() > 0, name


def test_the_targets_pass_moves_running_statistics_after_the_sources(
    make_source, batch, bn_images, assert_same_state
):
    model, by_hand = make_source(), make_source()
    model({**batch, "bn_images": bn_images})
    with torch.no_grad():
        Peer.forward(by_hand, by_hand.pixels(batch["images"]), batch["targets"])
        source_only = copy.deepcopy(by_hand.state_dict())
        Peer.forward(by_hand, by_hand.pixels(bn_images), torch.zeros(7, dtype=torch.int64))
    assert_same_state(model.state_dict(), by_hand.state_dict())

    other_order = make_source()
    with torch.no_grad():
        Peer.forward(other_order, other_order.pixels(bn_images), torch.zeros(7, dtype=torch.int64))
        Peer.forward(other_order, other_order.pixels(batch["images"]), batch["targets"])
    for norm in ("backbone.bn1", "backbone.bn2", "heads.bottleneck.0"):
        mean = model.state_dict()[f"{norm}.running_mean"]
        assert not torch.allclose(mean, source_only[f"{norm}.running_mean"], atol=1e-3)
        assert not torch.allclose(mean, other_order.state_dict()[f"{norm}.running_mean"], atol=1e-4)
        assert model.state_dict()[f"{norm}.num_batches_tracked"] == 2


def test_the_targets_pass_gives_no_loss_and_no_gradient(make_source, batch, bn_images):
    plain, with_target = make_source(), make_source()
    expected, losses = plain(batch), with_target({**batch, "bn_images": bn_images})
    assert losses.keys() == expected.keys()
    assert all(torch.equal(losses[name], value) for name, value in expected.items())
    sum(expected.values()).backward()
    sum(losses.values()).backward()
    for (name, own), other in zip(with_target.named_parameters(), plain.parameters()):
        assert own.grad is None and other.grad is None or torch.equal(own.grad, other.grad), name


@pytest.mark.parametrize("cls_type", ["Linear", "ArcSoftmax", "CosSoftmax", "CircleSoftmax"])
def test_the_target_needs_no_labels_with_any_classifier(make_source, batch, bn_images, cls_type):
    model = make_source(cls_type=cls_type)
    model.heads.cls_layer.m = 0.3
    losses = model({**batch, "bn_images": bn_images})
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert model.backbone.bn1.num_batches_tracked == 2


def test_bytes_floats_and_the_callers_batch(make_source, batch, bn_images):
    full = {**batch, "bn_images": bn_images, "img_paths": ["a"] * 16}
    before = copy.deepcopy(full)
    expected = make_source()(full)
    for key, value in before.items():
        assert torch.equal(full[key], value) if isinstance(value, torch.Tensor) else full[key] == value
    as_bytes = make_source()({**batch, "images": batch["images"].to(torch.uint8), "bn_images": bn_images})
    assert all(torch.equal(as_bytes[name], value) for name, value in expected.items())


def test_evaluation_ignores_the_target_and_changes_nothing(
    make_source, batch, bn_images, copy_state, assert_same_state
):
    model = make_source().eval()
    before = copy_state(model)
    feature = model({**batch, "bn_images": bn_images})
    assert torch.equal(feature, Peer.forward(model, model.pixels(batch["images"])))
    assert feature.shape == (16, 8)
    assert_same_state(model.state_dict(), before)


def test_losses_that_need_a_teacher_are_refused(make_source, batch):
    with pytest.raises(ValueError, match="SoftCE needs peer_teacher_logits.*weight to 0"):
        make_source(losses=[*METHOD, ("SoftCE", 0.5, {})])(batch)


def test_checkpoints_load_strictly_into_the_hosts_baseline_and_back(cfg, batch, bn_images):
    cfg.MODEL.META_ARCHITECTURE = "SSKDSource"
    cfg.SSKD.LOSSES.SoftCE.WEIGHT = 0.0
    source = build_model(cfg)
    assert isinstance(source, SSKDSource)
    source.train()({**batch, "bn_images": bn_images})
    cfg.MODEL.META_ARCHITECTURE = "Baseline"
    baseline = build_model(cfg)
    assert list(baseline.state_dict()) == list(source.state_dict())
    baseline.load_state_dict(source.state_dict(), strict=True)
    with torch.no_grad():
        expected, feature = baseline.eval()(batch), source.eval()(batch)
    torch.testing.assert_close(feature, expected, rtol=0, atol=1e-6)
    assert feature.abs().max() > 0.1
    build = {**baseline.state_dict(), "heads.weight": torch.randn(9, 8)}  # of nine identities
    source.load_state_dict(build, strict=True)
    assert source.num_classes == 9
