"""Mixed precision on whatever device the model is on."""
import contextlib

import torch
from fastreid.config import CfgNode

__all__ = ["Precision"]

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


class Precision:
    """``SOLVER.AMP.ENABLED``: float16 with a gradient scaler, or bfloat16, whose range needs none; losses in float32.

    ``SSKD.AMP_DTYPE`` chooses; "auto" is float16 on CUDA and bfloat16 elsewhere. The host's AMP trainer asserts CUDA and
    uses the scaler of a namespace that torch has deprecated.

    Raises:
        ValueError: if the type is not known, or the device does not have it.
    """

    def __init__(self, cfg: CfgNode):
        self.enabled = cfg.SOLVER.AMP.ENABLED
        self.device_type = torch.device(cfg.MODEL.DEVICE).type
        on_cuda = self.device_type == "cuda"
        name = cfg.SSKD.AMP_DTYPE
        if name == "auto":
            name = "float16" if on_cuda else "bfloat16"
        if name not in _DTYPES:
            raise ValueError(f"SSKD.AMP_DTYPE must be auto, {' or '.join(_DTYPES)}; got {cfg.SSKD.AMP_DTYPE!r}")
        self.dtype = _DTYPES[name]
        if self.enabled and self.dtype == torch.float16 and not on_cuda:
            raise ValueError(f"float16 is for CUDA, and the device is {self.device_type}: set SSKD.AMP_DTYPE to bfloat16")
        if self.enabled and self.dtype == torch.bfloat16 and on_cuda and not torch.cuda.is_bf16_supported():
            raise ValueError("this CUDA device has no bfloat16: set SSKD.AMP_DTYPE to float16")
        # torch >= 2.3 has torch.amp.GradScaler; before, only torch.cuda.amp's
        scaler = torch.amp.GradScaler if hasattr(torch.amp, "GradScaler") else torch.cuda.amp.GradScaler
        self.scaler: object | None = scaler() if self.enabled and self.dtype == torch.float16 else None

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of a forward pass."""
        if not self.enabled:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)
