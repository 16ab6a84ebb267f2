import math

import numpy as np
import pytest
import torch

from fastreid_sskd.losses import nuclear_norm


def reference(logits):
    """Value and least-norm (sub)gradient in numpy float64 by SVD, through the softmax by hand."""
    logits = logits.double().numpy()
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = exponentials / exponentials.sum(axis=1, keepdims=True)
    u, s, vt = np.linalg.svd(p, full_matrices=False)
    rank = int((s > 1e-10 * s[0]).sum())
    outer = -(u[:, :rank] @ vt[:rank]) / len(p)
    gradient = p * (outer - (outer * p).sum(axis=1, keepdims=True))
    return -s.sum() / len(p), torch.from_numpy(gradient)


def random_logits(rows, columns, scale=3.0, seed=0, dtype=torch.float32):
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_recorded_values(golden, gradient_of, assert_gradient):
    value, gradient = gradient_of(nuclear_norm, golden["logits"])
    assert value.item() == pytest.approx(golden["nuclear_norm"].item(), rel=1e-5)
    assert_gradient(gradient, golden["nuclear_norm_grad"])


@pytest.mark.parametrize("rows, columns", [(64, 8), (64, 3), (64, 64), (16, 700), (1, 5), (2, 2)])
@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
def test_value_and_gradient(rows, columns, scale, gradient_of, assert_gradient):
    logits = random_logits(rows, columns, scale)
    value, gradient = gradient_of(nuclear_norm, logits)
    expected, expected_gradient = reference(logits)
    assert value.item() == pytest.approx(expected, rel=1e-6)
    assert_gradient(gradient, expected_gradient)


@pytest.mark.parametrize(
    "distinct, copies, columns", [(4, 4, 50), (16, 4, 40), (3, 20, 8), (32, 2, 8), (1, 16, 30)]
)
def test_duplicated_rows(distinct, copies, columns, gradient_of, assert_gradient):
    logits = random_logits(distinct, columns).repeat_interleave(copies, dim=0)
    value, gradient = gradient_of(nuclear_norm, logits)
    expected, expected_gradient = reference(logits)
    assert value.item() == pytest.approx(expected, rel=1e-6)
    assert_gradient(gradient, expected_gradient)
    groups = gradient.reshape(distinct, copies, columns)
    assert (groups - groups[:, :1]).abs().max() <= 1e-6 * gradient.abs().max()


def test_duplicated_rows_give_a_subgradient(gradient_of):
    # |.|_* is convex in P, so along any step of P: norm(P + h) >= norm(P) + <W, h> for W a subgradient; here
    # through logits, to first order in the step.
    logits = random_logits(4, 12, dtype=torch.float64).repeat_interleave(3, dim=0)
    value, gradient = gradient_of(nuclear_norm, logits)
    for seed in range(5):
        step = random_logits(12, 12, 1e-5, seed=seed + 1, dtype=torch.float64)
        gain = -(nuclear_norm(logits + step) - value)
        assert gain > -(gradient * step).sum() - 1e-8


@pytest.mark.parametrize("rows, columns", [(6, 4), (4, 6), (5, 5)])
def test_gradient_is_the_derivative(rows, columns):
    logits = random_logits(rows, columns, 2.0, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(nuclear_norm, (logits,))


def test_tall_gradient_with_one_column_copied(gradient_of, assert_gradient):
    # B > C and rank C - 1: two classes that the classifier cannot tell apart.
    logits = random_logits(40, 6)
    logits[:, 5] = logits[:, 4]
    value, gradient = gradient_of(nuclear_norm, logits)
    expected, expected_gradient = reference(logits)
    assert value.item() == pytest.approx(expected, rel=1e-6)
    assert_gradient(gradient, expected_gradient)


def test_extremes():
    confident_and_diverse = 1e4 * torch.eye(8)
    assert nuclear_norm(confident_and_diverse).item() == pytest.approx(-1.0, rel=1e-6)
    all_one_class = torch.zeros(8, 8)
    all_one_class[:, 3] = 1e4
    assert nuclear_norm(all_one_class).item() == pytest.approx(-1 / math.sqrt(8), rel=1e-6)
    assert nuclear_norm(torch.zeros(8, 8)).item() == pytest.approx(-1 / 8, rel=1e-6)


@pytest.mark.parametrize("logits", [torch.zeros(8, 6), 1e4 * torch.eye(6), torch.full((5, 3), -1e30)])
def test_degenerate_gradients_are_finite(logits, gradient_of):
    value, gradient = gradient_of(nuclear_norm, logits)
    assert value.isfinite() and gradient.isfinite().all()


def test_one_class_is_constant(gradient_of):
    value, gradient = gradient_of(nuclear_norm, torch.randn(9, 1))
    assert value.item() == pytest.approx(-1 / 3, rel=1e-6)
    assert gradient.abs().max() < 1e-7


def test_empty_batch(gradient_of):
    value, gradient = gradient_of(nuclear_norm, torch.empty(0, 5))
    assert value == 0 and gradient.shape == (0, 5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_not_hidden_and_does_not_raise(bad):
    logits = torch.randn(4, 6)
    logits[1, 2] = bad
    assert nuclear_norm(logits).isnan()


def test_wrong_shape():
    with pytest.raises(ValueError, match="logits"):
        nuclear_norm(torch.zeros(3))
