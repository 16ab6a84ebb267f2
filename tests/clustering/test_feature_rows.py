"""What runs on another device than the CPU is called here on the CPU, where it must give the same."""

import numpy as np
import pytest
import torch
from dense_reference import cosines, crowd

from fastreid_sskd.clustering import candidates, centroids, features, nearest_neighbors, similarity
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
    found = nearest_neighbors(array * scale, 5)
    assert np.array_equal(found.indices, nearest_neighbors(array, 5).indices)


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
    similarity._rescore_on_device(rows, found, error, True, indices, similarities, proven)
    expected = nearest_neighbors(array, k)
    assert not proven[3] and not proven[5] and proven.mean() > 0.8
    assert np.array_equal(indices[proven], expected.indices[proven])
    np.testing.assert_allclose(similarities[proven], expected.similarities[proven], rtol=0, atol=6e-8)


def test_cluster_sums_on_a_device():
    array = crowd(seed=8)
    labels = np.random.default_rng(0).integers(-1, 5, len(array))
    weights = np.random.default_rng(1).random(len(array))
    found = centroids._cluster_sums_on_device(torch.from_numpy(array), weights, labels, 5)
    np.testing.assert_allclose(found, centroids._cluster_sums(array, weights, labels, 5), rtol=0, atol=1e-6)


def test_taken_rows_are_normalised_copies():
    array = crowd(seed=9)
    numbers = np.array([5, 0, 5, len(array) - 1])
    for given in (array, array * 3):
        rows = UnitRows.from_features(given)
        taken = rows.take(numbers)
        np.testing.assert_allclose(taken.numpy(), array[numbers], rtol=0, atol=2e-7)
        assert not np.shares_memory(taken.numpy(), given)


def test_a_masked_array_is_refused_whatever_its_mask():
    array = crowd(seed=10)
    for mask in (False, np.arange(array.size).reshape(array.shape) == 7):
        with pytest.raises(TypeError, match="masked array, whose mask would be lost"):
            UnitRows.from_features(np.ma.masked_array(array, mask))


def test_layouts_that_torch_does_not_take():
    array = crowd(seed=11)
    expected = UnitRows.from_features(array)
    kinds = {
        "other byte order": array.astype(array.dtype.newbyteorder()),
        "backwards": array[::-1].copy()[::-1],
        "every other row": np.repeat(array, 2, axis=0)[::2],
        "long double": array.astype(np.longdouble),
        "list": array.tolist(),
        "bfloat16, exact": None,
    }
    for kind, given in kinds.items():
        if given is None:
            exact = torch.from_numpy(array).bfloat16()
            assert torch.equal(UnitRows.from_features(exact).tensor, exact.float()), kind
            continue
        assert torch.equal(UnitRows.from_features(given).tensor, expected.tensor), kind


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64])
def test_tensors_that_are_no_real_numbers(dtype):
    with pytest.raises(TypeError, match="real numbers"):
        UnitRows.from_features(torch.ones(4, 3, dtype=dtype))


@pytest.mark.parametrize("bad, message", [(np.inf, "not finite"), (np.nan, "not finite"), (0, "all zeros")])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["numpy", "torch", "memory map"])
def test_bad_rows_of_every_kind_are_named(kind, dtype, bad, message, tmp_path):
    array = crowd(seed=12).astype(dtype)
    array[7] = bad
    if kind == "memory map":
        np.save(tmp_path / "features.npy", array)
        array = np.load(tmp_path / "features.npy", mmap_mode="r")
    with pytest.raises(ValueError, match=f"row 7 is {message}"):
        UnitRows.from_features(torch.from_numpy(array) if kind == "torch" else array)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memory_maps_are_read_in_place_and_left_alone(mode, tmp_path):
    array = crowd(seed=13)
    np.save(tmp_path / "features.npy", array)
    before = (tmp_path / "features.npy").read_bytes()
    mapped = np.load(tmp_path / "features.npy", mmap_mode=mode)
    rows = UnitRows.from_features(mapped)
    assert np.shares_memory(rows.tensor.numpy(), mapped)
    assert np.array_equal(exact_lists(mapped), exact_lists(array))
    del rows, mapped
    assert (tmp_path / "features.npy").read_bytes() == before


def exact_lists(array):
    return nearest_neighbors(array, 5).indices


@pytest.mark.parametrize("backend", ["torch", "faiss", "ivf", "reduced"])
def test_any_search_refuses_bad_rows_and_takes_any_layout(backend):
    if backend in ("faiss", "ivf"):
        pytest.importorskip("faiss")
    array = crowd(seed=14)
    expected = nearest_neighbors(array, 5, backend=backend).indices
    given = np.asfortranarray(array.astype(np.float64))
    assert np.array_equal(nearest_neighbors(given, 5, backend=backend).indices, expected)
    given[3, 2] = np.nan
    with pytest.raises(ValueError, match="row 3 is not finite"):
        nearest_neighbors(given, 5, backend=backend)
