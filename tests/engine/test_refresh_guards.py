"""The guards of the refresh in training: what collapse does to a run, and what it leaves alone."""

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.engine.train_loop import HookBase

from fastreid_sskd.clustering import CLUSTERING_METHODS, ClusteringMethod, PseudoLabelError, cluster_centroids
from fastreid_sskd.clustering import refresh as clustering_refresh
from fastreid_sskd.data import extraction_loader
from fastreid_sskd.engine.hooks import PseudoLabelRefresh
from fastreid_sskd.evaluation.features import extract_features

SHORT = ("TEST.EVAL_PERIOD 0", "SSKD.ITERS_PER_EPOCH 1", "SOLVER.MAX_EPOCH 3")


def refresh_of(trainer) -> PseudoLabelRefresh:
    return next(hook for hook in trainer._hooks if isinstance(hook, PseudoLabelRefresh))


class Spy(HookBase):
    """Calls a function before every epoch, after the refresh."""

    def __init__(self, before_epoch):
        self.before_epoch = before_epoch


@pytest.fixture
def collapse_from(monkeypatch):
    """Makes every refresh from the given epoch on find one cluster (or none, or a large one)."""

    def arrange(made, epoch, labels=None):
        real = CLUSTERING_METHODS["dbscan"]

        def label(problem):
            found = real.label(problem)
            if made.epoch < epoch:
                return found
            return np.zeros_like(found) if labels is None else labels(found)

        monkeypatch.setitem(CLUSTERING_METHODS, "dbscan", ClusteringMethod(label, "radius"))

    return arrange


def all_but_one_merged(found):
    """Two clusters, one of two images and one of all others."""
    return np.where(np.arange(len(found)) < 2, 1, 0)[::-1].copy()


def test_collapse_stops_the_run(trainer, collapse_from):
    made = trainer(*SHORT)
    collapse_from(made, 1)
    with pytest.raises(PseudoLabelError, match="1 cluster at eps"):
        made.train()
    assert made.epoch == 1 and len(refresh_of(made).history) == 1


def test_keep_goes_on_with_the_last_good_labels(trainer, collapse_from, caplog):
    seen = []

    def note():
        hook, model = refresh_of(made), made.model
        features = F.normalize(
            model.combine(extract_features(model, extraction_loader(made.cfg, made.items)))
        )
        rows = torch.as_tensor(cluster_centroids(features, hook.labels))
        for peer in (*model.students, *model.teachers):
            assert torch.allclose(peer.heads.weight, rows, atol=1e-5)
        seen.append((hook.labels.clone(), hook.eps, rows, len(made.optimizer.state)))

    drawn = []
    made = trainer(*SHORT, "SSKD.CLUSTER.ON_COLLAPSE keep", "SOLVER.BASE_LR 0.01", hooks=[Spy(note)])
    made.model.register_forward_pre_hook(
        lambda model, args: drawn.append((args[0]["indices"].clone(), args[0]["targets"].clone()))
        if model.training else None
    )  # fmt: skip
    collapse_from(made, 1)
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        made.train()

    hook = refresh_of(made)
    assert made.iter == 3 and len(drawn) == 3
    (labels, eps, first, _), *later = seen
    assert len(later) == 2
    for kept, kept_eps, rows, moments in later:
        assert torch.equal(kept, labels) and kept_eps == eps > 0
        # of the features of now
        assert rows.shape == first.shape and not torch.allclose(rows, first, atol=1e-4)
        assert moments == 0  # a fresh optimiser, as at every epoch
    for indices, targets in drawn:
        assert torch.equal(targets, labels[indices])
    assert not torch.equal(drawn[1][0], drawn[2][0])
    assert [entry["kept"] for entry in hook.history] == [0, 1, 1]
    assert {entry["clusters"] for entry in hook.history} == {int(labels.max()) + 1}
    assert made.storage.latest()["refresh/kept"][0] == 1
    assert caplog.text.count("the pseudo-labels have collapsed (1 cluster at eps") == 2


def test_keep_has_nothing_to_keep_at_the_first_refresh(trainer, collapse_from):
    made = trainer(*SHORT, "SSKD.CLUSTER.ON_COLLAPSE keep")
    collapse_from(made, 0)
    with pytest.raises(PseudoLabelError, match="1 cluster"):
        made.train()


def test_good_labels_after_a_collapse_are_taken(trainer, collapse_from, monkeypatch):
    made = trainer(*SHORT, "SSKD.CLUSTER.ON_COLLAPSE keep")
    collapse_from(made, 1, lambda found: found if made.epoch == 2 else np.full_like(found, -1))
    made.train()
    assert [entry["kept"] for entry in refresh_of(made).history] == [0, 1, 0]


@pytest.mark.parametrize("on_limit", ["warn", "collapse"])
def test_shares_above_their_limits(on_limit, trainer, collapse_from, caplog):
    made = trainer(*SHORT, "SSKD.CLUSTER.ON_LIMIT", on_limit, "SSKD.CLUSTER.MAX_LARGEST_SHARE 0.6")
    collapse_from(made, 1, all_but_one_merged)
    with caplog.at_level(logging.WARNING, logger="fastreid"):
        if on_limit == "warn":
            made.train()
            assert caplog.text.count("more than SSKD.CLUSTER.MAX_LARGEST_SHARE=0.6") == 2
            assert refresh_of(made).history[-1]["clusters"] == 2
        else:
            with pytest.raises(PseudoLabelError, match="MAX_LARGEST_SHARE=0.6"):
                made.train()
            assert made.epoch == 1


def test_limits_and_keep(trainer, collapse_from):
    made = trainer(
        *SHORT, "SSKD.CLUSTER.ON_LIMIT collapse", "SSKD.CLUSTER.MAX_LARGEST_SHARE 0.6",
        "SSKD.CLUSTER.ON_COLLAPSE keep",
    )  # fmt: skip
    collapse_from(made, 1, all_but_one_merged)
    made.train()
    assert [entry["kept"] for entry in refresh_of(made).history] == [0, 1, 1]


@pytest.mark.parametrize("every, estimated", [(0, [0]), (1, [0, 1, 2]), (2, [0, 2])])
def test_eps_is_estimated_again_as_often_as_asked(every, estimated, trainer, monkeypatch):
    calls = []
    real = clustering_refresh.bounded_eps
    monkeypatch.setattr(
        clustering_refresh, "bounded_eps", lambda *args: calls.append(made.epoch) or real(*args)
    )
    made = trainer(*SHORT, "SSKD.CLUSTER.EPS_EVERY", str(every), "SOLVER.BASE_LR 0.05",
                   "SSKD.CLUSTER.ON_COLLAPSE keep")  # fmt: skip
    made.train()
    assert calls == estimated
    eps = [entry["eps"] for entry in refresh_of(made).history]
    assert (len(set(eps)) > 1) == (len(estimated) > 1)


def test_eps_of_a_collapsed_refresh_is_forgotten(trainer, collapse_from):
    made = trainer(*SHORT, "SSKD.CLUSTER.EPS_EVERY 1", "SSKD.CLUSTER.ON_COLLAPSE keep", "SOLVER.BASE_LR 0.05")
    collapse_from(made, 1)
    made.train()
    assert len({entry["eps"] for entry in refresh_of(made).history}) == 1


def test_estimated_eps_is_bounded(trainer):
    made = trainer(*SHORT, "SSKD.CLUSTER.EPS_MIN 0.66", "SSKD.CLUSTER.EPS_MAX 0.7")
    made.train()
    assert {entry["eps"] for entry in refresh_of(made).history} == {0.66}


@pytest.mark.parametrize("method", ["hdbscan", "kmeans", "infomap"])
def test_other_methods_train(method, trainer):
    if method == "infomap":
        pytest.importorskip("infomap", reason="the extra infomap is not installed")
    made = trainer(*SHORT, "SSKD.CLUSTER.METHOD", method, "SSKD.CLUSTER.NUM_CLUSTERS 6")
    made.train()
    history = refresh_of(made).history
    assert len(history) == 3 and all(entry["clusters"] > 1 for entry in history)
    assert all((entry["eps"] > 0) == (method == "infomap") for entry in history)
    assert f"seconds_{method}" in history[0]


def test_approximate_search_logs_its_recall(trainer):
    made = trainer(*SHORT, "SSKD.CLUSTER.KNN reduced")
    made.train()
    assert all(0 < entry["recall"] <= 1 for entry in refresh_of(made).history)
    assert "refresh/recall" in made.storage.latest()
