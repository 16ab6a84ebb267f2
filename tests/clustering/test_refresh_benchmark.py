"""benchmarks/refresh.py and the two files it is made of."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dense_reference import crowd, dense_dbscan, dense_jaccard, lattice

from fastreid_sskd.clustering import cluster_agreement, pseudo_labels

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def tool(monkeypatch):
    """Imports a file of benchmarks/ as it would be beside its neighbours."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


SIZES = {"images": 400, "dim": 16, "dense_up_to": 400, "exact_up_to": 400, "product_up_to": 400}
CASE = SIZES | {"variant": "sskd", "knn": "torch", "device": "cpu", "runs": 3, "seed": 0}
CASE |= {"pairs_per_image": 5.0, "k1": 12, "k2": 4, "min_samples": 4}


def test_features_are_seeded_unit_rows(tool):
    camera_features = tool("camera_features").camera_features
    features, identities = camera_features(700, 24, seed=3)
    assert features.shape == (700, 24) and features.dtype == np.float32 and identities.shape == (700,)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    again, same = camera_features(700, 24, seed=3)
    assert np.array_equal(features, again) and np.array_equal(identities, same)
    assert not np.allclose(features, camera_features(700, 24, seed=4)[0])
    sizes = np.bincount(identities)
    assert 700 / 25 < len(sizes) < 700 / 10 and sizes.max() > 2 * np.median(sizes)


@pytest.mark.parametrize("count, dim", [(2000, 128), (4000, 512)])
def test_clusters_of_the_features_are_neither_perfect_nor_random(count, dim, tool):
    features, identities = tool("camera_features").camera_features(count, dim)
    found = pseudo_labels(features, pairs_per_image=10.35)
    assert 0.5 < cluster_agreement(found.labels, identities)["ARI"] < 0.9


@pytest.mark.parametrize("variant", ["sskd", "faiss"])
@pytest.mark.parametrize("k1, k2", [(12, 4), (7, 1), (9, 12)])
def test_dense_formulas_equal_the_slow_reference(variant, k1, k2, tool):
    dense = tool("dense_refresh")
    for features in (crowd(seed=1), lattice(seed=2)):
        before = features.copy()
        expected = dense_jaccard(features, k1, k2, variant)
        found = dense.dense_distances(features, k1, k2, variant)
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
        eps = float(np.median(found[found < 1])) + 1e-5
        labels, _, seconds = dense.dense_refresh(
            features, k1=k1, k2=k2, variant=variant, eps=eps, min_samples=3
        )
        assert np.array_equal(labels, dense_dbscan(found, np.float32(eps), 3))
        assert set(seconds) == {"distances", "dbscan", "cpu"} and np.array_equal(before, features)


def test_a_case_measures_and_compares(tool):
    found = tool("refresh").measure(CASE)
    stages = {"knn", "jaccard", "eps", "dbscan", "centroids", "after_knn", "total"}
    for kind in ("seconds", "cpu_seconds"):
        assert set(found[kind]) == stages and all(value >= 0 for value in found[kind].values())
        assert found[kind]["total"] >= max(found[kind]["knn"], found[kind]["after_knn"]) > 0
    assert found["wall_ratio"] > 0 and found["product"]["seconds"] > 0 and found["peak_mb"] >= 0
    assert found["clusters"] > 5 and 0 < found["noise_share"] < 1 and 0 < found["agreement"]["ARI"] < 1
    assert found["dense"]["labels_that_differ"] == 0 and found["dense"]["largest_difference"] < 2e-6
    assert "recall" not in found


def test_an_approximate_case_says_what_it_costs(tool):
    found = tool("refresh").measure({**CASE, "knn": "reduced"})
    assert 0 < found["recall"] <= 1 and 0 < found["agreement_with_exact"]["ARI"] <= 1
    assert "dense" not in found


MEMORY = """
import numpy as np
from measure import ResidentMemory as Memory
before = np.ones(30_000_000)  # 240 MB, which must not count
memory = Memory()
after = np.ones(10_000_000)
del after
peak = memory.peak()
assert 70e6 < peak < 160e6, peak
if memory.method == "VmHWM":
    smaller = Memory().peak()
    assert smaller < 30e6, smaller
"""


def test_memory_counts_what_is_allocated_from_now_on():
    """In a process of its own: one that has done much before has freed memory to use again."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=BENCHMARKS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_growth_exponents(tool):
    cases = [
        {"variant": "sskd", "knn": knn, "dim": 8, "images": images, "cpu_seconds": {"after_knn": images**1.5}}
        for knn, images in (("torch", 1000), ("torch", 4000), ("reduced", 8000))
    ]
    assert tool("refresh").growth(cases) == ["sskd/torch 1,000 to 4,000: 1.50"]


@pytest.mark.slow
def test_command_writes_what_it_prints(tmp_path):
    """Cases in processes of their own; JSON and Markdown."""
    options = ["--images", "300", "--dim", "16", "--runs", "1", "--variant", "sskd", "faiss"]
    options += ["--json", "r.json", "--markdown", "r.md"]
    command = [sys.executable, str(BENCHMARKS / "refresh.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    results = json.loads((tmp_path / "r.json").read_text())
    assert [case["variant"] for case in results["cases"]] == ["sskd", "faiss"]
    assert {"processor", "threads", "versions", "load"} <= set(results["machine"])
    assert (tmp_path / "r.md").read_text().strip() == done.stdout.strip()
    assert done.stdout.count("| 300") == 2 and results["machine"]["versions"]["torch"] in done.stdout
