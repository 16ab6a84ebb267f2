"""Number type and memory layout of the networks' passes, by what the device has."""

import contextlib
import functools
import inspect
import logging

import torch
from fastreid.config import CfgNode
from torch import nn

logger = logging.getLogger("fastreid.sskd.precision")


class Precision:
    """Precision of every pass of the networks: steps, the refresh's features, evaluation and prediction.

    ``SSKD.PRECISION`` chooses. "auto" is bfloat16 and channels last where the device has units for bfloat16,
    else float32. ``SOLVER.AMP.ENABLED``, which the host's configs have, is "auto" with one difference: CUDA
    devices without these units take float16. Weights, losses, averages, optimiser states, features and
    distances are float32. The host's AMP trainer asserts CUDA and uses a deprecated scaler.

    Attributes:
        dtype: of the passes; float32 where autocast is off.
        channels_last: whether feature maps lie in memory as (B, H, W, C).
        scaler: of the gradients, for float16 only.

    Raises:
        ValueError: if the device does not have the type.
    """

    def __init__(self, cfg: CfgNode):
        self.device_type = torch.device(cfg.MODEL.DEVICE).type
        types = precisions_of(self.device_type)
        name = cfg.SSKD.PRECISION
        if name == "float32" and cfg.SOLVER.AMP.ENABLED:
            name = "float16" if types == ("float32", "float16") else "auto"
        self.is_chosen = name == "auto"
        if self.is_chosen:
            name = "bfloat16" if has_bfloat16(self.device_type) else "float32"
        if name not in types:
            raise ValueError(
                f"SSKD.PRECISION {name} is nothing that the device {cfg.MODEL.DEVICE} has: set it to auto, "
                f"{' or '.join(types)}"
            )
        self.dtype: torch.dtype = getattr(torch, name)
        self.channels_last = cfg.SSKD.CHANNELS_LAST or (self.is_chosen and name == "bfloat16")
        # torch >= 2.3 has torch.amp.GradScaler; before, only torch.cuda.amp's
        scaler = torch.amp.GradScaler if hasattr(torch.amp, "GradScaler") else torch.cuda.amp.GradScaler
        self.scaler: object | None = scaler() if name == "float16" else None

    @property
    def name(self) -> str:
        """The type of the passes: float32, bfloat16 or float16."""
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of a forward pass."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def lay_out(self, model: nn.Module) -> None:
        """Bring a model's weights into the memory layout, in place, and log what was chosen."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)
        if self.is_chosen or self.dtype != torch.float32:
            has = "units" if has_bfloat16(self.device_type) else "no units"
            logger.info(
                "the networks' passes are in %s%s%s",
                self.name,
                ", channels last" * self.channels_last,
                f": {self.device_type} has {has} for bfloat16" * self.is_chosen,
            )


def precisions_of(device_type: str) -> tuple[str, ...]:
    """What ``SSKD.PRECISION`` may name for a device: float16 needs CUDA's gradient scaler, bfloat16 units."""
    if device_type != "cuda":
        return "float32", "bfloat16"  # a CPU without units computes bfloat16 in software
    return ("float32", "float16", "bfloat16") if has_bfloat16("cuda") else ("float32", "float16")


def has_bfloat16(device_type: str) -> bool:
    """Whether the device computes bfloat16 in hardware; in software it is slower than float32."""
    if device_type == "cpu":
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & _cpu_flags())  # the last: Arm
    if not torch.cuda.is_available():  # without a driver torch < 2.3 raises, later ones say no
        return False
    asked = torch.cuda.is_bf16_supported
    counts_software = "including_emulation" in inspect.signature(asked).parameters  # torch >= 2.5
    return asked(including_emulation=False) if counts_software else asked()


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """What Linux says that the processor can do; nothing elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        return frozenset()
    return frozenset(
        flag for name, _, flags in lines if name.strip() in ("flags", "Features") for flag in flags.split()
    )
