"""The evaluation's section of the table of speeds, at sizes that take no time."""

import argparse

import evaluation
import numpy as np
import pytest
import torch

from fastreid_sskd.evaluation.evaluator import evaluate_features


def test_crowd_is_hard_but_not_random():
    made = evaluation.crowd(100, 800, 40, 64, seed=1)
    again = evaluation.crowd(100, 800, 40, 64, seed=1)
    assert torch.equal(made.gallery, again.gallery) and made.query.shape == (100, 64)
    assert [len(values) for values in made.labels] == [100, 800, 100, 800]
    found = evaluate_features(made.query, made.gallery, *made.labels)
    assert 10 < found["mAP"] < 90
    q_pids, g_pids, q_cameras, g_cameras = made.labels
    same = q_pids[:, None] == g_pids
    assert (same & (q_cameras[:, None] == g_cameras)).any()  # junk
    assert 0.1 < np.mean(~np.isin(g_pids, q_pids)) < 0.3  # distractors
    cosine = (
        torch.nn.functional.normalize(made.query, dim=1)
        @ torch.nn.functional.normalize(made.gallery, dim=1).T
    )
    assert cosine[torch.from_numpy(same)].mean() > cosine.mean() + 0.05


def test_rows(monkeypatch):
    monkeypatch.setattr(evaluation, "MARKET", (300, 1500, 200))
    monkeypatch.setattr(evaluation, "MSMT", (200, 1000, 100))
    monkeypatch.setattr(evaluation, "DIM", 32)
    time, memory = evaluation.rows(argparse.Namespace(repeats=2, quick=True))
    assert time.section == memory.section == "evaluation"
    assert time.what.startswith("30 queries x 150 gallery images of 32") and time.unit == "s"
    assert len(time.details["ours"]) == 2 and time.details["largest_difference"] < 1e-12
    assert time.plain > time.floor / 10 and time.ours > 0
    assert memory.unit == "MB" and memory.floor <= memory.ours


def test_figures_that_are_not_the_hosts(monkeypatch):
    real = evaluation.evaluate_rank

    def wrong(*arguments):
        cmc, precisions, penalties = real(*arguments)
        return cmc, [precisions[0] + 1e-9, *precisions[1:]], penalties

    monkeypatch.setattr(evaluation, "evaluate_rank", wrong)
    monkeypatch.setattr(evaluation, "DIM", 16)
    with pytest.raises(RuntimeError, match="the ranking is wrong"):
        evaluation._time((20, 80, 5), 1)


def test_ties_are_found():
    distances = np.array([[0.1, 0.1, 0.3], [0.1, 0.2, 0.3], [0.2, 0.2, 0.2]])
    labels = [np.array(values) for values in ([1, 1, 9], [1, 2, 2], [0, 0, 0], [1, 1, 1])]
    assert evaluation._tied(distances, *labels).tolist() == [True, False]
