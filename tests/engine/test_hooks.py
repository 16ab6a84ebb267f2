"""When the hooks act, and what they remember."""

import types

import pytest
import torch
from fastreid.utils.events import EventStorage
from torch import nn

from fastreid_sskd.engine import hooks as hooks_module
from fastreid_sskd.engine.events import MetricsFile
from fastreid_sskd.engine.hooks import Checkpoints, PeerEMA, PeriodicEvaluation, ScalarWriters


class Recorder:
    """A checkpointer that only notes."""

    def __init__(self):
        self.saved, self.kept, self.checkpointables = [], [], {}

    def save(self, name, **extra):
        self.saved.append((name, extra["epoch"]))

    def remove_all_but(self, keep, kind="model"):
        self.kept.append((keep, kind))


def epochs(hook, count, before=lambda epoch, storage: None, start=0):
    """Run a hook through the ends of epochs."""
    with EventStorage(start) as storage:
        hook.trainer = types.SimpleNamespace(storage=storage, max_epoch=count)
        for epoch in range(start, count):
            storage.iter = hook.trainer.iter = hook.trainer.epoch = epoch
            before(epoch, storage)
            hook.after_epoch()


def evaluations(period, count):
    found = []
    hook = PeriodicEvaluation(
        period, lambda: found.append(hook.trainer.epoch + 1) or {"set": {"mAP": 1.0}, "metric": 2}
    )
    epochs(hook, count)
    return found, hook.trainer.storage.latest()


@pytest.mark.parametrize(
    "period, count, expected",
    [(1, 3, [1, 2, 3]), (2, 5, [2, 4, 5]), (2, 4, [2, 4]), (10, 3, [3]), (0, 3, []), (1, 0, [])],
)
def test_evaluation_period(period, count, expected):
    assert evaluations(period, count)[0] == expected


def test_evaluation_goes_to_the_storage():
    _, latest = evaluations(1, 2)
    assert latest == {"set/mAP": (1.0, 1), "metric": (2.0, 1)}


def test_evaluation_period_below_zero():
    with pytest.raises(ValueError, match="TEST.EVAL_PERIOD must be >= 0"):
        PeriodicEvaluation(-1, dict)


PERIODIC = "model_0001 1, model_0003 3, model_final 4"


@pytest.mark.parametrize("period, values, saved", [
    (2, {}, PERIODIC), (100, {}, "model_final 4"),
    (10, [30, 50, 50, 40, 60], "model_best 0, model_best 1, model_best 4, model_final 4"),
    (2, {1: 30, 3: 20}, f"model_best 1, {PERIODIC}"),
])  # fmt: skip
def test_what_is_saved(period, values, saved):
    """An old value is not taken for a new one; the periodic file comes last, as what a resume finds."""
    recorder, values = Recorder(), dict(enumerate(values)) if isinstance(values, list) else values
    hook = Checkpoints(recorder, period=period, keep=3)
    epochs(
        hook, 5,
        lambda epoch, storage: epoch in values and storage.put_scalar("metric", values[epoch]),
    )  # fmt: skip
    assert ", ".join(f"{name} {epoch}" for name, epoch in recorder.saved) == saved
    assert recorder.kept == [(3, "model")] * (2 if period == 2 else 0) + [(0, "step")]
    assert hook.best_metric == max(values.values(), default=hook.best_metric)


def test_best_metric_survives_a_resume():
    """By whichever name."""
    first, second = Recorder(), Recorder()
    before, after = (Checkpoints(one, period=1, keep=1, metric_name="Set/metric") for one in (first, second))
    epochs(before, 1, lambda epoch, storage: storage.put_scalars(**{"metric": 60.0, "Set/metric": 50.0}))
    assert second.checkpointables["checkpoints"] is after
    after.load_state_dict(before.state_dict())
    epochs(after, 3, lambda epoch, storage: storage.put_scalars(**{"Set/metric": 40.0}), start=1)
    assert second.saved == [("model_0001", 1), ("model_final", 2)] and after.best_metric == 50


@pytest.mark.parametrize("period, keep", [(0, 1), (1, 0), (-1, 2)])
def test_periods_below_one(period, keep):
    with pytest.raises(ValueError, match=f"must be >= 1, got {period} and {keep}"):
        Checkpoints(Recorder(), period=period, keep=keep)


@pytest.mark.parametrize(
    "seconds, iters, expected",
    [(0, 0, []), (0, 3, [3, 6, 9]), (4, 0, [4, 8]), (4, 3, [3, 6, 9]), (0.5, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9])],
)
def test_when_to_save_inside_an_epoch(monkeypatch, seconds, iters, expected):
    """One second a step; every checkpoint begins the time anew."""
    now = [100.0]
    monkeypatch.setattr(hooks_module.time, "monotonic", lambda: now[0])
    recorder = Recorder()
    recorder.save = lambda name, **position: recorder.saved.append((name, position))
    hook = Checkpoints(recorder, period=1, keep=2, seconds=seconds, iters=iters)
    hook.before_train()
    for iteration in range(1, 10):
        now[0] += 1
        if hook.due(iteration):
            hook.save_inside(iteration, epoch=-1, step=iteration)
    assert [position["step"] for _, position in recorder.saved] == expected
    assert [name for name, _ in recorder.saved] == [f"step_{iteration:07d}" for iteration in expected]
    assert recorder.kept == [(2, "step")] * len(expected)


def test_epoch_is_saved_once():
    recorder = Recorder()
    hook = Checkpoints(recorder, period=3, keep=1)
    for epoch in range(4):
        hook.save_epoch(epoch)
    assert recorder.saved == [("model_0000", 0), ("model_0001", 1), ("model_0003", 3)]


# ---- scalars -------------------------------------------------------------------------------------


def training(folder, steps, state=None, start=0, save_after=None):
    """Put `steps` scalars through the hook: the lines of metrics.json, the state after one of the steps."""
    hook = ScalarWriters(lambda: [MetricsFile(str(folder / "metrics.json"))], period=2)
    if state is not None:
        hook.load_state_dict(state)
    with EventStorage(start) as storage:
        hook.trainer = types.SimpleNamespace(storage=storage, start_iter=start, max_iter=100)
        hook.before_train()
        saved = None
        for iteration in range(start, start + steps):
            storage.iter = hook.trainer.iter = iteration
            storage.put_scalar("loss", (iteration * 7) % 5)
            if iteration % 4 == 1:
                storage.put_scalar("mAP", iteration, smoothing_hint=False)
            hook.after_step()
            if iteration == save_after:
                saved = hook.state_dict()
        hook.after_epoch()
        hook.after_train()
    return (folder / "metrics.json").read_text(), saved


@pytest.mark.parametrize("at", [0, 1, 2, 5, 7])
def test_scalars_go_on_from_a_checkpoint(tmp_path, at):
    """Smoothed over the values before, none twice, though the killed run wrote on after it."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, _ = training(tmp_path / "whole", 12)
    _, saved = training(tmp_path / "parts", 10, save_after=at)
    path = tmp_path / "state.pth"
    torch.save(saved, path)
    saved = torch.load(path, weights_only=True)
    parts, _ = training(tmp_path / "parts", 11 - at, saved, start=at + 1)
    assert parts == whole


def test_metrics_that_are_shorter_than_they_were(tmp_path, caplog):
    _, saved = training(tmp_path, 8, save_after=7)
    (tmp_path / "metrics.json").write_text("")
    text, _ = training(tmp_path, 2, saved, start=8)
    assert "is shorter than it was" in caplog.text
    assert '"iteration": 9' in text


def test_no_writers_no_state():
    hook = ScalarWriters(list, period=1)
    assert hook.state_dict() == {}
    hook.load_state_dict({})
    with EventStorage(0) as storage:
        hook.trainer = types.SimpleNamespace(storage=storage, start_iter=0)
        hook.before_train()
        assert not storage.histories()


def test_peer_ema_uses_the_global_step():
    calls = []
    model = types.SimpleNamespace(
        label_statistics="batch",
        update_teachers=lambda step, momentum: calls.append((step, momentum)) or 0.25,
    )
    hook = PeerEMA(model, 0.9)
    with EventStorage(0) as storage:
        hook.trainer = types.SimpleNamespace(storage=storage, iter=41)
        hook.before_step()
        assert calls == []
        hook.after_step()
        assert calls == [(41, 0.9)]
        assert storage.latest()["ema_decay"] == (0.25, 0)


def test_hooks_of_an_adaptation_run_in_this_order(trainer):
    """Refresh before anything looks at the epoch. EMA before evaluation, all before checkpoints, which hold
    the rest. The next epoch's rate comes after the evaluation, which may be left for a signal and begun
    again.
    """
    names = [type(hook).__name__ for hook in trainer()._hooks]
    assert names == [
        "PseudoLabelRefresh", "PeerEMA", "IterationTimer", "PeriodicEvaluation", "LRScheduler",
        "ScalarWriters", "Checkpoints",
    ]  # fmt: skip


def test_checkpoints_come_after_the_last_ema(trainer):
    """The file holds the teachers as the last step left them."""
    made = trainer("SOLVER.MAX_EPOCH 1", "SSKD.ITERS_PER_EPOCH 1", "TEST.EVAL_PERIOD 0")
    made.train()
    saved = torch.load(made.checkpointer.get_checkpoint_file(), weights_only=True)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in made.model.state_dict().items())
    assert isinstance(made.model, nn.Module)
