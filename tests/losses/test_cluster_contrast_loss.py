import math

import pytest
import torch
import torch.nn.functional as F

from fastreid_sskd.losses import ClusterContrast, PeerBatch, cluster_contrast
from fastreid_sskd.losses.cluster_contrast_loss import update_memory


def unit(row):
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def slow(features, memory, labels, temperature):
    total = 0.0
    for row, label in zip(features.tolist(), labels.tolist()):
        cosines = [sum(a * b for a, b in zip(unit(row), unit(other))) for other in memory.tolist()]
        total -= cosines[label] / temperature - math.log(sum(math.exp(c / temperature) for c in cosines))
    return total / len(features)


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    memory = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    return features, memory, torch.tensor([0, 2, 2, 3, 0, 2, 1])


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_formula(draw, temperature):
    features, memory, labels = draw
    value = cluster_contrast(features, memory, labels, temperature=temperature)
    assert value.item() == pytest.approx(slow(features, memory, labels, temperature), rel=1e-10)


def test_memory_moves_image_after_image(draw):
    features, memory, labels = draw
    expected = [unit(row) for row in memory.tolist()]
    memory = F.normalize(memory, dim=1)
    for row, label in zip(features.tolist(), labels.tolist()):
        expected[label] = unit([0.3 * a + 0.7 * b for a, b in zip(expected[label], unit(row))])
    before = features.clone()
    update_memory(memory, features, labels, 0.3)
    torch.testing.assert_close(memory, torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(features, before)


def test_momentum_one_and_an_empty_batch_leave_the_memory(draw):
    features, memory, labels = draw
    memory = F.normalize(memory, dim=1)
    before = memory.clone()
    update_memory(memory, features, labels, 1.0)
    torch.testing.assert_close(memory, before)
    update_memory(memory, features[:0], labels[:0], 0.1)
    torch.testing.assert_close(memory, before)


def test_loss_of_a_batch_is_that_before_the_memory_moved(draw):
    features, memory, labels = (part.float() if part.is_floating_point() else part for part in draw)
    expected = cluster_contrast(features, memory, labels, temperature=0.1)
    parameter = torch.nn.Parameter(memory.clone())
    batch = PeerBatch(
        features=features.requires_grad_(), logits=features @ memory.t(), labels=labels, memory=parameter
    )
    loss = ClusterContrast(temperature=0.1, momentum=0.2)(batch)
    loss.backward()  # the memory has been changed in place since
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert parameter.grad is None and features.grad.abs().max() > 0
    moved = memory.clone()
    update_memory(moved, features, labels, 0.2)
    assert torch.equal(parameter.detach(), moved) and not torch.equal(moved, memory)


@pytest.mark.parametrize(
    "parameters, message",
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"momentum": 1.5}, r"momentum must be in \[0, 1\]"),
    ],
)
def test_wrong_settings(parameters, message):
    with pytest.raises(ValueError, match=message):
        ClusterContrast(**parameters)


def test_wrong_shapes(draw):
    features, memory, labels = draw
    with pytest.raises(ValueError, match="memory must have the features' 5 columns"):
        cluster_contrast(features, memory[:, :3], labels)
    with pytest.raises(ValueError, match="below the number of classes 2, got 3"):
        cluster_contrast(features, memory[:2], labels)
