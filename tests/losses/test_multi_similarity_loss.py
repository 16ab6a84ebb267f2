import math

import pytest
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner

from fastreid_sskd.losses import multi_similarity


def slow(features, labels, alpha=2.0, beta=40.0, base=0.5, margin=0.1):
    rows = [[x / math.sqrt(sum(v * v for v in row)) for x in row] for row in features.tolist()]
    labels = labels.tolist()
    total = 0.0
    for i, anchor in enumerate(rows):
        cosines = [sum(a * b for a, b in zip(anchor, other)) for other in rows]
        positives = [s for s, y in zip(cosines, labels) if y == labels[i] and s < 1 - 1e-5]
        negatives = [s for s, y in zip(cosines, labels) if y != labels[i]]
        if not positives or not negatives:
            continue
        kept_negatives = [s for s in negatives if s + margin > min(positives)]
        kept_positives = [s for s in positives if s - margin < max(negatives)]
        if not kept_positives or not kept_negatives:
            continue
        total += math.log(1 + sum(math.exp(-alpha * (s - base)) for s in kept_positives)) / alpha
        total += math.log(1 + sum(math.exp(beta * (s - base)) for s in kept_negatives)) / beta
    return total / len(rows)


def at_angles(*degrees):
    """Unit vectors in the plane, stretched unevenly: the loss must not see the lengths."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    lengths = torch.arange(1, len(degrees) + 1, dtype=torch.float64)[:, None]
    return torch.stack([angles.cos(), angles.sin()], dim=1) * lengths


def metric_learning(features, labels):
    mined = MultiSimilarityMiner(epsilon=0.1)(features, labels)
    return MultiSimilarityLoss(alpha=2, beta=40, base=0.5)(features, labels, mined)


@pytest.mark.parametrize(
    "params",
    [{}, {"margin": 0.0}, {"margin": 0.5}, {"alpha": 1.0, "beta": 50.0, "base": 0.3}],
    ids=["defaults", "no margin", "wide margin", "other weights"],
)
@pytest.mark.parametrize("seed", range(3))
def test_formula(params, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (20,), generator=generator)
    features = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    expected = slow(features, labels, **params)
    assert expected > 0
    assert multi_similarity(features, labels, **params).item() == pytest.approx(expected, rel=1e-12)


def test_hand_placed_angles():
    # Anchor 0 deg: its positive (cos 0.5) beats its negative (cos 0) by more than the margin: nothing.
    # Anchor 60 deg: positive cos 0.5, negative cos 30 deg: both kept. Anchor 90 deg: no positive: nothing.
    value = multi_similarity(at_angles(0, 60, 90), torch.tensor([0, 0, 1]))
    negative = math.cos(math.pi / 6)
    expected = (math.log(2) / 2 + math.log(1 + math.exp(40 * (negative - 0.5))) / 40) / 3
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gap, mined", [(0.05, True), (0.15, False)])
def test_margin_in_cosine(gap, mined):
    # From anchor 0 deg, the negative lies `gap` below the positive in cosine; seen from the positive, on the
    # other side of the anchor, the negative is far away.
    positive, negative = math.degrees(math.acos(0.9)), -math.degrees(math.acos(0.9 - gap))
    value = multi_similarity(at_angles(0, positive, negative), torch.tensor([0, 0, 1]))
    expected = math.log(1 + math.exp(-2 * 0.4)) / 2 + math.log(1 + math.exp(40 * (0.4 - gap))) / 40
    assert value.item() == pytest.approx(expected / 3 if mined else 0, rel=1e-12)


def test_easy_pairs_get_no_gradient(gradient_of):
    # Images at 180 and 181 deg are far from all others: their rows must stay still.
    features = at_angles(0, 60, 90, 180, 181)
    _, gradient = gradient_of(multi_similarity, features, torch.tensor([0, 0, 1, 2, 2]))
    assert (gradient[:3].abs().sum(dim=1) > 0).tolist() == [True, True, True]
    assert torch.equal(gradient[3:], torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_pytorch_metric_learning(seed, gradient_of, assert_gradient):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 6, (24,), generator=generator)
    features = torch.randn(24, 8, generator=generator, dtype=torch.float64)
    value, gradient = gradient_of(multi_similarity, features, labels)
    expected, expected_gradient = gradient_of(metric_learning, features, labels)
    assert value > 0
    assert torch.allclose(value, expected, rtol=1e-10)
    assert_gradient(gradient, expected_gradient, tolerance=1e-10)


def test_differs_from_pytorch_metric_learning_for_a_single_pair():
    features, labels = at_angles(0, 60, 90), torch.tensor([0, 0, 1])
    assert metric_learning(features, labels) == 0
    assert multi_similarity(features, labels).item() == pytest.approx(slow(features, labels), rel=1e-12)


def test_exact_copies_are_no_positives():
    # 0 deg has its own copy and 60 deg; with copies alone there is no positive, so nothing is mined.
    features, labels = at_angles(0, 0, 60, 50), torch.tensor([0, 0, 0, 1])
    value = multi_similarity(features, labels)
    assert value.item() == pytest.approx(slow(features, labels), rel=1e-12)
    assert value > 0
    assert multi_similarity(at_angles(0, 0, 5), torch.tensor([0, 0, 1])) == 0


@pytest.mark.parametrize(
    "features, labels",
    [
        (torch.randn(1, 4), torch.tensor([0])),
        (torch.randn(6, 4), torch.zeros(6, dtype=torch.long)),
        (torch.randn(6, 4), torch.arange(6)),
        (torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([0, 0, 1, 1])),
        (torch.ones(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])),
        # A zero vector's cosine with itself is 0, not 1: it is not its own positive all the same.
        (torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1])),
    ],
    ids=["one image", "one identity", "no positives", "well separated", "all copies", "zero vector"],
)
def test_nothing_mined_is_a_zero_on_the_graph(features, labels, gradient_of):
    value, gradient = gradient_of(multi_similarity, features, labels)
    assert value == 0
    assert torch.equal(gradient, torch.zeros_like(features))


def test_large_beta_does_not_overflow(gradient_of):
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.01]])
    value, gradient = gradient_of(multi_similarity, features, torch.tensor([0, 0, 1]), beta=1e4)
    assert value.isfinite() and gradient.isfinite().all() and value > 0


@pytest.mark.parametrize("params", [{"alpha": 0}, {"beta": -1}, {"margin": -0.1}, {"margin": float("nan")}])
def test_wrong_parameters(params):
    with pytest.raises(ValueError, match="must be"):
        multi_similarity(torch.randn(2, 2), torch.tensor([0, 1]), **params)
