"""Runs killed by SIGKILL at the worst moments, and resumed: they end as one that was never interrupted."""

import glob
import os
import signal

import pytest
import torch
from own_processes import exit_status
from same_runs import assert_same_files
from tiny_reid import tiny_adaptation, tiny_baseline

from fastreid_sskd.engine import AdaptationTrainer, Checkpointer, SourceTrainer, run
from fastreid_sskd.engine import hooks as refresh_module
from fastreid_sskd.engine.checkpoint import last_checkpoint


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def dies(cfg, when, at, resume=False):
    """Train, and be killed `at` a place of the run."""
    PLACES[when](at)
    run(cfg, resume=resume)


def in_a_step(at):
    step = AdaptationTrainer.run_step
    AdaptationTrainer.run_step = lambda self: kill() if self.iter == at else step(self)


def in_pre_training(at):
    """In a step of the second peer."""
    step = SourceTrainer.run_step
    SourceTrainer.run_step = lambda self: (
        kill() if self.iter == at and self.cfg.OUTPUT_DIR.endswith("peer1") else step(self)
    )


def in_a_refresh(at):
    """After the labels are made and before they are used."""
    pseudo_labels, calls = refresh_module.pseudo_labels, []

    def killed(*args, **options):
        labels = pseudo_labels(*args, **options)
        calls.append(1)
        return kill() if len(calls) == at else labels

    refresh_module.pseudo_labels = killed


def while_writing(at):
    """In the middle of the checkpoint number `at`."""
    save, calls = torch.save, []

    def killed(data, file):
        calls.append(1)
        if len(calls) == at:
            file.write(b"PK half of it")
            file.flush()
            kill()
        save(data, file)

    torch.save = killed


def before_the_pointer(at):
    """The file is there under its name, and last_checkpoint names the one before."""
    tag, calls = Checkpointer.tag_last_checkpoint, []

    def killed(self, name):
        calls.append(1)
        if len(calls) == at:
            kill()
        tag(self, name)

    Checkpointer.tag_last_checkpoint = killed


PLACES = {
    f.__name__: f for f in (in_a_step, in_pre_training, in_a_refresh, while_writing, before_the_pointer)
}


@pytest.mark.parametrize(
    "when, at",
    [
        ("in_a_step", 1),
        ("in_a_step", 5),
        ("in_a_refresh", 2),
        ("while_writing", 3),
        ("before_the_pointer", 4),
    ],
)
def test_adaptation(finished, adaptation, when, at):
    cfg = adaptation("SSKD.CHECKPOINT_ITERS 1")
    assert exit_status(dies, cfg, when, at) == -signal.SIGKILL
    assert not os.path.exists(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    assert last_checkpoint(cfg.OUTPUT_DIR)
    assert bool(glob.glob(os.path.join(cfg.OUTPUT_DIR, "*.tmp"))) == (when == "while_writing")
    run(cfg, resume=True)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)
    assert not glob.glob(os.path.join(cfg.OUTPUT_DIR, "*.tmp"))


def test_pipeline(finished, tmp_path):
    source = [*finished.cfg.SSKD.SOURCE.OPTS, "SSKD.CHECKPOINT_ITERS", "1"]
    cfg = tiny_adaptation(tmp_path, "SSKD.SOURCE.OPTS", str(source))
    assert exit_status(dies, cfg, "in_pre_training", 3) == -signal.SIGKILL
    assert (tmp_path / "source" / "peer0" / "model_final.pth").exists()
    run(cfg, resume=True)
    assert_same_files(tmp_path, finished.output)


def test_killed_again_and_again(finished, adaptation):
    """At every step but the last, each time from a new process."""
    cfg = adaptation("SSKD.CHECKPOINT_ITERS 1")
    for at in range(1, 5):
        assert exit_status(dies, cfg, "in_a_step", at, True) == -signal.SIGKILL
    run(cfg, resume=True)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


def kills_its_worker(cfg):
    """A loader's worker is killed, as by the kernel for want of memory."""
    from fastreid_sskd.data import views

    def killed(path):
        if torch.utils.data.get_worker_info() is not None:
            kill()
        return read_image(path)

    read_image, views.read_image = views.read_image, killed
    try:
        run(cfg)
    except RuntimeError as error:
        os._exit(7 if "DataLoader worker" in str(error) else 8)


@pytest.mark.slow
def test_killed_worker(adaptation):
    """Ends the run with an error that says so, instead of waiting for ever."""
    cfg = adaptation("DATALOADER.NUM_WORKERS 2", "TEST.EVAL_PERIOD 0")
    assert exit_status(kills_its_worker, cfg) == 7


def test_second_run_of_a_folder(tmp_path):
    """While the first is in a step."""
    cfg = tiny_baseline(tmp_path, "TEST.EVAL_PERIOD 0")
    assert exit_status(starts_a_second_run, cfg) == 9


def starts_a_second_run(cfg):
    from fastreid_sskd.engine import Trainer
    from fastreid_sskd.engine.files import FolderInUseError

    def run_step(self):
        other = os.fork()
        if other == 0:
            try:
                run(cfg)
            except FolderInUseError:
                os._exit(9)
            os._exit(1)
        _, status = os.waitpid(other, 0)
        os._exit(os.WEXITSTATUS(status))

    Trainer.run_step = run_step
    run(cfg)
