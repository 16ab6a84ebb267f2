"""The sections of a report that show images: ranked lists, clusters, the map."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from fastreid.utils.compute_dist import build_dist
from markupsafe import Markup

from ..data import Item
from .projection import project
from .ranked_lists import average_precisions, ranked_list, sample_queries
from .svg import COLOURS, scatter
from .thumbnails import Thumbnails

__all__ = ["Before", "cluster_rows", "map_figures", "ranked_rows"]


@dataclass
class Row:
    """A line of tiles with what it shows."""

    title: str
    tiles: list[Markup] = field(default_factory=list)


@dataclass
class Before:
    """Features (N, d) of queries and gallery before the run; None with the reason why they are not known."""

    features: torch.Tensor | None
    reason: str = ""


def ranked_rows(
    before: Before,
    after: torch.Tensor,
    queries: Sequence[Item],
    gallery: Sequence[Item],
    thumbnails: Thumbnails,
    *,
    metric: str,
    count: int,
    length: int,
    seed: int,
) -> list[Row]:
    """Ranked lists of a sample of queries, with the model before and after, right and wrong images framed.

    Args:
        before, after: features of queries and then gallery.
        metric: ``TEST.METRIC``.
        count, length: queries, and gallery images a list.
        seed: of the random part of the sample.
    """

    def distances(features: torch.Tensor) -> np.ndarray:
        return np.asarray(build_dist(features[: len(queries)], features[len(queries) :], metric))

    by_model = {"before": distances(before.features)} if before.features is not None else {}
    by_model["after"] = distances(after)
    precision = {name: average_precisions(d, queries, gallery) for name, d in by_model.items()}
    rows = []
    for chosen in sample_queries(precision.get("before"), precision["after"], count, seed):
        query = queries[chosen.query]
        for name, matrix in by_model.items():
            row = Row(f"{name}: AP {100 * precision[name][chosen.query]:.1f} %, query {chosen.why}")
            row.tiles.append(thumbnails.tile(query, "query"))
            row.tiles += [
                thumbnails.tile(gallery[i], "right" if right else "wrong")
                for i, right in ranked_list(matrix[chosen.query], query, gallery, length)
            ]
            rows.append(row)
    return rows


def cluster_rows(
    labels: np.ndarray, items: Sequence[Item], thumbnails: Thumbnails, *, count: int, length: int, seed: int
) -> list[Row]:
    """The largest, the median and the smallest cluster, others at random, and images of the noise.

    Args:
        labels: (N,) of the last refresh, -1 for noise.
        items: (path, identity, camera) of the same N images; identities are named, where there are any, only here.
        count, length: clusters, and images of each.
        seed: of the random choices.
    """
    rng = np.random.default_rng(seed)
    known = len({item[1] for item in items}) > 1
    sizes = np.bincount(labels[labels >= 0]) if (labels >= 0).any() else np.zeros(0, dtype=int)
    order = [int(c) for c in np.argsort(-sizes, kind="stable") if sizes[c]]
    wanted = []
    if order:
        by_size = ((order[0], "largest"), (order[len(order) // 2], "median"), (order[-1], "smallest"))
        wanted = [(cluster, f"the {name} cluster") for cluster, name in by_size]
    wanted += [(cluster, "a cluster at random") for cluster in rng.permutation(order).tolist()]
    named: dict[int, str] = {}
    for cluster, name in wanted:
        if len(named) < count:
            named.setdefault(cluster, name)
    rows = [
        _images(
            np.flatnonzero(labels == c), f"{name}, {sizes[c]} images", items, thumbnails, length, rng, known
        )
        for c, name in named.items()
    ]
    noise = np.flatnonzero(labels < 0)
    if len(noise):
        rows.append(_images(noise, f"noise, {len(noise)} images", items, thumbnails, 2 * length, rng, False))
    return rows


def _images(members, title: str, items, thumbnails: Thumbnails, length: int, rng, known: bool) -> Row:
    if known:
        identities = Counter(items[i][1] for i in members)
        share = identities.most_common(1)[0][1] / len(members)
        title += f"; of {len(identities)} identities, {100 * share:.0f} % of one (unseen by training)"
    shown = np.sort(rng.permutation(members)[:length])
    return Row(title, [thumbnails.tile(items[i]) for i in shown])


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
