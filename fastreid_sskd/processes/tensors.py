"""What keeps the model the same in all processes: averaged gradients, the main process's statistics."""
from collections.abc import Iterable

import torch
import torch.distributed as dist
from fastreid.utils import comm
from torch import nn

__all__ = ["average_gradients", "broadcast_buffers", "broadcast_model"]

# values sent at once: large enough not to wait for the network's latency, small enough not to double the memory
_BUCKET = 25_000_000


def _buckets(tensors: list[torch.Tensor]) -> Iterable[list[torch.Tensor]]:
    """Groups of one type and device, in order, each of about ``_BUCKET`` values."""
    bucket: list[torch.Tensor] = []
    size = 0
    for tensor in tensors:
        same = bucket and (bucket[0].dtype, bucket[0].device) == (tensor.dtype, tensor.device)
        if bucket and (not same or size + tensor.numel() > _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _through_flat(tensors: list[torch.Tensor], communicate) -> None:
    """Put the tensors side by side, let ``communicate`` change that, and put the values back."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        communicate(flat)
        parts = flat.split([tensor.numel() for tensor in bucket])
        torch._foreach_copy_(bucket, [part.view_as(tensor) for tensor, part in zip(bucket, parts)])


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes: that of the whole batch, where each has an equal share.

    After the backward pass, instead of torch's DistributedDataParallel, which wraps a module, hooks each parameter once
    for all, and so goes neither with classifiers that change their size nor with teachers beside students. Parameters without a
    gradient (frozen ones) have none in any process.
    """
    world = comm.get_world_size()
    if world == 1:
        return

    def mean(flat: torch.Tensor) -> None:
        dist.all_reduce(flat)
        flat /= world

    _through_flat([parameter.grad for parameter in parameters if parameter.grad is not None], mean)


@torch.no_grad()
def broadcast_buffers(model: nn.Module) -> None:
    """Give every process the main one's batch-norm statistics, as those of the first chunk stand for a chunked batch."""
    if comm.get_world_size() > 1:
        _through_flat(list(model.buffers()), lambda flat: dist.broadcast(flat, src=0))


@torch.no_grad()
def broadcast_model(model: nn.Module) -> None:
    """Give every process the main one's parameters and buffers."""
    if comm.get_world_size() > 1:
        _through_flat([*model.parameters(), *model.buffers()], lambda flat: dist.broadcast(flat, src=0))
