"""Training in float16 under a gradient scaler, here on the CPU, where it is not offered.

Overflow, and exact resume.
"""

import os
import shutil
import warnings

import pytest
import torch
from fastreid.engine import HookBase
from same_runs import assert_same_files
from tiny_reid import load_checkpoint

from fastreid_sskd.engine import run
from fastreid_sskd.engine import trainer as trainer_module
from fastreid_sskd.precision import Precision


def available() -> bool:
    """Whether this torch has a scaler for the CPU (2.3) and float16 under its autocast (2.4)."""
    if not hasattr(torch.amp, "GradScaler"):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autocast("cpu", dtype=torch.float16):
            return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float16


pytestmark = pytest.mark.skipif(not available(), reason="this torch has no float16 for training on the CPU")

SHORT = (
    "SOLVER.MAX_EPOCH 2",
    "SSKD.ITERS_PER_EPOCH 6",
    "TEST.EVAL_PERIOD 0",
    "SOLVER.CHECKPOINT_PERIOD 1",
)


class Float16(Precision):
    """With a first scale that is too large by far."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.dtype = torch.float16
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24, growth_interval=3)


@pytest.fixture(autouse=True)
def float16(monkeypatch):
    monkeypatch.setattr(trainer_module, "Precision", Float16)


class Watch(HookBase):
    """Whether each step's gradients overflowed, by the scale, and whether it moved the first student."""

    def __init__(self):
        self.overflowed, self.moved, self.kinds = [], [], set()

    def before_train(self):
        self.trainer.model.students[0].backbone.register_forward_hook(
            lambda module, args, out: self.kinds.add(out.dtype)
        )

    def before_step(self):
        self.scale = self.trainer.grad_scaler.get_scale()
        self.before = [p.detach().clone() for p in self.trainer.model.students[0].parameters()]

    def after_step(self):
        after = self.trainer.model.students[0].parameters()
        self.moved.append(any(not torch.equal(a, b) for a, b in zip(after, self.before, strict=True)))
        self.overflowed.append(self.trainer.grad_scaler.get_scale() < self.scale)


def test_a_step_that_overflows_moves_nothing(trainer):
    watch = Watch()
    made = trainer(*SHORT, hooks=[watch])
    made.train()
    assert watch.kinds == {torch.float16}
    assert True in watch.overflowed and False in watch.overflowed
    assert watch.moved == [not overflowed for overflowed in watch.overflowed]
    for value in made.model.state_dict().values():
        assert value.isfinite().all() and value.dtype not in (torch.float16, torch.bfloat16)


def test_a_network_that_overflows_is_named(trainer):
    made = trainer(*SHORT)
    made.model.students[1].backbone[0].weight.data.mul_(1e8)
    with pytest.raises(FloatingPointError, match="step 0: loss_.* of peer 1 is nan.*65,504: bfloat16 as"):
        made.train()


def test_resumed_equals_uninterrupted(adaptation, tmp_path):
    """With the scale and the steps since it grew."""
    whole, resumed = (adaptation(*SHORT, output=tmp_path / name) for name in ("whole", "resumed"))
    run(whole)
    state = load_checkpoint(os.path.join(whole.OUTPUT_DIR, "model_0000.pth"))["grad_scaler"]
    assert state["scale"] != 2.0**24
    shutil.copytree(whole.OUTPUT_DIR, resumed.OUTPUT_DIR)
    os.remove(os.path.join(resumed.OUTPUT_DIR, "model_final.pth"))
    with open(os.path.join(resumed.OUTPUT_DIR, "last_checkpoint"), "w", encoding="utf-8") as file:
        file.write("model_0000.pth")
    run(resumed, resume=True)
    assert_same_files(resumed.OUTPUT_DIR, whole.OUTPUT_DIR)
