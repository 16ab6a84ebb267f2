"""The host's evaluation after the patches."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F


def features(count, dim=16, seed=0):
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def evaluator(cfg, num_query, feats, pids, camids):
    from fastreid.evaluation import ReidEvaluator

    cfg.TEST.METRIC = "cosine"
    made = ReidEvaluator(cfg, num_query)
    made.process({"targets": torch.tensor(pids), "camids": torch.tensor(camids)}, feats)
    return made


def test_a_small_gallery_is_evaluated_without_a_compiler(cfg):
    # Query 0 finds its identity first, query 1 second; the gallery of three is smaller than rank 10 needs.
    feats = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9], [0.3, 0.7]])
    results = evaluator(cfg, 2, feats, [1, 2, 1, 1, 2], [0, 0, 1, 1, 1]).evaluate()
    assert (results["Rank-1"], results["Rank-5"], results["Rank-10"]) == (50, 100, 100)
    assert results["mAP"] == pytest.approx(100 * ((1 + 2 / 3) / 2 + 1 / 2) / 2)


def test_reranking_runs_on_the_cpu_and_mixes_both_distances(cfg):
    from fastreid.utils.compute_dist import build_dist

    cfg.TEST.RERANK.ENABLED = True
    cfg.TEST.RERANK.K1, cfg.TEST.RERANK.K2, cfg.TEST.RERANK.LAMBDA = 6, 3, 0.3
    feats, pids, camids = features(30), [k % 5 for k in range(30)], [k % 2 for k in range(30)]
    seen = []
    from fastreid.evaluation import rank

    original = rank.evaluate_rank
    rank.evaluate_rank = lambda dist, *labels: seen.append(dist) or original(dist, *labels)
    try:
        evaluator(cfg, 10, feats, pids, camids).evaluate()
    finally:
        rank.evaluate_rank = original
    jaccard = build_dist(feats[:10], feats[10:], metric="jaccard", k1=6, k2=3)
    np.testing.assert_allclose(
        seen[0], 0.7 * jaccard + 0.3 * build_dist(feats[:10], feats[10:], "cosine"), rtol=1e-6
    )


@pytest.mark.parametrize(("k1", "k2"), [(6, 3), (7, 1), (10, 6)])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_jaccard_equals_the_hosts_formula(host, k1, k2, scale):
    """Normalised features take the package's distance, others the host's code: both are its formula."""
    pytest.importorskip("faiss")
    from fastreid.utils.compute_dist import compute_jaccard_distance

    feats = features(40) * scale
    expected = compute_jaccard_distance.__wrapped__(feats, k1=k1, k2=k2, search_option=3)
    before = feats.clone()
    distance = compute_jaccard_distance(feats, k1=k1, k2=k2)
    np.testing.assert_allclose(distance, expected, atol=2e-6)
    assert distance.dtype == np.float32
    assert torch.equal(feats, before)
    assert compute_jaccard_distance(feats, k1=k1, k2=k2, fp16=True).dtype == np.float16


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_jaccard_with_more_neighbours_than_images(host, caplog, recwarn, scale):
    pytest.importorskip("faiss")
    from fastreid.utils.compute_dist import compute_jaccard_distance

    feats = features(5) * scale
    cut = compute_jaccard_distance(feats, k1=5, k2=3)
    if scale == 1:
        assert "TEST.RERANK.K1 = 5 reaches all 5 images" in caplog.text
    np.testing.assert_allclose(compute_jaccard_distance(feats, k1=20, k2=3), cut, atol=2e-6)
    assert ((cut >= 0) & (cut <= 1)).all()
    assert not recwarn.list


def test_euclidean_is_the_squared_distance(host, recwarn):
    from fastreid.utils.compute_dist import build_dist

    query, gallery = features(3) * 2, features(5, seed=1)
    expected = ((query[:, None] - gallery[None]) ** 2).sum(-1)
    np.testing.assert_allclose(build_dist(query, gallery, "euclidean"), expected, rtol=1e-5)
    assert not recwarn.list


def test_cuhk03_protocol_stays_the_hosts(host):
    from fastreid.evaluation.rank import evaluate_rank

    rng = np.random.default_rng(0)
    pids = np.arange(20) % 5
    cmc, mean_ap = evaluate_rank(
        rng.random((20, 20)), pids, pids, np.zeros(20), np.ones(20), max_rank=5, use_metric_cuhk03=True
    )
    assert cmc.shape == (5,)
    assert cmc[-1] == pytest.approx(1)  # one image of each of 5 identities is drawn
    assert 0 < mean_ap < 1


def test_numpy_bool_where_numpy_has_none(monkeypatch, host):
    from fastreid.evaluation import rank

    from fastreid_sskd.compat.evaluation import PATCHES

    patch = next(patch for patch in PATCHES if patch.name == "numpy-bool")
    monkeypatch.setattr(rank, "np", rank.np)
    patch.action()
    assert rank.np.bool is bool
    assert rank.np.zeros(1, dtype=rank.np.bool).dtype == np.bool_
