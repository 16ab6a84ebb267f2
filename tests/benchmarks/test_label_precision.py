"""Features that are rounded as a precision which the device lacks would round them."""

from types import SimpleNamespace

import precision
import pytest
import torch
from torch import nn


@pytest.mark.parametrize("float32", [(), ("0",)])
def test_rounded(float32):
    """Weights and outputs have a half number's values meanwhile, those of modules left alone do not."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.ReLU()))
    weight, given = network[0].weight.detach().clone(), torch.randn(2, 3, 4, 4)
    convolved = network[0](given)
    with precision.rounded(SimpleNamespace(teachers=[network]), torch.float16, float32), torch.no_grad():
        assert torch.equal(network[0].weight, weight) == bool(float32)
        assert torch.equal(network[0](given), convolved) == bool(float32)
        assert torch.equal(network(given), network(given).half().float())
    assert torch.equal(network[0].weight, weight) and torch.equal(network[0](given), convolved)
