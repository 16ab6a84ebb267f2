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
from own_processes import HANG, start

from fastreid_sskd.processes.launcher import launch, reserved_port, supervise
from fastreid_sskd.processes.machines import Machines

WAIT = "import time; time.sleep(600)"
NO_SIGNALS = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


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
    assert supervise([others[0], python(code), others[1]], first_rank=4, grace=0.5) == status
    assert [process.returncode for process in others] == [-signal.SIGKILL] * 2  # not 0, by waiting for them
    assert f"rank 5 ended with status {status}" in capsys.readouterr().err


def test_others_may_tell_their_own_error():
    """Within the grace they end by themselves."""
    slow = python("import time, sys; time.sleep(1); sys.exit(9)")
    assert supervise([slow, python("import sys; sys.exit(3)")], grace=HANG) == 3
    assert slow.returncode == 9


def test_the_last_one_may_fail():
    assert supervise([python("pass"), python("import time, sys; time.sleep(.3); sys.exit(5)")]) == 5


def test_signals_are_passed_on():
    leaves = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: sys.exit(4)); print('ready', flush=True); time.sleep(600)"
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
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    os.write(1, (" ".join([*(os.environ[name] for name in names), *sys.argv[1:]]) + "\\n").encode())
    sys.exit(0)
from fastreid_sskd.processes import launch
import fastreid_sskd.processes.launcher
fastreid_sskd.processes.launcher.Machines = lambda *where: None  # there is no other machine
sys.exit(launch(2, 2, 1, "tcp://10.0.0.7:29511"))
"""


@pytest.mark.slow
def test_the_command_is_run_again_with_torchruns_environment(tmp_path):
    """Arguments as they are; the second of two machines has ranks 2 and 3; threads are shared."""
    script = tmp_path / "script.py"
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    script.write_text(SCRIPT.format(folder=root))
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, str(script), "--a", "b c"], env=env, capture_output=True, text=True, check=True)
    threads = max(1, os.cpu_count() // 2)
    assert sorted(done.stdout.splitlines()) == [
        f"{2 + k} 4 {k} 2 10.0.0.7 29511 {threads} --a b c" for k in range(2)
    ]


# ---- several machines -------------------------------------------------------------------------------------------


def two_machines(codes):
    """A launcher each, in a thread, for processes of these codes; their exit statuses, and what they have said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    statuses, processes = {}, [[python(code) for code in own] for own in codes]

    def one(rank):
        machines = Machines("127.0.0.1", port, 2, rank, patience=float(HANG), interval=0.1)
        statuses[rank] = supervise(processes[rank], first_rank=10 * rank, grace=0.5, machines=machines)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert all(process.poll() is not None for own in processes for process in own)
    return statuses


@pytest.fixture
def any_thread(monkeypatch):
    """Launchers of several machines in one process: signals are the main thread's."""
    monkeypatch.setattr(signal, "signal", lambda number, handler: signal.SIG_DFL)


def test_machines_that_are_done(any_thread):
    """At different times."""
    assert two_machines([["pass"], ["import time; time.sleep(1)", "pass"]]) == {0: 0, 1: 0}
    assert two_machines([["import time; time.sleep(1)"], ["pass"]]) == {0: 0, 1: 0}


@pytest.mark.parametrize("failing", [0, 1])
def test_failure_on_one_machine_ends_the_other(any_thread, capfd, failing):
    """Although its processes wait for nothing that breaks."""
    codes = [[WAIT], [WAIT, WAIT]]
    codes[failing] = ["import sys, time; time.sleep(.5); sys.exit(7)", WAIT]
    assert two_machines(codes) == {failing: 7, 1 - failing: 1}
    assert f"machine {failing}: rank {10 * failing} ended with status 7: the processes here are ended" in capfd.readouterr().err


def speaks_and_stays(port, rank, there):
    machines = Machines("127.0.0.1", port, 2, rank, interval=0.1)
    for _ in range(10):
        machines.news()
        time.sleep(0.1)
    there.touch()
    time.sleep(600)


@pytest.mark.parametrize("lost", [0, 1])
def test_machine_that_is_lost(tmp_path, capfd, lost):
    """Its launcher is killed, and can tell nobody."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    there = tmp_path / "there"
    other = start(speaks_and_stays, port, lost, there)
    machines = Machines("127.0.0.1", port, 2, 1 - lost, patience=3.0, interval=0.1)

    def lose():
        while not there.exists():
            time.sleep(0.05)
        other.kill()

    thread = threading.Thread(target=lose)
    thread.start()
    assert supervise([python(WAIT)], grace=0.5, machines=machines) == 1
    thread.join()
    other.join()
    assert f"machine {lost} no longer answers" in capfd.readouterr().err


@pytest.mark.parametrize("url", ["", "tcp://127.0.0.1:5000", "tcp://localhost:5000", "10.0.0.1:5000", "tcp://10.0.0.1"])
def test_address_that_other_machines_cannot_reach(url):
    with pytest.raises(ValueError, match="several machines need --dist-url tcp://ADDRESS:PORT"):
        launch(1, 2, 0, url)


@pytest.mark.parametrize("processes, machines, rank", [(0, 1, 0), (1, 0, 0), (1, 2, 2), (1, 2, -1)])
def test_numbers_that_cannot_be(processes, machines, rank):
    with pytest.raises(ValueError, match="must be >= 1"):
        launch(processes, machines, rank, "tcp://10.0.0.1:5000")
