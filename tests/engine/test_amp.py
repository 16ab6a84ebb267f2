"""Mixed precision by device."""

import pytest
import torch

from fastreid_sskd.engine import load_config
from fastreid_sskd.engine.amp import Precision


def precision(device, enabled):
    return Precision(load_config("", ["MODEL.DEVICE", device, "SOLVER.AMP.ENABLED", str(enabled)]))


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
