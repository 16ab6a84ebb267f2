"""Mixed precision on whatever device the model is on."""
import contextlib
import inspect
import logging
import statistics
import time
from collections.abc import Callable

import torch
from fastreid.config import CfgNode

from ..processes import on_every

__all__ = ["Precision", "synchronise"]

logger = logging.getLogger("fastreid.sskd.amp")

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def _has_bfloat16() -> bool:
    """Of the CUDA device, not in software, which is slower than float32. Without a driver torch < 2.3 raises, later ones say no."""
    if not torch.cuda.is_available():
        return False
    asked = torch.cuda.is_bf16_supported
    counts_software = "including_emulation" in inspect.signature(asked).parameters  # torch >= 2.5
    return asked(including_emulation=False) if counts_software else asked()


def synchronise(device_type: str) -> None:
    """Wait until the device has done what it was given, for measuring; the CPU does everything at once."""
    if device_type == "cuda":
        torch.cuda.synchronize()


class Precision:
    """``SOLVER.AMP.ENABLED``: float16 with a gradient scaler, or bfloat16, whose range needs none; losses in float32.

    ``SSKD.AMP_DTYPE`` chooses. With "auto" the first batch is measured, see :meth:`settle`: half precision is faster only
    where the processor has units for it, and only with networks that they suit. The half type is then bfloat16, but
    float16 on a CUDA device without bfloat16. The host's AMP trainer asserts CUDA and uses the scaler of a namespace that
    torch has deprecated.

    Attributes:
        dtype: of the forward pass; float32 where autocast is off.
        settled: False until "auto" has been measured, or is taken from a checkpoint.

    Raises:
        ValueError: if the type is not known, or the device does not have it.
    """

    def __init__(self, cfg: CfgNode):
        self.device_type = torch.device(cfg.MODEL.DEVICE).type
        on_cuda = self.device_type == "cuda"
        name = cfg.SSKD.AMP_DTYPE
        self.settled = not (cfg.SOLVER.AMP.ENABLED and name == "auto")
        if name == "auto":
            name = "float16" if on_cuda and not _has_bfloat16() else "bfloat16"
        if name not in _DTYPES:
            raise ValueError(f"SSKD.AMP_DTYPE must be auto, {' or '.join(_DTYPES)}; got {cfg.SSKD.AMP_DTYPE!r}")
        half = _DTYPES[name]
        if cfg.SOLVER.AMP.ENABLED and half == torch.float16 and not on_cuda:
            raise ValueError(f"float16 is for CUDA, and the device is {self.device_type}: set SSKD.AMP_DTYPE to bfloat16")
        if cfg.SOLVER.AMP.ENABLED and half == torch.bfloat16 and on_cuda and not _has_bfloat16():
            raise ValueError("this CUDA device has no bfloat16: set SSKD.AMP_DTYPE to float16")
        self._half = half
        self.dtype = half if cfg.SOLVER.AMP.ENABLED else torch.float32
        # torch >= 2.3 has torch.amp.GradScaler; before, only torch.cuda.amp's
        scaler = torch.amp.GradScaler if hasattr(torch.amp, "GradScaler") else torch.cuda.amp.GradScaler
        self.scaler: object | None = scaler() if self.dtype == torch.float16 else None

    @property
    def name(self) -> str:
        """The type of the forward pass, as in ``SSKD.AMP_DTYPE``, or "float32"."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of a forward pass."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def settle(self, step: Callable[[], None], repeats: int = 2, gain: float = 0.05) -> None:
        """Measure a step in float32 and in the half type, in turn, and take the half type if it is faster.

        All processes take what is faster in their sum.

        Args:
            step: a step under :meth:`autocast`, without effect on what is trained.
            repeats: measured steps of each type, after one that is not; the fastest counts.
            gain: share of the time that the half type has to save, since float32 is the more exact.
        """
        kinds = (torch.float32, self._half)
        seconds: dict[torch.dtype, list[float]] = {kind: [] for kind in kinds}
        for _ in range(1 + repeats):
            for self.dtype in kinds:
                synchronise(self.device_type)
                start = time.perf_counter()
                step()
                synchronise(self.device_type)
                seconds[self.dtype].append(time.perf_counter() - start)
        full, half = (statistics.mean(on_every(min(seconds[kind][1:]))) for kind in kinds)
        self._take(self._half if half < (1 - gain) * full else torch.float32)
        logger.info("a step takes %.3f s in float32 and %.3f s in %s: %s is used", full, half,
                    str(self._half).removeprefix("torch."), self.name)

    def _take(self, dtype: torch.dtype) -> None:
        self.dtype, self.settled = dtype, True
        if dtype == torch.float32:
            self.scaler = None

    def state_dict(self) -> dict:
        """What "auto" came to, for a checkpoint: a resumed run does not measure again, and might choose otherwise."""
        return {"dtype": self.name} if self.settled else {}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the checkpoint's type is not to be had here."""
        if not state:
            return
        dtype = _DTYPES.get(state["dtype"], torch.float32)
        if dtype not in (torch.float32, self._half):
            raise ValueError(
                f"the run was begun in {state['dtype']}, which this device has not: set SSKD.AMP_DTYPE to go on in another "
                "type, and name it in SSKD.MAY_DIFFER"
            )
        self._take(dtype)
