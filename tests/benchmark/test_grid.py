"""Variants of a config over seeds, and going on where they stopped."""

import json
import os
import signal

import pytest
import yaml
from tiny_reid import CONFIGS, TINY_SOURCE, TINY_TARGET

from fastreid_sskd.benchmark import Grid, collect, grid, load_grid, read_results, repeat, run_grid, summarise
from fastreid_sskd.benchmark.grid import Cell
from fastreid_sskd.clustering import PseudoLabelError
from fastreid_sskd.engine import load_config
from fastreid_sskd.processes import Stopped

BASE = str(CONFIGS / "sskd_d2m.yml")
OPTS = [*TINY_TARGET, "SOLVER.MAX_EPOCH", "1", "TEST.EVAL_PERIOD", "1", "SSKD.SOURCE.OPTS", str(TINY_SOURCE)]
ONE_PEER = Cell("SSKD, 1 peer", ("SSKD.NUM_PEERS", 1))


@pytest.fixture
def started(monkeypatch):
    """The configs of the runs that are started."""
    configs = []
    true = grid.run
    monkeypatch.setattr(grid, "run", lambda cfg, resume: configs.append(cfg) or true(cfg, resume))
    return configs


def test_cells_and_seeds_from_shared_source_models(tmp_path, started, monkeypatch):
    cells = Grid(BASE, (Cell("the whole of SSKD"), ONE_PEER), (1, 2), share_source=True)
    results = run_grid(cells, str(tmp_path), opts=OPTS)
    assert [(r.method, r.seed) for r in results] == [
        ("the whole of SSKD", 1),
        ("the whole of SSKD", 2),
        ("SSKD, 1 peer", 1),
        ("SSKD, 1 peer", 2),
    ]
    shared = [str(tmp_path / "source" / f"peer{k}" / "model_best.pth") for k in (0, 1)]
    assert [list(cfg.SSKD.SOURCE.WEIGHTS) for cfg in started] == [shared, shared, shared[:1], shared[:1]]
    assert [row.seeds for row in summarise(results)] == [2, 2]
    folder = tmp_path / "the-whole-of-sskd" / "seed2"
    assert read_results(str(folder / "record.json")) == [results[1]]
    ensemble = json.loads((folder / "results.json").read_text())["evaluations"][-1]["results"]["Market1501"][
        "ensemble"
    ]
    assert results[1].metrics["mAP"] == pytest.approx(ensemble["mAP"], abs=1e-4)
    log = (folder / "log.txt").read_text()
    assert "Environment info" in log and "the whole of SSKD, seed 2" in log and "seed 1" not in log

    assert collect(str(tmp_path)) == results  # in the grid's order; its folders' is another

    # given again, nothing is run and no data is needed; what was lost is
    del started[:]
    with monkeypatch.context() as gone:
        gone.setenv("FASTREID_DATASETS", str(tmp_path / "nowhere"))
        assert run_grid(cells, str(tmp_path), opts=OPTS) == results and not started
    (folder / "rows.json").unlink()
    assert [r.metrics for r in run_grid(cells, str(tmp_path), opts=OPTS)] == [r.metrics for r in results]
    assert [cfg.OUTPUT_DIR for cfg in started] == [str(folder)]

    # other settings in the same folder
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR"):
        run_grid(cells, str(tmp_path), opts=[*OPTS, "SOLVER.BASE_LR", "0.1"])
    assert run_grid(cells, str(tmp_path), ["SSKD, 1 peer"], [*OPTS, "SSKD.LOG_PERIOD", "7"]) == results[2:]


def test_two_paths_of_one_folder(tmp_path, started, monkeypatch):
    """Relative, then absolute: the shared source models, which the cells' settings name, are the same."""
    monkeypatch.chdir(tmp_path)
    cells = Grid(BASE, (ONE_PEER,), (1,), share_source=True)
    opts = [*OPTS, "SSKD.NUM_PEERS", "1"]
    results = run_grid(cells, "./runs/x", opts=opts)
    assert len(started) == 1 and started[0].SSKD.SOURCE.WEIGHTS[0].startswith("./runs/x")
    again = run_grid(cells, str(tmp_path / "runs" / "x"), opts=opts)
    assert [r.metrics for r in again] == [r.metrics for r in results] and len(started) == 1


@pytest.mark.parametrize("in_run", [True, False])
def test_a_signal_ends_the_whole_grid(tmp_path, started, monkeypatch, in_run):
    """Also one that comes when a run has no step left; given again, the grid goes on with the rest."""
    function, signalled = ("run", grid.run) if in_run else ("write_rows", grid.write_rows)

    def and_a_signal(*args, **kwargs):
        found = signalled(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    cells = Grid(BASE, (ONE_PEER,), (1, 2), share_source=True)
    with monkeypatch.context() as patch:
        patch.setattr(grid, function, and_a_signal)
        with pytest.raises(Stopped):
            run_grid(cells, str(tmp_path), opts=OPTS)
    done = [(tmp_path / "sskd-1-peer" / f"seed{seed}" / "rows.json").exists() for seed in (1, 2)]
    assert done == [True, False]
    results = run_grid(cells, str(tmp_path), opts=OPTS)
    assert [r.seed for r in results] == [1, 2] and [cfg.SEED for cfg in started] == [1, 2]


def test_a_run_whose_clusters_are_useless_is_left_out(tmp_path, monkeypatch, caplog):
    def run(cfg, resume):
        raise PseudoLabelError("0 clusters")

    monkeypatch.setattr(grid, "run", run)
    assert run_grid(repeat(BASE, 2), str(tmp_path), opts=OPTS) == []
    assert caplog.text.count("has no row: 0 clusters") == 2


def test_another_error_ends_the_grid(tmp_path, monkeypatch):
    def run(cfg, resume):
        raise MemoryError

    monkeypatch.setattr(grid, "run", run)
    with pytest.raises(MemoryError):
        run_grid(repeat(BASE, 2), str(tmp_path), opts=OPTS)
    assert not (tmp_path / "sskd_d2m" / "seed1" / "rows.json").exists()


def test_one_config_over_seeds():
    assert repeat("configs/demo.yml", 3) == Grid("configs/demo.yml", (Cell("demo"),), (1, 2, 3))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        repeat("configs/demo.yml", 0)


def test_unknown_cell(tmp_path):
    with pytest.raises(ValueError, match="no cell mine: there are SSKD, 1 peer"):
        run_grid(Grid(BASE, (ONE_PEER,)), str(tmp_path), ["mine"])


@pytest.mark.parametrize(
    "data, problem",
    [
        ([], "no grid"), ({"config": "a.yml"}, "no grid"), ({"config": "a.yml", "cells": [], "runs": 3}, "no grid"),
        ({"config": "a.yml", "cells": []}, "there is none"), ({"config": "a.yml", "cells": [{"opts": {}}]}, "has a name"),
        ({"config": "a.yml", "cells": [{"name": "+ A"}, {"name": "a"}]}, "differ in letters and digits: a"),
    ],
)  # fmt: skip
def test_a_bad_grid(tmp_path, data, problem):
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match=problem):
        load_grid(str(tmp_path / "grid.yml"))


def test_the_ablation_of_the_project():
    """Every cell is a config that differs from the base, in keys that there are, and the full method is among them."""
    cells = load_grid(str(CONFIGS / "ablation" / "grid.yml"))
    assert cells.share_source and tuple(cells.seeds) == (1, 2, 3) and len(cells.cells) >= 10
    base = load_config(cells.config)
    same = [cell.name for cell in cells.cells if load_config(cells.config, cell.opts) == base]
    assert same == ["+ nuclear norm = SSKD, 3 peers"]
    assert base.SOLVER.MAX_EPOCH * base.SSKD.ITERS_PER_EPOCH <= 200
    weights = {
        cell.name: [node.WEIGHT for node in load_config(cells.config, cell.opts).SSKD.LOSSES.values()][:4]
        for cell in cells.cells[:4]
    }
    assert list(weights.values()) == [
        [1.0, 0, 0, 0],
        [0.5, 0.5, 0, 0],
        [0.5, 0.5, 3.0, 0],
        [0.5, 0.5, 3.0, 1.5],
    ]


@pytest.mark.parametrize("opts", [("SSKD.EPS", 0.5), ("SSKD.CLUSTER.K1", 0), ("DATASETS.TESTS", "()")])
def test_a_bad_cell_is_found_before_the_others_are_trained(tmp_path, started, opts):
    cells = Grid(BASE, (ONE_PEER, Cell("bad", opts)), (1,), share_source=True)
    with pytest.raises((ValueError, KeyError)):
        run_grid(cells, str(tmp_path), opts=OPTS)
    assert not started and not (tmp_path / "source").exists()
