"""One peer: its outputs by hand, and a classifier that follows the number of clusters."""

import pytest
import torch
import torch.nn.functional as F

from fastreid_sskd.modeling import build_peer
from fastreid_sskd.modeling.peer import PixelNormalisation


@pytest.fixture
def images():
    return torch.randn(8, 3, 12, 6, generator=torch.Generator().manual_seed(1))


def centroids(count, columns=8, seed=0):
    return F.normalize(torch.randn(count, columns, generator=torch.Generator().manual_seed(seed)), dim=1)


def step(peer, optimizer, images, labels=None):
    labels = torch.arange(len(images)) % peer.num_classes if labels is None else labels
    optimizer.zero_grad()
    loss = F.cross_entropy(peer(images, labels)["cls_outputs"], labels)
    loss.backward()
    optimizer.step()
    return loss


# ---- outputs -------------------------------------------------------------------------------------


def test_training_outputs_by_hand(make_peer, images):
    peer = make_peer().train()
    out = peer(images, torch.zeros(8, dtype=torch.int64))
    assert set(out) >= {"features", "cls_outputs", "pred_class_logits"}
    pooled = peer.backbone(images).mean(dim=(2, 3))
    neck = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + 1e-5).sqrt()
    neck = neck * peer.heads.bottleneck[-1].weight + peer.heads.bottleneck[-1].bias
    torch.testing.assert_close(out["features"], pooled)
    torch.testing.assert_close(out["cls_outputs"], neck @ peer.heads.weight.t(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["pred_class_logits"], out["cls_outputs"])


@pytest.mark.parametrize("head", ["EmbeddingHead", "ClasHead"])
def test_evaluation_gives_the_feature_after_the_neck(make_peer, images, head):
    peer = make_peer(head=head).eval()
    neck = peer.heads.bottleneck[-1]
    pooled = peer.backbone(images).mean(dim=(2, 3))
    expected = (pooled - neck.running_mean) / (neck.running_var + neck.eps).sqrt() * neck.weight + neck.bias
    with torch.no_grad():
        feature = peer(images)
    torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(peer(images, torch.zeros(8, dtype=torch.int64)), feature)  # targets are for training


def test_a_clas_head_is_read_as_an_embedding_head(make_peer, images):
    labels = torch.arange(8) % 4
    clas, embedding = make_peer(head="ClasHead").train(), make_peer().train()
    clas.load_state_dict(embedding.state_dict(), strict=True)
    ours, expected = clas(images, labels), embedding(images, labels)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name
    logits = clas.heads(clas.backbone(images), labels)  # the host's own reading: the feature after the neck
    assert not torch.allclose(ours["features"], logits["features"], atol=0.1)


@pytest.mark.parametrize("cls_type", ["ArcSoftmax", "CosSoftmax", "CircleSoftmax"])
def test_margins_are_in_the_students_logits_only(make_peer, images, cls_type):
    peer = make_peer(cls_type=cls_type).train()
    peer.heads.cls_layer.m = 0.3
    labels = torch.arange(8) % 4
    out = peer(images, labels)
    own = F.one_hot(labels, 4).bool()
    assert (out["cls_outputs"][own] < out["pred_class_logits"][own] - 1e-3).any()
    torch.testing.assert_close(
        out["pred_class_logits"],
        F.linear(
            F.normalize(peer.heads.bottleneck(out["features"][:, :, None, None])[:, :, 0, 0]),
            F.normalize(peer.heads.weight),
        ),
        rtol=1e-4,
        atol=1e-5,
    )


# ---- the classifier ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_reset_keeps_the_parameter_and_takes_the_rows(make_peer, images, count):
    peer = make_peer()
    weight, rows = peer.heads.weight, centroids(count)
    before = rows.clone()
    peer.reset_classifier(rows)
    assert peer.heads.weight is weight and weight.requires_grad and weight.is_leaf
    assert any(p is weight for p in peer.parameters())
    assert torch.equal(weight, rows) and peer.num_classes == count == peer.heads.cls_layer.num_classes
    assert peer.train()(images, torch.zeros(8, dtype=torch.int64))["cls_outputs"].shape == (8, count)

    with torch.no_grad():
        weight.add_(1)
    assert torch.equal(rows, before)  # the caller's centroids are copied, not shared


def test_reset_takes_any_float_type(make_peer):
    peer = make_peer().double()
    peer.reset_classifier(centroids(5).half())
    assert peer.heads.weight.dtype == torch.float64
    assert torch.equal(peer.heads.weight, centroids(5).half().double())


def test_reset_drops_the_gradient_of_the_old_rows(make_peer, images):
    peer = make_peer().train()
    peer(images, torch.zeros(8, dtype=torch.int64))["cls_outputs"].sum().backward()
    assert peer.heads.weight.grad is not None
    peer.reset_classifier(centroids(6))
    assert peer.heads.weight.grad is None


@pytest.mark.parametrize("count", [3, 4, 7])
def test_an_optimiser_with_cleared_state_goes_on(make_peer, images, count):
    peer = make_peer().train()
    optimizer = torch.optim.Adam(peer.parameters(), lr=0.01)
    for _ in range(2):
        step(peer, optimizer, images)
    peer.reset_classifier(centroids(count))
    optimizer.state.clear()
    step(peer, optimizer, images)
    moved = (peer.heads.weight - centroids(count)).abs()
    assert peer.heads.weight.shape == (count, 8)
    # the first step of a fresh Adam is lr in every entry, whatever the gradient's size
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-2, atol=0)
    assert optimizer.state[peer.heads.weight]["exp_avg"].shape == (count, 8)
    assert optimizer.state[peer.heads.weight]["step"] == 1


@pytest.mark.parametrize("count", [3, 7])
def test_a_living_graph_of_the_last_step_does_not_matter(make_peer, images, count):
    peer = make_peer().train()
    optimizer = torch.optim.Adam(peer.parameters(), lr=0.01)
    kept = step(peer, optimizer, images)  # its graph knows the classifier by its old shape
    peer.reset_classifier(centroids(count))
    optimizer.state.clear()
    loss = step(peer, optimizer, images)
    assert kept.grad_fn is not None and torch.isfinite(loss)
    assert peer.heads.weight.grad.shape == (count, 8)
    assert not torch.equal(peer.heads.weight, centroids(count))


@pytest.mark.parametrize("shape", [(0, 8), (4, 7), (8,), (4, 8, 1)])
def test_wrong_centroids_change_nothing(make_peer, shape):
    peer = make_peer()
    before = peer.heads.weight.clone()
    with pytest.raises(ValueError, match=r"shape \(C >= 1, 8\), got"):
        peer.reset_classifier(torch.zeros(shape))
    assert torch.equal(peer.heads.weight, before) and peer.num_classes == 4


# ---- state dicts of another number of clusters ---------------------------------------------------


@pytest.mark.parametrize("saved_classes", [2, 4, 11])
def test_a_state_dict_of_other_clusters_loads_strictly(make_peer, images, saved_classes, assert_same_state):
    saved, peer = make_peer(0, num_classes=saved_classes), make_peer(1)
    weight = peer.heads.weight
    optimizer = torch.optim.Adam(peer.parameters(), lr=0.01)
    peer.load_state_dict(saved.state_dict(), strict=True)
    assert_same_state(peer.state_dict(), saved.state_dict())
    assert peer.heads.weight is weight and peer.num_classes == saved_classes
    assert peer.heads.cls_layer.num_classes == saved_classes
    step(peer.train(), optimizer, images)
    assert not torch.equal(peer.heads.weight, saved.heads.weight)


def test_a_state_dict_inside_a_bigger_model(make_peer):
    model = torch.nn.ModuleDict({"a": make_peer(0), "b": make_peer(1)})
    state = torch.nn.ModuleDict({"a": make_peer(2, 5), "b": make_peer(3, 6)}).state_dict()
    model.load_state_dict(state, strict=True)
    assert (model["a"].num_classes, model["b"].num_classes) == (5, 6)
    assert torch.equal(model["b"].heads.weight, state["b.heads.weight"])


def test_a_state_dict_of_another_feature_size_is_refused(make_peer):
    peer = make_peer()
    before = peer.heads.weight.clone()
    state = {**peer.state_dict(), "heads.weight": torch.zeros(6, 9)}
    with pytest.raises(RuntimeError, match="heads.weight"):
        peer.load_state_dict(state)
    assert torch.equal(peer.heads.weight, before) and peer.num_classes == 4


def test_a_state_dict_without_a_classifier(make_peer):
    peer = make_peer()
    state = {name: value for name, value in peer.state_dict().items() if name != "heads.weight"}
    with pytest.raises(RuntimeError, match="Missing.*heads.weight"):
        peer.load_state_dict(state)
    assert peer.load_state_dict(state, strict=False).missing_keys == ["heads.weight"]


# ---- from a config -------------------------------------------------------------------------------


@pytest.mark.parametrize("classes, expected", [(0, 1), (1, 1), (6, 6)])
def test_build_peer_has_a_class_at_least_and_leaves_the_config_alone(cfg, classes, expected):
    cfg.MODEL.HEADS.NUM_CLASSES = classes
    before = cfg.dump()
    cfg.freeze()
    peer = build_peer(cfg)
    assert peer.num_classes == expected
    assert cfg.dump() == before and cfg.is_frozen()


# ---- pixels --------------------------------------------------------------------------------------

MEAN, STD = [10.0, 20.0, 30.0], [2.0, 4.0, 5.0]


def test_pixels_by_hand():
    images = torch.tensor([[12.0, 16.0, 30.0], [0.0, 255.0, 5.0]]).view(2, 3, 1, 1)
    expected = torch.tensor([[1.0, -1.0, 0.0], [-5.0, 58.75, -5.0]])
    assert torch.equal(PixelNormalisation(MEAN, STD)(images)[:, :, 0, 0], expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.int64])
def test_pixels_of_all_types_agree_and_the_input_is_left_alone(dtype):
    images = torch.randint(0, 256, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0)).to(dtype)
    before = images.clone()
    out = PixelNormalisation(MEAN, STD)(images)
    assert out.dtype == torch.float32 and out.shape == images.shape
    assert torch.equal(out, PixelNormalisation(MEAN, STD)(before.float()))
    assert torch.equal(images, before) and images.dtype == dtype


def test_no_pixel_value_goes_into_checkpoints_but_the_type_follows_the_model():
    pixels = PixelNormalisation(MEAN, STD)
    assert not pixels.state_dict() and not list(pixels.parameters())
    assert pixels.double()(torch.zeros(1, 3, 2, 2)).dtype == torch.float64


def test_pixels_of_no_image():
    assert PixelNormalisation(MEAN, STD)(torch.zeros(0, 3, 4, 2)).shape == (0, 3, 4, 2)
