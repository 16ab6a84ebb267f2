"""Losses are computed in float32 or better, whatever the network's precision is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., torch.Tensor])


def full_precision(function: Function) -> Function:
    """Run a loss with autocast off and its half-precision tensors cast to float32; float64 stays float64.

    Casting alone is not enough: inside an autocast region a matrix product of float32 tensors runs in half
    precision again, which moves cosine similarities by more than the mining margin's resolution.
    """

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        with without_autocast(tensors[0].device.type) if tensors else nullcontext():
            return function(
                *(_at_least_float32(value) for value in args),
                **{name: _at_least_float32(value) for name, value in kwargs.items()},
            )

    return wrapper


def _at_least_float32(value):
    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.float()
    return value


def without_autocast(device_type: str) -> AbstractContextManager:
    """Autocast off inside an autocast region."""
    try:
        return torch.autocast(device_type, enabled=False)
    except RuntimeError:
        # A device type without autocast (which ones depends on the torch version): nothing to switch off.
        return nullcontext()
