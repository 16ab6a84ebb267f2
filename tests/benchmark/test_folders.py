"""Results from run folders, as runs leave them."""

import json
import shutil

import pytest

from fastreid_sskd.benchmark import collect
from fastreid_sskd.benchmark.folders import device_of


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
    assert results[2].metrics["Rank-1"] == pytest.approx(last["peer1"]["Rank-1"], abs=1e-4)
    direct, last = results[0], results[-1]
    lines = [json.loads(line) for line in (finished / "metrics.json").read_text().splitlines()]
    refresh = [line for line in lines if "refresh/noise_share" in line][-1]
    found = [refresh[name] for name in ("diagnostics/BCubed precision", "diagnostics/BCubed recall", "refresh/noise_share")]
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
        metrics["mAP"] for evaluation in record["evaluations"][1:]
        for row, metrics in evaluation["results"]["Market1501"].items() if row != "ensemble"
    ]  # fmt: skip
    assert best.metrics["mAP"] == pytest.approx(max(rows), abs=1e-4)
    assert best.method == "SSKD, best teacher" and best.selection == f"best on {record['best']['chosen_on']}"


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


def test_rows_that_a_comparison_has_named(copy):
    row = {"mAP": 10.0, "Rank-1": 20.0, "Rank-5": 30.0, "Rank-10": 40.0, "mINP": 5.0}
    (copy / "rows.json").write_text(json.dumps({"one network": row}))
    (result,) = collect(str(copy))
    assert (result.method, result.metrics, result.selection, result.epochs) == (
        "one network",
        row,
        "last epoch",
        2,
    )
    assert collect(str(copy), ["best"])[0].method == "one network, best teacher"


def test_a_part_that_trained_nothing_has_the_config_of_the_folder_above(copy):
    part = copy / "transfer"
    part.mkdir()
    for name in ("metrics.json", "results.json"):
        (copy / name).unlink()
    (part / "rows.json").write_text(json.dumps({"direct transfer": {"mAP": 10.0}}))
    (result,) = collect(str(copy))
    assert (result.method, result.epochs, result.selection) == ("direct transfer", 0, "nothing trained")
    assert (result.source, result.run) == ("DukeMTMC", str(part))


def test_rows_of_untrained_models_stand_first(copy, tmp_path):
    (tmp_path / "z").mkdir()
    shutil.copy(copy / "config.yaml", tmp_path / "z")
    (tmp_path / "z" / "rows.json").write_text(json.dumps({"as it came": {"mAP": 1.0}}))
    assert [r.method for r in collect(str(tmp_path))][:2] == ["direct transfer", "as it came"]


def test_another_name(finished):
    assert [r.method for r in collect(str(finished), name="mine")] == [
        "mine",
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


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "{}", '{"evaluations": [{"epoch": 1}], "best": null, "tests": ["A"]}', "\xff"])
@pytest.mark.parametrize("name", ["results.json", "rows.json", "metrics.json", "config.yaml"])
def test_a_damaged_file_is_named(copy, name, content):
    text = content.encode("latin-1")
    if name == "metrics.json":
        text += b"\n" + (copy / name).read_bytes()
        if not content:
            return  # a blank line
    if name == "rows.json" and content == "{}":
        return  # no row is none
    (copy / name).write_bytes(text)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        collect(str(copy), ("last", "best"))


@pytest.mark.parametrize("value", [float("nan"), "high", None, 100.5])
def test_figures_that_are_none_are_named_with_their_run(copy, value):
    record = json.loads((copy / "results.json").read_text())
    record["evaluations"][-1]["results"]["Market1501"]["peer1"]["mAP"] = value
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
    (tmp_path / "part").mkdir()
    assert device_of(str(tmp_path), config) == device_of(str(tmp_path / "part"), config) == "Some GPU 40GB"
    assert device_of(str(tmp_path), {"MODEL": {"DEVICE": "cpu"}}) == "cpu"


@pytest.mark.parametrize("best", [None, {"epoch": 7, "row": "peer0", "chosen_on": "noise, without labels"}])
def test_no_best_row_where_none_was_chosen_or_evaluated(copy, best):
    path = copy / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "best": best}))
    assert collect(str(copy), ("last", "best")) == collect(str(copy), ("last",))
