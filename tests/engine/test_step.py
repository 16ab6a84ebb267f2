"""The training step.

Peer by peer it is the step of all peers at once, and it reads nothing back from the device.
"""

import copy
import json
import os
import shutil

import pytest
import torch
from fastreid.utils.events import EventStorage
from same_runs import assert_same, assert_same_files
from tiny_reid import load_checkpoint, tiny_baseline
from torch.autograd.graph import saved_tensors_hooks

from fastreid_sskd.data.loaders import EpochLoader
from fastreid_sskd.engine import Trainer, run
from fastreid_sskd.engine.checkpoint import last_checkpoint
from fastreid_sskd.engine.train_step import TrainingStep, build_optimizer
from fastreid_sskd.engine.trainer import TrainingStep as used_step
from fastreid_sskd.modeling import SSKD
from fastreid_sskd.precision import Precision

SHORT = ("SOLVER.MAX_EPOCH", "1", "TEST.EVAL_PERIOD", "0")


@pytest.fixture
def prepared(trainer):
    """A model in training mode with 12 classes, and a batch of 4 identities x 2 images."""
    made = trainer(*SHORT)
    model = made.model.train()
    torch.manual_seed(5)
    model.reset_classifiers(torch.randn(12, 16))
    batch = {
        "images": torch.randint(0, 256, (8, 2, 3, 32, 16)).float(),
        "targets": torch.tensor([0, 0, 3, 3, 7, 7, 11, 11]),
    }
    return made.cfg, model, batch


def step_of(cfg, model, **options):
    return TrainingStep(model, build_optimizer(cfg, list(model.students)), Precision(cfg), **options)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


# ---- peer by peer --------------------------------------------------------------------------------


def test_gradients_are_those_of_the_sum_bit_for_bit(prepared):
    cfg, model, batch = prepared
    joint = copy.deepcopy(model)
    losses = joint(batch)
    sum(losses.values()).backward()
    found = step_of(cfg, model)._backward(batch)
    assert_same(gradients(model), gradients(joint))
    assert_same(found, {name: loss.detach() for name, loss in losses.items()})
    assert_same(model.state_dict(), joint.state_dict())  # with all statistics
    assert all(
        grad.abs().max() > 0
        for name, grad in gradients(model).items()
        if grad is not None and "weight" in name
    )


class Held:
    """Bytes of the tensors that graphs hold for a backward pass, and the most there were at once."""

    def __init__(self):
        self.now = self.most = 0

    def __enter__(self):
        self.hooks = saved_tensors_hooks(self.keep, lambda kept: kept.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    def keep(self, tensor):
        outer = self

        class Kept:
            def __init__(self):
                self.tensor = tensor
                outer.now += tensor.nbytes
                outer.most = max(outer.most, outer.now)

            def __del__(self):
                outer.now -= self.tensor.nbytes

        return Kept()


def test_one_students_activations_are_held(prepared):
    cfg, model, batch = prepared
    with Held() as joint:
        sum(model(batch).values()).backward()
    with Held() as one:
        model.zero_grad()
        step_of(cfg, model)._backward(batch)
    assert one.now == joint.now == 0
    assert one.most <= 0.55 * joint.most  # of two students
    with Held() as kept:
        losses = []
        model(batch, losses.append)  # a caller that runs no backward pass in between
    assert kept.most > 0.9 * joint.most and len(losses) == 2


def test_each_is_given_the_losses_of_one_peer(prepared):
    _, model, batch = prepared
    parts = []
    losses = model(batch, parts.append)
    assert [{name[-1] for name in part} for part in parts] == [{"0"}, {"1"}]
    assert all(len(part) == 4 and all(loss.requires_grad for loss in part.values()) for part in parts)
    assert len(losses) == 8 and not any(loss.requires_grad for loss in losses.values())


def test_plain_model(tmp_path, data_sets):
    made = Trainer(tiny_baseline(tmp_path))
    made.model.train()
    batch, other = next(iter(made.epoch_batches(0))), copy.deepcopy(made.model)
    with EventStorage():
        found = made._trainer._backward(batch)
        losses = other(batch)
    sum(losses.values()).backward()
    assert_same(found, {name: loss.detach() for name, loss in losses.items()})
    assert_same(gradients(made.model), gradients(other))


class Scaler:
    """What a gradient scaler does, in the open: gradients 8 times too large until they are put back."""

    def __init__(self):
        self.scaled = 0

    def scale(self, loss):
        self.scaled += 1
        return loss * 8


def test_every_part_is_scaled(prepared):
    cfg, model, batch = prepared
    other, scaler = copy.deepcopy(model), Scaler()
    scaled = step_of(cfg, model)
    scaled.precision.scaler = scaler
    losses = scaled._backward(batch)
    assert_same(losses, step_of(cfg, other)._backward(batch))  # they are written as they are
    assert scaler.scaled == 2
    for name, grad in gradients(other).items():
        if grad is not None:
            torch.testing.assert_close(gradients(model)[name], 8 * grad, rtol=1e-5, atol=1e-6)


def test_backward_is_outside_autocast(prepared, monkeypatch):
    cfg, model, batch = prepared
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SSKD.PRECISION = "bfloat16"
    inside = []
    model.students[0].backbone[0].weight.register_hook(
        lambda grad: inside.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
    )
    step_of(cfg, model)._backward(batch)
    assert inside == [torch.float32]


# ---- nothing is read back ------------------------------------------------------------------------


def test_no_step_reads_a_value_back(prepared):
    """A meta tensor has no values.

    .item(), .tolist(), float() and a branch on one raise, as they would stall a device.
    """
    cfg, model, batch = prepared
    model = model.to("meta")
    step = step_of(cfg, model, read_every=10, epoch_length=10)
    for group in step.optimizer.param_groups:  # the fused kernel has no meta version
        group["fused"] = None
    step.set_data_loader([batch, batch])
    for step.iter in range(2):
        step.run_step()
        model.update_teachers(step.iter, 0.999)
    assert len(step.losses) == 2
    with pytest.raises((RuntimeError, NotImplementedError)):
        step.losses.read()


@pytest.fixture
def late_reads(monkeypatch):
    """Every trainer reads late, every second step."""
    made = used_step.__init__

    def init(self, *args, read_every, **kwargs):
        made(self, *args, read_every=2, **kwargs)

    monkeypatch.setattr(used_step, "__init__", init)


def test_losses_that_are_read_late_are_the_same(finished, adaptation, late_reads, tmp_path):
    """Checkpoint, metrics.json: three steps an epoch, of which the third is read for the epoch's end."""
    cfg = adaptation("SSKD.LOG_PERIOD", "2", output=tmp_path / "late")
    run(cfg)
    late_ones = load_checkpoint(tmp_path / "late" / "model_final.pth")
    assert_same(late_ones["model"], finished.final["model"])
    first = load_checkpoint(tmp_path / "late" / "model_0000.pth")["scalars"]["storage"]["total_loss"]
    assert first["values"][:, 1].tolist() == [0, 1, 2]  # the last step's are read for the epoch's checkpoint
    for name, history in finished.final["scalars"]["storage"].items():
        if not any(part in name for part in ("time", "eta", "seconds", "images_per")):
            assert_same(late_ones["scalars"]["storage"][name], history, name)


def test_late_reads_and_a_resume(adaptation, late_reads, tmp_path, trainer):
    """A checkpoint between two reads holds the losses so far.

    The resumed run ends as if it had not been stopped.
    """
    opts = ("SSKD.LOG_PERIOD", "2", "SSKD.CHECKPOINT_ITERS", "1", "SSKD.KEEP_CHECKPOINTS", "9", *SHORT)
    cfg = adaptation(*opts, output=tmp_path / "whole")
    run(cfg)
    state = load_checkpoint(tmp_path / "whole" / "model_final.pth")["scalars"]["storage"]["total_loss"]
    assert state["values"][:, 1].tolist() == [0, 1, 2]
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    os.remove(tmp_path / "again" / "model_final.pth")
    (tmp_path / "again" / "last_checkpoint").write_text("step_0000001.pth")
    run(adaptation(*opts, output=tmp_path / "again"), resume=True)
    assert_same_files(tmp_path / "again", tmp_path / "whole")


def test_a_batch_that_is_not_finite_is_named_late_and_not_saved(
    adaptation, late_reads, monkeypatch, tmp_path
):
    """Step 0 is spoiled and would be read with step 1, but a checkpoint is due before.

    It is read then, and none is written.
    """
    finish = EpochLoader._on_device

    def spoiled(self, batch):
        batch = finish(self, batch)
        batch["images"][:, 1, 0, 0, 0] = float("nan")
        return batch

    cfg = adaptation(*SHORT, "SSKD.CHECKPOINT_ITERS", "1")
    monkeypatch.setattr(EpochLoader, "_on_device", spoiled)
    with pytest.raises(FloatingPointError, match=r"step 0: .*loss_\w+ of peer 1 is nan"):
        run(cfg)
    assert os.path.basename(last_checkpoint(cfg.OUTPUT_DIR)) == "step_0000000.pth"  # of before the first step


# ---- options -------------------------------------------------------------------------------------


def test_channels_last(trainer, finished, adaptation, tmp_path):
    """Weights and moments lie so, also after a resume, which ends bit for bit the same.

    Results differ by rounding.
    """
    on = ("SSKD.CHANNELS_LAST", "True", "TEST.EVAL_PERIOD", "0")
    run(adaptation(*on, output=tmp_path / "last"))
    made = trainer(*on)
    made.resume_from(str(tmp_path / "last" / "model_0000.pth"))
    made.train()
    for peer in (*made.model.students, *made.model.teachers):
        assert peer.backbone[3].weight.is_contiguous(memory_format=torch.channels_last)
        assert not peer.backbone[3].weight.is_contiguous()
    moments = made.optimizer.state[made.model.students[0].backbone[3].weight]["exp_avg"]
    assert moments.is_contiguous(memory_format=torch.channels_last)
    expected = load_checkpoint(tmp_path / "last" / "model_final.pth")
    assert_same(made.model.state_dict(), expected["model"])
    for name, value in expected["model"].items():
        assert value.shape == finished.final["model"][name].shape
    first = {}
    for folder in (tmp_path / "last", finished.output):
        lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        first[folder] = next(line["loss_id_peer0"] for line in lines if "loss_id_peer0" in line)
    one, other = first.values()
    assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.nn.Module, "compile"), reason="torch 2.2")
def test_backbones_that_do_not_compile_run_as_they_are(trainer, adaptation, monkeypatch, tmp_path):
    """Without a C++ compiler; torch finds out with the first batch. A compiled backbone is not folded."""
    plain = trainer(*SHORT)
    with monkeypatch.context() as patch:
        patch.setattr("fastreid_sskd.evaluation.features.folded", lambda network, *rest: network)
        plain.train()
    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/no/compiler",))
    run(adaptation("SSKD.COMPILE", "True", *SHORT, output=tmp_path / "out"))
    torch._dynamo.reset()
    assert_same(load_checkpoint(tmp_path / "out" / "model_final.pth")["model"], plain.model.state_dict())


def test_torch_without_module_compile(trainer, monkeypatch, caplog):
    """torch 2.1."""
    monkeypatch.delattr(torch.nn.Module, "compile", raising=False)
    trainer("SSKD.COMPILE", "True", *SHORT).train()
    assert "SSKD.COMPILE needs torch 2.2" in caplog.text


def test_all_backbones_are_compiled(trainer, monkeypatch):
    """With what compiling gives put in the place of the compiler."""
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: asked.append(self), raising=False)
    made = trainer("SSKD.COMPILE", "True", *SHORT)
    assert isinstance(made.model, SSKD)
    assert {id(module) for module in asked} == {
        id(peer.backbone) for peer in (*made.model.students, *made.model.teachers)
    }


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.nn.Module, "compile"), reason="torch 2.2")
def test_compiled_run(finished, adaptation, caplog, tmp_path):
    """With the machine's compiler if there is one: the same state dict, and nearly the same losses."""
    caplog.set_level("INFO")
    cfg = adaptation("SSKD.COMPILE", "True", *SHORT, output=tmp_path / "out")
    run(cfg)
    assert "4 backbones are compiled" in caplog.text
    state = load_checkpoint(tmp_path / "out" / "model_final.pth")["model"]
    assert list(state) == list(finished.final["model"])
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    found = next(line["loss_id_peer0"] for line in lines if "loss_id_peer0" in line)
    expected = next(line["loss_id_peer0"] for line in finished.metrics if "loss_id_peer0" in line)
    assert found == pytest.approx(expected, rel=1e-3)
