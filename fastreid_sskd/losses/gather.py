"""Losses of the whole batch although every process has a share: features and logits are gathered with their gradient."""
import dataclasses
from collections.abc import Collection

import torch
import torch.distributed as dist
from fastreid.utils import comm

from .peer_batch import PeerBatch

__all__ = ["gather_batch"]


class _Gather(torch.autograd.Function):
    """Rows of all processes (B / P, d) -> (B, d). All compute the same loss of them, so a gradient needs no sending back:
    every process has its own rows' already, and P of them, one from each process, make the sum that is averaged later.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(comm.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        world, rank = comm.get_world_size(), comm.get_rank()
        size = len(gradient) // world
        return gradient[rank * size:(rank + 1) * size] * world


def gather_batch(batch: PeerBatch, required: Collection[str]) -> PeerBatch:
    """The whole batch, in the order of the ranks, in every process; gradients reach this process's own rows.

    With :func:`..processes.average_gradients` after the backward pass the parameters' gradients are those of one process that
    has the whole batch, whatever the loss.

    Args:
        batch: this process's share; shares are of equal size. Floats are gathered in float32.
        required: the optional fields that the losses read; the others are None in what is returned.
    """
    fields = dataclasses.fields(batch)
    unread = [field.name for field in fields if field.default is None and field.name not in required]
    batch = dataclasses.replace(batch, **dict.fromkeys(unread))
    if comm.get_world_size() == 1:
        return batch
    names = [field.name for field in fields if field.name not in ("labels", "memory") and getattr(batch, field.name) is not None]
    floats = [getattr(batch, name).float() for name in names]
    whole = _Gather.apply(torch.cat(floats, dim=1)).split([part.shape[1] for part in floats], dim=1)
    return dataclasses.replace(batch, labels=_Gather.apply(batch.labels), **dict(zip(names, whole)))
