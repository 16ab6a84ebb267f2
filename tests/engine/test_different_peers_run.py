"""Peers that differ, from nothing to an exported teacher: both stages, resumed, evaluated, compared."""

import json
import os

import numpy as np
import pytest
import torch
from fastreid.utils.compute_dist import build_dist
from tiny_reid import load_checkpoint, tiny_adaptation

from fastreid_sskd.data.items import test_items as query_and_gallery
from fastreid_sskd.engine import evaluate, run, source_config
from fastreid_sskd.engine.pipeline import load_trained
from fastreid_sskd.engine.refresh import one_network_config, supervised_config
from fastreid_sskd.export import export_baseline
from fastreid_sskd.report import write_report
from fastreid_sskd.report.images import average_precisions, embed

BACKBONE = "BACKBONE: {NAME: build_tiny_reid_backbone, FEAT_DIM: %d, PRETRAIN: False}"
HEAD = "HEADS: {WITH_BNNECK: True, POOL_LAYER: %s, EMBEDDING_DIM: %d}"
PEERS = [(16, "GlobalAvgPool", 0), (24, "GeneralizedMeanPooling", 0), (16, "GlobalMaxPool", 12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mixed")


@pytest.fixture(scope="module")
def files(folder):
    for k, (width, pool, embedding) in enumerate(PEERS):
        (folder / f"peer{k}.yml").write_text(f"MODEL: {{{BACKBONE % width}, {HEAD % (pool, embedding)}}}\n")
    return [str(folder / f"peer{k}.yml") for k in range(3)]


@pytest.fixture
def mixed(files, folder):
    """A config of three different peers; the run that it describes is shared."""

    def make(*opts, output=None):
        return tiny_adaptation(output or folder / "run", "SSKD.PEERS", str(files), *opts)

    return make


@pytest.fixture
def done(mixed, folder):
    """The finished run: made by the first test that asks for it, taken as it is by the others."""
    cfg = mixed()
    if not os.path.exists(folder / "run" / "model_final.pth"):
        run(cfg)
    return cfg


def trained(cfg, folder, *opts):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(["MODEL.WEIGHTS", str(folder / "run" / "model_final.pth"), *opts])
    cfg.freeze()
    return cfg


def test_source_models_are_of_each_network(mixed):
    cfg = mixed()
    for k, (width, pool, embedding) in enumerate(PEERS):
        source = source_config(cfg, k)
        assert (source.MODEL.BACKBONE.FEAT_DIM, source.MODEL.HEADS.POOL_LAYER) == (width, pool)
        assert (
            source.MODEL.HEADS.EMBEDDING_DIM == embedding and source.MODEL.META_ARCHITECTURE == "SSKDSource"
        )


def test_both_stages(done, folder):
    record = json.loads((folder / "run" / "results.json").read_text())
    assert [e["epoch"] for e in record["evaluations"]] == [0, 1, 2]
    assert list(record["evaluations"][-1]["results"]["Market1501"]) == [
        "teacher0",
        "teacher1",
        "teacher2",
        "ensemble",
    ]
    state = load_checkpoint(folder / "run" / "model_final.pth")["model"]
    widths = [state[f"teachers.{k}.heads.weight"].shape for k in range(3)]
    assert [width[1] for width in widths] == [16, 24, 12] and len({width[0] for width in widths}) == 1
    for k in range(3):
        start = load_checkpoint(folder / "run" / "source" / f"peer{k}" / "model_best.pth")["model"]
        assert not torch.equal(start["backbone.0.weight"], state[f"teachers.{k}.backbone.0.weight"])


def test_evaluation_of_the_checkpoint(done, folder):
    record = json.loads((folder / "run" / "results.json").read_text())
    again = evaluate(trained(done, folder))["Market1501"]
    for row, metrics in record["evaluations"][-1]["results"]["Market1501"].items():
        assert again[row]["mAP"] == pytest.approx(metrics["mAP"], abs=1e-4)


def test_given_and_missing_source_models(done, mixed, files, folder, tmp_path):
    """A peer whose file names weights starts there, the others are pre-trained."""
    weights = folder / "run" / "source" / "peer1" / "model_best.pth"
    with open(files[1], encoding="utf-8") as file:
        text = file.read()
    (tmp_path / "given.yml").write_text(text.replace("MODEL: {", f"MODEL: {{WEIGHTS: {weights}, "))
    peers = [files[0], str(tmp_path / "given.yml"), files[2]]
    run(mixed("SSKD.PEERS", str(peers), output=tmp_path / "out"))
    assert sorted(os.listdir(tmp_path / "out" / "source")) == ["peer0", "peer2"]
    mine, theirs = (
        load_checkpoint(at / "model_final.pth")["model"] for at in (tmp_path / "out", folder / "run")
    )
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)  # the same start, so the same run


def test_export_of_a_peer(done, folder, tmp_path):
    cfg = trained(done, folder)
    for k in range(3):
        _, error = export_baseline(cfg, load_trained(cfg), str(tmp_path / f"{k}.pth"), str(k))
        assert error <= 1e-5


def test_report_shows_the_runs_own_ensemble(done, folder, tmp_path, monkeypatch):
    """Peers of other feature sizes have no mean feature: its lists are of the run's distances."""
    # whose packages start slowly
    monkeypatch.setattr("fastreid_sskd.report.plots.map_figures", lambda *args, **options: [])
    file = write_report(str(folder / "run"), str(tmp_path / "report.html"))
    with open(file, encoding="utf-8") as page:
        text = page.read()
    assert "before: AP" in text and "after: AP" in text and "could not be computed" not in text

    cfg = trained(done, folder)
    queries, gallery = query_and_gallery("Market1501", cfg.SSKD.FOLDERS)
    features = embed(cfg, load_trained(cfg), [*queries, *gallery])
    assert features.shape == (len(queries) + len(gallery), 16 + 24 + 12)
    distances = np.asarray(build_dist(features[: len(queries)], features[len(queries) :], "cosine"))
    record = json.loads((folder / "run" / "results.json").read_text())
    expected = record["evaluations"][-1]["results"]["Market1501"]["ensemble"]["mAP"]
    assert 100 * np.nanmean(average_precisions(distances, queries, gallery)) == pytest.approx(
        expected, abs=1e-4
    )


def test_what_it_is_compared_with(mixed):
    cfg = mixed()
    one = one_network_config(cfg)
    assert len(one.SSKD.PEERS) == one.SSKD.NUM_PEERS == 1
    bound = supervised_config(cfg)
    assert (
        bound.MODEL.BACKBONE.FEAT_DIM == 16
        and bound.MODEL.HEADS.POOL_LAYER == "GlobalAvgPool"
        and not bound.SSKD.PEERS
    )


def test_equal_peers_by_their_distances(finished, tmp_path):
    """The method's peers with every peer in its own space: another run than the method's, and a whole one."""
    cfg = tiny_adaptation(
        tmp_path, "SSKD.SOURCE.WEIGHTS", str(finished.sources), "SSKD.COMBINE distances", "SOLVER.MAX_EPOCH 1"
    )
    results = run(cfg)["Market1501"]
    assert set(results) == {"teacher0", "teacher1", "ensemble"}
    first, second = (
        load_checkpoint(tmp_path / "model_final.pth")["model"][f"students.{k}.heads.weight"] for k in range(2)
    )
    assert not torch.allclose(first, second, atol=0.1)


def test_missing_weights_of_a_peer_are_found_before_the_others_are_trained(mixed, files, tmp_path):
    last = tmp_path / "peer2.yml"
    last.write_text(f"_BASE_: {files[2]}\nMODEL: {{WEIGHTS: {tmp_path / 'nowhere.pth'}}}\n")
    cfg = mixed("SSKD.PEERS", str([*files[:2], str(last)]), output=tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"peer 2 .*peer2\.yml.*nowhere\.pth"):
        run(cfg)
    assert not (tmp_path / "out" / "source").exists()
