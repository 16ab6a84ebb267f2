"""Every teacher and the ensemble in one evaluation, equal to evaluating each by itself."""

import copy
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.modeling import build_model
from tiny_reid import MARKET

from fastreid_sskd.data.datasets import test_items as query_and_gallery
from fastreid_sskd.data.loaders import test_loader as evaluation_loader
from fastreid_sskd.evaluation.peers import evaluate_peers, peer_names


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
    assert peer_names(3) == ["peer0", "peer1", "peer2", "ensemble"]
    assert peer_names(1) == ["peer0"]


def test_every_row_by_itself(cfg, model):
    results = evaluate_peers(cfg, model)
    assert list(results) == ["Market1501"]
    rows = results["Market1501"]
    assert list(rows) == ["peer0", "peer1", "ensemble"]
    query, gallery = query_and_gallery("Market1501")
    for row, name in (("peer0", "0"), ("peer1", "1"), ("ensemble", "ensemble")):
        expected = slow_map(feature_of(model, cfg, name), len(query), query + gallery)
        assert rows[row]["mAP"] == pytest.approx(expected, abs=1e-4)
        assert {"Rank-1", "Rank-5", "Rank-10", "mINP", "metric"} < set(rows[row])
        assert 0 <= rows[row]["Rank-1"] <= rows[row]["Rank-10"] <= 100
    assert rows["peer0"]["mAP"] != rows["peer1"]["mAP"]


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
    assert list(evaluate_peers(cfg, build_model(cfg))["Market1501"]) == ["peer0"]


def test_features_that_are_not_finite(cfg, model):
    """The teacher is named, before any ranking."""
    model.teachers[1].heads.bottleneck[0].bias.data[0] = float("inf")
    with pytest.raises(FloatingPointError, match="teacher 1 gives features that are not finite for 30 of 30 images"):
        evaluate_peers(cfg, model)


def test_several_test_sets(cfg, model):
    cfg.DATASETS.TESTS = ("Market1501", "DukeMTMC")
    results = evaluate_peers(cfg, model)
    assert list(results) == ["Market1501", "DukeMTMC"]
    assert results["Market1501"] != results["DukeMTMC"]


@pytest.mark.parametrize("rerank", [False, True])
def test_queries_left_out_are_said_once(cfg, model, world, tmp_path, monkeypatch, caplog, rerank):
    """Five of the six queries lose their matches: one warning for all teachers, and the count in every row."""
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
    found = evaluate_peers(cfg, model)["Market1501"]["peer0"]["mAP"]
    query, gallery = query_and_gallery("Market1501")
    loader, num_query = evaluation_loader(cfg, "Market1501")
    model.eval()
    with torch.no_grad():
        features = torch.cat([
            (model.teachers[0](model.pixels(images)) + model.teachers[0](model.pixels(images.flip(3)))) / 2
            for images in (batch["images"] for batch in loader)
        ])  # fmt: skip
    assert found == pytest.approx(slow_map(features, num_query, query + gallery), abs=1e-4)
