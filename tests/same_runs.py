"""Runs that are interrupted, and whether two runs ended the same.

Checkpoints bit for bit, metrics.json number for number; measured times apart.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from tiny_reid import load_checkpoint

from fastreid_sskd.engine import AdaptationTrainer, run

_TIMES = re.compile(r"(time|data_time|eta_seconds|images_per_second|.*seconds(_.*)?)")


class PowerCut(Exception):
    """Stops a training as a killed process would."""


def before_step(patch, at, action, cls=AdaptationTrainer):
    """Call `action(trainer)` before step number `at` of every trainer of the class."""
    step = cls.run_step

    def run_step(self):
        if self.iter == at:
            action(self)
        step(self)

    patch.setattr(cls, "run_step", run_step)


def cut(cfg, at, cls=AdaptationTrainer, *, resume=False, when=lambda trainer: True):
    """Run until a power cut before step number `at` of a trainer of the class."""

    def stop(trainer):
        if when(trainer):
            raise PowerCut

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCut):
        before_step(patch, at, stop, cls)
        run(cfg, resume=resume)


def assert_same(one, other, name=""):
    """Equality of nested values, tensors bit for bit; measured times apart."""
    if isinstance(one, dict):
        one, other = ({k: v for k, v in d.items() if not _TIMES.fullmatch(str(k))} for d in (one, other))
        assert set(one) == set(other), name
        for key in one:
            assert_same(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), name
        for i, (a, b) in enumerate(zip(one, other)):
            assert_same(a, b, f"{name}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), name
    else:
        assert one == other, name


def without_places(checkpoint):
    """A checkpoint without what may differ: how long metrics.json is (it holds times), where things are."""
    checkpoint = {key: value for key, value in checkpoint.items() if key != "config"}
    if "writers" in checkpoint.get("scalars", {}):
        written = {name: state["written"] for name, state in checkpoint["scalars"]["writers"].items()}
        checkpoint["scalars"] = {**checkpoint["scalars"], "writers": written}
    return checkpoint


def metrics(folder):
    """The lines of metrics.json without times, and those without anything else left out."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.json").read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if not _TIMES.fullmatch(key)} for line in lines]
    return [line for line in lines if set(line) != {"iteration"}]


def assert_same_files(folder, other, name="model_final.pth"):
    """Two runs' last checkpoint and metrics.json are the same."""
    folder, other = Path(folder), Path(other)
    assert_same(without_places(load_checkpoint(folder / name)), without_places(load_checkpoint(other / name)))
    assert_same(metrics(folder), metrics(other))
