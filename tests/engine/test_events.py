"""The record of an adaptation, and every scalar in metrics.json and TensorBoard, once."""

import json
import logging

import pytest
from fastreid.utils.events import EventStorage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastreid_sskd.engine.events import (
    MetricsFile,
    ProgressPrinter,
    Record,
    TensorBoard,
    build_writers,
    read_record,
)


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


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("writes, expected", [
    # as an evaluation is, at the end of an epoch whose last losses were just written
    ([[(0, "loss", 1.0)], [(0, "mAP", 50.0)], [(1, "loss", 2.0)]],
     [(0, {"loss": 1.0}), (0, {"mAP": 50.0}), (1, {"loss": 1.5})]),
    ([[(3, "early", 1.0), (5, "late", 2.0)], []], [(3, {"early": 1.0}), (5, {"late": 2.0})]),
    # losses are smoothed and evaluations are not
    ([[(k, name, value) for k, value in enumerate((1.0, 2.0, 9.0)) for name in ("loss", "mAP")]],
     [(2, {"loss": 2.0, "mAP": 9.0})]),
])  # fmt: skip
def test_scalars_are_written_once_under_their_own_iteration(tmp_path, writes, expected):
    """And behind what is there."""
    for _ in range(2):
        writer = MetricsFile(str(tmp_path / "metrics.json"))
        with EventStorage(0) as storage:
            for scalars in writes:
                for storage.iter, name, value in scalars:
                    storage.put_scalar(name, value, smoothing_hint=name != "mAP")
                writer.write()
        writer.close()
    assert lines(tmp_path / "metrics.json") == [{"iteration": at, **row} for at, row in expected] * 2


def test_tensorboard_has_them_too(tmp_path):
    writer = TensorBoard(str(tmp_path))
    with EventStorage(0) as storage:
        storage.put_scalar("loss", 1.0)
        writer.write()
        storage.put_scalar("mAP", 50.0)
        writer.write()
        writer.write()
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 1.0)]
    assert [(e.step, e.value) for e in events.Scalars("mAP")] == [(0, 50.0)]


def test_tensorboard_takes_images(tmp_path):
    import numpy as np

    writer = TensorBoard(str(tmp_path))
    with EventStorage(0) as storage:
        storage.put_image("image", np.zeros((3, 4, 4), dtype=np.uint8))
        writer.write()
    writer.close()
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["images"] == ["image"]


def test_progress_line_once_an_iteration(caplog):
    printer = ProgressPrinter(max_iter=10)
    with caplog.at_level(logging.INFO), EventStorage(0) as storage:
        storage.epoch = 0
        for iteration in (0, 1):
            storage.iter = iteration
            storage.put_scalar("total_loss", 1.0)
            printer.write()
            printer.write()  # after the epoch: the host divides by zero here
    assert sum("total_loss" in record.message for record in caplog.records) == 2


def test_progress_line_says_where_how_fast_and_how_long(caplog):
    printer = ProgressPrinter(max_iter=400, max_epoch=4, images=32)
    with caplog.at_level(logging.INFO), EventStorage(0) as storage:
        storage.epoch, storage.iter = 1, 119
        losses = {"total_loss": 5.0, "loss_id_peer0": 1.0, "loss_id_peer1": 2.5, "loss_nn_peer0": -0.5}
        storage.put_scalars(lr=3.5e-4, time=0.5, **losses)
        printer.write()
        assert storage.latest()["images_per_second"] == (64.0, 119)
        assert storage.latest()["eta_seconds"] == (140.0, 119)
    assert caplog.messages == [
        (
            "epoch 2/4  iteration 120/400  total_loss 5  loss_id 3.5  loss_nn -0.5  64.0 images/s  "
            "eta 0:02:20  lr 3.50e-04"
        )
    ]


def test_progress_line_before_a_step_was_timed(caplog):
    with caplog.at_level(logging.INFO), EventStorage(0) as storage:
        storage.epoch = 0
        storage.put_scalar("total_loss", 1.0)
        ProgressPrinter(max_iter=10, images=32).write()
        assert set(storage.latest()) == {"total_loss"}
    assert caplog.messages == ["epoch 1  iteration 1/10  total_loss 1"]


def test_speed_reaches_the_files(tmp_path, caplog):
    writers = build_writers(str(tmp_path), 10, images=8)
    with EventStorage(0) as storage:
        storage.epoch = 0
        storage.put_scalars(total_loss=1.0, time=2.0)
        for writer in writers:
            writer.write()
    for writer in writers:
        writer.close()
    written = {"total_loss": 1.0, "time": 2.0, "images_per_second": 4.0, "eta_seconds": 18.0}
    assert lines(tmp_path / "metrics.json") == [{"iteration": 0, **written}]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]} == written


def test_writers_of_a_run(tmp_path):
    writers = build_writers(str(tmp_path), 10)
    assert [type(writer) for writer in writers] == [ProgressPrinter, MetricsFile, TensorBoard]
    for writer in writers:
        writer.close()
    assert [type(writer) for writer in build_writers("", 10)] == [ProgressPrinter]
