"""Starting the processes of a run on this machine, and ending all of them when one fails."""
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from .distributed import LAUNCHER
from .machines import Machines

__all__ = ["launch", "reserved_port", "supervise"]


def launch(num_processes: int, num_machines: int = 1, machine_rank: int = 0, dist_url: str = "") -> int:
    """Run this very command line in ``num_processes`` processes, as torchrun would, and wait for them.

    Args:
        num_processes: on this machine, of as many on every other.
        num_machines: M; on each of them the same command is given, with its own rank.
        machine_rank: of this machine, 0..M-1.
        dist_url: ``tcp://ADDRESS:PORT`` of machine 0 as the others reach it, PORT + 1 too; not needed with one machine.

    Returns:
        The exit status for this process: 0, or that of the first process that failed.

    Raises:
        ValueError: if the numbers or the address do not fit.
    """
    if num_processes < 1 or num_machines < 1 or not 0 <= machine_rank < num_machines:
        raise ValueError(
            f"--num-gpus and --num-machines must be >= 1 and --machine-rank below the latter, got {num_processes}, "
            f"{num_machines} and {machine_rank}"
        )
    if num_machines > 1:
        return _launch(num_processes, num_machines, machine_rank, *_address(dist_url))
    with reserved_port() as port:
        return _launch(num_processes, 1, 0, "127.0.0.1", port)


def _launch(num_processes: int, num_machines: int, machine_rank: int, address: str, port: int) -> int:
    shared = {
        **os.environ, LAUNCHER: str(os.getpid()), "MASTER_ADDR": address, "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_processes * num_machines), "LOCAL_WORLD_SIZE": str(num_processes),
    }
    # as many threads in all as one process would have
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    command = [sys.executable, *sys.orig_argv[1:]]
    processes = [
        subprocess.Popen(
            command, start_new_session=True,  # Ctrl-C reaches them through this process, once
            env={**shared, "LOCAL_RANK": str(k), "RANK": str(machine_rank * num_processes + k)},
        )
        for k in range(num_processes)
    ]
    machines = Machines(address, port + 1, num_machines, machine_rank) if num_machines > 1 else None
    return supervise(processes, first_rank=machine_rank * num_processes, machines=machines)


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A free port of this machine that no other process gets before torch's store, which reuses addresses, listens on it.

    Without that a process that is given it meanwhile takes the store's place, and those that connect to it wait for ever.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("", 0))
        yield held.getsockname()[1]


def _address(dist_url: str) -> tuple[str, int]:
    parts = urlsplit(dist_url)
    if parts.scheme != "tcp" or not parts.hostname or not parts.port or parts.hostname in ("127.0.0.1", "localhost"):
        raise ValueError(
            f"several machines need --dist-url tcp://ADDRESS:PORT of machine 0, an address that the others reach; got {dist_url!r}"
        )
    return parts.hostname, parts.port


def supervise(
    processes: Sequence[subprocess.Popen], first_rank: int = 0, grace: float = 20.0, machines: Machines | None = None
) -> int:
    """Wait for processes; when one fails, end the others.

    SIGTERM and SIGINT are passed on to all of them. The others of a failed one notice by themselves that it is gone, and
    tell their own errors; those that have not after ``grace`` seconds (waiting on a device) are killed.

    Args:
        processes: running ones.
        first_rank: for the messages.
        grace: seconds.
        machines: the other machines' launchers; a failure there ends the processes here, and the other way round.

    Returns:
        0, or the exit status of the first that failed, as a shell gives it (128 + the signal that killed it).
    """
    def pass_on(number: int, frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    status, deadline = 0, float("inf")
    try:
        while None in [process.poll() for process in processes]:  # a list: each has to be asked
            if status == 0:
                failed = next((k for k, process in enumerate(processes) if process.returncode), None)
                if failed is not None:
                    status, deadline = _as_shell(processes[failed].returncode), time.monotonic() + grace
                    what = f"rank {first_rank + failed} ended with status {status}"
                    print(f"{what}: the other processes are ended", file=sys.stderr)
                    if machines:
                        machines.failed(what)
                elif machines and (what := machines.news()):
                    status, deadline = 1, time.monotonic() + grace
                    print(f"{what}: the processes here are ended", file=sys.stderr)
            if time.monotonic() > deadline:
                for process in processes:
                    process.kill()
            time.sleep(0.1)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    failed = next((k for k, process in enumerate(processes) if process.returncode), None)
    if status == 0 and failed is not None:  # the last ones to end
        status = _as_shell(processes[failed].returncode)
        if machines:
            machines.failed(f"rank {first_rank + failed} ended with status {status}")
    if machines:
        machines.done()
    return status


def _as_shell(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode
