"""A run that is cut off and taken up again ends where an uninterrupted one does, to the last bit."""

import json
import os

import pytest
import torch
from tiny_reid import load_checkpoint as load
from tiny_reid import tiny_baseline, tiny_source

from fastreid_sskd.engine import AdaptationTrainer, SourceTrainer, Trainer, run, seed_everything


class PowerCut(Exception):
    """Stops a training, as a killed process would."""


def cut(monkeypatch, cls, at):
    """Make every trainer of the class stop before its step number `at`."""
    step = cls.run_step

    def run_step(self):
        if self.iter == at:
            raise PowerCut
        step(self)

    monkeypatch.setattr(cls, "run_step", run_step)


def assert_same(one, other, name=""):
    """Equality of nested checkpoints, tensors bit for bit; measured times apart."""
    if isinstance(one, dict):
        assert set(one) == set(other), name
        for key in one:
            if not str(key).startswith("seconds_"):
                assert_same(one[key], other[key], f"{name}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), name
        for i, (a, b) in enumerate(zip(one, other)):
            assert_same(a, b, f"{name}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), name
    else:
        assert one == other, name


@pytest.mark.parametrize("at", [3, 5])
def test_adaptation_goes_on_where_it_stopped(finished, adaptation, monkeypatch, at):
    """Cut at the first and the last step of the second epoch: weights, labels, eps, moments, records, best metric."""
    cfg = adaptation()
    with monkeypatch.context() as patch:
        cut(patch, AdaptationTrainer, at)
        with pytest.raises(PowerCut):
            run(cfg)
    assert load(os.path.join(cfg.OUTPUT_DIR, "model_0000.pth"))["epoch"] == 0
    results = run(cfg, resume=True)
    final = load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    assert set(final) == {
        "model", "optimizer", "lr_sched", "record", "refresh", "checkpoints", "epoch",
    }  # fmt: skip
    assert_same(final, finished.final)
    assert_same(results, finished.results)
    with open(os.path.join(cfg.OUTPUT_DIR, "results.json"), encoding="utf-8") as file:
        assert json.load(file) == finished.record


def test_resumed_run_does_not_evaluate_direct_transfer_again(adaptation, monkeypatch):
    cfg = adaptation()
    with monkeypatch.context() as patch:
        cut(patch, AdaptationTrainer, 3)
        with pytest.raises(PowerCut):
            run(cfg)
    epochs, evaluate = [], AdaptationTrainer.evaluate
    monkeypatch.setattr(
        AdaptationTrainer, "evaluate", lambda self, epoch=None: epochs.append(epoch) or evaluate(self, epoch)
    )
    run(cfg, resume=True)
    assert epochs == [None]  # that of the second epoch


def test_cut_in_the_first_epoch_starts_again(finished, adaptation, monkeypatch):
    """Before the first checkpoint there is nothing to resume; --resume then starts from the source models."""
    cfg = adaptation()
    with monkeypatch.context() as patch:
        cut(patch, AdaptationTrainer, 2)
        with pytest.raises(PowerCut):
            run(cfg)
    run(cfg, resume=True)
    assert_same(load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth")), finished.final)


def test_without_resume_a_run_starts_anew(finished, adaptation):
    cfg = adaptation("SOLVER.MAX_EPOCH", "1")
    run(cfg)
    run(cfg)
    final = load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    assert final["epoch"] == 0 and len(final["refresh"]["history"]) == 1


def test_finished_run_is_evaluated_again(finished, adaptation):
    """Resuming it trains nothing, and still gives the results."""
    cfg = adaptation("SOLVER.MAX_EPOCH", "1")
    first = run(cfg)
    before = load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    again = run(cfg, resume=True)
    assert_same(again, first)
    assert_same(load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth")), before)
    with open(os.path.join(cfg.OUTPUT_DIR, "results.json"), encoding="utf-8") as file:
        assert [entry["epoch"] for entry in json.load(file)["evaluations"]] == [0, 1]


def test_finished_run_goes_on_with_more_epochs(finished, adaptation):
    cfg = adaptation("SOLVER.MAX_EPOCH", "1")
    run(cfg)
    run(adaptation("SOLVER.MAX_EPOCH", "2"), resume=True)
    final = load(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    assert_same(final["model"], finished.final["model"])


def test_epochs_do_not_depend_on_random_numbers_drawn_before(trainer, finished):
    """Dropout, which draws from the global generator, is seeded by the epoch: as after a resume."""

    def numbers_of(*, drawn_before):
        made = trainer("SSKD.ITERS_PER_EPOCH", "1", "TEST.EVAL_PERIOD", "0")
        found = []
        step = made.run_step
        made.run_step = lambda: (step(), found.append(float(torch.rand(()))))
        torch.rand(drawn_before)
        made.train()
        return found

    first, other = numbers_of(drawn_before=1), numbers_of(drawn_before=7)
    assert first == other and first[0] != first[1]


def test_source_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    """Warm-up, schedule and both data streams included."""
    opts = ("SOLVER.WARMUP_ITERS", "3", "SOLVER.MAX_EPOCH", "3", "SOLVER.STEPS", "[1]")
    whole, parts = (tiny_source(tmp_path / name, *opts) for name in ("whole", "parts"))
    seed_everything(1)
    run(whole)
    seed_everything(1)
    with monkeypatch.context() as patch:
        cut(patch, SourceTrainer, 3)
        with pytest.raises(PowerCut):
            run(parts)
    seed_everything(7)
    run(parts, resume=True)
    end, other = (load(tmp_path / name / "model_final.pth") for name in ("whole", "parts"))
    assert {"warmup_sched", "lr_sched"} <= set(end)
    assert end["optimizer"]["param_groups"][0]["lr"] < 3.5e-4  # the schedule has acted
    assert_same(end, other)


def test_plain_config_goes_on_where_it_stopped(tmp_path, monkeypatch):
    cfg = tiny_baseline(tmp_path / "out")
    with monkeypatch.context() as patch:
        cut(patch, Trainer, 7)  # of 12
        with pytest.raises(PowerCut):
            run(cfg)
    made = Trainer(cfg)
    made.resume_or_load(resume=True)
    assert made.start_epoch == 1
    saved = load(tmp_path / "out" / "model_0000.pth")
    assert_same(made.model.state_dict(), saved["model"])
    assert {int(state["step"]) for state in made.optimizer.state.values()} == {6}
    made.train()
    assert made.iter == 12 and (tmp_path / "out" / "model_final.pth").is_file()
