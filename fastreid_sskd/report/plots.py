"""The figures of a run as SVG, drawn by matplotlib: curves, pseudo-labels, time, maps of features."""

import importlib
import importlib.util
import io
import itertools
import json
import math
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from markupsafe import Markup
from sklearn.decomposition import PCA

from ..benchmark.results import Series
from ..data import Item
from ..refusals import optional
from .run_files import RunFiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe and Ito's, which colour-blind readers can tell apart, without black: they show on light and on dark
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31")
_GREY = "#999999"
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans"],  # to measure with; the page shows its own font
    "font.size": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GREY,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "lines.markeredgewidth": 0,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}
_SVG = "http://www.w3.org/2000/svg"
ET.register_namespace("", _SVG)
ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")

Points = Sequence[tuple[float, float]]


# ---- the figures of a run ------------------------------------------------------------------------


def loss_figures(run: RunFiles) -> list[Markup]:
    """Draw the total, each loss with a line a peer, the speed, the learning rate and the teachers' decay."""
    losses: dict[str, dict[str, Series]] = {"total loss": {"total": run.scalars.get("total_loss", [])}}
    for name, series in sorted(run.scalars.items()):
        if found := re.fullmatch(r"(loss_.+?)(?:_(peer\d+))?", name):
            losses.setdefault(found[1], {})[found[2] or name] = series
    others = {
        "images_per_second": "images / s",
        "time": "seconds a step",
        "lr": "learning rate",
        "ema_decay": "EMA decay of the teachers",
    }
    figures = [line_chart(title, lines) for title, lines in losses.items()]
    figures += [line_chart(title, {title: run.scalars.get(name, [])}) for name, title in others.items()]
    return _drawn(figures)


def evaluation_figures(run: RunFiles, metrics: Iterable[str] = ("mAP", "Rank-1")) -> list[Markup]:
    """Draw the metrics of every teacher and the ensemble over the epochs; epoch 0 is direct transfer."""
    figures = []
    tests = run.config["DATASETS"]["TESTS"]
    for test in tests:
        for metric in metrics:
            lines: dict[str, list] = {}
            for evaluation in run.evaluations:
                for row, values in evaluation["results"].get(test, {}).items():
                    point = evaluation["epoch"], values[metric]
                    lines.setdefault(row.replace("teacher", "teacher "), []).append(point)
            label = "epoch"
            if not lines:  # a model of the host, which writes scalars only
                name = metric if len(tests) == 1 else f"{test}/{metric}"
                lines, label = {metric: run.scalars.get(name, [])}, "iteration"
            figures.append(line_chart(f"{metric} on {test}, %", lines, label))
    return _drawn(figures)


def refresh_figures(run: RunFiles) -> list[Markup]:
    """Draw clusters, noise, eps, label change, sizes, tracklets and agreement with identities by refresh."""
    titles = {
        "clusters": "clusters",
        "noise_share": "noise ratio",
        "eps": "eps",
        "changed_share": "label change ratio",
    }
    refresh = {name.removeprefix("refresh/"): series for name, series in run.scalars.items()}
    figures = [line_chart(title, {title: refresh.get(name, [])}) for name, title in titles.items()]
    sizes = {size: refresh.get(f"{size}_cluster", []) for size in ("largest", "median")}
    figures.append(line_chart("images in a cluster", sizes))
    tracklets = {"joined with others": "tracklets_joined", "split off, overlap in time": "tracklets_split"}
    figures.append(
        line_chart("tracklets", {title: refresh.get(name, []) for title, name in tracklets.items()})
    )
    agreement = {name.split("/")[1]: s for name, s in run.scalars.items() if name.startswith("diagnostics/")}
    figures.append(line_chart("agreement with identities, unseen by training", agreement))
    return _drawn(figures)


def time_figures(run: RunFiles) -> list[Markup]:
    """Draw the seconds of the whole run in training steps, waiting for data and the refresh's stages."""
    stages: dict[str, float] = {}
    for title, name in {"training steps": "time", "of which waiting for data": "data_time"}.items():
        if series := run.scalars.get(name):
            iterations = [iteration + 1 for iteration, _ in series]
            stages[title] = float(np.diff(iterations, prepend=0) @ [seconds for _, seconds in series])
    for name, series in run.scalars.items():
        if name.startswith("refresh/seconds_"):
            stages[f"refresh: {name.removeprefix('refresh/seconds_')}"] = sum(value for _, value in series)
    return _drawn([bar_chart("seconds of the whole run", stages, "s")])


def cluster_size_figures(run: RunFiles, bins: int = 12) -> list[Markup]:
    """Draw the histogram of the cluster sizes of the last refresh; [] without clusters."""
    labels = run.labels
    if labels is None or not (labels >= 0).any():
        return []
    sizes = np.bincount(labels[labels >= 0])
    sizes = sizes[sizes > 0]
    edges = np.unique(np.linspace(sizes.min(), sizes.max() + 1, bins + 1).astype(int))
    counts, _ = np.histogram(sizes, edges)
    bars = {
        (f"{low}" if high - 1 == low else f"{low} to {high - 1}") + " images": int(count)
        for low, high, count in zip(edges, edges[1:], counts)
    }
    noise = int((labels < 0).sum())
    title = f"{len(sizes)} clusters of {len(labels)} images, {noise} images are noise: clusters of each size"
    return [bar_chart(title, bars, "clusters")]


def map_figures(
    features: Mapping[str, torch.Tensor], items: Sequence[Item], *, most: int = 1500, seed: int = 0
) -> list[Markup]:
    """Draw a map of the test images' features of each model, the identities with most images in colours.

    Args:
        features: (N, d) by the name of the model.
        items: (path, identity, camera) of the N images.
        most: points drawn; of more images a random sample.
        seed: of that sample.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(items))[:most])
    counts = Counter(items[i][1] for i in chosen)
    people = [identity for identity, _ in counts.most_common(len(COLOURS) + 1) if identity not in (-1, 0)]
    shown = people[: len(COLOURS)]
    groups = [f"identity {items[i][1]}" if items[i][1] in shown else "" for i in chosen]
    names = [f"identity {items[i][1]}, camera {items[i][2]}" for i in chosen]
    figures = []
    for model, rows in features.items():
        unit = torch.nn.functional.normalize(rows[torch.from_numpy(chosen)], dim=1)
        points, method = project(unit.numpy())
        title = f"{model}, {method} of {len(chosen)} test images"
        figures.append(scatter(title, points.tolist(), groups, names))
    return figures


def project(features: np.ndarray) -> tuple[np.ndarray, str]:
    """Map features (N, d) to positions (N, 2), and name the method: UMAP if it is installed, else PCA."""
    features = np.asarray(features, dtype=np.float64)
    if len(features) > 15 and importlib.util.find_spec("umap"):  # UMAP looks at 15 neighbors of each
        umap = importlib.import_module("umap")  # the extra "umap"
        threads = torch.get_num_threads()
        try:
            return umap.UMAP(n_components=2, random_state=0, n_jobs=1).fit_transform(features), "UMAP"
        finally:
            torch.set_num_threads(threads)  # numba sets the number that torch shares with it
    positions = np.zeros((len(features), 2))
    axes = min(2, len(features) - 1, features.shape[1])  # one point has no direction
    if axes > 0:
        with np.errstate(invalid="ignore"):  # equal features have no variance to take a ratio of
            positions[:, :axes] = PCA(axes, random_state=0).fit_transform(features)
    return positions, "PCA"


def _drawn(figures: Iterable[Markup]) -> list[Markup]:
    return [figure for figure in figures if figure]


# ---- charts --------------------------------------------------------------------------------------


def line_chart(title: str, series: Mapping[str, Points], x_label: str = "iteration") -> Markup:
    """Draw one line a series, {name: [(x, y), ...]}, of the finite points; "" where no series has one."""
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    lines = {name: points for name, points in finite.items() if points}
    if not lines:
        return Markup("")

    def draw(axes: "Axes") -> None:
        for (name, points), colour in zip(lines.items(), itertools.cycle(COLOURS)):
            tips = [f"{name}, {x:g}: {y:.5g}" for x, y in points]
            axes.plot(*zip(*points), "o-", color=colour, label=name, gid=json.dumps(tips))
        axes.set_xlabel(x_label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(lines) > 1:
            _legend(axes, lines)

    return _figure(title, 2.6, draw)


def bar_chart(title: str, bars: Mapping[str, float], unit: str = "") -> Markup:
    """Draw horizontal bars, {name: value >= 0}, with their values; "" where none is finite."""
    bars = {name: value for name, value in bars.items() if math.isfinite(value)}
    if not bars:
        return Markup("")

    def draw(axes: "Axes") -> None:
        places, values = range(len(bars)), list(bars.values())
        drawn = axes.barh(places, values, color=COLOURS[0], height=0.65)
        axes.bar_label(drawn, [f"{value:.4g} {unit}" for value in values], padding=3)
        axes.set_yticks(places, list(bars))
        axes.invert_yaxis()
        axes.set(xticks=[], xlim=(0, 1.3 * (max(values) or 1)))  # room for the labels
        axes.grid(False)

    return _figure(title, 0.3 + 0.22 * len(bars), draw)


def scatter(title: str, points: Points, groups: Sequence[str], names: Sequence[str]) -> Markup:
    """Draw N points where they are finite, coloured by group; "" without one.

    ``names`` are shown when points are pointed at, ``groups`` N names, "" for none (grey, below).
    """
    members: dict[str, list] = {"": []}
    for point, group, name in zip(points, groups, names):
        if all(map(math.isfinite, point)):
            members.setdefault(group, []).append((*point, name))
    if not any(members.values()):
        return Markup("")

    def draw(axes: "Axes") -> None:
        colours = itertools.chain([_GREY], itertools.cycle(COLOURS))
        for (group, found), colour in zip(members.items(), colours):
            x, y, tips = zip(*found) if found else ((), (), ())
            size = 5 if group else 2.5
            axes.plot(x, y, "o", color=colour, markersize=size, label=group, gid=json.dumps(tips))
        axes.set(xticks=[], yticks=[])
        if len(members) > 1:
            _legend(axes, members)

    return _figure(title, 3.2, draw)


def _legend(axes: "Axes", names: Iterable[str]) -> None:
    shown = [name for name in names if name]
    fitting = max(1, int(320 / (27 + 6.1 * max(map(len, shown)))))  # pixels: width, mark and gaps, a letter
    rows = math.ceil(len(shown) / fitting)
    gaps = {"handlelength": 1.2, "handletextpad": 0.5, "columnspacing": 1.0}
    axes.figure.legend(loc="outside lower center", ncols=math.ceil(len(shown) / rows), **gaps)


# ---- matplotlib's SVG as a part of the page ------------------------------------------------------


def import_matplotlib() -> ModuleType:
    """Import matplotlib, which only the report needs."""
    for part in ("figure", "style"):
        optional(f"matplotlib.{part}", 'the report needs matplotlib: pip install "fastreid-sskd[report]"')
    return sys.modules["matplotlib"]


def _figure(title: str, height: float, draw: Callable[["Axes"], None]) -> Markup:
    """Draw a figure of so many inches; the ``gid`` of a line is the JSON list of its points' tips."""
    matplotlib = import_matplotlib()
    # whatever the user's own style is; ids are made of the title, so that those of two figures differ
    with matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": title}]):
        figure = matplotlib.figure.Figure((4.4, height), layout="constrained")
        axes = figure.add_subplot(frame_on=False)
        draw(axes)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = ET.fromstring(file.getvalue())
    for group in svg.iter(f"{{{_SVG}}}g"):
        name = group.attrib.pop("id", "")
        for point, tip in zip(group.iter(f"{{{_SVG}}}use"), json.loads(name) if name.startswith("[") else ()):
            ET.SubElement(point, "title").text = tip
    _slim(svg)
    svg.attrib = {"viewBox": svg.get("viewBox"), "role": "img", "aria-label": title}
    picture = Markup(ET.tostring(svg, encoding="unicode"))
    return Markup("<figure><figcaption>{}</figcaption>{}</figure>").format(title, picture)


def _slim(svg: ET.Element) -> None:
    """Leave out white space, rotations by nothing and digits below 0.01 pixels: half of the bytes."""
    for element in svg.iter():
        element.tail = None
        element.text = element.text if (element.text or "").strip() else None
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        for name in {"d", "x", "y", "width", "height"} & set(element.attrib):
            element.set(name, re.sub(r"(\.\d\d)\d+", r"\1", " ".join(element.get(name).split())))
