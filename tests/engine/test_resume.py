"""A run that is cut off and taken up again ends where an uninterrupted one does, to the last bit."""

import itertools
import json
import os
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from same_runs import PowerCut, assert_same, assert_same_files, cut, metrics, without_places
from tiny_reid import load_checkpoint as load
from tiny_reid import overrides, tiny_adaptation, tiny_baseline, tiny_source

from fastreid_sskd.data import views
from fastreid_sskd.data.views import read_image
from fastreid_sskd.engine import (
    AdaptationTrainer,
    Checkpointer,
    SourceTrainer,
    Trainer,
    hooks,
    run,
    seed_everything,
)
from fastreid_sskd.engine.checkpoint import last_checkpoint
from fastreid_sskd.engine.hooks import PseudoLabelRefresh

STATES = "model optimizer lr_sched record refresh checkpoints scalars config processes images epoch"


def cut_and_resume(cfg, at, cls=AdaptationTrainer, **when):
    """Run until step `at`, then again to the end; other random numbers are drawn meanwhile."""
    cut(cfg, at, cls, **when)
    seed_everything(1234)
    return run(cfg, resume=True)


@pytest.mark.parametrize("at", [2, 3, 5])
def test_adaptation_goes_on_where_it_stopped(finished, adaptation, monkeypatch, at):
    """Before the first checkpoint, which starts it again, and at the second epoch's first and last step.
    Weights, labels, eps, moments, records, best metric; direct transfer is not evaluated again.
    """
    cfg, epochs, evaluate = adaptation(), [], AdaptationTrainer.evaluate
    monkeypatch.setattr(
        AdaptationTrainer, "evaluate", lambda self, epoch=None: epochs.append(epoch) or evaluate(self, epoch)
    )
    cut(cfg, at)
    begun = os.path.exists(os.path.join(cfg.OUTPUT_DIR, "model_0000.pth"))
    assert begun == (at > 2) and epochs == [0, None][: 1 + begun]
    results = run(cfg, resume=True)
    assert epochs == ([0, None, None] if begun else [0, 0, None, None])
    assert set(load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))) == set(STATES.split())
    assert_same_files(cfg.OUTPUT_DIR, finished.output)
    assert_same(results, finished.results)
    with open(os.path.join(cfg.OUTPUT_DIR, "results.json"), encoding="utf-8") as file:
        assert json.load(file) == finished.record


def test_without_resume_a_run_starts_from_scratch(adaptation, one_epoch):
    cfg = adaptation("SOLVER.MAX_EPOCH 1")
    run(cfg)
    final = load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    assert final["epoch"] == 0 and len(final["refresh"]["history"]) == 1


def test_finished_run_is_evaluated_again(adaptation, one_epoch):
    """Resuming it trains nothing, and still gives the results."""
    cfg = adaptation("SOLVER.MAX_EPOCH 1")
    before = load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    assert_same(run(cfg, resume=True), one_epoch)
    assert_same(load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth")), before)
    with open(os.path.join(cfg.OUTPUT_DIR, "results.json"), encoding="utf-8") as file:
        assert [entry["epoch"] for entry in json.load(file)["evaluations"]] == [0, 1]


def test_finished_run_goes_on_with_more_epochs(finished, adaptation, one_epoch):
    cfg = adaptation("SOLVER.MAX_EPOCH 2")
    run(cfg, resume=True)
    final = load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    assert_same(final["model"], finished.final["model"])


def test_epochs_do_not_depend_on_random_numbers_drawn_before(trainer, finished):
    """Dropout, which draws from the global generator, is seeded by the epoch: as after a resume."""

    def numbers_of(*, drawn_before):
        made = trainer("SSKD.ITERS_PER_EPOCH 1", "TEST.EVAL_PERIOD 0")
        found = []
        step = made.run_step
        made.run_step = lambda: (step(), found.append(float(torch.rand(()))))
        torch.rand(drawn_before)
        made.train()
        return found

    first, other = numbers_of(drawn_before=1), numbers_of(drawn_before=7)
    assert first == other and first[0] != first[1]


def test_source_training_goes_on_where_it_stopped(tmp_path):
    """Warm-up, schedule and both data streams included."""
    opts = ("SOLVER.WARMUP_ITERS 3", "SOLVER.MAX_EPOCH 3", "SOLVER.STEPS [1]")
    whole, parts = (tiny_source(tmp_path / name, *opts) for name in ("whole", "parts"))
    seed_everything(1)
    run(whole)
    seed_everything(1)
    cut_and_resume(parts, 3, SourceTrainer)
    end, other = (load(tmp_path / name / "model_final.pth") for name in ("whole", "parts"))
    assert {"warmup_sched", "lr_sched"} <= set(end)
    assert end["optimizer"]["param_groups"][0]["lr"] < 3.5e-4  # the schedule has acted
    assert_same(without_places(end), without_places(other))


# ---- inside an epoch -----------------------------------------------------------------------------

EVERY_STEP = ("SSKD.CHECKPOINT_ITERS 1",)


@pytest.mark.parametrize("at, every", [(1, 1), (2, 1), (4, 1), (5, 1), (5, 2)])
def test_adaptation_goes_on_inside_an_epoch(finished, adaptation, monkeypatch, at, every):
    """The labels of the epoch are those of its refresh, which is not done again; a step may be."""
    cfg = adaptation("SSKD.CHECKPOINT_ITERS", str(every))
    refreshed, before_epoch = [], PseudoLabelRefresh.before_epoch
    monkeypatch.setattr(
        PseudoLabelRefresh,
        "before_epoch",
        lambda self: refreshed.append(self.trainer.epoch) or before_epoch(self),
    )
    results = cut_and_resume(cfg, at)
    assert refreshed == [0, 1]
    assert_same(results, finished.results)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)
    assert not [name for name in os.listdir(cfg.OUTPUT_DIR) if name.startswith("step_")]  # done: superseded


def test_images_of_the_steps_done_are_not_read_again(adaptation, monkeypatch):
    cfg = adaptation(*EVERY_STEP, "TEST.EVAL_PERIOD 0", "SOLVER.MAX_EPOCH 1")
    cut(cfg, 2)
    read = []
    monkeypatch.setattr(views, "read_image", lambda path: read.append(path) or read_image(path))
    run(cfg, resume=True)
    assert len(read) == cfg.SOLVER.IMS_PER_BATCH  # of the third batch


@pytest.mark.parametrize("at", [1, 3])
def test_random_numbers_go_on(trainer, at):
    """Python's, NumPy's and torch's, as a network or a loss of one's own may draw them."""

    def numbers(made, stop_at=None):
        found, run_step = [], made.run_step

        def drawing():
            if made.iter == stop_at:
                raise PowerCut
            run_step()
            found.append((random.random(), np.random.normal(), float(torch.randn(()))))

        made.run_step = drawing
        try:
            made.train()
        except PowerCut:
            assert made.iter == stop_at
        return found

    opts = ("SSKD.ITERS_PER_EPOCH 4", "SOLVER.MAX_EPOCH 1", "TEST.EVAL_PERIOD 0", *EVERY_STEP)
    whole = numbers(trainer(*opts))
    parts = trainer(*opts)
    assert numbers(parts, stop_at=at) == whole[:at]
    again = trainer(*opts)
    again.resume_from(last_checkpoint(parts.cfg.OUTPUT_DIR))
    assert numbers(again) == whole[at:]


@pytest.mark.parametrize("at", [1, 3, 5])
def test_source_training_goes_on_inside_an_epoch(tmp_path, at):
    opts = ("SOLVER.WARMUP_ITERS 3", "SOLVER.MAX_EPOCH 3", "SOLVER.STEPS [1]", *EVERY_STEP)
    run(tiny_source(tmp_path / "whole", *opts))
    cut_and_resume(tiny_source(tmp_path / "parts", *opts), at, SourceTrainer)
    assert_same_files(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize(
    "sampler, at, workers",
    [("NaiveIdentitySampler", 4, 0), ("BalancedIdentitySampler", 7, 0), ("TrainingSampler", 11, 1)],
)
def test_plain_config_goes_on_inside_an_epoch(tmp_path, sampler, at, workers):
    """With the host's samplers and transforms, of 12 steps; warm-up and a step of the rate included."""
    opts = ("DATALOADER.SAMPLER_TRAIN", sampler, "SOLVER.WARMUP_ITERS 5", "SOLVER.STEPS [1]",
            "INPUT.REA.ENABLED True", *EVERY_STEP)  # fmt: skip
    run(tiny_baseline(tmp_path / "whole", *opts))
    parts = tiny_baseline(tmp_path / "parts", *opts, "DATALOADER.NUM_WORKERS", str(workers))
    cut_and_resume(parts, at, Trainer)
    assert_same_files(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("peer, at", [(0, 1), (1, 3)])
def test_pipeline_goes_on_inside_the_pre_training_of_a_peer(finished, tmp_path, peer, at):
    """Which peer and which epoch is found in its folder; the finished ones are reused."""
    source = [*finished.cfg.SSKD.SOURCE.OPTS, *overrides(*EVERY_STEP)]
    cfg = tiny_adaptation(tmp_path, "SSKD.SOURCE.OPTS", str(source))
    cut(cfg, at, SourceTrainer, when=lambda trainer: trainer.cfg.OUTPUT_DIR.endswith(f"peer{peer}"))
    assert not (tmp_path / "model_final.pth").exists()
    run(cfg, resume=True)
    assert_same_files(tmp_path, finished.output)
    for k in range(2):
        assert_same_files(tmp_path / "source" / f"peer{k}", finished.output / "source" / f"peer{k}")


def test_killed_between_the_last_two_checkpoints(adaptation, finished, monkeypatch):
    """model_best of the last epoch is written and model_final is not: a resumed run writes it."""
    cfg = adaptation()

    def no_final(self, name, **position):
        if name == "model_final":
            raise PowerCut
        save(self, name, **position)

    save = Checkpointer.save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "save", no_final)
        patch.setattr(AdaptationTrainer, "test", rising())
        with pytest.raises(PowerCut):
            run(cfg)
    assert load(os.path.join(cfg.OUTPUT_DIR, "model_best.pth"))["epoch"] == 1
    run(cfg, resume=True)
    final, name = load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth")), "students.0.backbone.0.weight"
    assert final["epoch"] == 1 and torch.equal(final["model"][name], finished.final["model"][name])


def rising():
    values = iter(range(10, 90, 10))

    def test(cls, cfg, model):
        row = dict.fromkeys(("mAP", "Rank-1"), float(next(values)))
        return {"Market1501": dict.fromkeys(("teacher0", "teacher1", "ensemble"), row)}

    return classmethod(test)


def test_run_from_scratch_leaves_the_earlier_one_alone(adaptation):
    """Killed before its first checkpoint, it is not resumed from an earlier run's, whose files are in a
    folder of their own.
    """
    cfg = adaptation("SOLVER.MAX_EPOCH 1", "TEST.EVAL_PERIOD 0")
    run(cfg)
    before = metrics(cfg.OUTPUT_DIR)
    cut(cfg, 1)
    assert last_checkpoint(cfg.OUTPUT_DIR) == ""
    earlier = os.path.join(cfg.OUTPUT_DIR, "earlier-1")
    assert {"model_final.pth", "metrics.json", "config.yaml", "last_checkpoint"} <= set(os.listdir(earlier))
    assert metrics(earlier) == before
    run(cfg, resume=True)
    assert metrics(cfg.OUTPUT_DIR) == before


def test_checkpoints_by_time(adaptation, monkeypatch):
    """As soon as the seconds since the last one are over, at the end of a step."""
    clock = itertools.count(0, 10)
    fake = SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter)
    monkeypatch.setattr(hooks, "time", fake)
    saved = []
    monkeypatch.setattr(
        Checkpointer, "save", lambda self, name, **position: saved.append((name, position.get("step")))
    )
    opts = (
        "SOLVER.MAX_EPOCH 1",
        "SSKD.ITERS_PER_EPOCH 5",
        "TEST.EVAL_PERIOD 0",
        "SSKD.CHECKPOINT_SECONDS 25",
    )
    run(adaptation(*opts))
    assert [name for name, _ in saved] == ["step_0000002", "step_0000005", "model_final"]
    assert [step for _, step in saved] == [2, 5, None]


def test_checkpoints_inside_epochs_are_off(adaptation, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpointer, "save", lambda self, name, **position: saved.append(name))
    run(adaptation("SSKD.CHECKPOINT_SECONDS 0", "TEST.EVAL_PERIOD 0"))
    assert saved == ["model_0000", "model_final"]


@pytest.mark.parametrize("key", ["SECONDS", "ITERS"])
def test_settings_below_zero(adaptation, key):
    with pytest.raises(ValueError, match="SSKD.CHECKPOINT_SECONDS and SSKD.CHECKPOINT_ITERS must be >= 0"):
        AdaptationTrainer(adaptation(f"SSKD.CHECKPOINT_{key}", "-1"))
