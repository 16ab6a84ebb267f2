"""The figures of a run that need its files only: losses, results, pseudo-labels, time, cluster sizes."""

import re
from collections.abc import Iterable

import numpy as np
from markupsafe import Markup

from ..benchmark.results import Series
from .run_files import RunFiles
from .svg import bar_chart, line_chart

__all__ = ["cluster_size_figures", "evaluation_figures", "loss_figures", "refresh_figures", "time_figures"]

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
