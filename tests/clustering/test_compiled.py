"""The line that says why the first clustering takes long."""

import subprocess
import sys

import pytest

CLUSTER = """
import logging, numpy as np
logging.basicConfig(level=logging.INFO, format="%(message)s")
from fastreid_sskd.clustering import dbscan, jaccard_distance
import numba
numba.njit(lambda: 1)()  # somebody else's kernel
made = {}
exec("def one(): return 1", made, made)
made["one"].__module__ = None
numba.njit(made["one"])()  # and one of no module
print("imported", flush=True)
from fastreid_sskd.clustering.centroids import cluster_centroids
cluster_centroids(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]))
cluster_centroids(np.eye(4, dtype=np.float64).astype(np.float32)[:, :3], np.array([0, 0, 1, 1]))
"""


@pytest.mark.slow
def test_compiling_is_said_once_and_only_where_it_happens(tmp_path):
    """With an empty cache in the first process, a full one in the second."""
    env = {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def said():
        done = subprocess.run([sys.executable, "-c", CLUSTER], env=env, capture_output=True, text=True, check=True)
        assert done.stdout == "imported\n"
        return done.stderr.count("compiling the kernels, once on this machine")

    assert [said(), said()] == [1, 0]
