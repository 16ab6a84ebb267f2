"""Losses of the full batch on every rank: features and logits are gathered with their gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from fastreid.utils import comm

if TYPE_CHECKING:  # which imports this module
    from .loss_set import PeerBatch


def gather_batch(batch: PeerBatch, required: Collection[str]) -> PeerBatch:
    """Return the full batch in the order of the ranks; gradients reach this rank's own rows.

    After the backward pass :func:`..processes.average_gradients` gives the gradients of one process with the
    full batch, whatever the loss.

    Args:
        batch: this rank's shard; shards are of equal size. Floats are gathered in float32.
        required: the optional fields that the losses read; the others become None.
    """
    fields = dataclasses.fields(batch)
    unread = [field.name for field in fields if field.default is None and field.name not in required]
    batch = dataclasses.replace(batch, **dict.fromkeys(unread))
    if comm.get_world_size() == 1:
        return batch
    names = [field.name for field in fields if field.name not in ("labels", "memory")]
    names = [name for name in names if getattr(batch, name) is not None]
    floats = [getattr(batch, name).float() for name in names]
    full = _Gather.apply(torch.cat(floats, dim=1)).split([part.shape[1] for part in floats], dim=1)
    return dataclasses.replace(batch, labels=_Gather.apply(batch.labels), **dict(zip(names, full)))


class _Gather(torch.autograd.Function):
    """Rows of all ranks (B / P, d) -> (B, d).

    Every rank computes the loss on the full batch, so `backward` needs no communication. It returns P times
    the gradient of the rank's own rows, and averaging the parameters' gradients over the ranks gives the sum.
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
        return gradient[rank * size : (rank + 1) * size] * world
