"""Which signal without labels chooses a good epoch: made-up runs whose answer is known."""

import json

import pytest

from fastreid_sskd.benchmark import selection_table


@pytest.fixture
def make_run(tmp_path):
    """Write a run of (mAP, silhouette, noise, changed or None) a state, the start first."""

    def make(name, states, row="ensemble"):
        folder = tmp_path / name
        folder.mkdir()
        evaluations, lines = [], []
        for epoch, (mAP, silhouette, noise, changed) in enumerate(states):
            evaluations.append(
                {"epoch": epoch, "results": {"T": {"teacher0": {"mAP": 1.0}, row: {"mAP": mAP}}}}
            )
            found = {
                "epoch": epoch,
                "silhouette": silhouette,
                "noise_share": noise,
                "changed_share": changed or 0,
            }
            if silhouette is not None:
                found["score"] = silhouette
            else:
                del found["silhouette"]
            lines.append(
                {"iteration": 10 * epoch, **{f"selection/{key}": value for key, value in found.items()}}
            )
        record = {"tests": ["T"], "evaluations": evaluations, "best": None}
        (folder / "results.json").write_text(json.dumps(record))
        (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(folder)

    return make


def rows(text):
    """{first cell: the other cells} of a table."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    return {cells[0]: cells[1:] for cells in lines}


def test_each_signal_is_judged_by_what_it_would_have_chosen(make_run):
    # silhouette orders the epochs as mAP does, noise the other way round, the labels calm down late
    folder = make_run(
        "a", [(50, 0.1, 0.1, None), (60, 0.2, 0.2, 0.5), (70, 0.4, 0.4, 0.3), (65, 0.3, 0.3, 0.1)]
    )
    found = rows(selection_table([folder]))
    assert found["silhouette"] == ["1", "1.00", "1.00", "0.00", "0.00", "0"]
    assert found["noise"] == ["1", "-1.00", "-1.00", "20.00", "20.00", "0"]
    assert found["stability"] == ["1", "0.50", "0.50", "5.00", "5.00", "0"]
    assert found["the last epoch"] == ["1", "-", "-", "5.00", "5.00", "0"]


def test_runs_are_averaged_and_a_choice_below_the_start_is_counted(make_run, tmp_path):
    make_run("a", [(50, 0.1, 0.1, None), (60, 0.2, 0.0, 0.5)])
    make_run("b", [(50, 0.1, 0.1, None), (40, 0.2, 0.2, 0.5)])
    found = rows(selection_table([str(tmp_path), str(tmp_path / "a")]))  # a run named twice counts once
    assert found["silhouette"] == ["2", "0.00", "-1.00", "5.00", "10.00", "1"]
    assert found["noise"] == ["2", "1.00", "1.00", "0.00", "0.00", "0"]
    assert found["the last epoch"][-3:] == ["5.00", "10.00", "1"]


def test_a_collapsed_state_is_no_candidate_and_a_run_without_signals_is_named(make_run, tmp_path):
    folder = make_run("a", [(50, 0.1, 0.1, None), (90, None, 0.0, 0.0), (60, 0.1, 0.1, 0.5)])
    empty = make_run("b", [(50, 0.1, 0.1, None)])
    text = selection_table([folder, empty])
    assert rows(text)["silhouette"] == ["1", "-", "-", "40.00", "40.00", "0"]  # the earliest of equals
    assert empty in text.splitlines()[-1]
    with pytest.raises(ValueError, match=r"SELECT_BY silhouette and TEST\.EVAL_PERIOD 1"):
        selection_table([empty])


def test_the_last_epoch_is_the_last_one_even_if_its_clusters_have_collapsed(make_run, tmp_path):
    make_run("a", [(50, 0.1, 0.1, None), (70, 0.2, 0.1, 0.5), (40, None, 0.0, 0.0)])
    make_run("b", [(50, None, 0.0, 0.0), (40, 0.2, 0.1, 0.5), (30, 0.3, 0.1, 0.4)])
    found = rows(selection_table([str(tmp_path)]))
    assert found["the last epoch"] == ["2", "-", "-", "25.00", "30.00", "2"]
    assert found["silhouette"] == ["2", "0.00", "-1.00", "10.00", "20.00", "1"]
    assert found["noise"] == ["2", "-", "-", "15.00", "20.00", "1"]
    # where a signal never changes there is no correlation
    make_run("c", [(50, 0.1, 0.3, None), (60, 0.2, 0.1, 0.5)])
    assert rows(selection_table([str(tmp_path)]))["noise"][:3] == ["3", "1.00 (1)", "1.00"]
