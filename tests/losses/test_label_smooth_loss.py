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


def test_recorded_values(golden, gradient_of, assert_gradient):
    value, gradient = gradient_of(label_smooth_cross_entropy, golden["logits"], golden["labels"])
    assert value.item() == pytest.approx(golden["ce_label_smooth"].item(), rel=1e-5)
    assert_gradient(gradient, golden["ce_label_smooth_grad"])


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.4, 1.0])
def test_formula(batch, epsilon):
    value = label_smooth_cross_entropy(batch["logits"], batch["labels"], epsilon)
    assert value.item() == pytest.approx(slow(batch["logits"], batch["labels"], epsilon), rel=1e-12)


def test_int32_labels(batch):
    as_int32 = label_smooth_cross_entropy(batch["logits"], batch["labels"].int())
    assert as_int32 == label_smooth_cross_entropy(batch["logits"], batch["labels"])


def test_one_class_is_zero(gradient_of):
    labels = torch.zeros(4, dtype=torch.long)
    value, gradient = gradient_of(label_smooth_cross_entropy, torch.randn(4, 1), labels)
    assert value == 0 and torch.equal(gradient, torch.zeros(4, 1))


def test_empty_batch(gradient_of):
    labels = torch.empty(0, dtype=torch.long)
    value, gradient = gradient_of(label_smooth_cross_entropy, torch.empty(0, 5), labels)
    assert value == 0 and gradient.shape == (0, 5)


@pytest.mark.parametrize(
    "logits, labels, match",
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), "below the number of classes 3, got 3"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), ">= 0, got -1"),
        (torch.zeros(2, 3), torch.tensor([0, -100]), ">= 0, got -100"),
        (torch.zeros(2, 3), torch.tensor([0]), r"shape \(2,\)"),
        (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "integers"),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long), r"shape \(2,\)"),
        (torch.zeros(2, 0), torch.tensor([0, 0]), "at least one column"),
        (torch.zeros(2), torch.tensor([0, 0]), r"\(batch, columns\)"),
        (torch.zeros(2, 3, dtype=torch.long), torch.tensor([0, 0]), "floating point"),
    ],
)
def test_wrong_inputs(logits, labels, match):
    with pytest.raises(ValueError, match=match):
        label_smooth_cross_entropy(logits, labels)


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan")])
def test_wrong_epsilon(epsilon):
    with pytest.raises(ValueError, match="epsilon"):
        label_smooth_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), epsilon)
