"""Processes of their own for what ends a process: forked from a server that has imported everything once."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

# Seconds after which a test gives up on something that does not end. No limit for work, which may share its
# cores with anything: far above what the slowest test takes, and below the half hour after which gloo ends a
# wait of its own.
HANG = 1200

_SERVER = multiprocessing.get_context("forkserver")
_TESTS = str(Path(__file__).resolve().parent)


def start(function, *args):
    """Start `function(*args)`, a function of a test module, with this process's number of threads. With
    another number its results may have other bits, as with torch 2.1 they do.
    """
    import torch

    os.environ["PYTHONPATH"] = os.pathsep.join([_TESTS, *filter(None, [os.environ.get("PYTHONPATH")])])
    _SERVER.set_forkserver_preload(["tiny_reid"])
    process = _SERVER.Process(
        target=_call, args=(dict(os.environ), list(sys.path), torch.get_num_threads(), function, args)
    )
    process.start()
    return process


def _call(environment, path, threads, function, args):
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    # a loader's workers, as in a process of the command line
    multiprocessing.set_start_method("fork", force=True)
    import torch

    torch.set_num_threads(threads)
    function(*args)


def exit_status(function, *args):
    """Run it to its end: its exit status, the negative number of the signal that killed it."""
    process = start(function, *args)
    process.join(HANG)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError(f"{function.__name__} has not ended after {HANG} s")
    return process.exitcode


def together(function, *args, world=2):
    """Run `function(*args)` in `world` processes of one group; the exit statuses by rank. The group is
    that of `fastreid_sskd.processes.join`, on the CPU, as torchrun's environment describes it.
    """
    from fastreid_sskd.processes.launcher import reserved_port

    members = []
    with reserved_port() as port:
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
        }
        for rank in range(world):
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            members.append(start(_as_member, own, function, args))
        end = time.monotonic() + HANG
        for member in members:
            member.join(max(0, end - time.monotonic()))
    statuses = [member.exitcode for member in members]
    for member in members:
        member.kill()
        member.join()
    assert None not in statuses, f"{function.__name__} has not ended after {HANG} s, exit statuses {statuses}"
    return statuses


def _as_member(environment, function, args):
    os.environ.update(environment)
    from fastreid_sskd.processes import join

    with join("cpu"):
        function(*args)
