"""The most memory that training has taken on a device that counts it."""
import torch
from fastreid.utils.events import get_event_storage

__all__ = ["put_peak_memory", "reset_peak_memory"]

_MB = 2**20


def reset_peak_memory(device: torch.device | str) -> None:
    """Count from here on: an epoch's own peak, without the refresh before it."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def put_peak_memory(device: torch.device | str) -> None:
    """Put ``peak_memory_mb``, tensors' memory in MB of 2**20 bytes, into the current event storage; nothing on the CPU."""
    if torch.device(device).type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / _MB
        get_event_storage().put_scalar("peak_memory_mb", peak, smoothing_hint=False)
