"""Features as they come in: kinds, layouts, errors, cameras, devices."""

import numpy as np
import pytest
import torch
from dense_reference import cosines, crowd

from fastreid_sskd.clustering import (
    cluster_agreement,
    cluster_centroids,
    features,
    find_candidates,
    jaccard_distance,
    nearest_neighbors,
    pseudo_labels,
)
from fastreid_sskd.clustering import neighbors as neighbors_module
from fastreid_sskd.clustering.features import UnitRows


def test_float32_rows_are_not_copied():
    array = crowd(seed=1) * 3
    assert UnitRows.from_features(array).tensor.numpy().base is not None
    assert np.shares_memory(UnitRows.from_features(array).tensor.numpy(), array)
    assert not np.shares_memory(UnitRows.from_features(array.astype(np.float64)).tensor.numpy(), array)


def test_blocks_are_normalised():
    array = crowd(seed=2)
    rows, scaled = UnitRows.from_features(array), UnitRows.from_features(array * 5)
    assert rows.norm_error <= features.UNIT_NORM_TOLERANCE < scaled.norm_error
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


def test_cosines_on_a_device(monkeypatch):
    # several calls, the last one shorter
    monkeypatch.setattr(neighbors_module, "VALUES_PER_DEVICE_CALL", 500)
    rows = UnitRows.from_features(crowd(seed=6) * 2)
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, len(rows), (2, 301))
    second[:5] = first[:5]
    found = neighbors_module._cosines_on_device(rows, first, second)
    np.testing.assert_allclose(found, neighbors_module.pair_cosines(rows, first, second), rtol=0, atol=6e-8)
    np.testing.assert_allclose(found, cosines(rows.cpu().tensor.numpy())[first, second], rtol=0, atol=6e-8)
    assert (found[:5] == 1).all()


def test_rescoring_proves_what_it_lists():
    array = crowd(seed=7)
    rows = UnitRows.from_features(array)
    found = find_candidates(rows, 7)
    found.indices[3, 2], found.approximate[3, 2] = -1, -np.inf  # not found: in doubt
    found.approximate[5] += 0.1  # not what the row is: in doubt
    indices, similarities, redone = neighbors_module.rescore(rows, found, 7)
    expected = nearest_neighbors(array, 7)
    assert 2 <= redone < 0.2 * len(rows)
    assert np.array_equal(indices, expected.indices) and np.array_equal(similarities, expected.similarities)


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


@pytest.mark.parametrize("kind", [torch.bool, torch.complex64, bool, complex, str])
def test_what_is_no_real_number(kind):
    with pytest.raises(TypeError, match="real numbers"):
        UnitRows.from_features(
            torch.ones(4, 3, dtype=kind) if isinstance(kind, torch.dtype) else np.ones((4, 3), kind)
        )


@pytest.mark.parametrize("bad, message", [(np.inf, "not finite"), (np.nan, "not finite"), (0, "all zeros")])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["numpy", "torch", "memory map"])
def test_bad_rows_of_every_kind_are_named(kind, dtype, bad, message, tmp_path):
    array = crowd(seed=12).astype(dtype)
    array[[7, 9]] = bad
    if kind == "memory map":
        np.save(tmp_path / "features.npy", array)
        array = np.load(tmp_path / "features.npy", mmap_mode="r")
    with pytest.raises(ValueError, match=rf"row 7 is {message} \(2 such rows"):
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


@pytest.mark.parametrize("backend", ["torch", "faiss", "reduced"])
def test_any_search_refuses_bad_rows_and_takes_any_layout(backend):
    if backend == "faiss":
        pytest.importorskip("faiss")
    array = crowd(seed=14)
    expected = nearest_neighbors(array, 5, knn=backend).indices
    given = np.asfortranarray(array.astype(np.float64))
    assert np.array_equal(nearest_neighbors(given, 5, knn=backend).indices, expected)
    given[3, 2] = np.nan
    with pytest.raises(ValueError, match="row 3 is not finite"):
        nearest_neighbors(given, 5, knn=backend)


# ---- cameras -------------------------------------------------------------------------------------


def by_camera(unit, cameras, least=features.CAMERA_IMAGES):
    """A loop over images; a small camera takes mean and deviation of all."""
    out = []
    for x, camera in zip(unit, cameras, strict=True):
        mine = [other for other, name in zip(unit, cameras, strict=True) if name == camera]
        group = np.array(mine if len(mine) >= least else unit)
        centred = (x - group.mean(0)) / np.sqrt(((group - group.mean(0)) ** 2).mean(0))
        out.append(centred / np.sqrt((centred**2).sum()))
    return np.array(out)


def seen_by(cameras, seed=5):
    """Rows that every camera shifts and stretches in its own way, not of unit length."""
    rng = np.random.default_rng(seed)
    shift = {camera: rng.normal(size=8) for camera in dict.fromkeys(cameras)}
    stretch = {camera: rng.uniform(0.5, 2, 8) for camera in shift}
    return np.array([rng.normal(size=8) * stretch[c] + 3 * shift[c] for c in cameras], dtype=np.float32)


def test_camera_statistics_against_a_loop():
    cameras = ["a", "b", "c"] * 20 + ["few"] * 4
    array = seen_by(cameras)
    before = array.copy()
    rows = UnitRows.from_features(array, cameras=cameras)
    unit = array.astype(np.float64) / np.linalg.norm(array, axis=1, keepdims=True)
    np.testing.assert_allclose(rows.tensor.numpy(), by_camera(unit, cameras), rtol=0, atol=2e-6)
    assert rows.norm_error <= features.UNIT_NORM_TOLERANCE and np.array_equal(array, before)
    for camera in "abc":  # what a camera does to all its images is gone
        own = rows.tensor.numpy()[np.array(cameras) == camera]
        assert np.abs(own.mean(0)).max() < 0.1 < np.abs(unit[np.array(cameras) == camera].mean(0)).max()
    names = [{"a": 0, "b": 1, "c": 2, "few": None}[camera] for camera in cameras]
    assert torch.equal(UnitRows.from_features(array, cameras=names).tensor, rows.tensor)


def test_one_camera_changes_nothing():
    array = crowd(seed=6)
    for cameras in ([""] * len(array), [None] * len(array)):
        assert np.shares_memory(UnitRows.from_features(array, cameras=cameras).tensor.numpy(), array)


def test_values_that_do_not_vary_are_not_blown_up():
    cameras = [0, 1] * 20
    array = seen_by(cameras)
    array[:, 3] = 0
    array *= np.sqrt(1 - 0.25**2) / np.linalg.norm(array, axis=1, keepdims=True)
    array[:, 3] = 0.25 + 1e-8 * np.random.default_rng(0).normal(size=40)  # constant up to rounding
    assert np.abs(UnitRows.from_features(array, cameras=cameras).tensor.numpy()[:, 3]).max() < 1e-3


def test_camera_of_equal_images_takes_the_statistics_of_all():
    cameras = [0] * 20 + [1] * 20
    array = seen_by(cameras)
    array[20:] = array[20]
    rows = UnitRows.from_features(array, cameras=cameras).tensor
    assert torch.isfinite(rows).all() and torch.equal(rows[20:], rows[20:21].expand(20, -1))
    unit = array.astype(np.float64) / np.linalg.norm(array, axis=1, keepdims=True)
    np.testing.assert_allclose(rows[20:].numpy(), by_camera(unit, cameras, least=41)[20:], rtol=0, atol=2e-6)


def test_as_many_cameras_as_images():
    with pytest.raises(ValueError, match="got 3 for 6 images"):
        UnitRows.from_features(crowd(seed=1)[:6], cameras=[0, 1, 0])


def test_centroids_are_of_the_features_as_they_come():
    """Only what is clustered is freed of the cameras: classifiers answer the network's own features."""
    cameras = [0, 1, 2] * 40
    people = np.random.default_rng(1).normal(size=(10, 16))[np.arange(120) // 12]
    noise = np.random.default_rng(2).normal(size=(120, 16))
    shift = np.random.default_rng(3).normal(size=(3, 16))[np.array(cameras)]
    array = (people + 0.2 * noise + 1.5 * shift).astype(np.float32)
    found = pseudo_labels(array, k1=8, k2=2, eps=0.5, cameras=cameras)
    again = UnitRows.from_features(array, cameras=cameras).tensor.numpy()
    assert np.array_equal(found.labels, pseudo_labels(again, k1=8, k2=2, eps=0.5).labels)
    unit = array / np.linalg.norm(array, axis=1, keepdims=True)
    np.testing.assert_allclose(found.centroids, cluster_centroids(unit, found.labels), rtol=0, atol=1e-6)
    plain = pseudo_labels(array, k1=8, k2=2, eps=0.5)
    identities = np.arange(120) // 12
    found, plain = (cluster_agreement(labels.labels, identities)["BCubed F"] for labels in (found, plain))
    assert found > 0.9 and plain < 0.6
    distance = jaccard_distance(array, 8, 2, cameras=cameras)
    assert (distance != jaccard_distance(again, 8, 2)).nnz == 0
