"""A second run in a folder.

Nothing of the earlier run is taken for its own, nothing is lost, and a refusal changes nothing.
"""

import json
import os

import pytest
from tiny_reid import TINY_TARGET, overrides, tiny_adaptation, tiny_baseline, tiny_source

from fastreid_sskd.benchmark import collect
from fastreid_sskd.engine import load_config, run
from fastreid_sskd.engine.defaults import start_run

OF_A_RUN = {
    "last_checkpoint",
    "model_0003.pth",
    "model_best.pth",
    "model_final.pth",
    "step_0000012.pth",
    "results.json",
    "record.json",
    "metrics.json",
    "metrics.json.old",
    "events.out.tfevents.1.host.2.0",
    "report.html",
}
OTHERS = {"log.txt", "log.txt.rank1", "notes.md", "model.pth", "mine.yml", ".lock"}


@pytest.fixture
def folder(tmp_path):
    """Of an earlier run."""
    for name in OF_A_RUN | OTHERS:
        (tmp_path / name).write_text(name)
    (tmp_path / "config.yaml").write_text("earlier")
    (tmp_path / "source" / "peer0").mkdir(parents=True)
    (tmp_path / "source" / "peer0" / "model_final.pth").write_text("source")
    return tmp_path


def config(folder, *opts):
    return load_config("", overrides(*TINY_TARGET, "OUTPUT_DIR", str(folder), *opts))


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_a_run_from_scratch(folder, caplog):
    before = contents(folder)
    start_run(config(folder), from_scratch=True)
    assert set(os.listdir(folder / "earlier-1")) == OF_A_RUN | {"config.yaml"}
    assert set(os.listdir(folder)) == OTHERS | {"config.yaml", "source", "earlier-1"}
    assert all((folder / "earlier-1" / name).read_text() == name for name in OF_A_RUN)
    assert (folder / "earlier-1" / "config.yaml").read_text() == "earlier"
    assert "MAX_EPOCH: 2" in (folder / "config.yaml").read_text()
    assert (
        f"the 11 files (0 MB) of the earlier run in {folder} are now in {folder / 'earlier-1'}" in caplog.text
    )
    assert len(contents(folder)) == len(before) + 1

    start_run(config(folder), from_scratch=True)  # nothing of a run is there, its config alone is none
    assert not (folder / "earlier-2").exists()
    (folder / "model_best.pth").write_text("second")
    start_run(config(folder, "SOLVER.MAX_EPOCH 5"), from_scratch=True)
    assert set(os.listdir(folder / "earlier-2")) == {"model_best.pth", "config.yaml"}
    assert "MAX_EPOCH: 2" in (folder / "earlier-2" / "config.yaml").read_text()


def test_a_run_that_is_resumed(folder):
    start_run(config(folder), from_scratch=False)
    assert set(os.listdir(folder)) == OF_A_RUN | OTHERS | {"config.yaml", "source"}
    assert "MAX_EPOCH: 2" in (folder / "config.yaml").read_text()


def test_without_a_folder():
    start_run(config(""), from_scratch=True)


@pytest.mark.parametrize(
    "key", ["MODEL.WEIGHTS", "MODEL.BACKBONE.PRETRAIN_PATH", "SSKD.SOURCE.WEIGHTS", "SSKD.PEERS"]
)
def test_weights_that_would_be_moved_away(folder, tmp_path_factory, monkeypatch, key):
    """A run does not take the place of what it starts from, however that is spelled."""
    monkeypatch.chdir(folder)
    value = "./model_final.pth"
    if key == "SSKD.PEERS":
        peer = tmp_path_factory.mktemp("peers") / "peer.yml"
        peer.write_text(f"MODEL: {{WEIGHTS: {value}}}\n")
        value = str(peer)
    before = contents(folder)
    with pytest.raises(
        ValueError,
        match=r"start from './model_final\.pth', a file of the earlier run in OUTPUT_DIR.*another OUTPUT_DIR",
    ) as refused:
        start_run(
            config(folder, key, value if key.startswith("MODEL") else f"['{value}']"), from_scratch=True
        )
    assert contents(folder) == before and refused.value.exit_status == 2  # of the command: no traceback


def test_source_models_of_the_folder_may_be_started_from(folder):
    start_run(
        config(folder, "SSKD.SOURCE.WEIGHTS", f"['{folder}/source/peer0/model_final.pth']"), from_scratch=True
    )
    assert (folder / "earlier-1").exists()


# ---- whole runs ----------------------------------------------------------------------------------


def test_results_of_an_earlier_run_are_not_shown_as_the_new_ones(adaptation, one_epoch):
    cfg = adaptation("SOLVER.MAX_EPOCH 1")
    first = collect(cfg.OUTPUT_DIR)
    run(adaptation("SOLVER.MAX_EPOCH 1", "DATASETS.TESTS ()", "SEED 7"))  # without figures of its own
    with pytest.raises(ValueError, match="no finished run with figures in .*--tests"):
        collect(cfg.OUTPUT_DIR)
    assert not {"model_best.pth", "results.json"} & set(os.listdir(cfg.OUTPUT_DIR))
    assert [result.metrics for result in collect(os.path.join(cfg.OUTPUT_DIR, "earlier-1"))] == [
        r.metrics for r in first
    ]

    run(adaptation("SOLVER.MAX_EPOCH 1", "TEST.EVAL_PERIOD 1", "SEED 3"))
    with open(os.path.join(cfg.OUTPUT_DIR, "results.json"), encoding="utf-8") as file:
        # its own direct transfer is kept
        assert [entry["epoch"] for entry in json.load(file)["evaluations"]] == [0, 1]
    assert {result.seed for result in collect(cfg.OUTPUT_DIR)} == {3}


@pytest.mark.parametrize("make", [tiny_source, tiny_baseline])
def test_of_other_configs(make, tmp_path):
    short = ("SOLVER.MAX_EPOCH 1",)
    run(make(tmp_path, *short))
    assert collect(str(tmp_path))
    run(make(tmp_path, *short, "DATASETS.TESTS ()"))
    with pytest.raises(ValueError, match="no finished run"):
        collect(str(tmp_path))
    assert {"model_best.pth", "config.yaml"} <= set(os.listdir(tmp_path / "earlier-1"))


@pytest.mark.parametrize(
    "opts",
    [
        ("SSKD.CLUSTER.K1 0",),
        ("DATASETS.TESTS ('MSMT17',)",),
        ("SSKD.SOURCE.WEIGHTS ['nowhere.pth']",),
        ("SSKD.NUM_PEERS 3",),
    ],
)
def test_a_refused_run_changes_nothing(folder, finished, opts):
    before = contents(folder)
    sources = ("SSKD.SOURCE.WEIGHTS", str(finished.sources))
    with pytest.raises((ValueError, FileNotFoundError)):
        run(tiny_adaptation(folder, *sources, *opts))
    assert contents(folder) == before
