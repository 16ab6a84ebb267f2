"""Small things that processes tell each other, over a gloo group of its own: the CPU's, patient, whatever the device."""
import contextlib
import datetime
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from fastreid.utils import comm

from .stop import Stopped

__all__ = ["agree", "all_rows", "alone", "control_group", "gather_rows", "in_all", "on_every", "on_main", "share_of"]

T = TypeVar("T")

# A refresh of a million images on the main process takes longer than any time limit; one that has died is noticed at once.
_PATIENCE = datetime.timedelta(days=7)


@functools.lru_cache(maxsize=1)
def control_group() -> dist.ProcessGroup:
    """The group; every process has to call this for the first time at the same place, see :func:`.group.join`."""
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """The host's code in the body takes this process for the only one, and so waits for no other."""
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
    """Each flag, whether any process has set it: the same in all."""
    if comm.get_world_size() == 1:
        return list(flags)
    found = torch.tensor([int(flag) for flag in flags])
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=control_group())
    return [bool(flag) for flag in found.tolist()]


def share_of(items: Sequence[T]) -> Sequence[T]:
    """This process's contiguous share of what all have; shares in the order of the ranks make up the whole."""
    rank, world = comm.get_rank(), comm.get_world_size()
    return items[len(items) * rank // world:len(items) * (rank + 1) // world]


def all_rows(rows: torch.Tensor) -> torch.Tensor:
    """All processes' rows (n_rank, d) one below the other in the order of the ranks, in every process.

    Memory: every process holds the whole once, on its device.
    """
    if comm.get_world_size() == 1:
        return rows
    sizes, mine = on_every(len(rows)), rows.detach().cpu().contiguous()
    whole = mine.new_empty((sum(sizes), *mine.shape[1:]))
    for rank, part in enumerate(whole.split(sizes)):
        if rank == comm.get_rank():
            part.copy_(mine)
        if len(part):
            dist.broadcast(part, src=rank, group=control_group())
    return whole.to(rows.device)


def gather_rows(rows: torch.Tensor) -> torch.Tensor | None:
    """All processes' rows (n_rank, d) one below the other in the order of the ranks, in the main process; None elsewhere.

    Memory: the main process holds the whole once, on its device.
    """
    if comm.get_world_size() == 1:
        return rows
    sizes, mine = on_every(len(rows)), rows.detach().cpu().contiguous()
    if not comm.is_main_process():
        if len(mine):
            dist.send(mine, dst=0, group=control_group())
        return None
    whole = mine.new_empty((sum(sizes), *mine.shape[1:]))
    at = 0
    for rank, size in enumerate(sizes):
        part = whole[at:at + size]
        if rank == 0:
            part.copy_(mine)
        elif size:
            dist.recv(part, src=rank, group=control_group())
        at += size
    return whole.to(rows.device)
