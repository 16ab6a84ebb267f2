"""Both soft triplet losses: their formula by slow loops, and which pairs are the hardest."""

import math

import pytest
import torch

from fastreid_sskd.losses import peer_soft_triplet, soft_triplet
from fastreid_sskd.losses.soft_triplet_loss import hardest_pairs

BOTH = pytest.mark.parametrize(
    "loss", [soft_triplet, lambda rows, labels: peer_soft_triplet(rows, rows, labels)]
)


def distance(a, b):
    return math.sqrt(max(sum((x - y) ** 2 for x, y in zip(a, b)), 1e-12))


def slow(features, labels, margin=None, teacher=None):
    rows, labels = features.tolist(), labels.tolist()
    total = 0.0
    for i, anchor in enumerate(rows):
        p = max((j for j, y in enumerate(labels) if y == labels[i]), key=lambda j: distance(anchor, rows[j]))
        n = min((j for j, y in enumerate(labels) if y != labels[i]), key=lambda j: distance(anchor, rows[j]))
        to_p, to_n = distance(anchor, rows[p]), distance(anchor, rows[n])
        q = margin
        if teacher is not None:
            odds = [math.exp(distance(teacher[i].tolist(), teacher[j].tolist())) for j in (p, n)]
            q = odds[0] / sum(odds)
        log_sum = math.log(math.exp(to_p) + math.exp(to_n))
        total += -q * (to_p - log_sum) - (1 - q) * (to_n - log_sum)
    return total / len(rows)


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.0])
def test_formula(batch, margin):
    features = batch["features"]
    value = soft_triplet(features, batch["labels"], margin=margin)
    assert value.item() == pytest.approx(slow(features, batch["labels"], margin), rel=1e-12)
    assert torch.autograd.gradcheck(
        lambda rows: soft_triplet(rows, batch["labels"], margin=margin), (features.requires_grad_(),)
    )


def test_formula_with_a_teacher(batch):
    value = peer_soft_triplet(batch["features"], batch["teacher_features"], batch["labels"])
    expected = slow(batch["features"], batch["labels"], teacher=batch["teacher_features"])
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_a_teacher_that_agrees_leaves_no_gradient(batch, gradient_of):
    _, gradient = gradient_of(peer_soft_triplet, batch["features"], batch["features"], batch["labels"])
    assert gradient.abs().max() < 1e-15


def test_hand_placed_points():
    # On a line: identity 0 at 0 and 3, identity 1 at 4 and 10.
    features, labels = torch.tensor([[0.0], [3.0], [4.0], [10.0]]), torch.tensor([0, 0, 1, 1])
    pairs = [(3, 4), (3, 1), (6, 1), (6, 7)]
    expected = sum(math.log(1 + math.exp(p - n)) for p, n in pairs) / 4
    assert soft_triplet(features, labels).item() == pytest.approx(expected, rel=1e-6)


def test_single_images_of_an_identity():
    # The positive is then the anchor itself, at distance 1e-6.
    features, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 3])
    assert soft_triplet(features, labels).item() == pytest.approx(slow(features, labels, 0.0), rel=1e-12)


def test_copies_have_finite_gradients(gradient_of):
    value, gradient = gradient_of(soft_triplet, torch.ones(4, 3), torch.tensor([0, 0, 1, 1]))
    assert value.item() == pytest.approx(math.log(2), rel=1e-6)
    assert torch.equal(gradient, torch.zeros(4, 3))


@BOTH
@pytest.mark.parametrize("count", [1, 5])
def test_one_identity_is_a_zero_on_the_graph(loss, count, gradient_of):
    value, gradient = gradient_of(loss, torch.randn(count, 3), torch.zeros(count, dtype=torch.long))
    assert value == 0 and torch.equal(gradient, torch.zeros(count, 3))


@pytest.mark.parametrize("margin", [-0.1, 1.5])
def test_wrong_margin(margin):
    with pytest.raises(ValueError, match="margin"):
        soft_triplet(torch.randn(2, 2), torch.tensor([0, 1]), margin=margin)


def test_a_teacher_of_another_batch():
    with pytest.raises(ValueError, match="one batch, got 3 and 2 rows"):
        peer_soft_triplet(torch.randn(3, 2), torch.randn(2, 2), torch.tensor([0, 0, 1]))


def test_pairs_of_near_copies():
    """40 images (more than torch.cdist's own choice of products needs) around a point far from 0."""
    features = 100 + 0.01 * torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(10).repeat_interleave(4)
    exact = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels
    positive, negative, has_negative = hardest_pairs(features, labels)
    assert has_negative.all()
    assert torch.equal(positive, exact.masked_fill(~same, -1).argmax(dim=1))
    assert torch.equal(negative, exact.masked_fill(same, torch.inf).argmin(dim=1))
    # where cancellation errs
    by_products = torch.cdist(features, features, compute_mode="use_mm_for_euclid_dist")
    assert not torch.equal(negative, by_products.masked_fill(same, torch.inf).argmin(dim=1))
    positive, _, has_negative = hardest_pairs(features[:1], labels[:1])
    assert positive.tolist() == [0] and has_negative.tolist() == [False]
