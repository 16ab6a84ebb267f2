"""Mixed precision by device."""

import os

import pytest
import torch
from same_runs import assert_same
from tiny_reid import load_checkpoint

from fastreid_sskd.engine import load_config, run, train_step
from fastreid_sskd.engine.train_step import Precision


def precision(device, enabled, dtype="auto"):
    opts = ["MODEL.DEVICE", device, "SOLVER.AMP.ENABLED", str(enabled), "SSKD.AMP_DTYPE", dtype]
    return Precision(load_config("", opts))


def product(one):
    with one.autocast():
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


def test_off():
    off = precision("cpu", False)
    assert product(off) == torch.float32 and off.scaler is None


def test_on_the_cpu():
    on = precision("cpu", True, "bfloat16")
    assert product(on) == torch.bfloat16 and on.scaler is None  # bfloat16 has the range of float32


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled, but CUDA is not available")
def test_on_cuda(monkeypatch):
    """float16 needs its losses scaled; the scaler can be made, and its state saved, without a device."""
    monkeypatch.setattr(train_step, "has_bfloat16", lambda device: False)
    on = precision("cuda:0", True)
    assert (on.dtype, on.device_type) == (torch.float16, "cuda")
    assert on.scaler is not None and isinstance(on.scaler.state_dict(), dict)


def test_bfloat16_on_cuda(monkeypatch):
    """It has the range of float32, so nothing is scaled; where the device has none, that is said."""
    monkeypatch.setattr(train_step, "has_bfloat16", lambda device: True)
    on = precision("cuda", True, "bfloat16")
    assert (on.dtype, on.scaler) == (torch.bfloat16, None)
    monkeypatch.setattr(train_step, "has_bfloat16", lambda device: False)
    with pytest.raises(ValueError, match="no bfloat16: set SSKD.AMP_DTYPE to float16"):
        precision("cuda", True, "bfloat16")


def test_float16_on_the_cpu():
    assert precision("cpu", False, "float16").scaler is None  # off
    with pytest.raises(ValueError, match="float16 is for CUDA.*SSKD.AMP_DTYPE to bfloat16"):
        precision("cpu", True, "float16")


def test_losses_are_float32(finished, trainer):
    """What the forward pass computes in bfloat16 goes into losses of full precision."""
    made = trainer(
        "SOLVER.AMP.ENABLED",
        "True",
        "SSKD.AMP_DTYPE",
        "bfloat16",
        "SOLVER.MAX_EPOCH",
        "1",
        "TEST.EVAL_PERIOD",
        "0",
    )
    kinds = {"losses": set(), "features": set()}
    made.model.students[0].backbone[0].register_forward_hook(
        lambda module, args, out: kinds["features"].add(out.dtype)
    )
    made.model.register_forward_hook(
        lambda model, args, out: (
            kinds["losses"].update(v.dtype for v in out.values()) if model.training else None
        )
    )
    made.train()
    assert kinds["losses"] == {torch.float32} and torch.bfloat16 in kinds["features"]


# ---- auto ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, chosen", [("avx2 avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16"), ("avx2 avx512f", "float32")]
)
def test_auto_on_the_cpu_follows_its_units(monkeypatch, flags, chosen):
    monkeypatch.setattr(train_step, "_cpu_flags", lambda: frozenset(flags.split()))
    one = precision("cpu", True)
    assert one.name == chosen and product(one) == getattr(torch, chosen) and one.scaler is None


def test_the_flags_of_this_processor_are_read():
    """Nothing on a system without /proc; elsewhere every processor has some."""
    assert bool(train_step._cpu_flags()) == os.path.exists("/proc/cpuinfo")


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
@pytest.mark.parametrize("units, chosen", [(True, "bfloat16"), (False, "float16")])
def test_auto_on_cuda(monkeypatch, units, chosen):
    monkeypatch.setattr(train_step, "has_bfloat16", lambda device: units)
    one = precision("cuda", True)
    assert one.name == chosen and (one.scaler is not None) == (chosen == "float16")


def test_auto_is_the_named_type(adaptation, monkeypatch, tmp_path):
    opts = ("SOLVER.MAX_EPOCH", "1", "TEST.EVAL_PERIOD", "0", "SOLVER.AMP.ENABLED", "True")
    monkeypatch.setattr(train_step, "_cpu_flags", lambda: frozenset({"avx512_bf16"}))
    for kind in ("auto", "bfloat16"):
        run(adaptation(*opts, "SSKD.AMP_DTYPE", kind, output=tmp_path / kind))
    found, expected = (load_checkpoint(tmp_path / kind / "model_final.pth") for kind in ("auto", "bfloat16"))
    assert_same(found["model"], expected["model"])
    assert_same(found["optimizer"], expected["optimizer"])


@pytest.mark.parametrize("in_hardware", [True, False])
def test_bfloat16_in_software_does_not_count(monkeypatch, in_hardware):
    """torch says yes for a GPU that computes it in software, unless it is asked not to."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or in_hardware
    )
    assert train_step.has_bfloat16("cuda") is in_hardware
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: in_hardware)  # torch < 2.5
    assert train_step.has_bfloat16("cuda") is in_hardware
