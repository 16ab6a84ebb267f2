"""The evaluator without a matrix beside the host's, under every option of the host."""

import numpy as np
import pytest
import torch
from fastreid.evaluation import ReidEvaluator
from own_processes import together

from fastreid_sskd.evaluation import evaluator, ranking
from fastreid_sskd.evaluation.evaluator import BlockwiseEvaluator, evaluate_features

QUERIES = 30


def batches(count=230, size=50, dim=12, ids=15, seed=0):
    """What a loader and a network give: batches of labels, and their features."""
    rng = torch.Generator().manual_seed(seed)
    identities = torch.randint(ids, (count,), generator=rng)
    cameras = torch.randint(4, (count,), generator=rng)
    feats = torch.randn(ids, dim, generator=rng)[identities] + torch.randn(count, dim, generator=rng)
    parts = zip(identities.split(size), cameras.split(size), feats.split(size))
    return [({"targets": pids, "camids": camids}, feature) for pids, camids, feature in parts]


def results(cls, cfg, given=None):
    made = cls(cfg, QUERIES)
    made.reset()
    for inputs, outputs in given or batches():
        made.process(inputs, outputs)
    return made.evaluate()


def assert_same_results(found, expected):
    """Those of the host, and the number of queries that count beside them."""
    assert list(found) == [*expected, "queries"] and found["queries"] == QUERIES
    for name in expected:
        assert found[name] == pytest.approx(expected[name], abs=1e-9), name


@pytest.fixture
def matrices(monkeypatch):
    """How many matrices of all distances the host's evaluator has asked for."""
    calls = []
    from fastreid.evaluation import reid_evaluation

    real = reid_evaluation.build_dist
    monkeypatch.setattr(reid_evaluation, "build_dist", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs))
    return calls


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("expansion", [False, True])
@pytest.mark.parametrize("block", [1, 4 * 200 * 7, 2**26])
def test_same_as_the_host(cfg, metric, expansion, block, matrices, monkeypatch):
    cfg.TEST.METRIC, cfg.TEST.AQE.ENABLED = metric, expansion
    cfg.TEST.AQE.QE_K = 3
    expected = results(ReidEvaluator, cfg)
    assert 20 < expected["mAP"] < 95
    matrices.clear()
    monkeypatch.setattr(ranking, "BLOCK_BYTES", block)
    found = results(BlockwiseEvaluator, cfg)
    assert_same_results(found, expected)
    assert not matrices and all(type(value) is float for value in found.values())
    if not expansion:
        cfg.TEST.AQE.ENABLED = True
        assert abs(results(BlockwiseEvaluator, cfg)["mAP"] - expected["mAP"]) > 0.01


@pytest.mark.parametrize("option", ["RERANK", "ROC"])
def test_options_that_need_the_matrix_are_the_hosts(cfg, option, matrices):
    pytest.importorskip("faiss")
    plain = results(BlockwiseEvaluator, cfg)
    cfg.TEST[option].ENABLED = True
    cfg.TEST.RERANK.K1, cfg.TEST.RERANK.K2 = 8, 3
    expected = results(ReidEvaluator, cfg)
    matrices.clear()
    found = results(BlockwiseEvaluator, cfg)
    assert matrices
    assert_same_results(found, expected)
    assert found["mAP"] != plain["mAP"] if option == "RERANK" else "TPR@FPR=1e-02" in found


@pytest.mark.parametrize("option", ["", "RERANK", "ROC"])
def test_queries_that_count(cfg, option):
    """Query 0 has a match, query 1 one under its own camera only, query 2 none."""
    if option:
        pytest.importorskip("faiss")
        cfg.TEST[option].ENABLED = True
    labels = {"targets": torch.tensor([1, 2, 3, 1, 2, 9, 9, 9]), "camids": torch.tensor([0, 0, 0, 1, 0, 1, 0, 2])}
    made = BlockwiseEvaluator(cfg, 3)
    made.process(labels, torch.eye(8) + 0.1)
    assert made.evaluate()["queries"] == 1.0


def test_again_and_unchanged(cfg):
    """A second evaluation of the same predictions gives the same; the features stay as they are."""
    given = batches()
    before = [outputs.clone() for _, outputs in given]
    made = BlockwiseEvaluator(cfg, QUERIES)
    for inputs, outputs in given:
        made.process(inputs, outputs)
    assert made.evaluate() == made.evaluate()
    assert all(torch.equal(outputs, old) for (_, outputs), old in zip(given, before))
    made.reset()
    for inputs, outputs in batches(seed=1):
        made.process(inputs, outputs)
    assert made.evaluate() == results(BlockwiseEvaluator, cfg, batches(seed=1))


def test_features_that_are_not_finite(cfg):
    given = batches()
    given[0][1][7, 0] = float("nan")
    with pytest.raises(ValueError, match="query 7 contain NaN"):
        results(BlockwiseEvaluator, cfg, given)


def test_metrics_of_a_placed_example():
    """Query 0 finds its match first; query 1, of whose two matches the first is second, last of three."""
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    gallery = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.3, 0.7], [0.7, 0.3]])
    labels = [np.array(values) for values in ([1, 2], [1, 9, 2, 2], [0, 0], [1, 1, 1, 1])]
    found = evaluate_features(query, gallery, *labels)
    precision = (1 / 2 + 2 / 3) / 2
    assert found["Rank-1"] == 50 and found["Rank-5"] == found["Rank-10"] == 100
    assert found["mAP"] == pytest.approx(100 * (1 + precision) / 2)
    assert found["mINP"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert found["metric"] == pytest.approx((found["mAP"] + 50) / 2)


def shared(cfg):
    """Each process has its share of the batches, one of them none: the main process ranks all, and tells what it found or raised."""
    from fastreid.utils import comm

    given, rank = batches(), comm.get_rank()
    made = BlockwiseEvaluator(cfg, QUERIES)
    for inputs, outputs in ([], given[:3], given[3:])[rank]:
        made.process(inputs, outputs)
    assert_same_results(made.evaluate(), evaluator.evaluate_features(*_joined(given)))
    if rank == 1:
        made._predictions[0]["feats"][0] = float("nan")
    with pytest.raises(ValueError, match="query 0 contain NaN"):
        made.evaluate()


def _joined(given):
    pids, camids = (torch.cat([inputs[key] for inputs, _ in given]).numpy() for key in ("targets", "camids"))
    feats = torch.cat([outputs for _, outputs in given])
    labels = [values[side] for values in (pids, camids) for side in (slice(QUERIES), slice(QUERIES, None))]
    return feats[:QUERIES], feats[QUERIES:], *labels


def test_three_processes(cfg):
    assert together(shared, cfg, world=3) == [0, 0, 0]


def shared_with_limit(cfg, rerank):
    """No process may wait in a group with a device's time limit: the main one ranks for as long as it takes."""
    from fastreid.utils import comm

    from fastreid_sskd.processes import control_group

    def refuse(*args, **kwargs):
        raise AssertionError("waits for the main process in a group with a time limit")

    gather, rank, given = comm.gather, comm.get_rank(), batches()
    comm.synchronize = refuse
    comm.gather = lambda data, dst=0, group=None: gather(data, dst, group) if group is control_group() else refuse()
    cfg.TEST.RERANK.ENABLED = rerank
    found = [results(BlockwiseEvaluator, cfg, (given[:3], given[3:])[rank]) for _ in range(2)]  # a teacher after the other
    assert comm.get_world_size() == 2
    comm.get_world_size = lambda: 1
    expected = results(BlockwiseEvaluator, cfg)
    for one in found:
        assert one == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rerank", [False, True])
def test_others_wait_for_the_main_process_patiently(cfg, rerank):
    assert together(shared_with_limit, cfg, rerank) == [0, 0]
