"""Hooks of fast-reid's training loop. Hooks only act; networks, labels' rules and results live elsewhere."""
import logging
import time
from collections.abc import Callable

from fastreid.engine.train_loop import HookBase
from fastreid.evaluation.testing import flatten_results_dict
from fastreid.utils import comm

from ..processes import broadcast_buffers
from .checkpoint import Checkpointer
from .storage import restore_storage, storage_state

__all__ = ["Checkpoints", "PeerEMA", "PeriodicEvaluation", "ScalarWriters"]

logger = logging.getLogger("fastreid.sskd.hooks")


class PeerEMA(HookBase):
    """Moves every mean teacher towards its student: after each optimiser step, before evaluation and checkpoints.

    Logs ``ema_decay``, the alpha of the step. Several processes' teachers get the main one's batch-norm statistics where their
    labels depend on them.

    Args:
        model: a :class:`fastreid_sskd.modeling.SSKD`.
        momentum: ``SSKD.EMA.MOMENTUM``, in [0, 1].
    """

    def __init__(self, model, momentum: float):
        self.model = model
        self.momentum = momentum

    def after_step(self):
        decay = self.model.update_teachers(self.trainer.iter, self.momentum)
        if self.model.label_statistics != "batch":
            broadcast_buffers(self.model.teachers)
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
    """Saves after every ``period`` epochs and after the last; the best by ``metric`` as ``model_best``; and inside epochs.

    The best metric is part of the checkpoint, so a resumed run does not overwrite a better model. Of the periodic files
    the last ``keep`` stay, and as many of those inside epochs (``step_0000123.pth``), until the run is done. Registered
    last: what a file holds is what a resumed run begins with.

    Args:
        checkpointer: writes the files.
        period: ``SOLVER.CHECKPOINT_PERIOD`` [epochs, >= 1].
        keep: ``SSKD.KEEP_CHECKPOINTS`` [files, >= 1].
        metric_name: the scalar in the event storage that a larger value of is better.
        seconds, iters: ``SSKD.CHECKPOINT_SECONDS`` and ``_ITERS``, how often to save inside an epoch; 0: not so.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, keep: int, metric_name: str = "metric", *,
                 seconds: float = 0, iters: int = 0):
        if period < 1 or keep < 1:
            raise ValueError(
                f"SOLVER.CHECKPOINT_PERIOD and SSKD.KEEP_CHECKPOINTS must be >= 1, got {period} and {keep}"
            )
        if seconds < 0 or iters < 0:
            raise ValueError(
                f"SSKD.CHECKPOINT_SECONDS and SSKD.CHECKPOINT_ITERS must be >= 0 (0: off), got {seconds} and {iters}"
            )
        self.checkpointer = checkpointer
        self.period = period
        self.keep = keep
        self.metric_name = metric_name
        self.seconds = seconds
        self.iters = iters
        self.best_metric = -1.0
        self._evaluated_at: int | None = None
        self._saved_at = time.monotonic()
        checkpointer.checkpointables["checkpoints"] = self

    def state_dict(self) -> dict:
        return {"best_metric": self.best_metric}

    def load_state_dict(self, state: dict) -> None:
        self.best_metric = state["best_metric"]

    def before_train(self):
        self._saved_at = time.monotonic()

    def due(self, iteration: int) -> bool:
        """Whether to save inside an epoch now that ``iteration`` steps are done in all."""
        by_iteration = self.iters and iteration % self.iters == 0
        return bool(by_iteration or (self.seconds and time.monotonic() - self._saved_at >= self.seconds))

    def save_inside(self, iteration: int, **position) -> None:
        """Save between two steps; ``position`` says where, for the run that goes on from there."""
        self._save(f"step_{iteration:07d}", **position)
        self.checkpointer.remove_all_but(self.keep, "step")

    def save_epoch(self, epoch: int) -> None:
        """Save at the end of an epoch, if that has not been done."""
        if (epoch + 1) % self.period:
            self._save(f"model_{epoch:04d}", epoch=epoch)

    def finish(self, epoch: int) -> None:
        """Write ``model_final`` where a run was killed after its last epoch and before that."""
        if self.checkpointer.save_dir and not self.checkpointer.has("model_final"):
            self._save("model_final", epoch=epoch)

    def _save(self, name: str, **position) -> None:
        self.checkpointer.save(name, **position)
        self._saved_at = time.monotonic()

    def after_epoch(self):
        epoch, last = self.trainer.epoch, self.trainer.epoch + 1 >= self.trainer.max_epoch
        value, at = self.trainer.storage.latest().get(self.metric_name, (None, None))
        fresh = value is not None and at != self._evaluated_at
        self._evaluated_at = at
        if fresh and value > self.best_metric:
            self.best_metric = value
            self._save("model_best", epoch=epoch)
        if last:
            self._save("model_final", epoch=epoch)
            self.checkpointer.remove_all_but(0, "step")
        elif (epoch + 1) % self.period == 0:
            self._save(f"model_{epoch:04d}", epoch=epoch)
            self.checkpointer.remove_all_but(self.keep)


class ScalarWriters(HookBase):
    """The host's ``PeriodicWriter`` whose scalars and files a resumed run goes on with where the checkpoint was.

    Writes every ``period`` iterations and at the end of an epoch, before the checkpoint. The last values of each scalar
    are in it, so that smoothed ones go on too; what was written after it is cut off metrics.json.

    Args:
        build: makes the writers, when training begins.
        period: ``SSKD.LOG_PERIOD`` [iterations].
    """

    def __init__(self, build: Callable[[], list], period: int):
        self._build = build
        self._period = period
        self._writers: list = []
        self._resumed: dict | None = None

    def state_dict(self) -> dict:
        state = {type(writer).__name__: writer.state_dict() for writer in self._stateful()}
        return {"storage": storage_state(self.trainer.storage), "writers": state} if self._writers else {}

    def load_state_dict(self, state: dict) -> None:
        self._resumed = state

    def _stateful(self) -> list:
        return [writer for writer in self._writers if hasattr(writer, "state_dict")]

    def before_train(self):
        self._writers = self._build() if comm.is_main_process() else []
        if self._resumed:
            restore_storage(self.trainer.storage, self._resumed["storage"])
        saved = (self._resumed or {}).get("writers", {})
        for writer in self._stateful():
            if type(writer).__name__ in saved:
                writer.load_state_dict(saved[type(writer).__name__])

    def _write(self):
        for writer in self._writers:
            writer.write()

    def after_step(self):
        if (self.trainer.iter + 1) % self._period == 0 or self.trainer.iter == self.trainer.max_iter - 1:
            self._write()

    def after_epoch(self):
        self._write()

    def after_train(self):
        for writer in self._writers:
            writer.close()
        self._writers = []
