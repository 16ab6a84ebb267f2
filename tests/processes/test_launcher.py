"""Starting processes, ending all of them when one fails, passing signals on."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist
from own_processes import HANG

from fastreid_sskd.processes.launcher import launch, reserved_port, supervise

WAIT = "import time; time.sleep(600)"
READY = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, {}); print('ready', flush=True); time.sleep(600)"
)
NO_SIGNALS = READY.format("signal.SIG_IGN")


def python(code):
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)


def test_reserved_port_is_given_to_nobody_but_the_store():
    with reserved_port() as port:
        with pytest.raises(OSError), socket.socket() as other:
            other.bind(("127.0.0.1", port))
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        assert store.add("key", 1) == 1


def test_all_done():
    assert supervise([python("pass"), python("pass")]) == 0


@pytest.mark.parametrize(
    "code, status",
    [("import sys; sys.exit(7)", 7), ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137)],
    ids=["error", "killed"],
)
def test_failure_ends_the_others(code, status, capsys):
    """Also one that listens to nothing, as in a collective on a device."""
    others = [python(NO_SIGNALS), python(WAIT)]
    assert others[0].stdout.readline() == b"ready\n"
    assert supervise([others[0], python(code), others[1]], grace=0.5) == status
    assert [process.returncode for process in others] == [-signal.SIGKILL] * 2  # not 0, by waiting for them
    assert f"rank 1 ended with status {status}" in capsys.readouterr().err


def test_others_may_tell_their_own_error():
    """Within the grace they end by themselves."""
    slow = python("import time, sys; time.sleep(1); sys.exit(9)")
    assert supervise([slow, python("import sys; sys.exit(3)")], grace=HANG) == 3
    assert slow.returncode == 9


def test_the_last_one_may_fail():
    assert supervise([python("pass"), python("import time, sys; time.sleep(.3); sys.exit(5)")]) == 5


def test_signals_are_passed_on():
    leaves = READY.format("lambda *a: sys.exit(4)")
    processes = [python(leaves), python(leaves)]
    for process in processes:
        assert process.stdout.readline() == b"ready\n"
    before = signal.getsignal(signal.SIGTERM)

    def terminate():
        while signal.getsignal(signal.SIGTERM) is before:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    assert supervise(processes) == 4
    assert [process.returncode for process in processes] == [4, 4]
    assert signal.getsignal(signal.SIGTERM) is before


SCRIPT = """
import os, sys
sys.path.insert(0, {folder!r})
import runpy
if "RANK" in os.environ:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
             "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    os.write(1, (" ".join([*(os.environ[name] for name in names), *sys.argv[1:]]) + "\\n").encode())
    sys.exit(0)
from fastreid_sskd.processes import launch
sys.exit(launch(2))
"""


@pytest.mark.slow
def test_the_command_is_run_again_with_torchruns_environment(tmp_path):
    """Arguments as they are; one address for all; threads are shared."""
    script = tmp_path / "script.py"
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    script.write_text(SCRIPT.format(folder=root))
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, str(script), "--a", "b c"], env=env, capture_output=True, text=True, check=True
    )
    threads = max(1, os.cpu_count() // 2)
    first, second = (line.split(" ", 6) for line in sorted(done.stdout.splitlines()))
    assert (first[:5], first[6]) == (["0", "2", "0", "2", "127.0.0.1"], f"{threads} --a b c")
    assert second == ["1", "2", "1", *first[3:]] and int(first[5]) > 0


def test_numbers_that_cannot_be():
    with pytest.raises(ValueError, match="--num-gpus must be >= 1, got 0"):
        launch(0)
