"""Progress of long stages, and the line that says why the first clustering takes long."""

import logging
import subprocess
import sys

import pytest

from fastreid_sskd.clustering.parallel import LogProgress


def test_logs_share_and_time_left_at_most_once_per_interval(caplog):
    now = [0.0]
    progress = LogProgress("k-NN search", every=10, clock=lambda: now[0])
    with caplog.at_level(logging.INFO, logger="fastreid"):
        for second in (1, 5, 9):
            now[0] = second
            progress(1, 100)
        assert not caplog.records
        now[0] = 12
        progress(25, 100)
        progress(26, 100)
        now[0] = 24
        progress(50, 100)
    assert [record.getMessage() for record in caplog.records] == [
        "k-NN search: 25%, about 36 s left",
        "k-NN search: 50%, about 24 s left",
    ]


def test_nothing_done_yet_says_nothing(caplog):
    now = [0.0]
    progress = LogProgress("k-NN search", every=1, clock=lambda: now[0])
    now[0] = 5
    with caplog.at_level(logging.INFO, logger="fastreid"):
        progress(0, 10)
    assert not caplog.records


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
jaccard_distance(np.eye(4, dtype=np.float32), 2, 1)
jaccard_distance(np.eye(4, dtype=np.float32), 1, 1)
"""


@pytest.mark.slow
def test_compiling_is_said_once_and_only_where_it_happens(tmp_path):
    """With an empty cache in the first process, a full one in the second."""
    env = {"NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def said():
        done = subprocess.run(
            [sys.executable, "-c", CLUSTER], env=env, capture_output=True, text=True, check=True
        )
        assert done.stdout == "imported\n"
        return done.stderr.count("compiling the kernels, once on this machine")

    assert [said(), said()] == [1, 0]
