"""Variants of a config over seeds, and going on where they stopped."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from tiny_reid import CONFIGS, MARKET, TINY, TINY_SOURCE, TINY_TARGET, load_checkpoint

from fastreid_sskd.benchmark import (
    Cell,
    Grid,
    collect,
    load_grid,
    read_results,
    repeat,
    run_grid,
    runner,
    summarise,
)
from fastreid_sskd.clustering import PseudoLabelError
from fastreid_sskd.engine import load_config
from fastreid_sskd.engine.checkpoint import OtherConfigError
from fastreid_sskd.engine.defaults import start_run
from fastreid_sskd.evaluation.evaluator import METRICS
from fastreid_sskd.processes import Stopped

BASE = str(CONFIGS / "sskd_d2m.yml")
OPTS = [*TINY_TARGET, "SOLVER.MAX_EPOCH", "1", "TEST.EVAL_PERIOD", "1", "SSKD.SOURCE.OPTS", str(TINY_SOURCE)]
ONE_PEER = Cell("SSKD, 1 peer", ("SSKD.NUM_PEERS", 1))


@pytest.fixture
def started(monkeypatch):
    """The configs of the runs that are started."""
    configs = []
    true = runner.run
    monkeypatch.setattr(runner, "run", lambda cfg, resume: configs.append(cfg) or true(cfg, resume))
    return configs


def test_cells_and_seeds_from_shared_source_models(tmp_path, started, monkeypatch):
    cells = Grid(BASE, (Cell("the whole of SSKD"), ONE_PEER), (1, 2), share_source="all")
    outcome = run_grid(cells, str(tmp_path), opts=OPTS)
    results = outcome.results
    assert not outcome.notes()
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
        assert run_grid(cells, str(tmp_path), opts=OPTS) == outcome and not started
    (folder / "record.json").unlink()
    assert [r.metrics for r in run_grid(cells, str(tmp_path), opts=OPTS).results] == [
        r.metrics for r in results
    ]
    assert [cfg.OUTPUT_DIR for cfg in started] == [str(folder)]

    # nor are the source models, and the folder is known under another spelling
    shutil.rmtree(tmp_path / "source")
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir(tmp_path.parent)
        again = run_grid(cells, f"./{tmp_path.name}", opts=OPTS).results
    assert [r.metrics for r in again] == [r.metrics for r in results] and len(started) == 1
    assert not (tmp_path / "source").exists()

    # other settings in the same folder
    with pytest.raises(ValueError, match=r"SOLVER\.BASE_LR"):
        run_grid(cells, str(tmp_path), opts=[*OPTS, "SOLVER.BASE_LR", "0.1"])
    assert (
        run_grid(cells, str(tmp_path), ["SSKD, 1 peer"], [*OPTS, "SSKD.LOG_PERIOD", "7"]).results
        == results[2:]
    )


@pytest.fixture
def trained(monkeypatch):
    """The configs of the runs that are started, which end at once as plain runs do, with a figure that tells
    them apart.
    """
    configs = []

    def run(cfg, resume):
        configs.append(cfg)
        start_run(cfg, from_scratch=True)
        folder = Path(cfg.OUTPUT_DIR)
        (folder / "last_checkpoint").write_text("model_final.pth")
        (folder / "metrics.json").write_text('{"iteration": 5, "time": 1.0}')
        # the second is the best
        figures = [{"mAP": float(mAP), "Rank-1": 0.0} for mAP in (cfg.SEED, cfg.SEED + 20, cfg.SEED + 10)]
        evaluations = [
            {"epoch": epoch, "results": {"Market1501": dict.fromkeys(("teacher0", "ensemble"), row)}}
            for epoch, row in enumerate(figures)
        ]
        best = {"epoch": 1, "row": "teacher0", "chosen_on": "Market1501 test split, by mAP"}
        (folder / "results.json").write_text(
            json.dumps({"tests": ["Market1501"], "evaluations": evaluations, "best": best})
        )
        return {"Market1501": {"ensemble": {name: float(cfg.SEED + 10) for name in METRICS}}}

    monkeypatch.setattr(runner, "run", run)
    return configs


def names(results):
    return [(result.method, result.seed) for result in results]


def test_record_is_of_all_finished_runs(tmp_path, trained):
    """Whichever seeds and cells the last call was for; the rows that were chosen survive."""
    sources = tmp_path / "a.pth"
    torch.save({"weight": torch.zeros(1)}, sources)
    opts = [*OPTS, "SOLVER.MAX_EPOCH", "2", "SSKD.SOURCE.WEIGHTS", f"['{sources}']"]
    cells, output = (ONE_PEER, Cell("another"), Cell("a third")), tmp_path / "grid"

    def call(seeds, only=()):
        return names(run_grid(Grid(BASE, cells, seeds), str(output), only, opts).results)

    assert call((1, 2), ["SSKD, 1 peer"]) == [("SSKD, 1 peer", 1), ("SSKD, 1 peer", 2)]
    assert names(collect(str(output))) == [("SSKD, 1 peer", 1), ("SSKD, 1 peer", 2)]
    assert call((10,), ["another"]) == [("another", 10)]
    assert call((3,)) == [("SSKD, 1 peer", 3), ("another", 3), ("a third", 3)]
    expected = [
        (name, seed)
        for name, seeds in (("SSKD, 1 peer", (1, 2, 3)), ("another", (3, 10)), ("a third", (3,)))
        for seed in seeds
    ]
    record = read_results(str(output / "record.json"))
    assert names(r for r in record if r.selection == "last epoch") == expected
    assert [r.metrics["mAP"] for r in record if r.selection == "last epoch"] == [
        seed + 10.0 for _, seed in expected
    ]
    best = [(f"{name}, best teacher", seed) for name, seed in expected]
    assert names(r for r in record if r.selection != "last epoch") == best
    shown = [(row.method, row.seeds) for row in summarise(collect(str(output), ("last", "best")))]
    assert shown == [
        (name + end, n)
        for name, n in (("SSKD, 1 peer", 3), ("another", 2), ("a third", 1))
        for end in ("", ", best teacher")
    ]
    assert len(trained) == 6

    shutil.rmtree(output / "another")  # the table shows what is there
    assert {r.method for r in collect(str(output))} == {"SSKD, 1 peer", "a third"}


def test_foreign_runs_are_found_before_anything_is_trained(tmp_path, trained):
    """In any cell and seed, also one that was not asked for; a folder may be spelled in another way."""
    torch.save({"weight": torch.zeros(1)}, tmp_path / "a.pth")
    sources = ("SSKD.SOURCE.WEIGHTS", f"['{tmp_path}/a.pth']")
    cells = (ONE_PEER, Cell("another"))
    assert run_grid(Grid(BASE, cells[1:], (2,)), str(tmp_path / "grid"), (), [*OPTS, *sources]).results
    spelled = ("SSKD.SOURCE.WEIGHTS", f"['{tmp_path}/grid/../a.pth']")
    assert (
        len(run_grid(Grid(BASE, cells[1:], (2,)), f"{tmp_path}/./grid", (), [*OPTS, *spelled]).results)
        == 1
        == len(trained)
    )
    for seeds, only in (((1, 2), ()), ((1,), ()), ((1,), ["SSKD, 1 peer"])):
        with pytest.raises(
            OtherConfigError, match=r"another/seed2' holds a run of other settings \(1: SOLVER.BASE_LR"
        ):
            run_grid(
                Grid(BASE, cells, seeds),
                str(tmp_path / "grid"),
                only,
                [*OPTS, *sources, "SOLVER.BASE_LR", "0.1"],
            )
    assert len(trained) == 1 and not (tmp_path / "grid" / "sskd-1-peer").exists()


@pytest.mark.parametrize("share", [True, False])
def test_missing_source_models_are_found_before_anything_is_trained(tmp_path, trained, share):
    cells = Grid(BASE, (Cell("one"), Cell("two", ("SSKD.SOURCE.WEIGHTS", ["nowhere.pth"]))), (1,), share)
    with pytest.raises(FileNotFoundError, match=r"SSKD\.SOURCE\.WEIGHTS: no file nowhere\.pth"):
        run_grid(cells, str(tmp_path / "grid"), (), OPTS)
    assert not trained and not (tmp_path / "grid").exists()


@pytest.mark.parametrize(
    "opts, cell, problem",
    [
        (("SEED", "-1"), (), "share_source needs a SEED"),
        ((), ("SSKD.NUM_PEERS", 3), "NUM_PEERS 3.* of the 2 peers of .*sskd_d2m.yml"),
    ],
)
def test_source_models_that_cannot_be_shared(tmp_path, trained, opts, cell, problem):
    with pytest.raises(ValueError, match=problem):
        run_grid(
            Grid(BASE, (ONE_PEER, Cell("three", cell)), (1,), "all"),
            str(tmp_path / "grid"),
            (),
            [*OPTS, *opts],
        )
    assert not trained and not (tmp_path / "grid").exists()


def test_two_paths_of_one_folder(tmp_path, started, monkeypatch):
    """Relative, then absolute: the shared source models, which the cells' settings name, are the same."""
    monkeypatch.chdir(tmp_path)
    cells = Grid(BASE, (ONE_PEER,), (1,), share_source="all")
    opts = [*OPTS, "SSKD.NUM_PEERS", "1"]
    results = run_grid(cells, "./runs/x", opts=opts).results
    assert len(started) == 1 and started[0].SSKD.SOURCE.WEIGHTS[0].startswith("./runs/x")
    again = run_grid(cells, str(tmp_path / "runs" / "x"), opts=opts).results
    assert [r.metrics for r in again] == [r.metrics for r in results] and len(started) == 1


@pytest.mark.parametrize("in_run", [True, False])
def test_a_signal_ends_the_whole_grid(tmp_path, started, monkeypatch, in_run):
    """Also one that comes when a run has no step left; given again, the grid goes on with the rest."""
    function = "run" if in_run else "write_results"
    signalled = getattr(runner, function)

    def and_a_signal(*args, **kwargs):
        found = signalled(*args, **kwargs)
        setattr(runner, function, signalled)  # one signal
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    cells = Grid(BASE, (ONE_PEER,), (1, 2), share_source="all")
    with monkeypatch.context() as patch:
        patch.setattr(runner, function, and_a_signal)
        with pytest.raises(Stopped):
            run_grid(cells, str(tmp_path), opts=OPTS)
    done = [(tmp_path / "sskd-1-peer" / f"seed{seed}" / "record.json").exists() for seed in (1, 2)]
    assert done == [True, False]
    results = run_grid(cells, str(tmp_path), opts=OPTS).results
    assert [r.seed for r in results] == [1, 2] and [cfg.SEED for cfg in started] == [1, 2]


def test_baselines_beside_runs_from_source_models_of_each_seed(tmp_path, started):
    """Rows of a seed start from its own source models. Nothing trained, another statistics, three times
    the steps, the bound.
    """
    opts = (
        "SSKD.LOSSES.LabelSmoothCE.WEIGHT",
        1.0,
        "SSKD.LOSSES.SoftCE.WEIGHT",
        0.0,
        "SSKD.SOURCE.BN_DATASETS",
        [],
    )
    cells = (
        Cell("start", run="start"), Cell("statistics", run="batch_norm"), Cell("longer", steps=3),
        Cell("bound", ("MODEL.META_ARCHITECTURE", "SSKDSource", *opts)),
    )  # fmt: skip
    # of each run, not the one that TINY gives to all
    own_seeds = [*OPTS, "SSKD.SOURCE.OPTS", str(TINY_SOURCE[len(TINY) :])]
    outcome = run_grid(Grid(BASE, cells, (1, 2), "seed"), str(tmp_path), opts=own_seeds)
    results = outcome.results
    assert not outcome.notes() and len(started) == 4
    by_name = {(r.method, r.seed): r.metrics["mAP"] for r in results}
    metrics = {(r.method, r.seed): r.metrics for r in results}
    for seed in (1, 2):
        longer = json.loads((tmp_path / "longer" / f"seed{seed}" / "results.json").read_text())["evaluations"]
        assert by_name["start", seed] == pytest.approx(
            longer[0]["results"]["Market1501"]["ensemble"]["mAP"], abs=1e-4
        )
        (cfg,) = (cfg for cfg in started if cfg.SEED == seed and cfg.MODEL.META_ARCHITECTURE == "SSKD")
        assert cfg.SSKD.ITERS_PER_EPOCH == 3 * load_config(BASE, OPTS).SSKD.ITERS_PER_EPOCH
        (bound,) = (
            cfg for cfg in started if cfg.SEED == seed and cfg.MODEL.META_ARCHITECTURE == "SSKDSource"
        )
        assert bound.MODEL.WEIGHTS == cfg.SSKD.SOURCE.WEIGHTS[0]
        assert os.path.join("source-models", f"seed{seed}") in bound.MODEL.WEIGHTS
    first, second = (
        load_checkpoint(tmp_path / "source-models" / f"seed{seed}" / "source" / "peer0" / "model_best.pth")[
            "model"
        ]
        for seed in (1, 2)
    )
    assert not torch.equal(first["backbone.0.weight"], second["backbone.0.weight"])
    assert any(metrics["statistics", seed] != metrics["start", seed] for seed in (1, 2))
    # not the source models
    assert {r.method for r in collect(str(tmp_path))} == {cell.name for cell in cells}
    assert (
        run_grid(Grid(BASE, cells, (1, 2), "seed"), str(tmp_path), opts=own_seeds) == outcome
        and len(started) == 4
    )


def test_a_bound_without_identities_is_left_out(tmp_path, started, world):
    crops = (
        "DATASETS.NAMES",
        "('CropFolder',)",
        "SSKD.FOLDERS.CropFolder.TRAIN",
        str(world / MARKET / "bounding_box_train"),
    )
    cells = (
        Cell("start", run="start"),
        Cell("bound", ("MODEL.META_ARCHITECTURE", "SSKDSource", "SSKD.LOSSES.SoftCE.WEIGHT", 0.0)),
    )
    outcome = run_grid(Grid(BASE, cells, (1,), "seed"), str(tmp_path), opts=[*OPTS, *crops])
    assert [r.method for r in outcome.results] == ["start"] and not started and not outcome.stopped
    assert "a source needs identities" in outcome.unavailable["bound", 1]


def test_rivals():
    cells = load_grid(str(CONFIGS / "rivals" / "grid.yml"))
    assert cells.share_source == "seed" and len(cells.cells) >= 11
    for cell in cells.cells:  # every key is one of the config, for each pair
        for base in (cells.config, str(CONFIGS / "sskd_cuhk2m_mobilenet.yml")):
            load_config(base, cell.opts)
        # what is called released, or changes one thing, is that also on a config with the recommendation
        if cell.run != "batch_norm" and cell.name != "supervised bound":
            one, other = (
                load_config(str(CONFIGS / f"demo{end}.yml"), cell.opts) for end in ("", "_released")
            )
            assert one.SSKD == other.SSKD, cell.name


@pytest.mark.parametrize(
    "entry, problem",
    [
        ({"run": "stop"}, "run of 'a' .* is one of train, start, batch_norm, one_network, supervised"),
        ({"steps": 0}, "steps of 'a' .* >= 1; got 0"),
    ],
)
def test_wrong_cells(tmp_path, entry, problem):
    path = tmp_path / "grid.yml"
    path.write_text(yaml.safe_dump({"config": BASE, "cells": [{"name": "a", **entry}]}))
    with pytest.raises(ValueError, match=problem):
        load_grid(str(path))


def test_a_run_whose_clusters_are_useless_is_left_out(tmp_path, monkeypatch, caplog):
    def run(cfg, resume):
        raise PseudoLabelError("0 clusters")

    monkeypatch.setattr(runner, "run", run)
    outcome = run_grid(repeat(BASE, 2), str(tmp_path), opts=OPTS)
    assert outcome == runner.Outcome([], {}, dict.fromkeys((("sskd_d2m", 1), ("sskd_d2m", 2)), "0 clusters"))
    assert outcome.notes() == ["No row of sskd_d2m, seed 1, 2: 0 clusters"]
    assert caplog.text.count("has no row: 0 clusters") == 2 and not (tmp_path / "record.json").exists()


def test_another_error_ends_the_grid(tmp_path, monkeypatch):
    def run(cfg, resume):
        raise MemoryError

    monkeypatch.setattr(runner, "run", run)
    with pytest.raises(MemoryError):
        run_grid(repeat(BASE, 2), str(tmp_path), opts=OPTS)
    assert not (tmp_path / "sskd_d2m" / "seed1" / "record.json").exists()


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
        ([], "no grid"), ({"config": "a.yml"}, "no grid"),
        ({"config": "a.yml", "cells": [], "runs": 3}, "no grid"),
        ({"config": "a.yml", "cells": []}, "there is none"),
        ({"config": "a.yml", "cells": [{"opts": {}}]}, "has a name"),
        ({"config": "a.yml", "cells": [{"name": "+ A"}, {"name": "a"}]}, "differ in letters and digits: a"),
    ],
)  # fmt: skip
def test_a_bad_grid(tmp_path, data, problem):
    (tmp_path / "grid.yml").write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match=problem):
        load_grid(str(tmp_path / "grid.yml"))


def test_the_ablation_of_the_project():
    """Every cell is a config that differs from the base, in keys that there are, and the full method is among
    them.
    """
    cells = load_grid(str(CONFIGS / "ablation" / "grid.yml"))
    assert cells.share_source == "all" and tuple(cells.seeds) == (1, 2, 3) and len(cells.cells) >= 10
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
    cells = Grid(BASE, (ONE_PEER, Cell("bad", opts)), (1,), share_source="all")
    with pytest.raises((ValueError, KeyError)):
        run_grid(cells, str(tmp_path), opts=OPTS)
    assert not started and not (tmp_path / "source").exists()
