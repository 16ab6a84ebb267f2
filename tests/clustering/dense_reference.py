"""Slow dense versions of the formulas, written from their definitions, and data to compare them on.

The reference takes the ranking as given (see `rank_by_similarity`): the order of neighbours is a definition
of its own, tested by itself, and near-ties must not decide whether the formulas after it agree.
"""

import math

import numpy as np


def normalise(features):
    features = np.asarray(features, dtype=np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def cosines(features):
    """(N, N) float64 cosines rounded to float32, one pair at a time in the same order of summation."""
    f = normalise(np.asarray(features, dtype=np.float32))
    out = np.empty((len(f), len(f)), dtype=np.float32)
    for i in range(len(f)):
        out[i] = np.minimum((f * f[i]).sum(1), 1.0)
    return np.maximum(out, out.T)


def rank_by_similarity(similarity):
    """(N, N): for each row itself, then the others by (similarity descending, index ascending)."""
    ranks = []
    for i, row in enumerate(similarity):
        others = sorted((j for j in range(len(row)) if j != i), key=lambda j: (-row[j], j))
        ranks.append([i, *others])
    return np.array(ranks)


def round_half_even(value):
    floor = math.floor(value)
    if value - floor != 0.5:
        return math.floor(value + 0.5)
    return floor if floor % 2 == 0 else floor + 1


def dense_jaccard(features, k1, k2, variant, similarity=None, ranks=None):
    """The k-reciprocal Jaccard distance step by step; returns (N, N) float64."""
    similarity = cosines(features) if similarity is None else similarity
    ranks = rank_by_similarity(similarity) if ranks is None else ranks
    count = len(similarity)
    distance = 2 - 2 * similarity.astype(np.float64)
    np.fill_diagonal(distance, 0)
    entries = k1 + 1 if variant == "sskd" else k1
    lists = [list(map(int, row[:entries])) for row in ranks]

    def reciprocal(i, k):
        return {j for j in lists[i][: k + 1] if i in lists[j][: k + 1]}

    half = round_half_even(k1 / 2)
    v = np.zeros((count, count))
    for i in range(count):
        base = reciprocal(i, k1)
        expanded = set(base)
        for j in base:
            candidate = reciprocal(j, half)
            if 3 * len(candidate & base) > 2 * len(candidate):
                expanded |= candidate
        largest = distance[i].max() if variant == "sskd" else 1.0
        for j in expanded:
            v[i, j] = math.exp(-(distance[i, j] / largest if largest > 0 else 0.0))
        v[i] /= v[i].sum()
    if k2 != 1:
        full_list = ranks if variant == "sskd" else np.array(lists)
        v = np.stack([v[full_list[i, :k2]].mean(0) for i in range(count)])
    jaccard = np.empty((count, count))
    for i in range(count):
        m = np.minimum(v[i], v).sum(1)
        jaccard[i] = np.maximum(1 - m / (2 - m), 0)
    return jaccard


def dense_dbscan(distance, eps, min_samples):
    """DBSCAN by its definition: components of cores; borders take the smallest number."""
    near = np.asarray(distance) <= eps
    count = len(near)
    core = near.sum(1) >= min_samples
    component = list(range(count))
    for _ in range(count):  # spread the smallest core number until nothing changes
        before = list(component)
        for i in range(count):
            if core[i]:
                component[i] = min(component[j] for j in range(count) if core[j] and near[i, j])
        if component == before:
            break
    numbers = {root: n for n, root in enumerate(sorted({component[i] for i in range(count) if core[i]}))}
    labels = np.full(count, -1)
    for i in range(count):
        reachable = [numbers[component[j]] for j in range(count) if core[j] and near[i, j]]
        if core[i]:
            labels[i] = numbers[component[i]]
        elif reachable:
            labels[i] = min(reachable)
    return labels


def to_dense(sparse):
    """(N, N) with 1 for what is not stored."""
    dense = np.ones(sparse.shape, dtype=sparse.dtype)
    entries = sparse.tocoo()
    dense[entries.row, entries.col] = entries.data
    return dense


def crowd(seed, num_ids=12, per_id=10, dim=24, spread=0.45, isolated=6, duplicated=8):
    """Unit float32 features: identities of uneven size, isolated points, exact duplicates; shuffled."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_ids, dim))
    sizes = rng.integers(2, 2 * per_id, num_ids)
    points = [
        centre + spread * rng.normal(size=(size, dim)) for centre, size in zip(centres, sizes, strict=True)
    ]
    rows = np.concatenate([*points, 3 * rng.normal(size=(isolated, dim))])
    rows = np.concatenate([rows, rows[rng.integers(0, len(rows), duplicated)]])
    rows = normalise(rows).astype(np.float32)
    return rows[rng.permutation(len(rows))]


def lattice(seed, count=90, dim=6):
    """Unit float32 features with entries -1, 0, 1 before normalising: most similarities are tied."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, (4 * count, dim))
    rows = rows[np.abs(rows).sum(1) == 4][:count]  # norm exactly 2: cosines are exact multiples of 1/4
    return (rows / 2).astype(np.float32)
