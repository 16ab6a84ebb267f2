"""Frozen layers neither learn nor move their batch-norm statistics, and learn afterwards."""

import copy
import itertools
import os

import pytest
import torch
from fastreid.engine.train_loop import HookBase
from same_runs import assert_same_files, before_step
from tiny_reid import tiny_baseline

from fastreid_sskd.engine import Trainer, run
from fastreid_sskd.processes.stop import Stopped

FREEZE = ("MODEL.FREEZE_LAYERS ['backbone']", "SOLVER.FREEZE_ITERS")


class Note(HookBase):
    """The state of a module after every step."""

    def __init__(self, module):
        self.module, self.states = module, []

    def after_step(self):
        self.states.append(copy.deepcopy(self.module.state_dict()))


def unchanged(states):
    """For each step but the first: whether the states are as one step before."""
    return [all(torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(states)]


def moved(states):
    return [all(not torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(states)]


def test_plain_model(tmp_path):
    """Evaluations between change nothing, though they set the mode; the host's unfreeze batch norm."""
    made = Trainer(tiny_baseline(tmp_path, *FREEZE, "9"))  # 2 epochs of 6 steps
    backbone, heads = Note(made.model.backbone), Note(made.model.heads)
    start = copy.deepcopy(made.model.backbone.state_dict())
    made.register_hooks([backbone, heads])
    made.train()
    assert unchanged([start, *backbone.states]) == [True] * 9 + [False] * 3
    assert moved(backbone.states[8:]) == [True] * 3
    assert not any(unchanged(heads.states))


def test_peers(trainer):
    """Students and teachers alike."""
    made = trainer(*FREEZE, "4")  # of 6
    notes = [Note(network.backbone) for network in (*made.model.students, *made.model.teachers)]
    made.register_hooks(notes)
    made.train()
    for k, note in enumerate(notes):
        assert unchanged(note.states) == [True] * 3 + [False] * 2, k
        assert moved(note.states[3:]) == [True] * 2
    assert all(
        parameter.requires_grad
        for student in made.model.students
        for parameter in student.backbone.parameters()
    )
    assert not any(parameter.requires_grad for parameter in made.model.teachers.parameters())


@pytest.mark.parametrize("at", [2, 7])
def test_resumed_run_counts_on(tmp_path, monkeypatch, at):
    """The host counts frozen steps from 0 again."""
    run(tiny_baseline(tmp_path / "whole", *FREEZE, "5"))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        before_step(patch, at, lambda trainer: os.kill(os.getpid(), 15), Trainer)
        run(tiny_baseline(tmp_path / "parts", *FREEZE, "5"))
    run(tiny_baseline(tmp_path / "parts", *FREEZE, "5"), resume=True)
    assert_same_files(tmp_path / "parts", tmp_path / "whole")


def test_no_iterations_no_freezing(tmp_path):
    made = Trainer(tiny_baseline(tmp_path, *FREEZE, "0"))
    assert "FreezeLayers" not in [type(hook).__name__ for hook in made._hooks]
