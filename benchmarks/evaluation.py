#!/usr/bin/env python3
"""Measure an evaluation, compared with product and argsort, and with the host's ranking in Python.

benchmarks/evaluation.py --threads 2
"""

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

import measure
import numpy as np
import torch
from fastreid.evaluation.rank import evaluate_py
from fastreid.utils.compute_dist import build_dist
from measure import ResidentMemory, Row

from fastreid_sskd.evaluation.evaluator import evaluate_features
from fastreid_sskd.evaluation.ranking import evaluate_rank

T = TypeVar("T")

#: queries, gallery images and identities of the two data sets that most papers print
MARKET, MSMT = (3_368, 15_913, 750), (11_659, 82_161, 3_060)
#: values of a feature: a ResNet-50's
DIM = 2048
CAMERAS = 6
#: share of the gallery that shows none of the queries' identities
DISTRACTORS = 0.18
#: lengths of the parts that identity, camera and image have in a feature
IDENTITY, CAMERA, IMAGE = 1.0, 0.7, 1.5
#: directions that these parts lie in: a feature has fewer than values
INNER = 64
#: target of the tool: time beside product and argsort
TARGET = 2.0


@dataclass(frozen=True)
class Crowd:
    """Features and labels of query and gallery, in the order that `evaluate_rank` takes the labels in."""

    query: torch.Tensor
    gallery: torch.Tensor
    labels: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def crowd(num_query: int, num_gallery: int, num_ids: int, dim: int, seed: int = 0) -> Crowd:
    """Seeded features of identities under cameras.

    Neither perfect nor random to rank, with junk and distractors.

    Returns:
        (num_query, dim) and (num_gallery, dim) float32 features, not normalised; identities and cameras.
    """
    rng = np.random.default_rng(seed)
    count = num_query + num_gallery
    identities = rng.integers(0, num_ids, count)
    others = num_query + np.flatnonzero(rng.random(num_gallery) < DISTRACTORS)
    identities[others] = num_ids + np.arange(len(others))
    cameras = rng.integers(0, CAMERAS, count)
    layer = rng.standard_normal((INNER, dim), dtype=np.float32)

    def parts(number: int, length: float) -> np.ndarray:
        return rng.standard_normal((number, INNER), dtype=np.float32) * np.float32(length)

    people, places = parts(num_ids + len(others), IDENTITY), parts(CAMERAS, CAMERA)
    features = torch.from_numpy((people[identities] + places[cameras] + parts(count, IMAGE)) @ layer)
    split = [
        values[part]
        for values in (identities, cameras)
        for part in (slice(num_query), slice(num_query, None))
    ]
    return Crowd(features[:num_query], features[num_query:], tuple(split))


def rows(args: argparse.Namespace) -> list[Row]:
    """Seconds of an evaluation at Market-1501's size, and the memory of one at MSMT17's.

    Args:
        args: ``repeats`` timed repeats; ``quick``: a tenth of the sizes, to try the tool.

    Raises:
        RuntimeError: if the figures are not the host's.
    """
    market, msmt = (_tenth(MARKET), _tenth(MSMT)) if args.quick else (MARKET, MSMT)
    return [_time(market, args.repeats), _memory(msmt)]


def _tenth(sizes: tuple[int, int, int]) -> tuple[int, int, int]:
    return tuple(size // 10 for size in sizes)


def _time(sizes: tuple[int, int, int], repeats: int) -> Row:
    """The row of times, ours and the floor in turn."""
    made = crowd(*sizes, DIM)
    small = crowd(20, 50, 5, 8)  # compiles
    evaluate_features(small.query, small.gallery, *small.labels)
    seconds: dict[str, list[float]] = {"ours": [], "product": [], "argsort": []}
    for _ in range(repeats):
        _timed(seconds["ours"], evaluate_features, made.query, made.gallery, *made.labels)
        distances = _timed(seconds["product"], build_dist, made.query, made.gallery, "cosine")
        _timed(seconds["argsort"], np.argsort, distances, 1)
    ranked: list[float] = []
    with contextlib.redirect_stdout(io.StringIO()):  # the host prints a note on small galleries
        host = _timed(ranked, evaluate_py, distances, *made.labels, 50, False)
    difference, ties = _compare(distances, made.labels, host)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    floor = middle["product"] + middle["argsort"]
    return Row(
        section="evaluation",
        what=f"{sizes[0]:,} queries x {sizes[1]:,} gallery images of {DIM} values",
        unit="s",
        ours=middle["ours"],
        plain=middle["product"] + ranked[0],
        floor=floor,
        target=f"{middle['ours'] / floor:.2f} of product + argsort (at most {TARGET:g})",
        note=f"float32, {torch.get_num_threads()} threads; plain: the host's Python ranking; AP and INP "
        f"within {difference:.1e} of it but for {ties} queries with a tie at a match",
        details={
            **seconds,
            "host_ranking": ranked,
            "largest_difference": difference,
            "queries_with_ties": ties,
        },
    )


def _timed(into: list[float], function: Callable[..., T], *arguments) -> T:
    """The result of the call; appends its seconds."""
    start = time.perf_counter()
    result = function(*arguments)
    into.append(time.perf_counter() - start)
    return result


def _compare(distances: np.ndarray, labels: tuple, host: tuple) -> tuple[float, int]:
    """Largest difference of AP, INP and CMC to the host's without ties, and the number of queries with a tie.

    Raises:
        RuntimeError: if one is larger than what sums in another order explain.
    """
    ours = evaluate_rank(distances, *labels)
    tied = _tied(distances, *labels)
    values = [np.abs(np.subtract(a, b))[~tied].max(initial=0.0) for a, b in zip(ours[1:], host[1:])]
    curve = np.abs(ours[0][: len(host[0])] - host[0]).max()
    # the host's curve is a float32; a tie moves a query's first match by a place at most as often as there
    # are ties
    if max(values) > 1e-12 or curve > 1e-6 + tied.sum() / len(tied):
        raise RuntimeError(
            f"AP, INP and CMC differ from the host's by {values} and {curve:.2g}: the ranking is wrong"
        )
    return float(max(values)), int(tied.sum())


def _tied(distances: np.ndarray, q_pids, g_pids, q_camids, g_camids) -> np.ndarray:
    """Of each query with a match, whether a match has exactly the distance of an image that is not one."""
    tied = []
    for row, identity, camera in zip(distances, q_pids, q_camids):
        same = g_pids == identity
        match = same & (g_camids != camera)
        if match.any():
            tied.append(bool(np.isin(row[match], row[~same]).any()))
    return np.array(tied)


def _memory(sizes: tuple[int, int, int]) -> Row:
    """The row of memory, of a process of its own; the floor is what the features themselves take."""
    with get_context("spawn").Pool(1) as pool:
        megabytes, seconds, features = pool.apply(_peak, (sizes, torch.get_num_threads()))
    matrix = sizes[0] * sizes[1] * 4 / 2**20
    return Row(
        section="evaluation",
        what=f"memory: {sizes[0]:,} queries x {sizes[1]:,} gallery images of {DIM} values",
        unit="MB",
        ours=megabytes + features,
        plain=features + 2 * matrix,
        floor=features,
        target=f"features + {megabytes:.0f} MB; all distances alone are {matrix:.0f} MB",
        note=f"MB of 2**20 bytes above imports, in {seconds:.0f} s; plain: computed, features and the "
        "host's two matrices",
    )


def _peak(sizes: tuple[int, int, int], threads: int) -> tuple[float, float, float]:
    """Peak memory of an evaluation besides its features [MB], its seconds, and the features' memory [MB]."""
    torch.set_num_threads(threads)
    small = crowd(20, 50, 5, 8)
    evaluate_features(small.query, small.gallery, *small.labels)
    made = crowd(*sizes, DIM)
    features = (made.query.nbytes + made.gallery.nbytes) / 2**20
    memory, start = ResidentMemory(), time.perf_counter()
    evaluate_features(made.query, made.gallery, *made.labels)
    return memory.peak() / 2**20, time.perf_counter() - start, features


if __name__ == "__main__":
    _parser = measure.parser(__doc__, repeats=3)
    _parser.add_argument("--quick", action="store_true", help="a tenth of the sizes, to try the script")
    measure.main(_parser, rows)
