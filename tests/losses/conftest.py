"""Shared by the tests of the losses: recorded values, seeded batches, and how gradients are compared."""

from pathlib import Path

import numpy as np
import pytest
import torch

GOLDEN = Path(__file__).parents[1] / "golden"


def recorded(name):
    """Inputs and outputs of the released functions, as tensors."""
    with np.load(GOLDEN / f"{name}.npz") as values:
        return {name: torch.from_numpy(np.asarray(values[name])) for name in values.files}


@pytest.fixture(params=["losses_a", "losses_b", "losses_c"])
def golden(request):
    """Recorded losses with their gradients."""
    return recorded(request.param)


@pytest.fixture(params=["step_a", "step_b"])
def golden_step(request):
    """One recorded step of three peers."""
    return recorded(request.param)


@pytest.fixture
def assert_gradient():
    """Compare gradients to 1e-5 of the expected one's largest entry."""

    def compare(gradient, expected, tolerance=1e-5):
        assert gradient is not None and torch.isfinite(gradient).all()
        scale = expected.abs().max()
        assert scale > 0
        assert (gradient - expected).abs().max() <= tolerance * scale

    return compare


@pytest.fixture
def gradient_of():
    """Return a function's value and its gradient with respect to its first argument."""

    def evaluate(function, rows, *args, **kwargs):
        rows = rows.detach().clone().requires_grad_()
        value = function(rows, *args, **kwargs)
        assert value.shape == ()
        value.backward()
        return value.detach(), rows.grad

    return evaluate


@pytest.fixture
def batch():
    """Clustered float64 features and logits of 4 identities x 4 images, a teacher's, and a memory, seeded."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(4).repeat_interleave(4)
    centres = torch.randn(4, 12, generator=generator, dtype=torch.float64)

    def noise(columns):
        return torch.randn(16, columns, generator=generator, dtype=torch.float64)

    return {
        "labels": labels,
        "features": centres[labels] + noise(12),
        "logits": 2 * noise(5),
        "teacher_features": centres[labels] + noise(12),
        "teacher_logits": 2 * noise(5),
        "memory": centres,
    }
