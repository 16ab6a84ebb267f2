"""Any model that a config describes, evaluated once."""

import json
import os

import pytest
from tiny_reid import CONFIGS, tiny_baseline

from fastreid_sskd.benchmark import collect, evaluate_pair
from fastreid_sskd.engine import run


@pytest.fixture(scope="module")
def baseline(world, tmp_path_factory):
    """Folder of a finished run of the host's own Baseline."""
    output = tmp_path_factory.mktemp("baseline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTREID_DATASETS", str(world))
        run(tiny_baseline(output))
    return output


def test_adapted_teachers_and_ensemble(finished):
    results = evaluate_pair(str(finished / "config.yaml"), str(finished / "model_final.pth"))
    last = collect(str(finished))[1:]
    assert [r.method for r in results] == [r.method for r in last]
    for evaluated, recorded in zip(results, last):
        assert evaluated.metrics == pytest.approx(recorded.metrics, abs=1e-3)
        assert (evaluated.epochs, evaluated.selection, evaluated.hours) == (2, "last epoch", recorded.hours)


def test_stock_model_on_two_sets(baseline):
    results = evaluate_pair(
        str(baseline / "config.yaml"),
        str(baseline / "model_final.pth"),
        ["Market1501", "DukeMTMC"],
        name="stock",
    )
    assert [(r.method, r.target) for r in results] == [("stock", "Market1501"), ("stock", "DukeMTMC")]
    (recorded,) = collect(str(baseline))
    assert recorded.method == "supervised, Baseline"
    assert results[0].metrics == pytest.approx(recorded.metrics, abs=1e-3)


def test_source_model_on_the_target(finished):
    folder = finished / "source" / "peer1"
    (result,) = evaluate_pair(str(folder / "config.yaml"), str(folder / "model_best.pth"), ["Market1501"])
    assert (result.method, result.source, result.target) == (
        "source only, SSKDSource",
        "DukeMTMC",
        "Market1501",
    )
    assert result.selection == "best on the run's own test split"
    first = json.loads((finished / "results.json").read_text())["evaluations"][0]
    assert result.metrics["mAP"] == pytest.approx(first["results"]["Market1501"]["teacher1"]["mAP"], abs=1e-3)


def test_what_is_recorded_is_not_evaluated_again(finished, tmp_path, monkeypatch):
    calls = []
    from fastreid_sskd.benchmark import evaluate as evaluated

    true = evaluated.evaluate
    monkeypatch.setattr(evaluated, "evaluate", lambda cfg: calls.append(cfg) or true(cfg))
    arguments = str(finished / "config.yaml"), str(finished / "model_final.pth")
    first = evaluate_pair(*arguments, records=str(tmp_path))
    assert evaluate_pair(*arguments, records=str(tmp_path)) == first and len(calls) == 1
    assert [r.method for r in evaluate_pair(*arguments, name="x", records=str(tmp_path))][-1] == "x, ensemble"
    evaluate_pair(*arguments, ["DukeMTMC"], records=str(tmp_path))
    os.utime(arguments[1])  # another file under the same name
    evaluate_pair(*arguments, records=str(tmp_path))
    assert len(calls) == 3


def test_best_model_of_an_adaptation_says_what_it_was_chosen_on(finished):
    results = evaluate_pair(str(finished / "config.yaml"), str(finished / "model_best.pth"))
    assert {r.selection for r in results} == {"best on Market1501 test split, by mAP"}


def test_a_best_model_that_no_record_chose_is_named_by_its_file(finished, tmp_path):
    record = json.loads((finished / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(record | {"best": None}))
    (tmp_path / "model_best.pth").symlink_to(finished / "model_best.pth")
    results = evaluate_pair(str(finished / "config.yaml"), str(tmp_path / "model_best.pth"))
    assert {r.selection for r in results} == {"file model_best"}


def test_missing_weights_and_test_sets(finished, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        evaluate_pair(str(CONFIGS / "sskd_d2m.yml"), str(tmp_path / "nothing.pth"))
    with pytest.raises(ValueError, match="no test set"):
        evaluate_pair(
            str(finished / "config.yaml"), str(finished / "model_final.pth"), opts=["DATASETS.TESTS", "()"]
        )
