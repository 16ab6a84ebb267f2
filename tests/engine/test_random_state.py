"""The state of the generators goes through a file and back."""

import random

import numpy as np
import pytest
import torch

from fastreid_sskd.engine.checkpoint import random_state, restore_random_state


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), torch.rand(3).tolist()


@pytest.mark.parametrize("before", [0, 1, 700])
def test_numbers_go_on(tmp_path, before):
    """In the middle of a block, with a second normal number waiting in Python's and NumPy's too."""
    for _ in range(before):
        draw()
    torch.save(random_state(), tmp_path / "state.pth")
    expected = [draw() for _ in range(3)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    restore_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_cuda_state_where_there_is_no_cuda(monkeypatch):
    """A run goes on on another machine: the other generators still do."""
    state = random_state()
    assert state["cuda"] is None
    state["cuda"] = torch.zeros(16, dtype=torch.uint8)
    expected = draw()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    restore_random_state(state)
    assert draw() == expected
