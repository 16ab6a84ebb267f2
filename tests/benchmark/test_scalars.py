"""metrics.json as series, and the hours of a run from them."""

import json

import pytest

from fastreid_sskd.benchmark.scalars import read_scalars, training_hours


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
        "time": [(9, 2.0), (14, 4.0)], "refresh/seconds_features": [(0, 9.0), (10, 8.0)], "refresh/seconds_knn": [(0, 3.0)],
        "refresh/eps": [(0, 1000.0)],
    }  # fmt: skip
    assert training_hours(scalars) == pytest.approx(60 / 3600)
