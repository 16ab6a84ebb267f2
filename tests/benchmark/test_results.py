"""Results: records, and what is read from run folders as runs leave them."""

import json
import math
import shutil

import pytest
import yaml
from tiny_reid import CONFIGS, overrides

from fastreid_sskd.benchmark import Result, collect, read_results, write_results
from fastreid_sskd.benchmark.results import (
    backbone_name,
    describe,
    device_of,
    read_config,
    read_scalars,
    run_results,
    source_name,
    training_hours,
)
from fastreid_sskd.engine import load_config

# ---- records -------------------------------------------------------------------------------------


def test_results_come_back_from_their_file(tmp_path, make_result):
    results = [make_result(), make_result(12.3456789, seed=2), Result("only a name", "T")]
    path = tmp_path / "new" / "results.json"
    write_results(results, str(path))
    assert read_results(str(path)) == results
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
    assert "hours" not in json.loads(path.read_text())[2]  # nothing is said that is not known


def test_no_results(tmp_path):
    write_results([], str(tmp_path / "none.json"))
    assert read_results(str(tmp_path / "none.json")) == []


def test_metrics_are_those_of_a_table_to_four_digits():
    result = Result("m", "T", {"mAP": 12.34567, "metric": 3.0, "Rank-20": 1.0})
    assert result.metrics == {"mAP": 12.3457}


@pytest.mark.parametrize("value", [-0.1, 100.1, math.nan])
def test_a_metric_that_is_no_percentage_is_refused(value):
    with pytest.raises(ValueError, match="percentages"):
        Result("m", "T", {"mAP": value})


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"method": "m", "target": "T", "score": 1}]'])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json"):
        read_results(str(tmp_path / "x.json"))


# ---- folders -------------------------------------------------------------------------------------


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run's small files, to be changed."""
    folder = tmp_path / "sskd"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("*.pth", "source", "events*"))
    return folder


def test_a_run(finished):
    results = collect(str(finished))
    assert [r.method for r in results] == [
        "direct transfer",
        "SSKD, teacher 0",
        "SSKD, teacher 1",
        "SSKD, ensemble",
    ]
    record = json.loads((finished / "results.json").read_text())["evaluations"]
    first, last = record[0]["results"]["Market1501"], record[-1]["results"]["Market1501"]
    assert results[0].metrics["mAP"] == pytest.approx(first["ensemble"]["mAP"], abs=1e-4)
    assert results[2].metrics["Rank-1"] == pytest.approx(last["teacher1"]["Rank-1"], abs=1e-4)
    direct, last = results[0], results[-1]
    lines = [json.loads(line) for line in (finished / "metrics.json").read_text().splitlines()]
    refresh = [line for line in lines if "refresh/noise_share" in line][-1]
    found = [
        refresh[name]
        for name in ("diagnostics/BCubed precision", "diagnostics/BCubed recall", "refresh/noise_share")
    ]
    assert list(last.labels.values()) == pytest.approx(found, abs=1e-4) and direct.labels == {}
    assert (direct.epochs, direct.images_per_bn, direct.hours, direct.selection) == (
        0,
        None,
        None,
        "nothing trained",
    )
    assert (last.epochs, last.images_per_bn, last.seed, last.selection) == (2, 8, 1, "last epoch")
    assert (last.source, last.target, last.device) == (
        "DukeMTMC",
        "Market1501",
        "cpu",
    ) and 0 < last.hours < 0.1


def test_best_row_says_what_it_was_chosen_on(finished):
    (best,) = collect(str(finished), ["best"])
    record = json.loads((finished / "results.json").read_text())
    rows = [
        metrics["mAP"] for evaluation in record["evaluations"]
        for row, metrics in evaluation["results"]["Market1501"].items() if row != "ensemble"
    ]  # fmt: skip
    assert best.metrics["mAP"] == pytest.approx(max(rows), abs=1e-4)
    assert best.method == "SSKD, best teacher" and best.selection == f"best on {record['best']['chosen_on']}"


@pytest.mark.parametrize("rows", [("mine",), ("mine, ensemble",), ("mine, teacher 0", "mine, ensemble")])
def test_the_best_row_of_a_cell_has_its_name(finished, rows):
    """Else those of two cells would be two runs of one row."""
    (best,) = run_results(str(finished), ["best"], {row: {"mAP": 1.0} for row in rows})
    assert best.method == "mine, best teacher"


def test_source_models_inside_a_run_are_no_results_but_can_be_asked_for(finished):
    assert not any("source only" in r.method or "supervised" in r.method for r in collect(str(finished)))
    (last,) = collect(str(finished / "source" / "peer0"))
    assert (last.method, last.source, last.target) == ("supervised, SSKDSource", "DukeMTMC", "DukeMTMC")
    lines = [
        json.loads(line) for line in (finished / "source" / "peer0" / "metrics.json").read_text().splitlines()
    ]
    evaluations = [line for line in lines if "mAP" in line]
    assert last.metrics["mAP"] == pytest.approx(evaluations[-1]["mAP"], abs=1e-4)
    (best,) = collect(str(finished / "source" / "peer0"), ["best"])
    chosen = max(evaluations, key=lambda line: line["metric"])
    assert best.metrics["mAP"] == pytest.approx(chosen["mAP"], abs=1e-4) and best.selection.startswith(
        "best on DukeMTMC"
    )


def test_rows_of_untrained_models_stand_first(copy, tmp_path):
    (tmp_path / "z").mkdir()
    shutil.copy(copy / "config.yaml", tmp_path / "z")
    untrained = Result("as it came", "Market1501", {"mAP": 1.0}, epochs=0, selection="nothing trained")
    write_results([untrained], str(tmp_path / "z" / "record.json"))
    assert [r.method for r in collect(str(tmp_path))][:2] == ["direct transfer", "as it came"]


def test_another_name(finished):
    assert [r.method for r in collect(str(finished), name="mine")] == [
        "mine, direct transfer",
        "mine, teacher 0",
        "mine, teacher 1",
        "mine, ensemble",
    ]


def test_an_earlier_run_in_the_folder_and_its_source_models_are_no_results_of_it(copy, tmp_path):
    """Also while the new run has none yet, and below a grid's folder."""
    shutil.copytree(copy, copy / "earlier-1")
    shutil.copytree(copy, copy / "source" / "peer1")
    expected = [r.metrics for r in collect(str(copy))]
    for name in ("metrics.json", "results.json"):
        (copy / name).unlink()
    with pytest.raises(ValueError, match="no finished run"):
        collect(str(tmp_path))
    assert [r.metrics for r in collect(str(copy / "earlier-1"))] == expected  # but can be asked for
    assert [r.metrics for r in collect(str(copy / "source"))] == expected


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "{}", '{"evaluations": [{"epoch": 1}], "best": null, "tests": ["A"]}', "\xff"],
)
@pytest.mark.parametrize("name", ["results.json", "metrics.json", "config.yaml"])
def test_a_damaged_file_is_named(copy, name, content):
    text = content.encode("latin-1")
    if name == "metrics.json":
        text += b"\n" + (copy / name).read_bytes()
        if not content:
            return  # a blank line
    (copy / name).write_bytes(text)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        collect(str(copy), ("last", "best"))


def test_a_record_of_a_folder_that_was_moved(copy, make_result):
    """It is of the folder where it is now, and stands for what the training wrote."""
    chosen = make_result(60.0, method="named, best teacher", selection="best on T")
    write_results([make_result(method="named", run="elsewhere"), chosen], str(copy / "record.json"))
    assert [(r.method, r.run) for r in collect(str(copy))] == [("named", str(copy))]
    assert [r.method for r in collect(str(copy), ["best"])] == ["named, best teacher"]


@pytest.mark.parametrize("value", [float("nan"), "high", None, 100.5])
def test_figures_that_are_none_are_named_with_their_run(copy, value):
    record = json.loads((copy / "results.json").read_text())
    record["evaluations"][-1]["results"]["Market1501"]["teacher1"]["mAP"] = value
    (copy / "results.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"must be percentages.*mAP.*{copy.name}"):
        collect(str(copy))


def test_an_unfinished_run_has_no_last_epoch(copy):
    record = json.loads((copy / "results.json").read_text())
    record["evaluations"].pop()
    (copy / "results.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="no finished run"):
        collect(str(copy))


def test_a_run_without_its_config(copy):
    (copy / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        collect(str(copy))


@pytest.mark.parametrize("selections", [[], ["last", "first"]])
def test_unknown_selection(finished, selections):
    with pytest.raises(ValueError, match="selections are some of last, best"):
        collect(str(finished), selections)


def test_no_folder_and_an_empty_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        collect(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no finished run"):
        collect(str(tmp_path))


def test_device_is_the_gpu_that_the_log_names(tmp_path):
    config = {"MODEL": {"DEVICE": "cuda:0"}}
    assert device_of(str(tmp_path), config) == "cuda"
    (tmp_path / "log.txt").write_text(
        "Environment info:\nGPU available  True\nGPU 0,1        Some GPU 40GB\nPillow 1\n"
    )
    assert device_of(str(tmp_path), config) == "Some GPU 40GB"
    assert device_of(str(tmp_path), {"MODEL": {"DEVICE": "cpu"}}) == "cpu"


@pytest.mark.parametrize(
    "best", [None, {"epoch": 7, "row": "teacher0", "chosen_on": "noise, without labels"}]
)
def test_no_best_row_where_none_was_chosen_or_evaluated(copy, best):
    path = copy / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "best": best}))
    assert collect(str(copy), ("last", "best")) == collect(str(copy), ("last",))


# ---- metrics.json --------------------------------------------------------------------------------


def write(folder, *lines):
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_without_a_file(tmp_path):
    assert read_scalars(str(tmp_path)) == {}
    assert training_hours({}) is None


def test_series_of_every_scalar(tmp_path):
    folder = write(
        tmp_path, {"iteration": 0, "eps": 0.5}, {"iteration": 9, "loss": 2.0}, {"iteration": 19, "loss": 1.0}
    )
    assert read_scalars(folder) == {"eps": [(0, 0.5)], "loss": [(9, 2.0), (19, 1.0)]}


def test_of_an_iteration_written_twice_the_later_line_counts(tmp_path):
    """As after a run that was killed and resumed."""
    folder = write(
        tmp_path, *({"iteration": i, "loss": v} for i, v in ((9, 3.0), (19, 9.0), (9, 2.0), (19, 1.0)))
    )
    assert read_scalars(folder) == {"loss": [(9, 2.0), (19, 1.0)]}


def test_a_line_cut_off_at_the_end(tmp_path):
    folder = write(tmp_path, {"iteration": 0, "loss": 1.0})
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 1, "lo')
    assert read_scalars(folder) == {"loss": [(0, 1.0)]}


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "metrics.json").write_text('{"iteration": 0}\nnonsense\n{"iteration": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_scalars(str(tmp_path))


def test_hours_are_steps_and_refreshes():
    """10 steps of 2 s, 5 of 4 s, and 20 s of refreshes."""
    scalars = {
        "time": [(9, 2.0), (14, 4.0)],
        "refresh/seconds_features": [(0, 9.0), (10, 8.0)],
        "refresh/seconds_knn": [(0, 3.0)],
        "refresh/eps": [(0, 1000.0)],
    }
    assert training_hours(scalars) == pytest.approx(60 / 3600)


# ---- config.yaml ---------------------------------------------------------------------------------


def config(name="", *opts):
    return yaml.safe_load(load_config(str(CONFIGS / name) if name else "", opts).dump())


@pytest.mark.parametrize(
    "builder, depth, ibn, name",
    [
        ("build_resnet_backbone", "50x", False, "resnet50"),
        ("build_resnet_backbone", "101x", True, "resnet101-ibn"),
        ("build_osnet_backbone", "x0_25", False, "osnet x0.25"),
        ("build_vit_backbone", "base", False, "vit base"),
    ],
)
def test_backbone(builder, depth, ibn, name):
    backbone = (f"NAME {builder}", f"DEPTH {depth}", f"WITH_IBN {ibn}")
    opts = overrides(*(f"MODEL.BACKBONE.{opt}" for opt in backbone))
    assert backbone_name(config("", *opts)) == name


def test_adaptation_between_benchmarks():
    assert describe(config("sskd_m2d.yml"), "DukeMTMC") == {
        "method": "SSKD",
        "source": "Market1501",
        "target": "DukeMTMC",
        "backbone": "resnet50",
        "images_per_bn": 64,
        "epochs": 20,
        "seed": 1,
    }


def test_batch_norm_in_chunks():
    assert describe(config("sskd_m2d_bn16.yml"), "DukeMTMC")["images_per_bn"] == 16


@pytest.mark.parametrize(
    "opts, processes, images",
    [
        ((), 4, 16), (("SSKD.BN_CHUNK", "16"), 2, 16), (("SSKD.BN_CHUNK", "16"), 8, 8),
        (("MODEL.BACKBONE.NORM", "syncBN"), 4, 64),
        (("MODEL.META_ARCHITECTURE", "Baseline", "SSKD.BN_CHUNK", "16"), 2, 32),
    ],
)  # fmt: skip
def test_batch_norm_of_several_processes(opts, processes, images):
    """Each sees its own share of the batch, unless they are told each other's."""
    assert describe(config("sskd_m2d.yml", *opts), "DukeMTMC", processes)["images_per_bn"] == images


def test_source_that_is_a_file_of_weights():
    """Also where a config of stage 1 is given: the weights are used."""
    opts = ["SSKD.SOURCE.WEIGHTS", "['a/osnet_msmt17.pth', 'b/osnet_msmt17.pth']"]
    for name in ("sskd_msmt2m_osnet.yml", "sskd_m2d.yml"):
        assert describe(config(name, *opts), "Market1501")["source"] == "osnet_msmt17"


def test_source_models_are_named_by_what_they_were_trained_on(finished):
    """By their own config; where they were removed, by that of stage 1."""
    weights = str(finished / "source" / "peer0" / "model_best.pth")
    assert source_name(config("sskd_m2d.yml", "SSKD.SOURCE.WEIGHTS", f"['{weights}']")) == "DukeMTMC"
    assert (
        source_name(config("sskd_m2d.yml", "SSKD.SOURCE.WEIGHTS", "['gone/source/peer0/model_best.pth']"))
        == "Market1501"
    )


@pytest.mark.parametrize("architecture", ["Baseline", "SSKDSource"])
def test_trained_on_the_source_only_or_on_the_target(architecture):
    opts = ["MODEL.META_ARCHITECTURE", architecture, "DATASETS.NAMES", "('Market1501',)"]
    assert describe(config("", *opts), "DukeMTMC")["method"] == f"source only, {architecture}"
    assert describe(config("", *opts), "DukeMTMC")["source"] == "Market1501"
    assert describe(config("", *opts), "Market1501")["method"] == f"supervised, {architecture}"


def test_a_file_that_is_no_config(tmp_path):
    (tmp_path / "config.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="no config of a run"):
        read_config(str(tmp_path / "config.yaml"))
