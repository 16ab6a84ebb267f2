"""U V^T by eigenvectors and by iteration: an SVD's, on matrices of probabilities, rank deficient ones too."""

import pytest
import torch

from fastreid_sskd.losses.nuclear_norm_loss import (
    factor_by_eigenvectors,
    factor_by_iteration,
    orthogonal_factor,
)

BOTH = pytest.mark.parametrize("factor", [factor_by_eigenvectors, factor_by_iteration])


def probabilities(rows, columns, scale=1.0, copies=1):
    logits = scale * torch.randn(rows // copies, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
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
    """1, 1e-1, ... 1e-5 become 1; what is less than float32's rounding next to nothing, softly by iteration."""
    draw = torch.Generator().manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(size, 12, generator=draw, dtype=torch.float64)).Q for size in (20, 50))
    s = torch.tensor([*(10.0**-k for k in range(6)), 1e-8, 1e-9, 1e-12, 1e-15, 1e-16, 0.0], dtype=torch.float64)
    found = u.t() @ factor((u * s) @ v.t()) @ v
    assert (found.diag()[:6] - 1).abs().max() < 1e-3
    assert (found.diag()[6:].abs() < torch.tensor([0.05, 5e-3, 5e-6, 1e-6, 1e-6, 1e-6])).all()
    assert (found - torch.diag(found.diag())).abs().max() < 1e-3


@BOTH
@pytest.mark.parametrize("matrix", [torch.eye(5), torch.ones(4, 9) / 9, torch.ones(6, 1), torch.eye(7)[:, :3] + torch.eye(7)[:, 3:6]])
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
