"""The figures of a run: losses, results, pseudo-labels, time, cluster sizes, and maps of the features."""

import importlib
import importlib.util
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from markupsafe import Markup, escape

from ..benchmark.scalars import Series
from ..data import Item
from .images import Before
from .run_files import RunFiles

__all__ = [
    "COLOURS", "bar_chart", "cluster_size_figures", "evaluation_figures", "line_chart", "loss_figures", "map_figures",
    "project", "refresh_figures", "scatter", "time_figures",
]

_REFRESH = {
    "clusters": "clusters",
    "noise_share": "noise, share of images",
    "eps": "eps",
    "changed_share": "label change, share of images",
}


def _drawn(figures: Iterable[Markup]) -> list[Markup]:
    return [figure for figure in figures if figure]


def loss_figures(run: RunFiles) -> list[Markup]:
    """The total, one figure a loss with a line a peer, then speed, learning rate and the teachers' decay."""
    kinds: dict[str, dict[str, Series]] = {}
    for name, series in run.scalars.items():
        found = re.fullmatch(r"(loss_.+?)(?:_(peer\d+))?", name)
        if found:
            kinds.setdefault(found[1], {})[found[2] or name] = series
    figures = [line_chart("total loss", {"total": run.scalars.get("total_loss", [])})]
    figures += [line_chart(kind, peers) for kind, peers in sorted(kinds.items())]
    others = {
        "images_per_second": "images / s",
        "time": "seconds a step",
        "lr": "learning rate",
        "ema_decay": "decay of the teachers",
    }
    figures += [line_chart(title, {title: run.scalars.get(name, [])}) for name, title in others.items()]
    return _drawn(figures)


def evaluation_figures(run: RunFiles, metrics: Iterable[str] = ("mAP", "Rank-1")) -> list[Markup]:
    """mAP and Rank-1 of every teacher and the ensemble over the epochs; epoch 0 is direct transfer."""
    figures = []
    tests = run.config["DATASETS"]["TESTS"]
    for test in tests:
        for metric in metrics:
            lines: dict[str, list] = {}
            for evaluation in run.evaluations:
                for row, values in evaluation["results"].get(test, {}).items():
                    lines.setdefault(row.replace("peer", "teacher "), []).append(
                        (evaluation["epoch"], values[metric])
                    )
            label = "epoch"
            if not lines:
                name = metric if len(tests) == 1 else f"{test}/{metric}"
                lines, label = {metric: run.scalars.get(name, [])}, "iteration"
            figures.append(line_chart(f"{metric} on {test}, %", lines, label))
    return _drawn(figures)


def refresh_figures(run: RunFiles) -> list[Markup]:
    """Clusters, noise, eps, label change and sizes at each refresh; diagnostics where identities are known."""

    def of(name: str) -> Series:
        return run.scalars.get(f"refresh/{name}", [])

    figures = [line_chart(title, {title: of(name)}) for name, title in _REFRESH.items()]
    figures.append(
        line_chart("images in a cluster", {"largest": of("largest_cluster"), "median": of("median_cluster")})
    )
    agreement = {name.split("/")[1]: s for name, s in run.scalars.items() if name.startswith("diagnostics/")}
    figures.append(line_chart("agreement with identities, unseen by training", agreement))
    return _drawn(figures)


def time_figures(run: RunFiles) -> list[Markup]:
    """Seconds of the whole run per stage of the refresh, and in training steps, of which data loading."""
    stages: dict[str, float] = {}
    steps = {"training steps": "time", "of which waiting for data": "data_time"}
    for title, name in steps.items():
        done, seconds = 0, 0.0
        for iteration, value in run.scalars.get(name, []):
            seconds += value * (iteration + 1 - done)
            done = iteration + 1
        if done:
            stages[title] = seconds
    for name, series in run.scalars.items():
        if name.startswith("refresh/seconds_"):
            stages[f"refresh: {name.removeprefix('refresh/seconds_')}"] = sum(value for _, value in series)
    return _drawn([bar_chart("seconds of the whole run", stages, "s")])


def cluster_size_figures(run: RunFiles, bins: int = 12) -> list[Markup]:
    """A histogram of the sizes of the last refresh's clusters; [] without clusters."""
    labels = run.labels
    if labels is None or not (labels >= 0).any():
        return []
    sizes = np.bincount(labels[labels >= 0])
    sizes = sizes[sizes > 0]
    edges = np.unique(
        np.linspace(sizes.min(), sizes.max() + 1, min(bins, sizes.max() - sizes.min() + 1) + 1).astype(int)
    )
    counts, edges = np.histogram(sizes, bins=edges)
    bars = {
        (f"{low}" if high - 1 == low else f"{low} to {high - 1}") + " images": int(count)
        for low, high, count in zip(edges, edges[1:], counts)
    }
    noise = int((labels < 0).sum())
    title = f"{len(sizes)} clusters of {len(labels)} images, {noise} images are noise: clusters of each size"
    return _drawn([bar_chart(title, bars, "clusters")])


def map_figures(
    before: Before, after: torch.Tensor, items: Sequence[Item], *, most: int = 1500, seed: int = 0
) -> list[Markup]:
    """Maps of the test images' features before and after, the identities with most images in colours.

    Args:
        before, after: features of the items.
        most: points drawn; of more images a random share.
        seed: of that share.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(items))[:most])
    counts = Counter(items[i][1] for i in chosen)
    coloured = [identity for identity, _ in counts.most_common(len(COLOURS) + 1) if identity not in (-1, 0)][
        : len(COLOURS)
    ]
    groups = [f"identity {items[i][1]}" if items[i][1] in coloured else "" for i in chosen]
    names = [f"identity {items[i][1]}, camera {items[i][2]}" for i in chosen]
    figures = []
    for name, features in (("before", before.features), ("after", after)):
        if features is not None:
            unit = torch.nn.functional.normalize(features[torch.from_numpy(chosen)], dim=1)
            points, method = project(unit.numpy())
            figures.append(
                scatter(
                    f"{name}, {method} of {len(chosen)} test images",
                    [tuple(p) for p in points.tolist()],
                    groups,
                    names,
                )
            )
    return figures


_FEW = 15  # the neighbours that UMAP looks at by default


def project(features: np.ndarray) -> tuple[np.ndarray, str]:
    """Positions (N, 2) of N features (N, d), and the name of the method: UMAP if it is installed, else PCA.

    PCA's axes are the directions of the largest variance, each turned so that its largest weight is positive.
    """
    features = np.asarray(features, dtype=np.float64)
    if len(features) > _FEW and importlib.util.find_spec("umap"):
        umap = importlib.import_module("umap")  # the extra "umap"
        threads = torch.get_num_threads()
        try:
            return umap.UMAP(n_components=2, random_state=0).fit_transform(features), "UMAP"
        finally:
            torch.set_num_threads(threads)  # numba sets the number that torch shares with it
    centred = features - features.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    axes = np.vstack([axes, np.zeros((2, features.shape[1]))])[:2]
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(1)])
    return centred @ (axes * signs[:, None]).T, "PCA"


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
