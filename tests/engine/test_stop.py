"""SIGTERM and SIGINT: the step is finished, the run saved, and the process ends with a status of its own."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from own_processes import HANG, start
from same_runs import assert_same_files, before_step
from tiny_reid import load_checkpoint, tiny_baseline, tiny_source

from fastreid_sskd.clustering import parallel as parallel_module
from fastreid_sskd.data import loaders
from fastreid_sskd.engine import AdaptationTrainer, SourceTrainer, Trainer, run
from fastreid_sskd.engine import hooks as refresh_module
from fastreid_sskd.engine.checkpoint import last_checkpoint
from fastreid_sskd.evaluation import ranking
from fastreid_sskd.processes import stop
from fastreid_sskd.processes.stop import EXIT_STOPPED, Stopped, listen


def signal_at(patch, cls, at, number):
    """Signal the process during step `at`."""
    before_step(patch, at, lambda trainer: os.kill(os.getpid(), number), cls)


def handlers():
    return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)


@pytest.mark.parametrize("at, number", [(1, signal.SIGTERM), (2, signal.SIGINT), (3, signal.SIGTERM)])
def test_run_is_saved_and_goes_on(finished, adaptation, monkeypatch, number, at):
    cfg, before = adaptation(), handlers()
    with monkeypatch.context() as patch:
        signal_at(patch, AdaptationTrainer, at, number)
        with pytest.raises(Stopped) as raised:
            run(cfg)
    assert raised.value.code == EXIT_STOPPED == 4
    assert handlers() == before
    saved = last_checkpoint(cfg.OUTPUT_DIR)
    assert os.path.basename(saved) == f"step_{at + 1:07d}.pth"  # the step was finished
    run(cfg, resume=True)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


def test_plain_config(tmp_path, monkeypatch):
    run(tiny_baseline(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        signal_at(patch, Trainer, 8, signal.SIGTERM)
        with pytest.raises(Stopped):
            run(tiny_baseline(tmp_path / "parts"))
    run(tiny_baseline(tmp_path / "parts"), resume=True)
    assert_same_files(tmp_path / "parts", tmp_path / "whole")


# ---- where much has to be done before the next step ----------------------------------------------

RARE = ("SOLVER.CHECKPOINT_PERIOD 9",)


def signalled_before(monkeypatch, owner, name, call, armed=lambda: True):
    """Signal the process before call number `call` of a function, counted from 1 while `armed`."""
    function, calls = getattr(owner, name), []

    def signalling(*args, **kwargs):
        if armed():
            calls.append(1)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, signalling)
    return calls


def stopped_and_resumed(cfg, monkeypatch, *place, **when):
    """The checkpoint of a run that is signalled at a place, and goes on; None if there was none."""
    with monkeypatch.context() as patch:
        calls = signalled_before(patch, *place, **when)
        with pytest.raises(Stopped) as raised:
            run(cfg)
    assert raised.value.code == EXIT_STOPPED
    assert len(calls) == place[-1]  # nothing of the kind was begun after the signal
    path = last_checkpoint(cfg.OUTPUT_DIR)
    saved = path and load_checkpoint(path)
    run(cfg, resume=True)
    return saved


@pytest.mark.parametrize(
    "owner, name, call",
    [
        (loaders._OnDevice, "_on_device", 2),
        (parallel_module.LogProgress, "__call__", 2),
        (refresh_module, "pseudo_labels", 1),
    ],
    ids=["features", "search", "clustering"],
)
def test_signal_during_a_refresh(finished, adaptation, monkeypatch, owner, name, call):
    """Ends between two batches, or two parts of the clustering; the refresh is made again."""
    cfg, began = adaptation(*RARE, "TEST.IMS_PER_BATCH 8"), []
    before_epoch = AdaptationTrainer.before_epoch
    monkeypatch.setattr(AdaptationTrainer, "before_epoch", lambda self: began.append(1) or before_epoch(self))
    saved = stopped_and_resumed(cfg, monkeypatch, owner, name, call, armed=lambda: len(began) == 2)
    assert saved["epoch"] == 0 and "step" not in saved and len(saved["refresh"]["history"]) == 1
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


def test_signal_after_a_refresh(finished, adaptation, monkeypatch):
    """Its labels are saved before the first step, and not made again."""
    cfg, made = adaptation(), []

    def signalled(features, **options):
        made.append(pseudo_labels(features, **options))
        if len(made) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return made[-1]

    pseudo_labels = refresh_module.pseudo_labels
    monkeypatch.setattr(refresh_module, "pseudo_labels", signalled)
    with pytest.raises(Stopped):
        run(cfg)
    saved = load_checkpoint(last_checkpoint(cfg.OUTPUT_DIR))
    assert (saved["epoch"], saved["step"]) == (0, 0) and len(saved["refresh"]["history"]) == 2
    run(cfg, resume=True)
    assert len(made) == 2
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


@pytest.mark.parametrize("at", ["before an epoch", "direct transfer"])
def test_signal_before_anything_is_learned(finished, adaptation, monkeypatch, at):
    """There is nothing to save: the run begins anew."""
    cfg = adaptation("TEST.IMS_PER_BATCH 8")
    call = 2 if at == "direct transfer" else 6
    assert stopped_and_resumed(cfg, monkeypatch, loaders._OnDevice, "_on_device", call) == ""
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


@pytest.mark.parametrize(
    "owner, name, call", [(loaders._OnDevice, "_on_device", 2), (ranking, "stop_if_asked", 1)]
)
def test_signal_during_an_evaluation(finished, adaptation, monkeypatch, owner, name, call):
    """The epoch's last step is saved, the evaluation made on resume; the learning rate steps once."""
    cfg, ended = adaptation(*RARE, "TEST.IMS_PER_BATCH 8"), []
    after_epoch = Trainer.after_epoch
    monkeypatch.setattr(Trainer, "after_epoch", lambda self: ended.append(1) or after_epoch(self))
    saved = stopped_and_resumed(cfg, monkeypatch, owner, name, call, armed=lambda: len(ended) == 1)
    assert (saved["epoch"], saved["step"]) == (-1, 3)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


def test_signal_during_an_evaluation_of_a_plain_config(tmp_path, monkeypatch):
    """With a rate that falls after each epoch, the last one's evaluation too."""
    opts = ("SOLVER.STEPS [1]", "TEST.IMS_PER_BATCH 8", *RARE)
    run(tiny_baseline(tmp_path / "whole", *opts))
    for call in (2, 7):
        cfg = tiny_baseline(tmp_path / f"call{call}", *opts)
        saved = stopped_and_resumed(cfg, monkeypatch, loaders._OnDevice, "_on_device", call)
        assert saved["step"] == 6
        assert_same_files(cfg.OUTPUT_DIR, tmp_path / "whole")


def test_signal_during_a_selection_and_an_evaluation_after_it(adaptation, tmp_path, monkeypatch):
    """What has been selected already is not selected again."""
    opts = ("SSKD.SELECT_BY silhouette", "TEST.IMS_PER_BATCH 24")
    run(adaptation(*opts, output=tmp_path / "whole"))
    ended, after_epoch = [], Trainer.after_epoch
    monkeypatch.setattr(Trainer, "after_epoch", lambda self: ended.append(1) or after_epoch(self))
    for call in (2, 4):
        ended.clear()
        cfg = adaptation(*opts, output=tmp_path / f"call{call}")
        stopped_and_resumed(
            cfg, monkeypatch, loaders._OnDevice, "_on_device", call, armed=lambda: len(ended) == 1
        )
        assert_same_files(cfg.OUTPUT_DIR, tmp_path / "whole")


def test_signal_after_an_evaluation(finished, adaptation, monkeypatch):
    """At the end of an epoch, which is then saved although checkpoints are rare."""
    cfg, test = adaptation(*RARE), AdaptationTrainer.test.__func__

    def signalled(cls, cfg, model):
        results = test(cls, cfg, model)
        if model.best_peer >= 0:  # not direct transfer
            os.kill(os.getpid(), signal.SIGTERM)
        return results

    with monkeypatch.context() as patch:
        patch.setattr(AdaptationTrainer, "test", classmethod(signalled))
        with pytest.raises(Stopped):
            run(cfg)
    assert os.path.basename(last_checkpoint(cfg.OUTPUT_DIR)) == "model_0000.pth"
    run(cfg, resume=True)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


def test_signal_in_the_last_evaluation_ends_nothing(finished, adaptation, monkeypatch):
    """There is nothing left to save: the run is done."""
    cfg, save = adaptation(), Trainer.after_epoch
    monkeypatch.setattr(
        Trainer,
        "after_epoch",
        lambda self: save(self) or (self.epoch == 1 and os.kill(os.getpid(), signal.SIGTERM)),
    )
    run(cfg)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


# ---- a signal to the whole group -----------------------------------------------------------------


def train_in_a_group(cfg, ready, owner, name, call):
    """Train in a process group of its own; before a call of a function wait for the group's signal."""
    os.setsid()
    function, calls = getattr(owner, name), []

    def waiting(*args):
        calls.append(1)
        if len(calls) == call:
            ready.touch()
            while stop._listening[0].signal is None:
                time.sleep(0.01)
            time.sleep(0.5)  # workers that die of it have died, and torch has told
        return function(*args)

    setattr(owner, name, waiting)
    run(cfg)


def stopped_in_a_group(cfg, tmp_path, *place, number=signal.SIGTERM):
    ready = tmp_path / "ready"
    process = start(train_in_a_group, cfg, ready, *place)
    end = time.monotonic() + 120
    while not ready.exists():
        assert process.is_alive() and time.monotonic() < end
        time.sleep(0.05)
    os.killpg(process.pid, number)
    process.join(HANG)
    assert process.exitcode == EXIT_STOPPED
    return load_checkpoint(last_checkpoint(cfg.OUTPUT_DIR))


WORKERS = ("DATALOADER.NUM_WORKERS 2", "TEST.IMS_PER_BATCH 8")


@pytest.mark.parametrize(
    "number, owner, name, call, epoch, step",
    [
        (signal.SIGTERM, AdaptationTrainer, "run_step", 2, -1, 2),
        (signal.SIGINT, AdaptationTrainer, "run_step", 5, 0, 2),
        # after 4 batches of direct transfer and 6 of the first refresh 4 of the evaluation, then the second
        # refresh
        (signal.SIGTERM, loaders._OnDevice, "_on_device", 14, -1, 3),
        (signal.SIGTERM, loaders._OnDevice, "_on_device", 20, 0, None),
    ],
    ids=["step", "ctrl-c", "evaluation", "refresh"],
)  # fmt: skip
def test_signal_to_a_group(finished, adaptation, tmp_path, number, owner, name, call, epoch, step):
    """Of the run and its workers, as by timeout, systemd, Slurm or a terminal: saved and resumed."""
    cfg = adaptation(*WORKERS, *RARE)
    saved = stopped_in_a_group(cfg, tmp_path, owner, name, call, number=number)
    assert (saved["epoch"], saved.get("step")) == (epoch, step)
    run(adaptation(*RARE), resume=True)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


@pytest.mark.parametrize("config, cls", [(tiny_source, SourceTrainer), (tiny_baseline, Trainer)])
def test_signal_to_a_group_of_other_configs(tmp_path, config, cls):
    run(config(tmp_path / "whole"))
    saved = stopped_in_a_group(config(tmp_path / "parts", *WORKERS), tmp_path, cls, "run_step", 2)
    assert (saved["epoch"], saved["step"]) == (-1, 2)
    run(config(tmp_path / "parts"), resume=True)
    assert_same_files(tmp_path / "parts", tmp_path / "whole")


TWO_SIGNALS = """
import os, runpy, signal, sys
module = runpy.run_path(sys.argv[1])
module["StopRequest"].echo = float(sys.argv[2])
with module["listen"]() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.signal == signal.SIGINT
    print("one", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("two", flush=True)
"""


@pytest.mark.parametrize("echo, status, said", [(0.0, -signal.SIGTERM, "one\n"), (3600.0, 0, "one\ntwo\n")])
def test_second_signal_ends_at_once(echo, status, said):
    """Unless it is the echo of the first: Ctrl-C from the terminal and SIGTERM from torchrun."""
    command = [sys.executable, "-c", TWO_SIGNALS, stop.__file__, str(echo)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, said)


def test_nested_listeners_share_the_request():
    with listen() as outer:
        with listen() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
        assert outer.signal == inner.signal == signal.SIGTERM
    with listen() as later:
        assert later.signal is None


def test_outside_the_main_thread():
    """Python allows no signal handlers there: nothing is listened to, and nothing fails."""
    before, found = handlers(), []

    def other():
        with listen() as request:
            found.append((request.signal, handlers()))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [(None, before)]
