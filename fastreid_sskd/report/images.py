"""The images of a report: features before and after the run, ranked lists, example clusters, thumbnails."""

import base64
import io
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.utils.compute_dist import build_dist
from markupsafe import Markup
from PIL import Image
from torch import nn

from ..data import Item, extraction_loader
from ..engine import load_config, resolve, trainer_class
from ..engine.pipeline import load_trained
from ..evaluation.features import Encoder, encode_images
from ..evaluation.ranking import evaluate_rank
from ..modeling import SSKD, load_source_weights
from ..modeling.weights import load_network, read_state_dict
from .run_files import RunFiles

__all__ = [
    "Before", "Comparison", "Row", "Thumbnails", "average_precisions", "cluster_rows", "embed", "model_after", "model_before",
    "ranked_list", "ranked_rows", "run_config", "sample_queries",
]

logger = logging.getLogger("fastreid.sskd.report")


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


class Thumbnails:
    """Makes the tile of an image: a picture inside the page, or only words where pictures are not wanted.

    Args:
        images: whether to show pictures.
        height: of a picture in pixels; its width follows.
    """

    def __init__(self, images: bool = True, height: int = 96):
        self.images = images
        self.height = height

    def tile(self, item: tuple, kind: str = "") -> Markup:
        """The tile of (path, identity, camera).

        Args:
            item: of a data set.
            kind: "right", "wrong", "query" or "": its frame.
        """
        path, identity, camera = item[:3]
        words = f"identity {identity}, camera {camera}"
        body = Markup('<span class="words">{}</span>').format(words)
        if self.images:
            try:
                picture = Markup('<img alt="{}" title="{}" src="data:image/jpeg;base64,{}">').format(
                    words, os.path.basename(path), self._data(path)
                )
            except OSError as error:
                picture = Markup('<span class="words">no image: {}</span>').format(type(error).__name__)
            body = picture
        return Markup('<span class="tile {}">{}</span>').format(kind, body)

    def _data(self, path: str) -> str:
        with Image.open(path) as image:
            width = max(1, round(image.width * self.height / image.height))
            small = image.convert("RGB").resize((width, self.height), Image.Resampling.BILINEAR)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=80)
        return base64.b64encode(buffer.getvalue()).decode()


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


@dataclass(frozen=True)
class Comparison:
    """A query of the sample.

    Attributes:
        query: its number. why: why it is in the sample.
        before, after: its average precision, 0 to 1; before is None where only one model is known.
    """

    query: int
    why: str
    before: float | None
    after: float


def ranked_list(
    distances: np.ndarray, query: Item, gallery: Sequence[Item], length: int
) -> list[tuple[int, bool]]:
    """The first gallery images of one query, [(gallery index, right?)], nearest first.

    Images of the query's identity under its own camera are junk and left out, as in the evaluation; among equal
    distances the smaller index comes first.

    Args:
        distances: (G,) of the query to the gallery.
    """
    order = np.argsort(distances, kind="stable")
    kept = [int(i) for i in order if not (gallery[i][1] == query[1] and gallery[i][2] == query[2])]
    return [(i, gallery[i][1] == query[1]) for i in kept[:length]]


def average_precisions(distances: np.ndarray, queries: Sequence[Item], gallery: Sequence[Item]) -> np.ndarray:
    """(Q,) average precision of each query, NaN for one without a match under another camera."""
    columns = [np.array([item[at] for item in items]) for at in (1, 2) for items in (queries, gallery)]
    matched = np.array(
        [
            ((columns[1] == identity) & (columns[3] != camera)).any()
            for identity, camera in zip(columns[0], columns[2])
        ]
    )
    result = np.full(len(queries), np.nan)
    if matched.any():
        result[matched] = evaluate_rank(distances, *columns)[1]
    return result


def sample_queries(
    before: np.ndarray | None, after: np.ndarray, count: int, seed: int = 0
) -> list[Comparison]:
    """Half of the sample at random; the rest are the largest gains and the largest losses, which say that they are.

    Args:
        before: (Q,) average precision, or None: then the whole sample is random.
        after: (Q,) average precision; NaN where a query does not count.
        count: queries to show.
        seed: of the random half.
    """
    valid = np.flatnonzero(~np.isnan(after))
    drawn = np.random.default_rng(seed).permutation(valid)
    chosen: dict[int, str] = dict.fromkeys(
        drawn[: count if before is None else (count + 1) // 2].tolist(), "at random"
    )
    if before is not None:
        gain = after - before
        order = valid[np.argsort(-gain[valid], kind="stable")]
        best = [int(q) for q in order if gain[q] > 0 and q not in chosen]
        worst = [int(q) for q in order[::-1] if gain[q] < 0 and q not in chosen]
        extremes = count - len(chosen)
        chosen |= dict.fromkeys(best[: (extremes + 1) // 2], "among the largest gains")
        chosen |= dict.fromkeys(worst[: extremes // 2], "among the largest losses")
    return [
        Comparison(q, why, None if before is None else float(before[q]), float(after[q]))
        for q, why in chosen.items()
    ]


def run_config(run: RunFiles) -> CfgNode:
    """The run's config for a computation here: on a device that is there, without worker processes."""
    cfg = resolve(load_config(os.path.join(run.folder, "config.yaml")))
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.freeze()
    return cfg


def model_after(cfg: CfgNode, run: RunFiles) -> nn.Module:
    """The model with the run's last weights.

    Raises:
        FileNotFoundError: if the run has left none.
    """
    if not run.checkpoint:
        raise FileNotFoundError(f"{run.folder!r} has no model_final.pth and no other checkpoint")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = run.checkpoint
    return load_trained(cfg)


def model_before(cfg: CfgNode, run: RunFiles) -> nn.Module:
    """The model as the run started.

    Raises:
        FileNotFoundError: if its source weights are not found, or it started from none.
    """
    files = [
        _found(path, run) for path in (list(cfg.SSKD.SOURCE.WEIGHTS) or [cfg.MODEL.WEIGHTS or ""]) if path
    ]
    adapts = cfg.MODEL.META_ARCHITECTURE == "SSKD"
    if adapts and not files:
        files = [_source_model(run.folder, k) for k in range(cfg.SSKD.NUM_PEERS)]
    if not adapts and cfg.MODEL.WEIGHTS:
        files = [_found(cfg.MODEL.WEIGHTS, run)]
    if not files or cfg.MODEL.META_ARCHITECTURE not in ("SSKD", "SSKDSource"):
        raise FileNotFoundError("the run did not start from weights of a re-ID model")
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.BACKBONE.PRETRAIN = False
    plain.freeze()
    model = trainer_class(cfg).build_model(plain)
    if adapts:
        load_source_weights(model, files)
    else:
        load_network(model, read_state_dict(files[0]), files[0])
    return model.eval()


def _found(path: str, run: RunFiles) -> str:
    """A file of the config, from the working directory or, for stage 1's own, from the folder as it was moved."""
    parts = os.path.normpath(path).split(os.sep)
    moved = os.path.join(run.folder, *parts[-3:])  # source/peer0/model_best.pth
    for candidate in (path, moved):
        if os.path.isfile(candidate):
            return candidate
    raise FileNotFoundError(f"the source weights {path!r} are not there (looked for {moved!r} too)")


def _source_model(folder: str, k: int) -> str:
    for name in ("model_best.pth", "model_final.pth"):
        path = os.path.join(folder, "source", f"peer{k}", name)
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(
        f"the run names no source weights, and {os.path.join(folder, 'source')!r} has none of peer {k}"
    )


def embed(cfg: CfgNode, model: nn.Module, items: list[Item]) -> torch.Tensor:
    """Features (N, d) of the images, on the CPU, as evaluated: the ensemble's of an SSKD model, else the model's own."""
    encoder = Encoder(model, "ensemble" if isinstance(model, SSKD) else "")
    return encode_images(encoder, extraction_loader(cfg, items), flip=cfg.TEST.FLIP.ENABLED)
