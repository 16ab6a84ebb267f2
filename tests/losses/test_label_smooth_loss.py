import math

import pytest
import torch

from fastreid_sskd.losses import label_smooth_cross_entropy


def slow(logits, labels, epsilon):
    total = 0.0
    classes = logits.shape[1]
    for row, label in zip(logits.tolist(), labels.tolist()):
        log_sum = math.log(sum(math.exp(z) for z in row))
        for j, z in enumerate(row):
            target = (1 - epsilon) * (j == label) + epsilon / classes
            total -= target * (z - log_sum)
    return total / len(logits)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.4, 1.0])
def test_formula(batch, epsilon):
    value = label_smooth_cross_entropy(batch["logits"], batch["labels"], epsilon)
    assert value.item() == pytest.approx(slow(batch["logits"], batch["labels"], epsilon), rel=1e-12)
    assert label_smooth_cross_entropy(batch["logits"], batch["labels"].int(), epsilon) == value


def test_one_class_is_zero(gradient_of):
    labels = torch.zeros(4, dtype=torch.long)
    value, gradient = gradient_of(label_smooth_cross_entropy, torch.randn(4, 1), labels)
    assert value == 0 and torch.equal(gradient, torch.zeros(4, 1))


@pytest.mark.parametrize(
    "labels, match",
    [
        (torch.tensor([0, 3]), "below the number of classes 3, got 3"),
        (torch.tensor([0, -1]), ">= 0, got -1"),
        (torch.tensor([0, -100]), ">= 0, got -100"),  # torch's own value for rows to be left out
        (torch.tensor([0]), r"shape \(2,\)"),
        (torch.zeros(2, 3, dtype=torch.long), r"shape \(2,\)"),
        (torch.tensor([0.0, 1.0]), "integers"),
    ],
)
def test_wrong_labels(labels, match):
    with pytest.raises(ValueError, match=match):
        label_smooth_cross_entropy(torch.zeros(2, 3), labels)


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan")])
def test_wrong_epsilon(epsilon):
    with pytest.raises(ValueError, match="epsilon"):
        label_smooth_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), epsilon)
