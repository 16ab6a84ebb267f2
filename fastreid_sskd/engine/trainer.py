"""The host's trainer made to work on a current stack, with and without CUDA: for any fast-reid config."""
import logging
import math
import os
import time
from collections.abc import Iterable
from typing import Any

import torch
from fastreid.config import CfgNode
from fastreid.data import build_reid_train_loader
from fastreid.engine import DefaultTrainer, hooks
from fastreid.engine.train_loop import SimpleTrainer, TrainerBase
from fastreid.evaluation import ReidEvaluator
from fastreid.solver import build_lr_scheduler
from fastreid.utils import comm
from fastreid.utils.events import EventStorage
from torch import nn

from ..data.loaders import test_loader
from ..data.seeding import derive_seed
from .amp import Precision
from .checkpoint import Checkpointer
from .hooks import Checkpoints, PeriodicEvaluation
from .optimizer import build_optimizer
from .setup import seed_everything
from .writers import build_writers

__all__ = ["Trainer"]

logger = logging.getLogger("fastreid.sskd.trainer")


class _Step(SimpleTrainer):
    """The host's training step under a precision, on any device; ``grad_scaler`` is None where none is needed."""

    def __init__(self, model: nn.Module, data_loader: Iterable, optimizer: torch.optim.Optimizer, precision: Precision):
        super().__init__(model, data_loader, optimizer, param_wrapper=None)
        self.precision = precision
        self.grad_scaler = precision.scaler

    def run_step(self):
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        with self.precision.autocast():
            loss_dict = self.model(data)
            total = sum(loss_dict.values())
        self.optimizer.zero_grad()
        if self.grad_scaler is None:
            total.backward()
        else:
            self.grad_scaler.scale(total).backward()
        self._write_metrics(loss_dict, data_time)  # raises before the step if a loss is not finite
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def set_data_loader(self, data_loader: Iterable) -> None:
        """Go on with another loader; the old one's workers end with it."""
        self.data_loader = data_loader
        self._data_loader_iter = iter(data_loader)


class Trainer(DefaultTrainer):
    """``fastreid.engine.DefaultTrainer`` for plain configs, and the base of the two stages of SSKD.

    Differs from the host where that is broken or loses something (see ``fastreid_sskd.compat`` for the rest):
    parameters are optimised themselves, not a flat buffer that gradients never reach; mixed precision works without
    CUDA; an epoch has at least one iteration; evaluation can be off; a failure before the first step shows its own
    error; the best metric survives a resume; losses are logged every ``SSKD.LOG_PERIOD`` iterations.

    Args:
        cfg: a complete config, ``add_sskd_config`` included.
    """

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)
        if comm.get_world_size() > 1:
            raise ValueError(f"this version trains in one process, got {comm.get_world_size()}: use --num-gpus 1")
        data_loader, num_classes, self.iters_per_epoch = self.prepare_data(cfg)
        if cfg.OUTPUT_DIR:
            os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)  # the host writes its config there without asking
        cfg = self.auto_scale_hyperparams(cfg, num_classes)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        self._trainer = _Step(model, data_loader, optimizer, Precision(cfg))
        self.scheduler = self.build_lr_scheduler(cfg, optimizer, self.iters_per_epoch)
        self.checkpointer = Checkpointer(
            model, cfg.OUTPUT_DIR, save_to_disk=comm.is_main_process(), optimizer=optimizer, **self.scheduler
        )
        if self.grad_scaler is not None:
            self.checkpointer.checkpointables["grad_scaler"] = self.grad_scaler

        self.start_epoch = 0
        self.max_epoch = cfg.SOLVER.MAX_EPOCH
        self.max_iter = self.max_epoch * self.iters_per_epoch
        self.warmup_iters = cfg.SOLVER.WARMUP_ITERS
        self.delay_epochs = cfg.SOLVER.DELAY_EPOCHS
        self.cfg = cfg
        self._last_eval_results: dict[str, Any] = {}
        self.register_hooks(self.build_hooks())

    # ---- what a stage may change --------------------------------------------------------------------------------

    def prepare_data(self, cfg: CfgNode) -> tuple[Iterable, int, int]:
        """The training loader (endless), the number of classes and the iterations of an epoch."""
        loader = self.build_train_loader(cfg)
        return loader, loader.dataset.num_classes, max(1, len(loader.dataset) // cfg.SOLVER.IMS_PER_BATCH)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """As the host, with an error that helps where it would download weights and cannot."""
        try:
            return super().build_model(cfg)
        except ModuleNotFoundError as error:
            if error.name != "gdown":
                raise
            raise FileNotFoundError(
                "MODEL.BACKBONE.PRETRAIN is on, and MODEL.BACKBONE.PRETRAIN_PATH names no weights: set it to a file on "
                "disk, or install gdown so that fast-reid can download them, or set MODEL.BACKBONE.PRETRAIN to False"
            ) from error

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, [model])

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer, iters_per_epoch: int) -> dict:
        if cfg.SOLVER.SCHED not in ("MultiStepLR", "CosineAnnealingLR"):
            raise ValueError(f"SOLVER.SCHED must be MultiStepLR or CosineAnnealingLR, got {cfg.SOLVER.SCHED!r}")
        warmup = max(math.ceil(cfg.SOLVER.WARMUP_ITERS / iters_per_epoch), cfg.SOLVER.DELAY_EPOCHS)
        if cfg.SOLVER.SCHED == "CosineAnnealingLR" and warmup >= cfg.SOLVER.MAX_EPOCH:
            raise ValueError(
                f"warm-up and delay take {warmup} epochs of SOLVER.MAX_EPOCH = {cfg.SOLVER.MAX_EPOCH}, which leaves "
                "none to anneal: lower SOLVER.WARMUP_ITERS or SOLVER.DELAY_EPOCHS"
            )
        return build_lr_scheduler(cfg, optimizer, iters_per_epoch)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_reid_train_loader(cfg, combineall=cfg.DATASETS.COMBINEALL)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_dir=None):
        loader, num_query = test_loader(cfg, dataset_name)
        return loader, ReidEvaluator(cfg, num_query, output_dir)

    @property
    def metric_name(self) -> str:
        """The scalar that ``model_best`` is chosen by: the host's "metric", (mAP + Rank-1) / 2, of the first test set."""
        tests = self.cfg.DATASETS.TESTS
        return f"{tests[0]}/metric" if len(tests) > 1 else "metric"

    def evaluate(self) -> dict:
        """Evaluate on ``DATASETS.TESTS``; the host's nested dict of metrics in percent."""
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def build_hooks(self) -> list[hooks.HookBase]:
        """Timer, learning rate, precise BN and freezing as in the host; then evaluation, checkpoints, writers."""
        cfg = self.cfg
        ret = [hooks.IterationTimer(), hooks.LRScheduler(self.optimizer, self.scheduler)]
        if cfg.TEST.PRECISE_BN.ENABLED and hooks.get_bn_modules(self.model):
            ret.append(self._precise_bn())
        if cfg.MODEL.FREEZE_LAYERS and cfg.SOLVER.FREEZE_ITERS > 0:
            ret.append(hooks.LayerFreeze(self.model, cfg.MODEL.FREEZE_LAYERS, cfg.SOLVER.FREEZE_ITERS))
        ret.append(PeriodicEvaluation(cfg.TEST.EVAL_PERIOD, self.evaluate))
        if comm.is_main_process():
            ret.append(Checkpoints(
                self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SSKD.KEEP_CHECKPOINTS, self.metric_name
            ))
            ret.append(hooks.PeriodicWriter(self.build_writers(), cfg.SSKD.LOG_PERIOD))
        return ret

    def build_writers(self) -> list:
        return build_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def _precise_bn(self) -> hooks.HookBase:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.DATASETS.NAMES = (cfg.TEST.PRECISE_BN.DATASET,)
        return hooks.PreciseBN(self.model, self.build_train_loader(cfg), cfg.TEST.PRECISE_BN.NUM_ITER)

    # ---- running ------------------------------------------------------------------------------------------------

    def before_epoch(self) -> None:
        """Hooks log under the epoch's first iteration; random numbers of the epoch do not depend on those before.

        Without the seed, a network that draws some itself (dropout) would go on differently after a resume.
        """
        self.storage.iter = self.iter
        if self.cfg.SEED >= 0:
            seed_everything(derive_seed(self.cfg.SEED, self.epoch))
        super().before_epoch()

    def resume_or_load(self, resume: bool = True) -> None:
        """With ``resume`` go on from the last checkpoint in ``OUTPUT_DIR`` if there is one, else load MODEL.WEIGHTS."""
        if resume and self.checkpointer.has_checkpoint():
            checkpoint = self.checkpointer.load(self.checkpointer.get_checkpoint_file())
            self.start_epoch = checkpoint.get("epoch", -1) + 1
            return
        self.load_weights()

    def load_weights(self) -> None:
        """Load ``MODEL.WEIGHTS``, if any, without the state of its training."""
        path = self.cfg.MODEL.WEIGHTS
        if path and not os.path.isfile(path):
            raise FileNotFoundError(f"MODEL.WEIGHTS {path!r} not found")
        self.checkpointer.load(path, checkpointables=[])

    def train(self) -> dict:
        """Run from ``start_epoch`` to ``max_epoch``; returns the last evaluation's results ({} without any).

        A run that was finished before and is resumed is evaluated again, unless ``TEST.EVAL_PERIOD`` is 0.
        """
        if self.start_epoch >= self.max_epoch:
            logger.info("all %d epochs are done: nothing left to train", self.max_epoch)
            self.epoch = self.start_epoch - 1
            return self.evaluate() if self.cfg.TEST.EVAL_PERIOD else {}
        self.iter = self.start_iter = self.start_epoch * self.iters_per_epoch
        logger.info("training epochs %d to %d of %d iterations", self.start_epoch, self.max_epoch, self.iters_per_epoch)
        with EventStorage(self.start_iter) as self.storage:
            self.before_train()
            try:
                for epoch in range(self.start_epoch, self.max_epoch):
                    self.epoch = epoch
                    self.before_epoch()
                    for _ in range(self.iters_per_epoch):
                        self.before_step()
                        self.run_step()
                        self.after_step()
                        self.iter += 1
                    self.after_epoch()
            finally:
                self.after_train()
        return self._last_eval_results
