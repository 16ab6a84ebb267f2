import math

import pytest
import torch

from fastreid_sskd.losses import soft_cross_entropy


def slow(logits, teacher_logits):
    total = 0.0
    for row, teacher in zip(logits.tolist(), teacher_logits.tolist()):
        log_sum = math.log(sum(math.exp(z) for z in row))
        teacher_sum = sum(math.exp(z) for z in teacher)
        total -= sum(math.exp(t) / teacher_sum * (z - log_sum) for z, t in zip(row, teacher))
    return total / len(logits)


def test_formula(batch):
    value = soft_cross_entropy(batch["logits"], batch["teacher_logits"])
    assert value.item() == pytest.approx(slow(batch["logits"], batch["teacher_logits"]), rel=1e-12)


def test_a_teacher_that_agrees_leaves_no_gradient(batch, gradient_of):
    value, gradient = gradient_of(soft_cross_entropy, batch["logits"], batch["logits"])
    entropy = torch.distributions.Categorical(logits=batch["logits"]).entropy().mean()
    assert torch.allclose(value, entropy)
    assert gradient.abs().max() < 1e-15


def test_teacher_of_another_precision(batch):
    mixed = soft_cross_entropy(batch["logits"], batch["teacher_logits"].float())
    assert mixed.dtype == torch.float64
    assert torch.allclose(mixed, soft_cross_entropy(batch["logits"], batch["teacher_logits"]), rtol=1e-6)


def test_one_class_is_zero():
    assert soft_cross_entropy(torch.randn(3, 1), torch.randn(3, 1)) == 0


@pytest.mark.parametrize("shape", [(2, 4), (3, 3)])
def test_shapes_must_agree(shape):
    with pytest.raises(ValueError, match="one shape"):
        soft_cross_entropy(torch.zeros(2, 3), torch.zeros(shape))
