"""The processes of one run: joining, what they tell each other, and what keeps their models the same.

What they tell each other goes over a gloo group of its own, whatever the device; one process talks to nobody.
"""

import contextlib
import datetime
import functools
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from fastreid.utils import comm
from torch import nn
from torch._utils import _take_tensors

from ..refusals import checking
from .stop import Stopped

T = TypeVar("T")

#: environment variable with the process number of our launcher, set in the processes that it starts
LAUNCHER = "FASTREID_SSKD_LAUNCHER"

# A refresh of a million images on the main process takes longer than any time limit; one that has died is
# noticed at once.
_PATIENCE = datetime.timedelta(days=7)
# bytes sent at once: enough not to wait for the network's latency, too few to double the memory
_BUCKET = 100_000_000


# ---- joining -------------------------------------------------------------------------------------


def joined_from_outside() -> bool:
    """Whether a launcher, torchrun or ours, has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextlib.contextmanager
def join(device: str) -> Iterator[None]:
    """Form a group with the other processes while the body runs, as the environment of torchrun describes it.

    NCCL on CUDA, each process with the device of its local rank; gloo elsewhere. Alone, nothing happens.

    Args:
        device: ``MODEL.DEVICE``.

    Raises:
        ValueError: if the device names a number, which all processes would share, or there are too few.
    """
    if not joined_from_outside():
        yield
        return
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    on_cuda = torch.device(device).type == "cuda" and torch.cuda.is_available()
    if on_cuda:
        _choose_device(device, int(os.environ["LOCAL_RANK"]), local_size)
    _end_with_the_launcher()
    dist.init_process_group("nccl" if on_cuda else "gloo", init_method="env://")
    control_group()
    for first in range(0, dist.get_world_size(), local_size):
        group = dist.new_group(list(range(first, first + local_size)))
        if first <= dist.get_rank() < first + local_size:
            comm._LOCAL_PROCESS_GROUP = group
    try:
        yield
    except Exception:
        raise  # the process ends with it: taking leave of processes that may be gone could wait for ever
    except Stopped:
        _leave_together()
        raise
    except BaseException:
        _leave()
        raise
    else:
        _leave_together()


@checking()
def _choose_device(device: str, local_rank: int, local_size: int) -> None:
    if torch.device(device).index is not None:
        raise ValueError(f"MODEL.DEVICE {device!r} is one device for {local_size} processes: set it to cuda")
    if local_size > torch.cuda.device_count():
        raise ValueError(
            f"{local_size} processes on this machine, but {torch.cuda.device_count()} CUDA devices"
        )
    torch.cuda.set_device(local_rank)


def _leave_together() -> None:
    dist.barrier(group=control_group())  # where one left early torch 2.1 was once seen to hang in leaving
    _leave()


def _leave() -> None:
    comm._LOCAL_PROCESS_GROUP = None
    control_group.cache_clear()
    comm._get_global_gloo_group.cache_clear()
    dist.destroy_process_group()


def _end_with_the_launcher() -> None:
    """Exit when the launcher is killed: no process stays behind that holds devices and the output folder."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# ---- what they tell each other -------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def control_group() -> dist.ProcessGroup:
    """The gloo group of all processes; the first call, in :func:`join`, makes it."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let the host's code in the body take this process for the only one, so that it waits for no other."""
    world, comm.get_world_size = comm.get_world_size, lambda: 1
    try:
        yield
    finally:
        comm.get_world_size = world


def on_main(function: Callable[[], T]) -> T:
    """Call a function in the main process only; its result, or its error, in every process.

    Raises:
        Exception: what the function raised, everywhere, so that no process waits for another.
    """
    if comm.get_world_size() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if comm.is_main_process():
        try:
            outcome[0] = function()
        except (Exception, Stopped) as error:  # noqa: BLE001 - raised below, in every process
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, group=control_group())
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def in_all(function: Callable[[], T]) -> T:
    """Call a function, which talks to no other process, in every process; its own result in each.

    Raises:
        Exception: in every process, where it failed in any: what it raised in the first of these, by rank.
    """
    if comm.get_world_size() == 1:
        return function()
    result = error = None
    try:
        result = function()
    except (Exception, Stopped) as raised:  # noqa: BLE001 - raised below, in every process
        error = raised
    for found in on_every(error):
        if found is not None:
            raise found
    return result


def on_every(value: T) -> list[T]:
    """The values of all processes, by rank, in every process."""
    if comm.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * comm.get_world_size()
    dist.all_gather_object(values, value, group=control_group())
    return values


def agree(*flags: bool) -> list[bool]:
    """Each flag, whether any process has set it: the same in all. Called every step, so without pickle."""
    if comm.get_world_size() == 1:
        return list(flags)
    found = torch.tensor([int(flag) for flag in flags])
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=control_group())
    return [bool(flag) for flag in found.tolist()]


def share_of(items: Sequence[T]) -> Sequence[T]:
    """This rank's contiguous shard of what all have; the shards of all ranks make up the whole."""
    rank, world = comm.get_rank(), comm.get_world_size()
    return items[len(items) * rank // world : len(items) * (rank + 1) // world]


def all_rows(rows: torch.Tensor) -> torch.Tensor:
    """All ranks' rows (n_rank, d) in the order of the ranks, in every process, which holds them once."""
    if comm.get_world_size() == 1:
        return rows
    return _whole(rows, lambda part, rank: dist.broadcast(part, src=rank, group=control_group()))


def gather_rows(rows: torch.Tensor) -> torch.Tensor | None:
    """As :func:`all_rows`, in the main process, which alone holds the whole; None elsewhere."""
    if comm.get_world_size() == 1:
        return rows
    if not comm.is_main_process():
        on_every(len(rows))
        if len(rows):
            dist.send(rows.detach().cpu().contiguous(), dst=0, group=control_group())
        return None
    return _whole(rows, lambda part, rank: rank and dist.recv(part, src=rank, group=control_group()))


def _whole(rows: torch.Tensor, fetch: Callable[[torch.Tensor, int], object]) -> torch.Tensor:
    """All processes' rows, each rank's part, this one's filled in, given to ``fetch``."""
    sizes = on_every(len(rows))
    whole = torch.empty((sum(sizes), *rows.shape[1:]), dtype=rows.dtype)
    for rank, part in enumerate(whole.split(sizes)):
        if rank == comm.get_rank():
            part.copy_(rows.detach())
        if len(part):
            fetch(part, rank)
    return whole.to(rows.device)


# ---- the same model in all -----------------------------------------------------------------------


class DisagreementError(RuntimeError):
    """Processes of one run have different models."""


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, which have equal shards of the batch.

    Torch's DistributedDataParallel hooks each parameter once for all, and so goes neither with classifiers
    that change their size nor with teachers beside students. A frozen parameter has no gradient in any.
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
    """Give every process the main one's batch-norm statistics."""
    if comm.get_world_size() > 1:
        _through_flat(list(model.buffers()), lambda flat: dist.broadcast(flat, src=0))


@torch.no_grad()
def broadcast_model(model: nn.Module) -> None:
    """Give every process the main one's parameters and buffers."""
    if comm.get_world_size() > 1:
        _through_flat([*model.parameters(), *model.buffers()], lambda flat: dist.broadcast(flat, src=0))


@torch.no_grad()
def check_agreement(model: nn.Module) -> None:
    """Compare a checksum of every parameter and buffer between the processes.

    Raises:
        DisagreementError: in every process, naming the first tensor that differs and the ranks that have
            other values.
    """
    if comm.get_world_size() == 1:
        return
    own = {
        name: zlib.crc32(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        for name, tensor in model.state_dict().items()
        if tensor.numel()
    }
    found = on_every(own)
    for name in own:
        ranks = [rank for rank, sums in enumerate(found) if sums.get(name) != found[0].get(name)]
        if ranks:
            raise DisagreementError(
                f"{name} differs between the main process and rank {', '.join(map(str, ranks))}: the "
                "processes no longer train the same model. Unequal devices or versions of torch can do "
                "that; resume from the last checkpoint"
            )


def _through_flat(tensors: list[torch.Tensor], communicate: Callable[[torch.Tensor], object]) -> None:
    """Put the tensors side by side, let ``communicate`` change that, and put the values back."""
    for bucket in _take_tensors(tensors, _BUCKET):  # of one type and device
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        communicate(flat)
        parts = flat.split([tensor.numel() for tensor in bucket])
        torch._foreach_copy_(bucket, [part.view_as(tensor) for tensor, part in zip(bucket, parts)])
