"""Start the processes of a run on this machine, and end all of them when one fails."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from .distributed import LAUNCHER


def launch(num_processes: int) -> int:
    """Run this command line in ``num_processes`` processes on this machine, and wait for them.

    Differs from torch's elastic launcher where a run depends on it. A process that refuses its config may
    print why before the others end it. After SIGTERM all may save for as long as they need (elastic kills
    them after 30 s), and the exit status is theirs.

    Returns:
        The exit status for this process: 0, or that of the first process that failed.
    """
    if num_processes < 1:
        raise ValueError(f"--num-gpus must be >= 1, got {num_processes}")
    with reserved_port() as port:
        shared = {
            **os.environ,
            LAUNCHER: str(os.getpid()),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(num_processes),
            "LOCAL_WORLD_SIZE": str(num_processes),
        }
        # as many threads in all as one process would have
        shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
        processes = [
            subprocess.Popen(
                [sys.executable, *sys.orig_argv[1:]],
                env={**shared, "RANK": str(k), "LOCAL_RANK": str(k)},
                start_new_session=True,  # Ctrl-C reaches them through this process, once
            )
            for k in range(num_processes)
        ]
        return supervise(processes)


def supervise(processes: Sequence[subprocess.Popen], grace: float = 20.0) -> int:
    """Wait for processes, by rank, and pass SIGTERM and SIGINT on to all; when one fails, end the others.

    Those notice by themselves that it is gone, and print their own errors; what is there
    after ``grace`` seconds (waiting on a device) is killed.

    Returns:
        0, or the exit status of the first that failed, as a shell gives it (128 + the signal that killed it).
    """

    def pass_on(number: int, frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    status, deadline, running = 0, float("inf"), True
    try:
        while running:
            codes = [process.poll() for process in processes]
            running = None in codes
            failed = next((rank for rank, code in enumerate(codes) if code), None)
            if failed is not None and status == 0:
                status = codes[failed] if codes[failed] > 0 else 128 - codes[failed]
                deadline = time.monotonic() + grace
                if running:
                    print(
                        f"rank {failed} ended with status {status}: the other processes are ended",
                        file=sys.stderr,
                    )
            if time.monotonic() > deadline:
                for process in processes:
                    process.kill()
            time.sleep(0.1 if running else 0)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    return status


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A free port that no other process gets before torch's store, which reuses addresses, listens on it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("", 0))
        yield held.getsockname()[1]
