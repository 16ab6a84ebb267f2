import math

import numpy as np
import pytest
import torch

from fastreid_sskd.losses import nuclear_norm
from fastreid_sskd.losses.nuclear_norm_loss import (
    factor_by_eigenvectors,
    factor_by_iteration,
    orthogonal_factor,
)


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


@pytest.fixture
def check(gradient_of, assert_gradient):
    """Compare value and gradient with the reference."""

    def compare(logits):
        value, gradient = gradient_of(nuclear_norm, logits)
        expected, expected_gradient = reference(logits)
        assert value.item() == pytest.approx(expected, rel=1e-6)
        assert_gradient(gradient, expected_gradient)
        return value, gradient

    return compare


@pytest.mark.parametrize("rows, columns", [(64, 8), (64, 3), (64, 64), (16, 700), (1, 5), (2, 2)])
@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
def test_value_and_gradient(rows, columns, scale, check):
    check(random_logits(rows, columns, scale))


def test_tall_with_one_column_copied(check):
    # B > C and rank C - 1: two classes that the classifier cannot tell apart.
    logits = random_logits(40, 6)
    logits[:, 5] = logits[:, 4]
    check(logits)


@pytest.mark.parametrize(
    "distinct, copies, columns", [(4, 4, 50), (16, 4, 40), (3, 20, 8), (32, 2, 8), (1, 16, 30)]
)
def test_duplicated_rows(distinct, copies, columns, check):
    _, gradient = check(random_logits(distinct, columns).repeat_interleave(copies, dim=0))
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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_is_not_hidden_and_does_not_raise(bad):
    logits = torch.randn(4, 6)
    logits[1, 2] = bad
    assert nuclear_norm(logits).isnan()


# ---- U V^T by eigenvectors and by iteration ------------------------------------------------------

BOTH = pytest.mark.parametrize("factor", [factor_by_eigenvectors, factor_by_iteration])


def probabilities(rows, columns, scale=1.0, copies=1):
    logits = scale * torch.randn(
        rows // copies, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return logits.repeat_interleave(copies, dim=0).softmax(dim=1)


def by_svd(matrix):
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u * (s > 1e-10 * s[0])) @ vt


@BOTH
@pytest.mark.parametrize("copies", [1, 2, 4, 16])
@pytest.mark.parametrize("rows, columns", [(64, 700), (64, 30), (64, 64), (16, 700), (64, 2), (32, 1)])
@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0])
def test_is_an_svds(factor, rows, columns, scale, copies):
    matrix = probabilities(rows, columns, scale, copies)
    found = factor(matrix)
    assert found.shape == matrix.shape and (found - by_svd(matrix)).abs().max() < 1e-7
    assert torch.linalg.svdvals(found).max() < 1 + 1e-7


@BOTH
def test_singular_values_of_all_sizes(factor):
    """1, 1e-1, ... 1e-5 become 1; what is below float32's rounding becomes about 0, softly by iteration."""
    draw = torch.Generator().manual_seed(1)
    u, v = (
        torch.linalg.qr(torch.randn(size, 12, generator=draw, dtype=torch.float64)).Q for size in (20, 50)
    )
    s = torch.tensor(
        [*(10.0**-k for k in range(6)), 1e-8, 1e-9, 1e-12, 1e-15, 1e-16, 0.0], dtype=torch.float64
    )
    found = u.t() @ factor((u * s) @ v.t()) @ v
    assert (found.diag()[:6] - 1).abs().max() < 1e-3
    assert (found.diag()[6:].abs() < torch.tensor([0.05, 5e-3, 5e-6, 1e-6, 1e-6, 1e-6])).all()
    assert (found - torch.diag(found.diag())).abs().max() < 1e-3


@BOTH
@pytest.mark.parametrize(
    "matrix",
    [torch.eye(5), torch.ones(4, 9) / 9, torch.ones(6, 1), torch.eye(7)[:, :3] + torch.eye(7)[:, 3:6]],
)
def test_simple_ones(factor, matrix):
    matrix = matrix.double()
    torch.testing.assert_close(factor(matrix), by_svd(matrix), rtol=0, atol=1e-12)


@BOTH
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_raise(factor, bad):
    matrix = probabilities(6, 4)
    matrix[2, 1] = bad
    assert not (factor(matrix) * matrix).sum().isfinite()


def test_the_cpu_has_the_faster_one():
    matrix = probabilities(8, 12)
    assert torch.equal(orthogonal_factor(matrix), factor_by_eigenvectors(matrix))
