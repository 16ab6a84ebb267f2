"""What runs on another device than the CPU is called here on the CPU, where it must give the same."""

import numpy as np
import pytest
import torch
from dense_reference import cosines, crowd

from fastreid_sskd.clustering import candidates, centroids, exact_knn, features, similarity
from fastreid_sskd.clustering.features import UnitRows


def test_float32_rows_are_not_copied():
    array = crowd(seed=1) * 3
    assert UnitRows.from_features(array).tensor.numpy().base is not None
    assert np.shares_memory(UnitRows.from_features(array).tensor.numpy(), array)
    assert not np.shares_memory(UnitRows.from_features(array.astype(np.float64)).tensor.numpy(), array)


def test_blocks_are_normalised():
    array = crowd(seed=2)
    rows, scaled = UnitRows.from_features(array), UnitRows.from_features(array * 5)
    assert rows.is_unit and not scaled.is_unit
    assert np.shares_memory(rows.block(3, 9).numpy(), array)
    np.testing.assert_allclose(scaled.block(3, 9).numpy(), array[3:9], rtol=0, atol=2e-7)
    assert len(rows) == len(array) and rows.dim == array.shape[1]


def test_norms_beyond_float32_are_not_silent():
    array = crowd(seed=3).astype(np.float64)
    array[4, 0] = 1e39
    with pytest.raises(ValueError, match="row 4 is not finite"):
        UnitRows.from_features(array)
    array[4] = 1e-60
    with pytest.raises(ValueError, match="row 4 is all zeros"):
        UnitRows.from_features(array)


def test_large_and_small_rows_keep_their_direction():
    array = crowd(seed=4)
    scale = np.where(np.arange(len(array)) % 2, 1e30, 1e-30).astype(np.float32)[:, None]
    found = exact_knn(array * scale, 5)
    assert np.array_equal(found.indices, exact_knn(array, 5).indices)


def test_squared_norms_on_a_device():
    array = crowd(seed=5)
    norms = features._squared_norms_on_device(torch.from_numpy(array))
    np.testing.assert_allclose(norms, (array.astype(np.float64) ** 2).sum(1), rtol=1e-12)


def test_cosines_on_a_device(monkeypatch):
    monkeypatch.setattr(similarity, "VALUES_PER_DEVICE_CALL", 500)  # several calls, the last one shorter
    rows = UnitRows.from_features(crowd(seed=6) * 2)
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, len(rows), (2, 301))
    second[:5] = first[:5]
    found = similarity._cosines_on_device(rows, first, second)
    np.testing.assert_allclose(found, similarity.pair_cosines(rows, first, second), rtol=0, atol=6e-8)
    np.testing.assert_allclose(found, cosines(rows.cpu().tensor.numpy())[first, second], rtol=0, atol=6e-8)
    assert (found[:5] == 1).all()


def test_rescoring_on_a_device():
    array = crowd(seed=7)
    rows = UnitRows.from_features(array)
    found = candidates.device_topk(rows, 14, need_farthest=False, tile=32, progress=lambda done, total: None)
    found.indices[3, 2], found.approximate[3, 2] = -1, -np.inf  # not found: in doubt
    found.approximate[5] += 0.1  # not what the row is: in doubt
    error = np.float32(found.error)
    count, k = len(rows), 9
    indices, similarities = np.zeros((count, k), np.int32), np.zeros((count, k), np.float32)
    proven = np.zeros(count, bool)
    similarity._rescore_on_device(rows, found, error, indices, similarities, proven)
    expected = exact_knn(array, k)
    assert not proven[3] and not proven[5] and proven.mean() > 0.8
    assert np.array_equal(indices[proven], expected.indices[proven])
    np.testing.assert_allclose(similarities[proven], expected.similarities[proven], rtol=0, atol=6e-8)


def test_cluster_sums_on_a_device():
    array = crowd(seed=8)
    labels = np.random.default_rng(0).integers(-1, 5, len(array))
    weights = np.random.default_rng(1).random(len(array))
    found = centroids._cluster_sums_on_device(torch.from_numpy(array), weights, labels, 5)
    np.testing.assert_allclose(found, centroids._cluster_sums(array, weights, labels, 5), rtol=0, atol=1e-6)
