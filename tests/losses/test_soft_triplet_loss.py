import math

import pytest
import torch

from fastreid_sskd.losses import soft_triplet


def distance(a, b):
    return math.sqrt(max(sum((x - y) ** 2 for x, y in zip(a, b)), 1e-12))


def slow(features, labels, margin):
    rows, labels = features.tolist(), labels.tolist()
    total = 0.0
    for i, anchor in enumerate(rows):
        to_p = max(distance(anchor, other) for other, y in zip(rows, labels) if y == labels[i])
        to_n = min(distance(anchor, other) for other, y in zip(rows, labels) if y != labels[i])
        log_sum = math.log(math.exp(to_p) + math.exp(to_n))
        total += -margin * (to_p - log_sum) - (1 - margin) * (to_n - log_sum)
    return total / len(rows)


def test_recorded_values(golden, gradient_of, assert_gradient):
    value, gradient = gradient_of(soft_triplet, golden["features"], golden["labels"], margin=0.0)
    assert value.item() == pytest.approx(golden["soft_triplet_margin0"].item(), rel=1e-5)
    assert_gradient(gradient, golden["soft_triplet_margin0_grad"])


@pytest.mark.parametrize("margin", [0.0, 0.3, 1.0])
def test_formula(batch, margin):
    value = soft_triplet(batch["features"], batch["labels"], margin=margin)
    assert value.item() == pytest.approx(slow(batch["features"], batch["labels"], margin), rel=1e-12)


def test_hand_placed_points():
    # On a line: identity 0 at 0 and 3, identity 1 at 4 and 10.
    features, labels = torch.tensor([[0.0], [3.0], [4.0], [10.0]]), torch.tensor([0, 0, 1, 1])
    pairs = [(3, 4), (3, 1), (6, 1), (6, 7)]
    expected = sum(math.log(1 + math.exp(p - n)) for p, n in pairs) / 4
    assert soft_triplet(features, labels).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_gradient_is_the_derivative(batch, margin):
    features = batch["features"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda rows: soft_triplet(rows, batch["labels"], margin=margin), (features,)
    )


def test_single_images_of_an_identity():
    # The positive is then the anchor itself, at distance 1e-6.
    features, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 3])
    assert soft_triplet(features, labels).item() == pytest.approx(slow(features, labels, 0.0), rel=1e-12)


def test_copies_have_finite_gradients(gradient_of):
    value, gradient = gradient_of(soft_triplet, torch.ones(4, 3), torch.tensor([0, 0, 1, 1]))
    assert value.item() == pytest.approx(math.log(2), rel=1e-6)
    assert torch.equal(gradient, torch.zeros(4, 3))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_one_identity_or_none_is_a_zero_on_the_graph(count, gradient_of):
    value, gradient = gradient_of(soft_triplet, torch.randn(count, 3), torch.zeros(count, dtype=torch.long))
    assert value == 0 and torch.equal(gradient, torch.zeros(count, 3))


def test_nan_is_not_hidden():
    features = torch.randn(4, 3)
    features[0, 0] = float("nan")
    assert soft_triplet(features, torch.tensor([0, 0, 1, 1])).isnan()


@pytest.mark.parametrize("margin", [-0.1, 1.5])
def test_wrong_margin(margin):
    with pytest.raises(ValueError, match="margin"):
        soft_triplet(torch.randn(2, 2), torch.tensor([0, 1]), margin=margin)


def test_wrong_labels():
    with pytest.raises(ValueError, match="unlabelled"):
        soft_triplet(torch.randn(2, 2), torch.tensor([0, -1]))
