"""SSKD beside its baselines: which rows, from which weights, and when a folder's are taken for this config's."""

import json
import os
import shutil

import pytest
import torch
from tiny_reid import CONFIGS, tiny_adaptation

from fastreid_sskd.benchmark import check_comparison, collect, compare, comparison, comparison_table
from fastreid_sskd.engine.same_run import OtherConfigError

ROWS = [
    "direct transfer", "direct transfer, target BN statistics", "one network, hard labels only", "SSKD, teacher 0",
    "SSKD, teacher 1", "SSKD, ensemble", "supervised upper bound",
]  # fmt: skip
SHORT = ("SOLVER.MAX_EPOCH", "1", "TEST.EVAL_PERIOD", "1")


@pytest.fixture(scope="session")
def compared(world, tmp_path_factory):
    """A finished comparison: its folder and its rows."""
    folder = tmp_path_factory.mktemp("compared") / "seed1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(world))
        return folder, compare(tiny_adaptation(folder, *SHORT))


@pytest.fixture
def started(monkeypatch):
    """The configs of the runs that are started."""
    configs = []
    true = comparison.run
    monkeypatch.setattr(comparison, "run", lambda cfg, resume: configs.append(cfg) or true(cfg, resume))
    return configs


def test_rows_are_those_of_the_runs(compared):
    folder, rows = compared
    assert list(rows) == ROWS
    record = json.loads((folder / "sskd" / "results.json").read_text())
    first, last = (evaluation["results"]["Market1501"] for evaluation in record["evaluations"])
    assert record["evaluations"][-1]["epoch"] == 1
    for row, name in (("SSKD, teacher 0", "peer0"), ("SSKD, teacher 1", "peer1"), ("SSKD, ensemble", "ensemble")):
        assert rows[row]["mAP"] == pytest.approx(last[name]["mAP"], abs=1e-4)
    assert rows["direct transfer"]["mAP"] == pytest.approx(first["ensemble"]["mAP"], abs=1e-4)  # SSKD's own start
    one = json.loads((folder / "one_network" / "results.json").read_text())["evaluations"]
    assert one[0]["results"]["Market1501"]["peer0"] == first["peer0"]  # from the first of SSKD's source models
    assert rows["one network, hard labels only"]["mAP"] == pytest.approx(one[-1]["results"]["Market1501"]["peer0"]["mAP"], abs=1e-4)
    assert len({row["mAP"] for row in rows.values()}) > 4


def test_its_folder_is_read_as_a_table(compared):
    folder, rows = compared
    results = collect(str(folder.parent))
    assert {r.method for r in results} == {*ROWS} and all(r.seed == 1 for r in results)
    assert {r.method: r.metrics["mAP"] for r in results} == pytest.approx({row: m["mAP"] for row, m in rows.items()}, abs=1e-4)
    assert "Environment info" in (folder / "log.txt").read_text()


def test_given_again_only_what_is_missing_is_run(compared, started):
    folder, rows = compared
    assert compare(tiny_adaptation(folder, *SHORT, "SSKD.LOG_PERIOD", "7")) == rows and not started
    os.remove(folder / "one_network" / "rows.json")
    assert compare(tiny_adaptation(folder, *SHORT)) == rows
    assert [os.path.basename(cfg.OUTPUT_DIR) for cfg in started] == ["one_network"]


@pytest.mark.parametrize("key, value", [("SSKD.CLUSTER.EPS", "0.5"), ("INPUT.SIZE_TEST", "[16, 16]"), ("SOLVER.BASE_LR", "0.1")])
def test_rows_of_other_settings_are_not_printed_as_new(compared, started, key, value):
    folder, _ = compared
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(OtherConfigError, match=rf"holds a run of other settings \(1: {key} "):
        compare(tiny_adaptation(folder, *SHORT, key, value))
    assert not started and (folder / "config.yaml").read_bytes() == before


def test_rows_without_the_settings_that_they_are_of(compared, started, tmp_path):
    folder = tmp_path / "seed1"
    shutil.copytree(compared[0] / "transfer", folder / "transfer")
    with pytest.raises(OtherConfigError, match="holds results, but no config.yaml"):
        compare(tiny_adaptation(folder, *SHORT))
    assert not started


def test_a_first_try_that_failed_leaves_the_folder_free(compared, tmp_path):
    folder, rows = compared
    sources = [str(folder / "sskd" / "source" / f"peer{k}" / "model_best.pth") for k in range(2)]
    with pytest.raises(FileNotFoundError, match=r"SSKD\.SOURCE\.WEIGHTS: no file nowhere\.pth"):
        compare(tiny_adaptation(tmp_path, *SHORT, "SSKD.SOURCE.WEIGHTS", "['nowhere.pth']"))
    assert compare(tiny_adaptation(tmp_path, *SHORT, "SSKD.SOURCE.WEIGHTS", str(sources))) == rows


def test_source_models_of_other_settings_are_not_used(compared, started):
    """Only the file that SSKD.SOURCE.CONFIG names has changed."""
    folder, _ = compared
    other = folder.parent / "source.yml"
    other.write_text(f"_BASE_: {CONFIGS / 'source_d2m.yml'}\nSOLVER:\n  BASE_LR: 0.123\n")
    with pytest.raises(OtherConfigError, match=r"cannot reuse the finished source model .*SOLVER\.BASE_LR"):
        compare(tiny_adaptation(folder, *SHORT, "SSKD.SOURCE.CONFIG", str(other)))
    assert not started and str(other) not in (folder / "config.yaml").read_text()


@pytest.mark.parametrize(
    "opts, message",
    [
        (("DATASETS.TESTS", "()"), "DATASETS.TESTS is empty"),
        (("TEST.EVAL_PERIOD", "0"), "TEST.EVAL_PERIOD is 0"),
        (("SSKD.SOURCE.SKIP", "True"), "starts from source models"),
        (("MODEL.WEIGHTS", "all.pth"), "starts from source models"),
        (("MODEL.META_ARCHITECTURE", "Baseline"), "of an SSKD config"),
        (("SSKD.CLUSTER.K1", "0"), "0"),
    ],
)
def test_what_cannot_be_compared(tmp_path, started, opts, message):
    cfg = tiny_adaptation(tmp_path / "out", *SHORT, *opts)
    for refusing in (check_comparison, compare):
        with pytest.raises(ValueError, match=message):
            refusing(cfg)
    assert not started and not (tmp_path / "out").exists()


def test_table_over_seeds():
    rows = [{"SSKD": dict.fromkeys(comparison.METRICS, value)} for value in (50.0, 51.0, 54.0)]
    assert comparison_table(rows[:1]).splitlines()[-1].split()[1:5] == ["SSKD", "|", "50.0", "|"]
    assert "51.7 ± 2.1" in comparison_table(rows)


def test_tool(compared, run_tool):
    """Of a finished comparison the table again; mistakes in a line, before anything is made."""
    folder, rows = compared
    given = ("--config-file", folder / "config.yaml", "--output", folder.parent)
    code, out, _ = run_tool("compare", *given, "--seeds", "1")
    assert code == 0 and comparison_table([rows]) in out
    assert (folder.parent / "table.md").read_text() == comparison_table([rows]) + "\n"
    assert (
        "seeds 1, 2 peers, 3 steps of 8 images, last epoch (nothing chosen on the test set), "
        f"{torch.get_num_threads()} threads"
    ) in out


@pytest.mark.parametrize(
    "args, message",
    [
        (("--seeds", "1,x"), "seeds are whole numbers"),
        (("--seeds", "1,1"), "a seed given twice"),
        (("SEED", "3"), "SEED: give --seeds and --output instead"),
        (("SOLVER.BASE_LR", "0.1"), "holds a run of other settings (1: SOLVER.BASE_LR"),
        (("SSKD.NUMPEERS", "1"), "SSKD.NUMPEERS; the nearest that there is: SSKD.NUM_PEERS"),
        (("DATASETS.TESTS", "()"), "DATASETS.TESTS is empty"),
        (("--seeds", "7", "DATASETS.TESTS", "('Marked1501',)"), "no data set is named 'Marked1501'; the nearest that there is: Market1501"),
        (("--seeds", "7", "MODEL.DEVICE", "gpu"), "MODEL.DEVICE must be a device of torch"),
    ],
)
def test_tool_refuses(compared, run_tool, args, message):
    folder, _ = compared
    code, _, err = run_tool("compare", "--config-file", folder / "config.yaml", "--output", folder.parent, *args)
    assert code == 2 and message in err and "Traceback" not in err
    assert not (folder.parent / "seed7").exists()
