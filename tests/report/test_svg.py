"""Charts: the right numbers at the right places, and nothing but text in the texts."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from fastreid_sskd.report.svg import bar_chart, line_chart, scatter, ticks


def circles(figure):
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([-\d.]+)" cy="([-\d.]+)"', figure)]


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 10, [0, 2, 4, 6, 8, 10]), (0.0, 0.0, [0.0]), (5, 5, [5]), (-1.0, 1.0, [-1, -0.5, 0, 0.5, 1]),
        (0.11, 0.29, [0.15, 0.2, 0.25]), (0, 450, [0, 100, 200, 300, 400]), (1e-4, 2e-4, [1e-4, 1.2e-4, 1.4e-4, 1.6e-4, 1.8e-4, 2e-4]),
    ],
)  # fmt: skip
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_line_goes_through_its_points():
    figure = line_chart("t", {"a": [(0, 1.0), (10, 3.0), (20, 2.0)]})
    (x0, y0), (x1, y1), (x2, y2) = circles(figure)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)  # even steps
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.2)  # upwards is more
    assert re.search(r'<polyline points="([^"]+)"', figure)[1] == f"{x0},{y0} {x1},{y1} {x2},{y2}"


def test_lines_share_their_axes_and_have_a_legend():
    figure = line_chart("t", {"a": [(0, 0.0)], "b": [(0, 0.0), (1, 1.0)]})
    points = circles(figure)
    assert points[0] == points[1] and figure.count("<polyline") == 2
    assert ">a</span>" in figure and ">b</span>" in figure
    assert "legend" not in line_chart("t", {"a": [(0, 0.0)]})


@pytest.mark.parametrize(
    "points", [[(3, 7.0)], [(0, 5.0), (1, 5.0)], [(0, 0.0), (1, 0.0)], [(0, 1e-9), (1, 1e9)]]
)
def test_one_point_equal_points_and_wide_ranges_stay_on_the_plane(points):
    for x, y in circles(line_chart("t", {"a": points})):
        assert 52 <= x <= 390 and 10 <= y <= 186


def test_values_that_are_not_finite_are_left_out():
    assert len(circles(line_chart("t", {"a": [(0, math.nan), (1, math.inf), (2, 1.0)]}))) == 1
    assert line_chart("t", {"a": [(0, math.nan)], "b": []}) == "" == line_chart("t", {})
    assert bar_chart("t", {"a": math.nan}) == "" == bar_chart("t", {})
    assert scatter("t", [(math.nan, 0.0)], [""], [""]) == "" == scatter("t", [], [], [])


def test_bars_are_proportional():
    widths = re.findall(r"width:([\d.]+)%", bar_chart("t", {"a": 4.0, "b": 1.0, "c": 0.0}, "s"))
    assert [float(width) for width in widths] == [100, 25, 0]
    assert [float(w) for w in re.findall(r"width:([\d.]+)%", bar_chart("t", {"a": 0.0}))] == [0]


def test_points_of_no_group_are_grey_and_below():
    figure = scatter("t", [(0, 0), (1, 1), (2, 0)], ["g", "", "g"], ["one", "two", "three"])
    fills = re.findall(r'fill="([^"]+)"', figure)
    assert fills[0] == "#bbbbbb" and fills[1] == fills[2] != "#bbbbbb"
    assert figure.index("two") < figure.index("one")


def test_names_are_escaped():
    bad = '<script>alert("x")</script>&'
    figures = [
        line_chart(bad, {bad: [(0, 1.0)], "b": [(0, 1.0)]}, bad), bar_chart(bad, {bad: 1.0}, bad),
        scatter(bad, [(0, 0)], [bad], [bad]),
    ]  # fmt: skip
    for figure in figures:
        assert "<script" not in figure and "&lt;script&gt;" in figure
        ET.fromstring(figure)  # well-formed
