"""The record of an adaptation: last, best, and what the best was chosen on."""

import json

import pytest

from fastreid_sskd.engine.events import Record, read_record


def results(*maps, ensemble=99.0, other=1.0):
    def rows(values):
        named = {f"teacher{k}": {"mAP": value, "Rank-1": value + 1} for k, value in enumerate(values)}
        return {**named, "ensemble": {"mAP": ensemble, "Rank-1": ensemble}}

    return {"First": rows(maps), "Second": rows([other] * len(maps))}


@pytest.fixture
def record():
    """Direct transfer, then three epochs; the best is teacher 1 after epoch 2."""
    made = Record(["First", "Second"])
    for epoch, values in enumerate([(10.0, 15.0), (20.0, 30.0), (40.0, 60.0), (50.0, 45.0)]):
        made.add(epoch, results(*values, other=90.0 + epoch))
    return made


def test_last(record):
    assert record.last["epoch"] == 3
    assert record.metric == 50.0  # a teacher's, not the ensemble's


def test_best_is_a_teacher_after_training_on_the_first_set(record):
    evaluation, row = record.best
    assert (evaluation["epoch"], row) == (2, "teacher1")


def test_direct_transfer_is_the_best_until_an_epoch_is_better():
    record = Record(["First"])
    assert record.add(0, results(1.0, 2.0)) == 1
    assert record.best[0]["epoch"] == 0 and not record.no_better_than_start
    assert record.add(1, results(0.5, 2.0)) == 1
    assert record.best[0]["epoch"] == 0 and record.no_better_than_start
    assert record.add(2, results(3.0, 0.2)) == 0
    assert record.best[0]["epoch"] == 2 and not record.no_better_than_start


def test_the_earliest_of_equals():
    record = Record(["First"])
    record.add(1, results(5.0, 5.0))
    assert record.add(2, results(5.0, 5.0)) == 0
    assert record.best[0]["epoch"] == 1


def test_epoch_that_is_evaluated_again_replaces_what_followed(record):
    record.add(2, results(1.0, 2.0))
    assert [entry["epoch"] for entry in record.evaluations] == [0, 1, 2]
    assert record.best[0]["epoch"] == 1


def test_numbers_are_plain(record):
    import numpy as np

    record.add(
        4, {"First": {"teacher0": {"mAP": np.float64(1.5)}}, "Second": {"teacher0": {"mAP": np.float32(2.5)}}}
    )
    assert type(record.last["results"]["First"]["teacher0"]["mAP"]) is float


def test_table(record):
    table = record.table()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|")
    ]
    of_first = [row[1:4] for row in rows if row[0] == "First"]
    assert of_first == [
        ["direct transfer", "teacher0", "10.0"], ["direct transfer", "teacher1", "15.0"],
        ["direct transfer", "ensemble", "99.0"], ["last, epoch 3", "teacher0", "50.0"],
        ["last, epoch 3", "teacher1", "45.0"], ["last, epoch 3", "ensemble", "99.0"],
        ["best, epoch 2", "teacher1", "60.0"],
    ]  # fmt: skip
    of_second = [row[1:4] for row in rows if row[0] == "Second"]
    assert of_second[-1] == ["best, epoch 2", "teacher1", "92.0"]  # chosen on the first set
    assert "chosen by mAP on the test split (query and gallery) of First" in table


def test_table_of_direct_transfer_alone():
    record = Record(["First"])
    record.add(0, results(1.0))
    assert "last" not in record.table().split("The best")[0]


def test_state(record):
    other = Record(["First", "Second"])
    other.load_state_dict(record.state_dict())
    assert other.evaluations == record.evaluations and other.best == record.best


def test_file(record, tmp_path):
    path = tmp_path / "results.json"
    record.write(str(path))
    saved = json.loads(path.read_text())
    assert saved["tests"] == ["First", "Second"]
    assert saved["best"] == {"epoch": 2, "row": "teacher1", "chosen_on": "First test split, by mAP"}
    assert saved["evaluations"] == record.evaluations
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("tests, chosen", [(["A"], "mAP"), (["A", "B"], "mAP"), (["A"], "noise")])
def test_what_is_written_is_read(tmp_path, tests, chosen):
    record = Record(tests, chosen)
    for epoch in (0, 1):
        record.add(epoch, {test: {"teacher0": {"mAP": 10.0 + epoch}} for test in tests})
    path = str(tmp_path / "results.json")
    assert read_record(path) is None
    record.write(path)
    found = read_record(path)
    assert found["tests"] == tests and found["evaluations"] == record.evaluations
    assert (found["best"] or {}).get("epoch") == (1 if chosen == "mAP" else None)
