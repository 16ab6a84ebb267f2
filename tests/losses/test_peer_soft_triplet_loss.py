import math

import pytest
import torch

from fastreid_sskd.losses import peer_soft_triplet


def distance(a, b):
    return math.sqrt(max(sum((x - y) ** 2 for x, y in zip(a, b)), 1e-12))


def slow(features, teacher_features, labels):
    rows, teachers, labels = features.tolist(), teacher_features.tolist(), labels.tolist()
    total = 0.0
    for i, anchor in enumerate(rows):
        p = max((j for j, y in enumerate(labels) if y == labels[i]), key=lambda j: distance(anchor, rows[j]))
        n = min((j for j, y in enumerate(labels) if y != labels[i]), key=lambda j: distance(anchor, rows[j]))
        to_p, to_n = distance(anchor, rows[p]), distance(anchor, rows[n])
        teacher_p, teacher_n = distance(teachers[i], teachers[p]), distance(teachers[i], teachers[n])
        q = math.exp(teacher_p) / (math.exp(teacher_p) + math.exp(teacher_n))
        log_sum = math.log(math.exp(to_p) + math.exp(to_n))
        total += -q * (to_p - log_sum) - (1 - q) * (to_n - log_sum)
    return total / len(rows)


def test_recorded_values(golden, gradient_of, assert_gradient):
    value, gradient = gradient_of(
        peer_soft_triplet, golden["features"], golden["teacher_features"], golden["labels"]
    )
    assert value.item() == pytest.approx(golden["soft_triplet_teacher"].item(), rel=1e-5)
    assert_gradient(gradient, golden["soft_triplet_teacher_grad"])


def test_formula(batch):
    value = peer_soft_triplet(batch["features"], batch["teacher_features"], batch["labels"])
    expected = slow(batch["features"], batch["teacher_features"], batch["labels"])
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_the_derivative(batch):
    features = batch["features"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda rows: peer_soft_triplet(rows, batch["teacher_features"], batch["labels"]), (features,)
    )


def test_a_teacher_that_agrees_leaves_no_gradient(batch, gradient_of):
    _, gradient = gradient_of(peer_soft_triplet, batch["features"], batch["features"], batch["labels"])
    assert gradient.abs().max() < 1e-15


def test_teacher_gets_no_gradient(batch):
    student, teacher = batch["features"].requires_grad_(), batch["teacher_features"].requires_grad_()
    peer_soft_triplet(student, teacher, batch["labels"]).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


@pytest.mark.parametrize("count", [0, 1, 5])
def test_one_identity_or_none_is_a_zero_on_the_graph(count, gradient_of):
    labels = torch.zeros(count, dtype=torch.long)
    value, gradient = gradient_of(peer_soft_triplet, torch.randn(count, 3), torch.randn(count, 3), labels)
    assert value == 0 and torch.equal(gradient, torch.zeros(count, 3))


def test_wrong_inputs():
    with pytest.raises(ValueError, match="one batch, got 3 and 2 rows"):
        peer_soft_triplet(torch.randn(3, 2), torch.randn(2, 2), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="unlabelled"):
        peer_soft_triplet(torch.randn(2, 2), torch.randn(2, 2), torch.tensor([0, -1]))
