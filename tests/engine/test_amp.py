"""Mixed precision by device."""

import pytest
import torch

from fastreid_sskd.engine import load_config
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
def test_on_cuda():
    """float16 needs its losses scaled; the scaler can be made, and its state saved, without a device."""
    on = precision("cuda:0", True)
    assert (on.dtype, on.device_type) == (torch.float16, "cuda")
    assert on.scaler is not None and isinstance(on.scaler.state_dict(), dict)


def test_bfloat16_on_cuda(monkeypatch):
    """It has the range of float32, so nothing is scaled; where the device has none, that is said."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    on = precision("cuda", True, "bfloat16")
    assert (on.dtype, on.scaler) == (torch.bfloat16, None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
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
    made = trainer("SOLVER.AMP.ENABLED", "True", "SOLVER.MAX_EPOCH", "1", "TEST.EVAL_PERIOD", "0")
    kinds = {"losses": set(), "features": set()}
    made.model.students[0].backbone[0].register_forward_hook(lambda module, args, out: kinds["features"].add(out.dtype))
    made.model.register_forward_hook(
        lambda model, args, out: kinds["losses"].update(v.dtype for v in out.values()) if model.training else None
    )
    made.train()
    assert kinds["losses"] == {torch.float32} and torch.bfloat16 in kinds["features"]
