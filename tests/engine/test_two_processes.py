"""Runs of two processes beside the same run of one, whose batch norm sees the same halves of a batch."""

import json
import os

import pytest
import torch
from own_processes import together
from same_runs import metrics
from tiny_reid import load_checkpoint, tiny_source

from fastreid_sskd.engine import run

HALVES = ("SSKD.BN_CHUNK", "4")  # of batches of 8


def close(one, other, tolerance):
    """Largest difference of two models' floats, each relative to the tensor's largest value."""
    assert set(one) == set(other)
    worst = 0.0
    for name in one:
        a, b = one[name].double(), other[name].double()
        assert a.shape == b.shape, name
        if a.numel():
            worst = max(worst, float((a - b).abs().max() / (1e-6 + b.abs().max())))
    assert worst < tolerance, worst


def final(cfg):
    return load_checkpoint(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))


def test_source_training(tmp_path):
    """Identity batches of the source, the target's images through batch norm, warm-up, evaluation."""
    one, two = tiny_source(tmp_path / "one", *HALVES), tiny_source(tmp_path / "two")
    run(one)
    assert together(run, two) == [0, 0]
    close(final(two)["model"], final(one)["model"], 1e-4)


def test_adaptation(finished, adaptation, tmp_path):
    """Both refreshes, the losses of every peer, teachers, evaluations."""
    one = adaptation(*HALVES, output=tmp_path / "one")
    run(one)
    two = adaptation(output=tmp_path / "two")
    assert together(run, two) == [0, 0]
    a, b = final(two), final(one)
    assert torch.equal(a["refresh"]["labels"], b["refresh"]["labels"])
    assert a["refresh"]["eps"] == pytest.approx(b["refresh"]["eps"], rel=1e-5)
    close(a["model"], b["model"], 1e-3)
    for line, other in zip(metrics(two.OUTPUT_DIR), metrics(one.OUTPUT_DIR), strict=True):
        assert line == pytest.approx(other, rel=1e-3, abs=1e-3)
    with open(os.path.join(two.OUTPUT_DIR, "results.json"), encoding="utf-8") as file:
        assert [entry["epoch"] for entry in json.load(file)["evaluations"]] == [0, 1, 2]
