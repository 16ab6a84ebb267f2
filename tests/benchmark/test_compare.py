"""The comparison, a grid of SSKD and its baselines.

Which rows, from which weights, and when a folder's are taken as its own.
"""

import functools
import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from tiny_reid import CONFIGS, DUKE, TINY, TINY_SOURCE, TINY_TARGET, overrides

from fastreid_sskd.benchmark import collect, load_grid, run_grid, runner, write_table
from fastreid_sskd.clustering import PseudoLabelError
from fastreid_sskd.engine.checkpoint import OtherConfigError
from fastreid_sskd.processes import Stopped

ROWS = [
    "direct transfer",
    "direct transfer, target BN statistics",
    "one network, hard labels only",
    "SSKD, teacher 0",
    "SSKD, teacher 1",
    "SSKD, ensemble",
    "supervised upper bound",
]
BASE = str(CONFIGS / "sskd_d2m.yml")
OPTS = [*TINY_TARGET, "SSKD.SOURCE.OPTS", str(TINY_SOURCE[len(TINY) :])]
OPTS += overrides("SOLVER.MAX_EPOCH 1", "TEST.EVAL_PERIOD 1")
# each call gives its own
OPTS = [part for pair in zip(OPTS[::2], OPTS[1::2]) if pair[0] != "SEED" for part in pair]
ONE, BOUND = "one-network-hard-labels-only", "supervised-upper-bound"


def compare(folder, *opts, seeds=(1,)):
    """The outcome of the project's comparison."""
    grid = replace(load_grid(str(CONFIGS / "comparison" / "grid.yml")), config=BASE, seeds=seeds)
    return run_grid(grid, str(folder), opts=[*OPTS, *opts])


def rows_of(folder, *opts):
    """Of one seed, of which nothing may be missing."""
    outcome = compare(folder, *opts)
    assert not outcome.notes()
    return {result.method: result.metrics for result in outcome.results}


@pytest.fixture(scope="session")
def compared(world, tmp_path_factory):
    """A finished comparison of one seed: its folder and its rows."""
    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(world))
        return folder, rows_of(folder)


@pytest.fixture
def copied(compared, tmp_path):
    """A copy of it, to be changed."""
    return shutil.copytree(compared[0], tmp_path / "copied")


@pytest.fixture
def sources(compared):
    """The option that gives its source models."""
    files = [
        str(compared[0] / "source-models" / "seed1" / "source" / f"peer{k}" / "model_best.pth")
        for k in range(2)
    ]
    return ("SSKD.SOURCE.WEIGHTS", str(files))


@pytest.fixture
def started(monkeypatch):
    """The folders of the cells whose runs are started."""
    folders = []
    true = runner.run

    def recorded(cfg, resume):
        folders.append(os.path.basename(os.path.dirname(cfg.OUTPUT_DIR)))
        return true(cfg, resume)

    monkeypatch.setattr(runner, "run", recorded)
    return folders


def test_rows_are_those_of_the_runs(compared):
    folder, rows = compared
    assert list(rows) == ROWS
    record = json.loads((folder / "sskd" / "seed1" / "results.json").read_text())
    first, last = (evaluation["results"]["Market1501"] for evaluation in record["evaluations"])
    assert record["evaluations"][-1]["epoch"] == 1
    for row, name in (
        ("SSKD, teacher 0", "teacher0"),
        ("SSKD, teacher 1", "teacher1"),
        ("SSKD, ensemble", "ensemble"),
    ):
        assert rows[row]["mAP"] == pytest.approx(last[name]["mAP"], abs=1e-4)
    # SSKD's own start
    assert rows["direct transfer"]["mAP"] == pytest.approx(first["ensemble"]["mAP"], abs=1e-4)
    one = json.loads((folder / ONE / "seed1" / "results.json").read_text())["evaluations"]
    # from the first of SSKD's source models
    assert one[0]["results"]["Market1501"]["teacher0"] == first["teacher0"]
    assert rows["one network, hard labels only"]["mAP"] == pytest.approx(
        one[-1]["results"]["Market1501"]["teacher0"]["mAP"], abs=1e-4
    )
    assert len({row["mAP"] for row in rows.values()}) > 4


def test_its_folder_is_read_as_a_table(compared):
    folder, rows = compared
    results = collect(str(folder))
    assert [r.method for r in results] == ROWS and all(
        r.seed == 1 and r.source == "DukeMTMC" for r in results
    )
    assert {r.method: r.metrics for r in results} == rows
    assert "Environment info" in (folder / "sskd" / "seed1" / "log.txt").read_text()


def test_given_again_only_what_is_missing_is_run(compared, copied, started):
    _, rows = compared
    assert rows_of(copied, "SSKD.LOG_PERIOD", "7") == rows and not started
    os.remove(copied / ONE / "seed1" / "record.json")
    assert rows_of(copied) == rows and started == [ONE]


@pytest.mark.parametrize(
    "key, value", [("SSKD.CLUSTER.EPS", "0.5"), ("INPUT.SIZE_TEST", "[16, 16]"), ("SOLVER.BASE_LR", "0.1")]
)
def test_rows_of_other_settings_are_not_printed_as_new(compared, started, key, value):
    folder, _ = compared
    before = (folder / "sskd" / "seed1" / "config.yaml").read_bytes()
    with pytest.raises(OtherConfigError, match=rf"holds a run of other settings \(1: {key} "):
        compare(folder, key, value)
    assert not started and (folder / "sskd" / "seed1" / "config.yaml").read_bytes() == before


def test_rows_without_the_settings_that_they_are_of(copied, started):
    os.remove(copied / "direct-transfer" / "seed1" / "config.yaml")
    with pytest.raises(OtherConfigError, match="holds results, but no config.yaml"):
        compare(copied)
    assert not started


def test_a_first_try_that_failed_leaves_the_folder_free(compared, tmp_path, sources):
    with pytest.raises(FileNotFoundError, match=r"SSKD\.SOURCE\.WEIGHTS: no file nowhere\.pth"):
        compare(tmp_path / "new", "SSKD.SOURCE.WEIGHTS", "['nowhere.pth']")
    assert not (tmp_path / "new").exists()
    assert rows_of(tmp_path / "new", *sources) == compared[1]


def test_what_is_finished_needs_neither_images_nor_source_models(
    compared, copied, started, tmp_path, monkeypatch
):
    """Not even to be checked: pre-training again would take hours."""
    shutil.rmtree(copied / "source-models")
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    assert rows_of("copied") == compared[1] and not started
    assert not (copied / "source-models").exists()


def test_a_run_that_is_resumed_needs_no_source_models(compared, copied, started):
    shutil.rmtree(copied / "source-models")
    for cell in (ONE, BOUND):
        os.remove(copied / cell / "seed1" / "record.json")
    assert rows_of(copied) == compared[1] and started == [ONE, BOUND]
    assert not (copied / "source-models").exists()


@pytest.mark.parametrize("names", ["('CropFolder',)", "('Market1501', 'CropFolder')"])
def test_a_target_without_identities(started, tmp_path, world, names, sources, caplog, monkeypatch):
    """Of all images or of some: no upper bound, said before training; the other rows stand in the table."""
    crops = shutil.copytree(world / DUKE / "bounding_box_train", tmp_path / "crops")
    again = functools.partial(
        compare,
        tmp_path / "out",
        "DATASETS.NAMES",
        names,
        "SSKD.FOLDERS.CropFolder.TRAIN",
        str(crops),
        *sources,
    )
    outcome = again()
    first, *_ = [record.message for record in caplog.records if record.name == "fastreid.sskd.benchmark"]
    assert first.startswith("supervised upper bound, seed 1 will have no row: a source needs identities")
    assert [result.method for result in outcome.results] == ROWS[:-1] and not outcome.stopped
    assert outcome.notes()[0].startswith(
        "No row of supervised upper bound, seed 1: a source needs identities, and "
    )
    assert started == [ONE, "sskd"]
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "nowhere"))
    shutil.rmtree(crops)
    assert again().results == outcome.results and len(started) == 2  # what can be had is finished


@pytest.mark.parametrize("error", [PseudoLabelError("0 clusters"), FloatingPointError("loss_id is nan")])
def test_a_row_that_stops_does_not_take_the_others_with_it(compared, copied, monkeypatch, error):
    """The table is without it; the next call tries it again."""
    for cell in (ONE, BOUND):
        os.remove(copied / cell / "seed1" / "record.json")
    true = runner.run

    def run(cfg, resume):
        if ONE in cfg.OUTPUT_DIR:
            raise error
        return true(cfg, resume)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", run)
        outcome = compare(copied)
    assert outcome.stopped == {("one network, hard labels only", 1): str(error)}
    assert [result.method for result in outcome.results] == [row for row in ROWS if "one network" not in row]
    assert rows_of(copied) == compared[1]


def test_one_network_of_a_run_that_answers_with_another_teacher(compared):
    """There is only teacher 0, which is no reason to lose the row."""
    assert rows_of(compared[0], "SSKD.EVAL_WITH", "1") == compared[1]


def test_source_models_of_other_settings_are_not_used(compared, copied, started, tmp_path):
    """Only the file that SSKD.SOURCE.CONFIG names has changed."""
    (tmp_path / "source.yml").write_text(f"_BASE_: {CONFIGS / 'source_d2m.yml'}\nSOLVER:\n  BASE_LR: 0.123\n")
    with pytest.raises(OtherConfigError, match=r"cannot reuse the finished source model .*SOLVER\.BASE_LR"):
        compare(copied, "SSKD.SOURCE.CONFIG", str(tmp_path / "source.yml"))
    assert not started


@pytest.mark.parametrize(
    "opts, message",
    [
        (("DATASETS.TESTS", "()"), "DATASETS.TESTS is empty"),
        (("TEST.EVAL_PERIOD", "0"), "TEST.EVAL_PERIOD is 0"),
        (("SSKD.SOURCE.SKIP", "True"), "starts from source models"),
        (("MODEL.WEIGHTS", "all.pth"), "starts from source models"),
        (("MODEL.META_ARCHITECTURE", "Baseline"), "of an SSKD config"),
        (("SSKD.CLUSTER.K1", "0"), "0"),
        (("SSKD.SOURCE.CONFIG", ""), "SSKD needs source models: give SSKD.SOURCE.WEIGHTS"),
        (("SSKD.SOURCE.CONFIG", BASE), "has to be of SSKDSource"),
        (("DATASETS.NAMES", "('DukeMTMC',)"), "DukeMTMC is source .* and target"),
    ],
)
def test_what_cannot_be_compared(tmp_path, started, opts, message):
    with pytest.raises(ValueError, match=message):
        compare(tmp_path / "out", *opts)
    assert not started and not (tmp_path / "out").exists()


def test_a_signal_in_an_evaluation_ends_the_comparison(compared, tmp_path, monkeypatch, sources):
    """Given again, it is resumed."""
    true = runner.evaluate_start

    def signalled(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return true(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "evaluate_start", signalled)
        with pytest.raises(Stopped):
            compare(tmp_path, *sources)
    assert not list(tmp_path.glob("*/*/record.json"))
    assert rows_of(tmp_path, *sources) == compared[1]


# ---- the tool ------------------------------------------------------------------------------------


@pytest.fixture
def compare_tool(run_tool):
    """The tool with the options of these tests."""
    return lambda folder, *args: run_tool(
        "compare", "--config-file", BASE, "--output", folder, *args[:2], *OPTS, *args[2:]
    )


def test_tool(compared, compare_tool):
    """Of a finished comparison the table again."""
    folder, rows = compared
    code, out, _ = compare_tool(folder, "--seeds", "1")
    table = write_table(compare(folder).results, "markdown", against="direct transfer")
    assert code == 0 and table in out and f"{rows['supervised upper bound']['mAP']:.1f}" in table
    assert (folder / "table.md").read_text() == table + "\n"
    lines = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")]
    assert lines[0] == "method" and lines[2:] == ROWS
    assert (
        "seeds 1, 2 peers, 3 steps of 8 images, last epoch (nothing chosen on the test set), "
        f"{torch.get_num_threads()} threads"
    ) in out


def test_tool_prints_and_writes_the_table_without_a_row_that_stopped(copied, compare_tool, monkeypatch):
    os.remove(copied / ONE / "seed1" / "record.json")

    def run(cfg, resume):
        raise PseudoLabelError("0 clusters at eps 0.1")

    monkeypatch.setattr(runner, "run", run)
    code, out, err = compare_tool(copied, "--seeds", "1")
    assert code == 3 and "Traceback" not in err
    written = (copied / "table.md").read_text()
    assert written in out and "| supervised upper bound " in written and "| one network" not in written
    assert written.endswith("No row of one network, hard labels only, seed 1: 0 clusters at eps 0.1\n")


@pytest.mark.parametrize(
    "args, message",
    [
        (("--seeds", "1,x"), "seeds are whole numbers"),
        (("--seeds", "1,1"), "a seed given twice"),
        (("--seeds", "1", "SOLVER.BASE_LR", "0.1"), "holds a run of other settings (1: SOLVER.BASE_LR"),
        (("--seeds", "7", "SSKD.NUMPEERS", "1"), "SSKD.NUMPEERS; the nearest that there is: SSKD.NUM_PEERS"),
        (("--seeds", "1", "DATASETS.TESTS", "()"), "DATASETS.TESTS is empty"),
        (
            ("--seeds", "7", "DATASETS.TESTS", "('Marked1501',)"),
            "no data set is named 'Marked1501'; the nearest that there is: Market1501",
        ),
        (("--seeds", "7", "MODEL.DEVICE", "gpu"), "MODEL.DEVICE must be a device of torch"),
    ],
)
def test_tool_refuses(compared, compare_tool, tmp_path, args, message):
    """Seed 7 in a folder of its own: a finished seed of other settings would be named first."""
    code, _, err = compare_tool(tmp_path if "7" in args else compared[0], *args)
    assert code == 2 and message in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_tool_refuses_what_it_gives_itself(run_tool, tmp_path):
    code, _, err = run_tool("compare", "--config-file", BASE, "--output", tmp_path, "SEED", "3")
    assert code == 2 and "SEED: give --seeds and --output instead" in err
