"""Hooks of fast-reid's training loop. Hooks only act; networks, labels' rules and results live elsewhere."""
import logging
from collections.abc import Callable

from fastreid.engine.train_loop import HookBase
from fastreid.evaluation.testing import flatten_results_dict
from fastreid.utils import comm

from .checkpoint import Checkpointer

__all__ = ["Checkpoints", "PeerEMA", "PeriodicEvaluation"]

logger = logging.getLogger("fastreid.sskd.hooks")


class PeerEMA(HookBase):
    """Moves every mean teacher towards its student: after each optimiser step, before evaluation and checkpoints.

    Logs ``ema_decay``, the alpha of the step.

    Args:
        model: a :class:`fastreid_sskd.modeling.SSKD`.
        momentum: ``SSKD.EMA.MOMENTUM``, in [0, 1].
    """

    def __init__(self, model, momentum: float):
        self.model = model
        self.momentum = momentum

    def after_step(self):
        decay = self.model.update_teachers(self.trainer.iter, self.momentum)
        self.trainer.storage.put_scalar("ema_decay", decay, smoothing_hint=False)


class PeriodicEvaluation(HookBase):
    """Evaluates after every ``period`` epochs and after the last; 0: never.

    The host's ``EvalHook`` divides by a period of 0, and evaluates in ``after_train``, also when training failed.

    Args:
        period: ``TEST.EVAL_PERIOD`` [epochs, >= 0].
        evaluate: returns a nested dict of numbers, which goes to the event storage.
    """

    def __init__(self, period: int, evaluate: Callable[[], dict]):
        if period < 0:
            raise ValueError(f"TEST.EVAL_PERIOD must be >= 0 epochs (0: never evaluate), got {period}")
        self.period = period
        self.evaluate = evaluate

    def after_epoch(self):
        done = self.trainer.epoch + 1
        if not self.period or (done % self.period and done < self.trainer.max_epoch):
            return
        results = flatten_results_dict(self.evaluate())
        self.trainer.storage.put_scalars(smoothing_hint=False, **{k: float(v) for k, v in results.items()})
        comm.synchronize()


class Checkpoints(HookBase):
    """Saves after every ``period`` epochs and after the last; the best by ``metric`` as ``model_best``.

    The best metric is part of the checkpoint, so a resumed run does not overwrite a better model. Of the periodic
    files the last ``keep`` stay.

    Args:
        checkpointer: writes the files.
        period: ``SOLVER.CHECKPOINT_PERIOD`` [epochs, >= 1].
        keep: ``SSKD.KEEP_CHECKPOINTS`` [files, >= 1].
        metric_name: the scalar in the event storage that a larger value of is better.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, keep: int, metric_name: str = "metric"):
        if period < 1 or keep < 1:
            raise ValueError(
                f"SOLVER.CHECKPOINT_PERIOD and SSKD.KEEP_CHECKPOINTS must be >= 1, got {period} and {keep}"
            )
        self.checkpointer = checkpointer
        self.period = period
        self.keep = keep
        self.metric_name = metric_name
        self.best_metric = -1.0
        self._evaluated_at: int | None = None
        checkpointer.checkpointables["checkpoints"] = self

    def state_dict(self) -> dict:
        return {"best_metric": self.best_metric}

    def load_state_dict(self, state: dict) -> None:
        self.best_metric = state["best_metric"]

    def after_epoch(self):
        epoch, last = self.trainer.epoch, self.trainer.epoch + 1 >= self.trainer.max_epoch
        value, at = self.trainer.storage.latest().get(self.metric_name, (None, None))
        fresh = value is not None and at != self._evaluated_at
        self._evaluated_at = at
        if fresh and value > self.best_metric:
            self.best_metric = value
            self.checkpointer.save("model_best", epoch=epoch)
        if last:
            self.checkpointer.save("model_final", epoch=epoch)
        elif (epoch + 1) % self.period == 0:
            self.checkpointer.save(f"model_{epoch:04d}", epoch=epoch)
            self.checkpointer.remove_all_but(self.keep)
