"""SIGTERM and SIGINT: the step is finished, the run saved, and the process ends with a status of its own."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from same_runs import assert_same_files
from tiny_reid import load_checkpoint, tiny_baseline

from fastreid_sskd.engine import AdaptationTrainer, Trainer, run, stop
from fastreid_sskd.engine import refresh as refresh_module
from fastreid_sskd.engine.checkpoint import last_checkpoint
from fastreid_sskd.engine.stop import EXIT_STOPPED, Stopped, listen


def signal_at(monkeypatch, cls, at, number):
    """Signal the process during step `at`."""
    step = cls.run_step

    def run_step(self):
        if self.iter == at:
            os.kill(os.getpid(), number)
        step(self)

    monkeypatch.setattr(cls, "run_step", run_step)


def handlers():
    return signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("at", [1, 2, 3])
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


def test_signal_during_a_refresh(finished, adaptation, monkeypatch):
    """Its labels are saved before the first step, and not made again."""
    cfg, pseudo_labels, calls = adaptation(), refresh_module.pseudo_labels, []

    def signalled(features, **options):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return pseudo_labels(features, **options)

    monkeypatch.setattr(refresh_module, "pseudo_labels", signalled)
    with pytest.raises(Stopped):
        run(cfg)
    saved = load_checkpoint(last_checkpoint(cfg.OUTPUT_DIR))
    assert (saved["epoch"], saved["step"]) == (0, 0) and len(saved["refresh"]["history"]) == 2
    run(cfg, resume=True)
    assert len(calls) == 2
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


def test_signal_during_an_evaluation(finished, adaptation, monkeypatch):
    """At the end of an epoch, which is then saved although checkpoints are rare."""
    cfg, test = adaptation("SOLVER.CHECKPOINT_PERIOD", "9"), AdaptationTrainer.test.__func__

    def signalled(cls, cfg, model):
        if model.best_peer >= 0:  # not direct transfer
            os.kill(os.getpid(), signal.SIGTERM)
        return test(cls, cfg, model)

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
        Trainer, "after_epoch", lambda self: save(self) or (self.epoch == 1 and os.kill(os.getpid(), signal.SIGTERM))
    )
    run(cfg)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


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
