"""The evaluator compared with the host's, under every option; all teachers in one evaluation; the table."""

import copy
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.evaluation import ReidEvaluator
from fastreid.modeling import build_model
from own_processes import together
from tiny_reid import MARKET

from fastreid_sskd.data.items import test_items as query_and_gallery
from fastreid_sskd.data.loaders import test_loader as evaluation_loader
from fastreid_sskd.evaluation import evaluator, ranking
from fastreid_sskd.evaluation.evaluator import (
    METRICS,
    BlockwiseEvaluator,
    evaluate_features,
    evaluate_peers,
    results_table,
    row_names,
)

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
    monkeypatch.setattr(
        reid_evaluation, "build_dist", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs)
    )
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
    labels = {
        "targets": torch.tensor([1, 2, 3, 1, 2, 9, 9, 9]),
        "camids": torch.tensor([0, 0, 0, 1, 0, 1, 0, 2]),
    }
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
    """Each process has its shard of the batches, one has none: the main process ranks all and tells."""
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
    """No process may wait in a group with a time limit: the main one ranks for as long as it takes."""
    from fastreid.utils import comm

    from fastreid_sskd.processes import control_group

    def refuse(*args, **kwargs):
        raise AssertionError("waits for the main process in a group with a time limit")

    gather, rank, given = comm.gather, comm.get_rank(), batches()
    comm.synchronize = refuse
    comm.gather = lambda data, dst=0, group=None: (
        gather(data, dst, group) if group is control_group() else refuse()
    )
    cfg.TEST.RERANK.ENABLED = rerank
    # a teacher after the other
    found = [results(BlockwiseEvaluator, cfg, (given[:3], given[3:])[rank]) for _ in range(2)]
    assert comm.get_world_size() == 2
    comm.get_world_size = lambda: 1
    expected = results(BlockwiseEvaluator, cfg)
    for one in found:
        assert one == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rerank", [False, True])
def test_others_wait_for_the_main_process_patiently(cfg, rerank):
    assert together(shared_with_limit, cfg, rerank) == [0, 0]


def slow_map(features, num_query, items):
    """mAP in percent by the Market-1501 protocol, written as loops."""
    features = F.normalize(torch.as_tensor(features), dim=1).double().numpy()
    precisions = []
    for q in range(num_query):
        _, identity, camera = items[q]
        ranked = sorted(
            (i for i in range(num_query, len(items)) if items[i][1:] != (identity, camera)),
            key=lambda i: -float(features[q] @ features[i]),
        )
        hits, found = 0, []
        for place, i in enumerate(ranked, start=1):
            if items[i][1] == identity:
                hits += 1
                found.append(hits / place)
        precisions.append(np.mean(found))
    return 100 * float(np.mean(precisions))


def feature_of(model, cfg, k):
    """Features of teacher k for query and gallery, taken from the model's own evaluation."""
    loader, _ = evaluation_loader(cfg, "Market1501")
    model.eval()
    model.eval_with = k
    with torch.no_grad():
        return torch.cat([model(batch) for batch in loader])


def test_rows():
    assert row_names(3) == ["teacher0", "teacher1", "teacher2", "ensemble"]
    assert row_names(1) == ["teacher0"]


def test_every_row_by_itself(cfg, model):
    results = evaluate_peers(cfg, model)
    assert list(results) == ["Market1501"]
    rows = results["Market1501"]
    assert list(rows) == ["teacher0", "teacher1", "ensemble"]
    query, gallery = query_and_gallery("Market1501")
    for row, name in (("teacher0", "0"), ("teacher1", "1"), ("ensemble", "ensemble")):
        expected = slow_map(feature_of(model, cfg, name), len(query), query + gallery)
        assert rows[row]["mAP"] == pytest.approx(expected, abs=1e-4)
        assert {"Rank-1", "Rank-5", "Rank-10", "mINP", "metric"} < set(rows[row])
        assert 0 <= rows[row]["Rank-1"] <= rows[row]["Rank-10"] <= 100
    assert rows["teacher0"]["mAP"] != rows["teacher1"]["mAP"]


@pytest.mark.parametrize("training", [True, False])
def test_model_stays_as_it_is(cfg, model, training):
    model.train(training)
    before = copy.deepcopy(model.state_dict())
    evaluate_peers(cfg, model)
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_students_do_not_matter(cfg, model):
    before = evaluate_peers(cfg, model)
    for parameter in model.students.parameters():
        parameter.data.zero_()
    assert evaluate_peers(cfg, model) == before


def test_one_peer(cfg):
    cfg.SSKD.NUM_PEERS = 1
    torch.manual_seed(0)
    assert list(evaluate_peers(cfg, build_model(cfg))["Market1501"]) == ["teacher0"]


def test_a_teacher_whose_features_are_not_finite(cfg, model):
    """The teacher is named, before any ranking."""
    model.teachers[1].heads.bottleneck[0].bias.data[0] = float("inf")
    with pytest.raises(
        FloatingPointError, match="teacher 1 gives features that are not finite for 30 of 30 images"
    ):
        evaluate_peers(cfg, model)


def test_several_test_sets(cfg, model):
    cfg.DATASETS.TESTS = ("Market1501", "DukeMTMC")
    results = evaluate_peers(cfg, model)
    assert list(results) == ["Market1501", "DukeMTMC"]
    assert results["Market1501"] != results["DukeMTMC"]


@pytest.mark.parametrize("rerank", [False, True])
def test_queries_left_out_are_said_once(cfg, model, world, tmp_path, monkeypatch, caplog, rerank):
    """Five of the six queries lose their matches: one warning, and the count in every row."""
    if rerank:
        pytest.importorskip("faiss")
        cfg.TEST.RERANK.ENABLED = True
        cfg.TEST.RERANK.K1, cfg.TEST.RERANK.K2 = 4, 2
    root = shutil.copytree(world, tmp_path / "data")
    for path in (root / MARKET / "bounding_box_test").iterdir():
        if not path.name.startswith("0101") and "_c2" in path.name:
            path.unlink()
    monkeypatch.setenv("FASTREID_DATASETS", str(root))
    rows = evaluate_peers(cfg, model)["Market1501"]
    assert [row["queries"] for row in rows.values()] == [1, 1, 1]
    warned = [record for record in caplog.records if "5 of 6 queries have no match" in record.getMessage()]
    assert len(warned) == 1


def test_flip(cfg, model):
    """TEST.FLIP averages the features of an image and of its mirror image."""
    cfg.TEST.FLIP.ENABLED = True
    found = evaluate_peers(cfg, model)["Market1501"]["teacher0"]["mAP"]
    query, gallery = query_and_gallery("Market1501")
    loader, num_query = evaluation_loader(cfg, "Market1501")
    model.eval()
    with torch.no_grad():
        features = torch.cat([
            (model.teachers[0](model.pixels(images)) + model.teachers[0](model.pixels(images.flip(3)))) / 2
            for images in (batch["images"] for batch in loader)
        ])  # fmt: skip
    assert found == pytest.approx(slow_map(features, num_query, query + gallery), abs=1e-4)


ROW = {"mAP": 12.345, "Rank-1": 50.0, "Rank-5": 60.0, "Rank-10": 70.0, "mINP": 1.0, "metric": 3.0}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_table():
    header, _, first, second = results_table(
        [(("a", "x"), ROW), (("b", "y"), ROW)], ("set", "row")
    ).splitlines()
    assert (
        cells(header)
        == ["set", "row", *METRICS]
        == ["set", "row", "mAP", "Rank-1", "Rank-5", "Rank-10", "mINP"]
    )
    assert cells(first) == ["a", "x", "12.3", "50.0", "60.0", "70.0", "1.0"]
    assert cells(second)[:2] == ["b", "y"]


def test_tables_of_less():
    """A metric that is missing, no rows, another format."""
    row = {name: value for name, value in ROW.items() if name != "mINP"}
    assert cells(results_table([(("a",), row)], ("set",)).splitlines()[2])[-1] == "-"
    assert cells(results_table([], ("set",)).splitlines()[0]) == ["set", *METRICS]
    assert "\\begin{tabular}" in results_table([(("a",), ROW)], ("set",), tablefmt="latex")
