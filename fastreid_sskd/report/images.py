"""The images of a report: features before and after the run, ranked lists, example clusters, thumbnails."""

import base64
import io
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.utils.compute_dist import build_dist
from markupsafe import Markup
from PIL import Image
from torch import nn

from ..data import Item, extraction_loader
from ..engine import load_config, resolve, trainer_class
from ..engine.defaults import without_pretraining
from ..engine.pipeline import load_trained
from ..evaluation.features import Encoder, encode_images
from ..evaluation.ranking import evaluate_rank
from ..modeling import SSKD, load_source_weights
from ..modeling.weights import load_network, read_state_dict
from ..precision import Precision
from .run_files import RunFiles

THUMBNAIL_HEIGHT = 96  # pixels


@dataclass
class Row:
    """A line of tiles with what it shows."""

    title: str
    tiles: list[Markup]


# ---- features before and after -------------------------------------------------------------------


def embed(cfg: CfgNode, model: nn.Module, items: list[Item]) -> torch.Tensor:
    """Compute the features (N, d) of images, on the CPU, as the evaluation does; an SSKD ensemble's."""
    encoder = Encoder(model, "ensemble" if isinstance(model, SSKD) else "", Precision(cfg))
    return encode_images(encoder, extraction_loader(cfg, items), flip=cfg.TEST.FLIP.ENABLED)


def run_config(run: RunFiles) -> CfgNode:
    """Read the run's config for this machine: on a device that is there, without worker processes."""
    cfg = resolve(load_config(os.path.join(run.folder, "config.yaml")))
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.freeze()
    return cfg


def model_after(cfg: CfgNode, run: RunFiles) -> nn.Module:
    """Load the run's last weights; Raises FileNotFoundError if it has left none."""
    if not run.checkpoint:
        raise FileNotFoundError(f"{run.folder!r} has no model_final.pth and no other checkpoint")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = run.checkpoint
    return load_trained(cfg)


def model_before(cfg: CfgNode, run: RunFiles) -> nn.Module:
    """Load the model as the run started."""
    adapts = cfg.MODEL.META_ARCHITECTURE == "SSKD"
    given = list(cfg.SSKD.SOURCE.WEIGHTS) if adapts else []
    files = [_found(run.folder, path) for path in given or [cfg.MODEL.WEIGHTS] if path]
    if adapts and not files:
        files = [_source_model(run.folder, k) for k in range(cfg.SSKD.NUM_PEERS)]
    if not files or cfg.MODEL.META_ARCHITECTURE not in ("SSKD", "SSKDSource"):
        raise FileNotFoundError("the run did not start from weights of a re-ID model")
    model = trainer_class(cfg).build_model(without_pretraining(cfg))
    if adapts:
        load_source_weights(model, files)
    else:
        load_network(model, read_state_dict(files[0]), files[0])
    return model.eval()


def _found(folder: str, path: str) -> str:
    """Find a file of the config from the working directory, or in the run folder, which may have moved."""
    moved = os.path.join(folder, *os.path.normpath(path).split(os.sep)[-3:])  # source/peer0/model_best.pth
    for candidate in (path, moved):
        if os.path.isfile(candidate):
            return candidate
    raise FileNotFoundError(f"the source weights {path!r} are not there (looked for {moved!r} too)")


def _source_model(folder: str, k: int) -> str:
    source = os.path.join(folder, "source")
    for name in ("model_best.pth", "model_final.pth"):
        path = os.path.join(source, f"peer{k}", name)
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(f"the run names no source weights, and {source!r} has none of peer {k}")


# ---- ranked lists --------------------------------------------------------------------------------


def ranked_rows(
    features: Mapping[str, torch.Tensor],
    queries: Sequence[Item],
    gallery: Sequence[Item],
    *,
    metric: str,
    count: int,
    length: int,
    seed: int,
    images: bool,
) -> list[Row]:
    """Rank the gallery for a sample of queries, by each model, with right and wrong images framed.

    Args:
        features: (Q + G, d) of queries and then gallery, by the name of the model: "after", maybe "before".
        metric: ``TEST.METRIC``.
        count, length, seed: queries, gallery images of each, and seed of the random part of the sample.
        images: whether tiles are pictures.
    """
    distances = {
        model: np.asarray(build_dist(rows[: len(queries)], rows[len(queries) :], metric))
        for model, rows in features.items()
    }
    precision = {model: average_precisions(matrix, queries, gallery) for model, matrix in distances.items()}
    rows = []
    for q, why in sample_queries(precision.get("before"), precision["after"], count, seed).items():
        for model, matrix in distances.items():
            nearest = [
                tile(gallery[i], "right" if right else "wrong", images)
                for i, right in ranked_list(matrix[q], queries[q], gallery, length)
            ]
            title = f"{model}: AP {100 * precision[model][q]:.1f} %, query {why}"
            rows.append(Row(title, [tile(queries[q], "query", images), *nearest]))
    return rows


def ranked_list(
    distances: np.ndarray, query: Item, gallery: Sequence[Item], length: int
) -> list[tuple[int, bool]]:
    """Rank the gallery for one query, by distances (G,): [(gallery index, right?)], nearest first.

    Of equal distances the smaller index comes first. Images of the query's identity under its own camera
    are junk and left out, as in the evaluation.
    """
    order = np.argsort(distances, kind="stable").tolist()
    kept = [i for i in order if gallery[i][1:3] != query[1:3]]
    return [(i, gallery[i][1] == query[1]) for i in kept[:length]]


def average_precisions(distances: np.ndarray, queries: Sequence[Item], gallery: Sequence[Item]) -> np.ndarray:
    """Compute the average precision (Q,) of each query, NaN for one without a match under another camera."""
    cameras = defaultdict(set)
    for item in gallery:
        cameras[item[1]].add(item[2])
    matched = np.array([bool(cameras[item[1]] - {item[2]}) for item in queries])
    result = np.full(len(queries), np.nan)
    if matched.any():
        labels = [np.array([item[at] for item in items]) for at in (1, 2) for items in (queries, gallery)]
        result[matched] = evaluate_rank(distances, *labels)[1]
    return result


def sample_queries(before: np.ndarray | None, after: np.ndarray, count: int, seed: int = 0) -> dict[int, str]:
    """Choose queries, {query: why}: half at random, the rest the largest gains and losses in precision.

    Average precisions are (Q,), NaN where a query does not count; without those before, all are random.
    """
    valid = np.flatnonzero(~np.isnan(after))
    drawn = np.random.default_rng(seed).permutation(valid).tolist()
    chosen = dict.fromkeys(drawn[: count if before is None else (count + 1) // 2], "at random")
    if before is not None:
        gain = after - before
        order = [q for q in valid[np.argsort(-gain[valid], kind="stable")].tolist() if q not in chosen]
        best, worst = [q for q in order if gain[q] > 0], [q for q in order[::-1] if gain[q] < 0]
        extremes = count - len(chosen)
        chosen |= dict.fromkeys(best[: (extremes + 1) // 2], "among the largest gains")
        chosen |= dict.fromkeys(worst[: extremes // 2], "among the largest losses")
    return chosen


# ---- example clusters ----------------------------------------------------------------------------


def cluster_rows(
    labels: np.ndarray, items: Sequence[Item], *, count: int, length: int, seed: int, images: bool
) -> list[Row]:
    """Show the largest, the median and the smallest cluster, others at random, and images of the noise.

    Args:
        labels: (N,) of the last refresh, -1 for noise.
        items: (path, identity, camera) of the same N images; only here known identities are looked at.
        count, length, seed: clusters, images of each, and seed of the random choices.
        images: whether tiles are pictures.
    """
    rng = np.random.default_rng(seed)
    known = len({item[1] for item in items}) > 1
    sizes = np.bincount(labels[labels >= 0]) if (labels >= 0).any() else np.zeros(0, dtype=int)
    order = [int(c) for c in np.argsort(-sizes, kind="stable") if sizes[c]]
    wanted: list[tuple[int, str]] = []
    if order:
        by_size = {"largest": order[0], "median": order[len(order) // 2], "smallest": order[-1]}
        wanted = [(cluster, f"the {name} cluster") for name, cluster in by_size.items()]
    wanted += [(cluster, "a cluster at random") for cluster in rng.permutation(order).tolist()]
    named: dict[int, str] = {}
    for cluster, name in wanted:
        if len(named) < count:
            named.setdefault(cluster, name)

    def row(title: str, members: np.ndarray, most: int) -> Row:
        shown = np.sort(rng.permutation(members)[:most])
        return Row(title, [tile(items[i], images=images) for i in shown])

    rows = []
    for cluster, name in named.items():
        members = np.flatnonzero(labels == cluster)
        title = f"{name}, {len(members)} images"
        if known:
            identities = Counter(items[i][1] for i in members)
            ratio = identities.most_common(1)[0][1] / len(members)
            title += f"; of {len(identities)} identities, {100 * ratio:.0f} % of one (unseen by training)"
        rows.append(row(title, members, length))
    noise = np.flatnonzero(labels < 0)
    if len(noise):
        rows.append(row(f"noise, {len(noise)} images", noise, 2 * length))
    return rows


# ---- thumbnails ----------------------------------------------------------------------------------


def tile(item: Item, kind: str = "", images: bool = True) -> Markup:
    """Make the tile of an image: a picture or words, in the frame of "right", "wrong", "query" or ""."""
    path, identity, camera = item[:3]
    words = f"identity {identity}, camera {camera}"
    body = Markup('<span class="words">{}</span>').format(words)
    if images:
        try:
            body = Markup('<img alt="{}" title="{}" src="data:image/jpeg;base64,{}">').format(
                f"{kind} {words}".strip(), os.path.basename(path), _thumbnail(path)
            )
        except OSError as error:
            body = Markup('<span class="words">no image: {}</span>').format(type(error).__name__)
    return Markup('<span class="tile {}">{}</span>').format(kind, body)


def _thumbnail(path: str) -> str:
    with Image.open(path) as image:
        width = max(1, round(image.width * THUMBNAIL_HEIGHT / image.height))
        small = image.convert("RGB").resize((width, THUMBNAIL_HEIGHT), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return base64.b64encode(buffer.getvalue()).decode()
