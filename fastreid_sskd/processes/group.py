"""Becoming one of the processes of a run."""
import contextlib
import os
import threading
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from fastreid.utils import comm

from ..refusals import checking
from .control import control_group
from .stop import Stopped

__all__ = ["LAUNCHER", "join", "joined_from_outside"]

#: environment variable with the process number of our launcher, set in the processes that it starts
LAUNCHER = "FASTREID_SSKD_LAUNCHER"


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
    local_rank = int(os.environ["LOCAL_RANK"])
    local_size = int(os.environ["LOCAL_WORLD_SIZE"])
    on_cuda = torch.device(device).type == "cuda" and torch.cuda.is_available()
    if on_cuda:
        _choose_device(device, local_rank, local_size)
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
        raise ValueError(f"{local_size} processes on this machine, but {torch.cuda.device_count()} CUDA devices")
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
    """A launcher that is killed leaves no process behind that holds devices and the output folder."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
