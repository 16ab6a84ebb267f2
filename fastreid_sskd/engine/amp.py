"""Mixed precision on whatever device the model is on."""
import contextlib

import torch
from fastreid.config import CfgNode

__all__ = ["Precision"]


class Precision:
    """``SOLVER.AMP.ENABLED``: float16 with a gradient scaler on CUDA, bfloat16 without one elsewhere.

    The host's AMP trainer asserts CUDA and uses the scaler of a namespace that torch has deprecated.
    """

    def __init__(self, cfg: CfgNode):
        self.enabled = cfg.SOLVER.AMP.ENABLED
        self.device_type = torch.device(cfg.MODEL.DEVICE).type
        self.dtype = torch.float16 if self.device_type == "cuda" else torch.bfloat16
        # torch >= 2.3 has torch.amp.GradScaler; before, only torch.cuda.amp's
        scaler = torch.amp.GradScaler if hasattr(torch.amp, "GradScaler") else torch.cuda.amp.GradScaler
        self.scaler: object | None = scaler() if self.enabled and self.device_type == "cuda" else None

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of a forward pass."""
        if not self.enabled:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)
