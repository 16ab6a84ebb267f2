"""Small charts as SVG text: lines, bars and points. All words in them are escaped."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

__all__ = ["COLOURS", "bar_chart", "line_chart", "scatter"]

#: Okabe and Ito's colours, which stay apart for most colour-blind eyes
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
_GREY = "#bbbbbb"
_WIDTH, _HEIGHT = 400, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 34

Points = Sequence[tuple[float, float]]


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten apart) within [low, high], ascending.

    Of an empty range, that number.
    """
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _range(values: Sequence[float], at_least: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    spare = (high - low) * 0.05 or at_least or abs(low) * 0.05 or 1.0
    return low - spare, high + spare


class _Plane:
    """Maps data to pixels and draws the axes."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], x_label: str):
        self.x, self.y = x, y
        self.parts = [Markup('<svg viewBox="0 0 {} {}" role="img">').format(_WIDTH, _HEIGHT)]
        for value in ticks(*y):
            at = self.down(value)
            self.parts.append(
                Markup(
                    '<line class="grid" x1="{}" x2="{}" y1="{at}" y2="{at}"/><text x="{}" y="{}" text-anchor="end">{}</text>'
                ).format(_LEFT, _WIDTH - _RIGHT, _LEFT - 5, round(at + 4, 1), f"{value:g}", at=at)
            )
        for value in ticks(*x):
            self.parts.append(self.below(value, f"{value:g}"))
        self.parts.append(
            Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
                (_WIDTH + _LEFT) // 2, _HEIGHT - 3, x_label
            )
        )

    def across(self, value: float) -> float:
        low, high = self.x
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def down(self, value: float) -> float:
        low, high = self.y
        return round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    def below(self, value: float, text: str) -> Markup:
        return Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            self.across(value), _HEIGHT - _BOTTOM + 14, text
        )

    def done(self) -> Markup:
        return Markup("").join([*self.parts, Markup("</svg>")])


def _legend(names: Sequence[str], colours: Sequence[str]) -> Markup:
    items = Markup("").join(
        Markup('<span><i style="background:{}"></i>{}</span>').format(colour, name)
        for name, colour in zip(names, colours)
    )
    return Markup('<p class="legend">{}</p>').format(items)


def line_chart(title: str, series: Mapping[str, Points], x_label: str = "iteration") -> Markup:
    """A figure of one line a series; "" where no series has a finite point.

    Args:
        title: above the chart.
        series: {name: [(x, y), ...]}; points that are not finite are left out.
        x_label: below the chart.
    """
    series = {name: kept for name, points in series.items() if (kept := _finite(points))}
    if not series:
        return Markup("")
    every = [point for points in series.values() for point in points]
    plane = _Plane(_range([x for x, _ in every], 1.0), _range([y for _, y in every]), x_label)
    for (name, points), colour in zip(series.items(), _colours(len(series))):
        path = " ".join(f"{plane.across(x)},{plane.down(y)}" for x, y in points)
        plane.parts.append(Markup('<polyline points="{}" stroke="{}"/>').format(path, colour))
        plane.parts += [
            Markup('<circle cx="{}" cy="{}" r="2.2" fill="{}"><title>{}, {}: {}</title></circle>').format(
                plane.across(x), plane.down(y), colour, name, f"{x:g}", f"{y:.5g}"
            )
            for x, y in points
        ]
    legend = _legend(list(series), _colours(len(series))) if len(series) > 1 else ""
    return _figure(title, plane.done(), legend)


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


def bar_chart(title: str, bars: Mapping[str, float], unit: str = "") -> Markup:
    """A figure of horizontal bars with their values, in the order given; "" without a bar.

    Args:
        title: above the chart.
        bars: {name: value >= 0}.
        unit: after each value.
    """
    bars = {name: value for name, value in bars.items() if math.isfinite(value)}
    if not bars:
        return Markup("")
    longest = max(bars.values()) or 1.0
    rows = Markup("").join(
        Markup(
            '<tr><th>{}</th><td><div class="bar" style="width:{}%"></div></td><td class="number">{} {}</td></tr>'
        ).format(name, round(max(0.0, value) / longest * 100, 2), f"{value:.4g}", unit)
        for name, value in bars.items()
    )
    return _figure(title, Markup('<table class="bars">{}</table>').format(rows))


def scatter(
    title: str, points: Sequence[tuple[float, float]], groups: Sequence[str], names: Sequence[str]
) -> Markup:
    """A figure of points, coloured by group; "" without a point.

    Args:
        title: above the chart.
        points: N positions; those that are not finite are left out.
        groups: N names of groups, "" for none (grey, below the others).
        names: N labels, shown when pointed at.
    """
    kept = [(p, g, n) for p, g, n in zip(points, groups, names) if all(map(math.isfinite, p))]
    if not kept:
        return Markup("")
    plane = _Plane(_range([p[0] for p, _, _ in kept]), _range([p[1] for p, _, _ in kept]), "")
    shown = [group for group in dict.fromkeys(groups) if group]
    colour = dict(zip(shown, _colours(len(shown))))
    for (x, y), group, name in sorted(kept, key=lambda point: point[1] != ""):
        plane.parts.append(
            Markup('<circle cx="{}" cy="{}" r="{}" fill="{}"><title>{}</title></circle>').format(
                plane.across(x), plane.down(y), 3 if group else 1.6, colour.get(group, _GREY), name
            )
        )
    return _figure(title, plane.done(), _legend(list(colour), list(colour.values())))


def _figure(title: str, body: Markup, legend: Markup | str = "") -> Markup:
    return Markup("<figure><figcaption>{}</figcaption>{}{}</figure>").format(
        title, body, legend or escape("")
    )
