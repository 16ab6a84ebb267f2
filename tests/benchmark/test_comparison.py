"""SSKD beside its baselines: which rows, from which weights, and when a folder's are taken for this config's."""

import json
import os
import shutil
import signal
import types

import pytest
import torch
from tiny_reid import CONFIGS, DUKE, tiny_adaptation

from fastreid_sskd.benchmark import check_comparison, collect, compare, comparison, comparison_table, run_jobs
from fastreid_sskd.clustering import PseudoLabelError
from fastreid_sskd.engine.checkpoint import OtherConfigError
from fastreid_sskd.processes import Stopped

ROWS = [
    "direct transfer", "direct transfer, target BN statistics", "one network, hard labels only", "SSKD, teacher 0",
    "SSKD, teacher 1", "SSKD, ensemble", "supervised upper bound",
]  # fmt: skip
SHORT = ("SOLVER.MAX_EPOCH", "1", "TEST.EVAL_PERIOD", "1")


def rows_of(cfg):
    """Of one seed, of which nothing may be missing."""
    (job,) = compare([cfg])
    assert not job.missing
    return job.rows()


@pytest.fixture(scope="session")
def compared(world, tmp_path_factory):
    """A finished comparison of one seed: its folder and its rows."""
    folder = tmp_path_factory.mktemp("compared") / "seed1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(world))
        return folder, rows_of(tiny_adaptation(folder, *SHORT))


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
    assert rows_of(tiny_adaptation(folder, *SHORT, "SSKD.LOG_PERIOD", "7")) == rows and not started
    os.remove(folder / "one_network" / "rows.json")
    assert rows_of(tiny_adaptation(folder, *SHORT)) == rows
    assert [os.path.basename(cfg.OUTPUT_DIR) for cfg in started] == ["one_network"]


@pytest.mark.parametrize("key, value", [("SSKD.CLUSTER.EPS", "0.5"), ("INPUT.SIZE_TEST", "[16, 16]"), ("SOLVER.BASE_LR", "0.1")])
def test_rows_of_other_settings_are_not_printed_as_new(compared, started, key, value):
    folder, _ = compared
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(OtherConfigError, match=rf"holds a run of other settings \(1: {key} "):
        compare([tiny_adaptation(folder, *SHORT, key, value)])
    assert not started and (folder / "config.yaml").read_bytes() == before


def test_rows_without_the_settings_that_they_are_of(compared, started, tmp_path):
    folder = tmp_path / "seed1"
    shutil.copytree(compared[0] / "transfer", folder / "transfer")
    with pytest.raises(OtherConfigError, match="holds results, but no config.yaml"):
        compare([tiny_adaptation(folder, *SHORT)])
    assert not started


def test_a_first_try_that_failed_leaves_the_folder_free(compared, tmp_path):
    folder, rows = compared
    sources = [str(folder / "sskd" / "source" / f"peer{k}" / "model_best.pth") for k in range(2)]
    with pytest.raises(FileNotFoundError, match=r"SSKD\.SOURCE\.WEIGHTS: no file nowhere\.pth"):
        compare([tiny_adaptation(tmp_path, *SHORT, "SSKD.SOURCE.WEIGHTS", "['nowhere.pth']")])
    assert rows_of(tiny_adaptation(tmp_path, *SHORT, "SSKD.SOURCE.WEIGHTS", str(sources))) == rows


def test_what_is_finished_needs_neither_images_nor_source_models(compared, started, tmp_path, monkeypatch):
    """Not even to be checked: pre-training again would take hours."""
    folder, rows = compared
    copied = shutil.copytree(folder, tmp_path / "seed1")
    shutil.rmtree(copied / "sskd" / "source")
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    assert rows_of(tiny_adaptation("seed1", *SHORT)) == rows and not started
    assert not (copied / "sskd" / "source").exists()


def test_a_part_that_is_resumed_needs_no_source_models(compared, started, tmp_path):
    folder, rows = compared
    copied = shutil.copytree(folder, tmp_path / "seed1")
    shutil.rmtree(copied / "sskd" / "source")
    for part in ("one_network", "supervised"):
        os.remove(copied / part / "rows.json")
    assert rows_of(tiny_adaptation(copied, *SHORT)) == rows
    assert [os.path.basename(cfg.OUTPUT_DIR) for cfg in started] == ["one_network", "supervised"]
    assert not (copied / "sskd" / "source").exists()


def test_foreign_results_of_a_later_seed_are_found_first(compared, started, tmp_path):
    copied = shutil.copytree(compared[0], tmp_path / "seed2")
    with pytest.raises(OtherConfigError, match="seed2' holds a run of other settings"):
        compare([tiny_adaptation(tmp_path / "seed3", *SHORT), tiny_adaptation(copied, *SHORT, "SEED", "2")])
    assert not started and not (tmp_path / "seed3").exists()


@pytest.mark.parametrize("names", ["('CropFolder',)", "('Market1501', 'CropFolder')"])
def test_a_target_without_identities(compared, started, tmp_path, world, names, caplog, monkeypatch):
    """Of all images or of some: no upper bound, said before training; the other rows stand in the table."""
    sources = [str(compared[0] / "sskd" / "source" / f"peer{k}" / "model_best.pth") for k in range(2)]
    crops = shutil.copytree(world / DUKE / "bounding_box_train", tmp_path / "crops")
    target = ("DATASETS.NAMES", names, "SSKD.FOLDERS.CropFolder.TRAIN", str(crops))
    cfg = tiny_adaptation(tmp_path / "seed1", *SHORT, "SSKD.SOURCE.WEIGHTS", str(sources), *target)
    (job,) = check_comparison([cfg])
    assert not (tmp_path / "seed1").exists() and "will have no row of supervised: a source needs identities" in caplog.text
    run_jobs([job])
    assert list(job.rows()) == ROWS[:-1] and list(job.missing) == ["supervised"]
    *_, note = comparison_table([job]).splitlines()
    assert note.startswith("No row of supervised upper bound, seed 1: a source needs identities, and ")
    assert [os.path.basename(cfg.OUTPUT_DIR) for cfg in started] == ["one_network", "sskd"]
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "nowhere"))
    shutil.rmtree(crops)
    (again,) = compare([cfg])  # what can be had is finished
    assert again.rows() == job.rows() and list(again.missing) == ["supervised"] and len(started) == 2


@pytest.mark.parametrize("error", [PseudoLabelError("0 clusters"), FloatingPointError("loss_id is nan")])
def test_a_row_that_stops_does_not_take_the_others_with_it(compared, tmp_path, monkeypatch, error):
    """The table is printed and written without it, with status 3; the next call tries it again."""
    copied = shutil.copytree(compared[0], tmp_path / "seed1")
    for part in ("one_network", "supervised"):
        os.remove(copied / part / "rows.json")
    true = comparison.run

    def run(cfg, resume):
        if cfg.OUTPUT_DIR.endswith("one_network"):
            raise error
        return true(cfg, resume)

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "run", run)
        (job,) = compare([tiny_adaptation(copied, *SHORT)])
    assert job.missing == {"one_network": str(error)}
    assert job.rows() == {row: metrics for row, metrics in compared[1].items() if "one network" not in row}
    assert rows_of(tiny_adaptation(copied, *SHORT)) == compared[1]


def test_one_network_of_a_run_that_answers_with_another_teacher(compared, tmp_path):
    """There is only teacher 0, which is no reason to lose the row."""
    (job,) = check_comparison([tiny_adaptation(tmp_path / "seed1", *SHORT, "SSKD.EVAL_WITH", "1")])
    assert not job.missing


def test_source_models_of_other_settings_are_not_used(compared, started):
    """Only the file that SSKD.SOURCE.CONFIG names has changed."""
    folder, _ = compared
    other = folder.parent / "source.yml"
    other.write_text(f"_BASE_: {CONFIGS / 'source_d2m.yml'}\nSOLVER:\n  BASE_LR: 0.123\n")
    with pytest.raises(OtherConfigError, match=r"cannot reuse the finished source model .*SOLVER\.BASE_LR"):
        compare([tiny_adaptation(folder, *SHORT, "SSKD.SOURCE.CONFIG", str(other))])
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
        (("SSKD.SOURCE.CONFIG", ""), "SSKD needs source models: give SSKD.SOURCE.WEIGHTS"),
        (("SSKD.SOURCE.CONFIG", str(CONFIGS / "sskd_m2d.yml")), "has to be of SSKDSource"),
        (("DATASETS.NAMES", "('DukeMTMC',)"), "DukeMTMC is source .* and target"),
    ],
)
def test_what_cannot_be_compared(tmp_path, started, opts, message):
    cfg = tiny_adaptation(tmp_path / "out", *SHORT, *opts)
    for refusing in (check_comparison, compare):
        with pytest.raises(ValueError, match=message):
            refusing([cfg])
    assert not started and not (tmp_path / "out").exists()


def made_up_job(seed, rows, missing=None):
    metrics = {row: dict.fromkeys(comparison.METRICS, value) for row, value in rows.items()}
    return types.SimpleNamespace(rows=lambda: metrics, missing=missing or {}, cfg=types.SimpleNamespace(SEED=seed))


@pytest.mark.parametrize("part, done", [("transfer", []), ("one_network", ["transfer"])])
def test_a_signal_ends_the_comparison(compared, started, tmp_path, monkeypatch, part, done):
    """In an evaluation that is no run's, or when a run has no step left; given again, it goes on."""
    folder, rows = compared
    sources = [str(folder / "sskd" / "source" / f"peer{k}" / "model_best.pth") for k in range(2)]
    cfg = tiny_adaptation(tmp_path, *SHORT, "SSKD.SOURCE.WEIGHTS", str(sources))
    function = "evaluate_start" if part == "transfer" else "run"
    true = getattr(comparison, function)

    def signalled(*args, **kwargs):
        if part == "transfer":
            os.kill(os.getpid(), signal.SIGTERM)
            return true(*args, **kwargs)
        found = true(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(comparison, function, signalled)
        with pytest.raises(Stopped):
            compare([cfg])
    kept = [name for name in ("transfer", "one_network", "sskd") if (tmp_path / name / "rows.json").exists()]
    assert kept == [*done, part] if part != "transfer" else kept == []
    assert rows_of(cfg) == rows


def test_table_over_seeds():
    jobs = [made_up_job(seed, {"SSKD": value}) for seed, value in enumerate((50.0, 51.0, 54.0))]
    assert comparison_table(jobs[:1]).splitlines()[-1].split()[1:5] == ["SSKD", "|", "50.0", "|"]
    assert "51.7 ± 2.1" in comparison_table(jobs)


def test_table_with_rows_that_are_missing():
    """A mean says of how many seeds it is, and each reason stands once."""
    why = {"supervised": "no identities"}
    jobs = [
        made_up_job(1, {"SSKD": 50.0}, {"one_network": "0 clusters", **why}), made_up_job(2, {"SSKD": 52.0, "one": 40.0}, why),
        made_up_job(3, {"SSKD": 54.0, "one": 42.0}, why),
    ]  # fmt: skip
    _, _, sskd, one, _, *notes = comparison_table(jobs).splitlines()
    assert "| SSKD " in sskd and "52.0 ± 2.0" in sskd
    assert "| one (2 of 3 seeds) " in one and "41.0 ± 1.4" in one
    assert [note for note in notes if note] == [
        "No row of one network, hard labels only, seed 1: 0 clusters",
        "No row of supervised upper bound, seed 1, 2, 3: no identities",
    ]


def test_tool(compared, run_tool):
    """Of a finished comparison the table again; mistakes in a line, before anything is made."""
    folder, rows = compared
    given = ("--config-file", folder / "config.yaml", "--output", folder.parent)
    code, out, _ = run_tool("compare", *given, "--seeds", "1")
    table = comparison_table(compare([tiny_adaptation(folder, *SHORT)]))
    assert code == 0 and table in out and f"{rows['supervised upper bound']['mAP']:.1f}" in table
    assert (folder.parent / "table.md").read_text() == table + "\n"
    assert (
        "seeds 1, 2 peers, 3 steps of 8 images, last epoch (nothing chosen on the test set), "
        f"{torch.get_num_threads()} threads"
    ) in out


def test_tool_prints_and_writes_the_table_without_a_row_that_stopped(compared, run_tool, tmp_path, monkeypatch):
    copied = shutil.copytree(compared[0], tmp_path / "seed1")
    os.remove(copied / "one_network" / "rows.json")

    def run(cfg, resume):
        raise PseudoLabelError("0 clusters at eps 0.1")

    monkeypatch.setattr(comparison, "run", run)
    code, out, err = run_tool("compare", "--config-file", copied / "config.yaml", "--output", tmp_path)
    assert code == 3 and "Traceback" not in err
    written = (tmp_path / "table.md").read_text()
    assert written in out and "| supervised upper bound " in written and "| one network" not in written
    assert written.endswith("No row of one network, hard labels only, seed 1: 0 clusters at eps 0.1\n")


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
