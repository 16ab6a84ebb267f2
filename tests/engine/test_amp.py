"""Mixed precision by device."""

import pytest
import torch
from same_runs import assert_same
from tiny_reid import load_checkpoint

from fastreid_sskd.engine import amp, load_config, run
from fastreid_sskd.engine.amp import Precision


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
    on = precision("cpu", True)
    assert product(on) == torch.bfloat16 and on.scaler is None  # bfloat16 has the range of float32


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled, but CUDA is not available")
def test_on_cuda(monkeypatch):
    """float16 needs its losses scaled; the scaler can be made, and its state saved, without a device."""
    monkeypatch.setattr(amp, "_has_bfloat16", lambda: False)
    on = precision("cuda:0", True)
    assert (on.dtype, on.device_type) == (torch.float16, "cuda")
    assert on.scaler is not None and isinstance(on.scaler.state_dict(), dict)


def test_bfloat16_on_cuda(monkeypatch):
    """It has the range of float32, so nothing is scaled; where the device has none, that is said."""
    monkeypatch.setattr(amp, "_has_bfloat16", lambda: True)
    on = precision("cuda", True, "bfloat16")
    assert (on.dtype, on.scaler) == (torch.bfloat16, None)
    monkeypatch.setattr(amp, "_has_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="no bfloat16: set SSKD.AMP_DTYPE to float16"):
        precision("cuda", True, "bfloat16")


def test_float16_on_the_cpu():
    assert precision("cpu", False, "float16").scaler is None  # off
    with pytest.raises(ValueError, match="float16 is for CUDA.*SSKD.AMP_DTYPE to bfloat16"):
        precision("cpu", True, "float16")


def test_unknown_type():
    with pytest.raises(ValueError, match="SSKD.AMP_DTYPE must be auto, float16 or bfloat16; got 'float8'"):
        precision("cpu", False, "float8")


def test_losses_are_float32(finished, trainer):
    """What the forward pass computes in bfloat16 goes into losses of full precision."""
    made = trainer(
        "SOLVER.AMP.ENABLED", "True", "SSKD.AMP_DTYPE", "bfloat16", "SOLVER.MAX_EPOCH", "1", "TEST.EVAL_PERIOD", "0"
    )
    kinds = {"losses": set(), "features": set()}
    made.model.students[0].backbone[0].register_forward_hook(lambda module, args, out: kinds["features"].add(out.dtype))
    made.model.register_forward_hook(
        lambda model, args, out: kinds["losses"].update(v.dtype for v in out.values()) if model.training else None
    )
    made.train()
    assert kinds["losses"] == {torch.float32} and torch.bfloat16 in kinds["features"]


# ---- auto -------------------------------------------------------------------------------------------------------


def measured(one, monkeypatch, *, full, half):
    """Let `one` settle on a clock that a step in float32 takes `full` seconds of, and one in another type `half`."""
    clock, kinds = [0.0], []

    def step():
        kinds.append(product(one))
        clock[0] += full if one.dtype == torch.float32 else half

    with monkeypatch.context() as patch:
        patch.setattr(amp.time, "perf_counter", lambda: clock[0])
        one.settle(step)
    return kinds


@pytest.mark.parametrize(
    "full, half, chosen", [(1.0, 0.5, "bfloat16"), (1.0, 1.5, "float32"), (1.0, 0.98, "float32"), (1.0, 0.94, "bfloat16")]
)
def test_auto_takes_what_is_faster(monkeypatch, full, half, chosen):
    """A gain too small for the loss of exactness does not count; both types are measured in turn."""
    one = precision("cpu", True)
    assert not one.settled
    assert measured(one, monkeypatch, full=full, half=half) == [torch.float32, torch.bfloat16] * 3
    assert one.settled and one.name == chosen and product(one) == getattr(torch, chosen) and one.scaler is None


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_no_scaler_is_left_where_float32_is_faster(monkeypatch):
    monkeypatch.setattr(amp, "synchronise", lambda device: None)
    monkeypatch.setattr(amp, "_has_bfloat16", lambda: False)
    for half, scaled in ((2.0, False), (0.5, True)):
        one = precision("cuda", True)
        assert one.scaler is not None
        measured(one, monkeypatch, full=1.0, half=half)
        assert (one.scaler is not None) == scaled


def test_what_a_checkpoint_says_is_not_measured_again():
    one = precision("cpu", True)
    assert one.state_dict() == {}
    one.load_state_dict({})
    assert not one.settled
    one.load_state_dict({"dtype": "float32"})
    assert one.settled and product(one) == torch.float32 and one.state_dict() == {"dtype": "float32"}
    with pytest.raises(ValueError, match="begun in float16, which this device has not.*MAY_DIFFER"):
        precision("cpu", True).load_state_dict({"dtype": "float16"})


def test_named_types_are_settled():
    assert precision("cpu", True, "bfloat16").settled and precision("cpu", False).settled


@pytest.mark.parametrize("chosen", ["bfloat16", "float32"])
def test_a_run_that_measures_ends_as_one_that_names_the_type(trainer, adaptation, monkeypatch, tmp_path, chosen):
    """Measuring moves no weight, statistic or random number; a resumed run goes on in the type of the first."""
    opts = ("SOLVER.MAX_EPOCH", "2", "TEST.EVAL_PERIOD", "0")
    on = ("SOLVER.AMP.ENABLED", "True")
    named = adaptation(*opts, *((*on, "SSKD.AMP_DTYPE", chosen) if chosen != "float32" else ()), output=tmp_path / "named")
    auto = adaptation(*opts, *on, output=tmp_path / "auto")
    settle, called = amp.Precision.settle, []

    def rigged(self, step):
        called.append(True)
        settle(self, step, gain=-1e9 if chosen == "bfloat16" else 1.0)

    monkeypatch.setattr(amp.Precision, "settle", rigged)
    run(named)
    run(auto)
    assert called == [True]
    expected = load_checkpoint(tmp_path / "named" / "model_final.pth")
    found = load_checkpoint(tmp_path / "auto" / "model_final.pth")
    assert found["precision"] == {"dtype": chosen}
    assert_same(found["model"], expected["model"])
    assert_same(found["optimizer"], expected["optimizer"])
    again = trainer(*opts, *on)
    monkeypatch.setattr(amp, "time", None)  # a resumed run that measured would fail
    again.resume_from(str(tmp_path / "auto" / "model_0000.pth"))
    again.train()
    assert_same(again.model.state_dict(), expected["model"])


@pytest.mark.parametrize("in_hardware", [True, False])
def test_bfloat16_in_software_does_not_count(monkeypatch, in_hardware):
    """torch says yes for a GPU that computes it in software, unless it is asked not to."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or in_hardware)
    assert amp._has_bfloat16() is in_hardware
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: in_hardware)  # torch < 2.5
    assert amp._has_bfloat16() is in_hardware
