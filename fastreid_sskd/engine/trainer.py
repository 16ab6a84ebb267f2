"""The host's trainer made to work on a current stack, with and without CUDA: for any fast-reid config."""

import logging
import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.data import build_reid_train_loader
from fastreid.engine import DefaultTrainer, hooks
from fastreid.engine.train_loop import TrainerBase
from fastreid.evaluation.testing import print_csv_format
from fastreid.solver import build_lr_scheduler
from fastreid.utils import comm
from fastreid.utils.events import EventStorage
from torch import nn

from ..data.items import check_identities, training_items
from ..data.loaders import HostEpochs, test_loader
from ..data.samplers import check_batch, derive_seed, images_per_bn
from ..evaluation.evaluator import BlockwiseEvaluator, evaluate_encoder
from ..evaluation.features import Encoder
from ..modeling.weights import load_model
from ..precision import Precision
from ..processes import (
    Stopped,
    StopRequest,
    agree,
    broadcast_buffers,
    broadcast_model,
    check_agreement,
    listen,
    on_every,
    on_main,
)
from .check_config import build_network, check_settings
from .checkpoint import (
    Checkpointer,
    check_same_images,
    check_same_run,
    image_names,
    last_checkpoint,
    plain_config,
    random_state,
    restore_random_state,
)
from .defaults import as_started, keep_config, seed_everything, start_run, use_device
from .events import build_writers
from .hooks import Checkpoints, FreezeLayers, PeriodicEvaluation, ScalarWriters
from .train_step import TrainingStep, build_optimizer, compile_backbones, reset_peak_memory

logger = logging.getLogger("fastreid.sskd.trainer")


class Trainer(DefaultTrainer):
    """``fastreid.engine.DefaultTrainer`` for plain configs, and the base of the two stages of SSKD.

    Differs from the host where that is broken (see also ``fastreid_sskd.compat``): parameters are optimised
    themselves, not a flat buffer that gradients never reach; mixed precision works without CUDA; an epoch has
    at least one iteration; evaluation can be off; a failure before the first step shows its own error. A run
    that is saved after any step and resumed ends as one that was never interrupted: the batches of an epoch
    are a function of the seed and the epoch.
    """

    def __init__(self, cfg: CfgNode):
        TrainerBase.__init__(self)
        check_settings(cfg, ("SOLVER.", "TEST.", "SSKD.KEEP_CHECKPOINTS", "SSKD.CHECKPOINT_"))
        num_classes, self.iters_per_epoch = self.prepare_data(cfg)
        if cfg.OUTPUT_DIR:
            os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)  # the host writes its config there without asking
        self._given = plain_config(cfg)
        with keep_config(cfg.OUTPUT_DIR):
            cfg = self.auto_scale_hyperparams(cfg, num_classes)
        model = self.build_model(cfg)
        precision = Precision(cfg)
        precision.lay_out(model)
        if cfg.SSKD.COMPILE:
            compile_backbones(model)
        optimizer = self.build_optimizer(cfg, model)
        # another device is waited for to read its losses, so that is done when they are written
        every = 1 if precision.device_type == "cpu" else cfg.SSKD.LOG_PERIOD
        self._trainer = TrainingStep(
            model, optimizer, precision, read_every=every, epoch_length=self.iters_per_epoch
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer, self.iters_per_epoch)
        self.checkpointer = Checkpointer(
            model, cfg.OUTPUT_DIR, save_to_disk=comm.is_main_process(), optimizer=optimizer, **self.scheduler
        )
        self.checkpointer.stamp = {
            "config": self._given, "processes": comm.get_world_size(),
            "images": {key: image_names(paths) for key, paths in self.training_images().items()},
        }  # fmt: skip
        if self.grad_scaler is not None:
            self.checkpointer.checkpointables["grad_scaler"] = self.grad_scaler

        self.cfg = cfg
        self.start_epoch, self.max_epoch = 0, cfg.SOLVER.MAX_EPOCH
        self.max_iter = self.max_epoch * self.iters_per_epoch
        self.warmup_iters, self.delay_epochs = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.DELAY_EPOCHS
        self._started = False
        self._position: dict[str, Any] = {}  # of the checkpoint that is resumed from
        self._last_eval_results: dict[str, Any] = {}
        self.register_hooks(self.build_hooks())

    # ---- what a stage may change -----------------------------------------------------------------

    def prepare_data(self, cfg: CfgNode) -> tuple[int, int]:
        """Find out what there is to train on: the number of classes and the iterations of an epoch."""
        loader = self.build_train_loader(cfg)
        iters_per_epoch = self._iters_per_epoch(cfg, loader)
        self._epochs = HostEpochs(
            loader, seed=cfg.SEED if cfg.SEED >= 0 else np.random.randint(2**31), num_batches=iters_per_epoch
        )
        return loader.dataset.num_classes, iters_per_epoch

    def training_images(self) -> dict[str, list[str]]:
        """Paths of the training images by the key that names them; a checkpoint resumes with no others."""
        return {"DATASETS.NAMES": [item[0] for item in getattr(self._epochs.loader.dataset, "img_items", ())]}

    @classmethod
    def check_data(cls, cfg: CfgNode) -> tuple[int, int]:
        """What :meth:`prepare_data` will find, before anything is made."""
        training_items(cfg.DATASETS.NAMES)  # says what is wrong with them, as the host does not
        if cfg.TEST.PRECISE_BN.ENABLED:
            training_items([cfg.TEST.PRECISE_BN.DATASET])
        loader = cls.build_train_loader(cfg)
        check_identities(loader.dataset.num_classes, cfg.DATASETS.NAMES)
        return loader.dataset.num_classes, cls._iters_per_epoch(cfg, loader)

    @staticmethod
    def _iters_per_epoch(cfg: CfgNode, loader) -> int:
        return max(1, len(loader.dataset) // cfg.SOLVER.IMS_PER_BATCH)

    def epoch_batches(self, epoch: int, start: int = 0) -> Iterable:
        """The batches of an epoch from number ``start`` on; those before are not read."""
        return self._epochs.epoch(epoch, start)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """As the host, without ImageNet weights where ``MODEL.WEIGHTS`` takes their place."""
        use_device(cfg.MODEL.DEVICE)
        model = build_network(as_started(cfg))
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, [model])

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer, iters_per_epoch: int) -> dict:
        warmup = max(math.ceil(cfg.SOLVER.WARMUP_ITERS / iters_per_epoch), cfg.SOLVER.DELAY_EPOCHS)
        if cfg.SOLVER.SCHED == "CosineAnnealingLR" and warmup >= cfg.SOLVER.MAX_EPOCH:
            raise ValueError(
                f"warm-up and delay take {warmup} epochs of SOLVER.MAX_EPOCH = {cfg.SOLVER.MAX_EPOCH}, "
                "which leaves none to anneal: lower SOLVER.WARMUP_ITERS or SOLVER.DELAY_EPOCHS"
            )
        return build_lr_scheduler(cfg, optimizer, iters_per_epoch)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        check_batch(cfg.SOLVER.IMS_PER_BATCH, processes=comm.get_world_size())
        return build_reid_train_loader(cfg, combineall=cfg.DATASETS.COMBINEALL)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_dir=None):
        loader, num_query = test_loader(cfg, dataset_name)
        return loader, BlockwiseEvaluator(cfg, num_query, output_dir)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """Metrics in percent, {data set: metrics}, or those of a single one, as the host gives them."""
        encoder, results = Encoder(model, precision=Precision(cfg)), {}
        for name in cfg.DATASETS.TESTS:
            loader, evaluator = cls.build_evaluator(cfg, name)
            (results[name],) = evaluate_encoder(encoder, loader, [evaluator], flip=cfg.TEST.FLIP.ENABLED)
            if comm.is_main_process():
                print_csv_format(OrderedDict(results[name], dataset=name))
        return results if len(results) != 1 else results[name]

    @property
    def metric_name(self) -> str:
        """The scalar that ``model_best`` is chosen by: (mAP + Rank-1) / 2 of the first test set."""
        tests = self.cfg.DATASETS.TESTS
        return f"{tests[0]}/metric" if len(tests) > 1 else "metric"

    def evaluate(self) -> dict:
        """Evaluate on ``DATASETS.TESTS``; the host's nested dict of metrics in percent."""
        broadcast_buffers(self.model)
        results = self.test(self.cfg, self.model)
        self._last_eval_results = on_main(lambda: results)
        return self._last_eval_results

    def build_hooks(self) -> list[hooks.HookBase]:
        """Timer, precise BN, freezing, evaluation, learning rate as in the host; then writers, checkpoints.

        An evaluation that a signal ends is begun again on resume, so the rate of the next epoch comes after.
        """
        cfg = self.cfg
        ret = [hooks.IterationTimer()]
        if cfg.TEST.PRECISE_BN.ENABLED and hooks.get_bn_modules(self.model):
            ret.append(self._precise_bn())
        if cfg.MODEL.FREEZE_LAYERS and cfg.SOLVER.FREEZE_ITERS > 0:
            ret.append(FreezeLayers(self.networks(), cfg.MODEL.FREEZE_LAYERS, cfg.SOLVER.FREEZE_ITERS))
        ret.append(PeriodicEvaluation(cfg.TEST.EVAL_PERIOD, self.evaluate))
        ret.append(hooks.LRScheduler(self.optimizer, self.scheduler))
        writers = ScalarWriters(self.build_writers, cfg.SSKD.LOG_PERIOD)
        self._checkpoints = Checkpoints(
            self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SSKD.KEEP_CHECKPOINTS, self.metric_name,
            seconds=cfg.SSKD.CHECKPOINT_SECONDS, iters=cfg.SSKD.CHECKPOINT_ITERS,
        )  # fmt: skip
        self.checkpointer.checkpointables["scalars"] = writers
        return [*ret, writers, self._checkpoints]

    def networks(self) -> Sequence[nn.Module]:
        """The networks that ``MODEL.FREEZE_LAYERS`` names layers of."""
        return [self.model]

    def build_writers(self) -> list:
        size, folder = self.cfg.SOLVER.IMS_PER_BATCH, self.cfg.OUTPUT_DIR
        return build_writers(folder, self.max_iter, self.start_iter, max_epoch=self.max_epoch, images=size)

    def _precise_bn(self) -> hooks.HookBase:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.DATASETS.NAMES = (cfg.TEST.PRECISE_BN.DATASET,)
        return hooks.PreciseBN(self.model, self.build_train_loader(cfg), cfg.TEST.PRECISE_BN.NUM_ITER)

    # ---- running ---------------------------------------------------------------------------------

    def before_epoch(self) -> None:
        """Hooks log under the epoch's first iteration; its random numbers do not depend on those before.

        Without the seed, a network that draws some itself (dropout) would continue differently on resume.
        """
        self.storage.iter = self.iter
        if self.cfg.SEED >= 0:
            rank = comm.get_rank()
            seed_everything(derive_seed(self.cfg.SEED, self.epoch, *([rank] if rank else [])))
        broadcast_buffers(self.model)
        check_agreement(self.model)
        super().before_epoch()
        reset_peak_memory(self.cfg.MODEL.DEVICE)
        self._trainer.set_data_loader(self.epoch_batches(self.epoch))

    def _take_up_epoch(self, done: int) -> None:
        """Continue an epoch after ``done`` of its steps, instead of beginning it."""
        self.storage.epoch = self.epoch
        self.storage.iter = self.iter - 1 if done else self.iter  # as after the step before
        self._trainer.set_data_loader(self.epoch_batches(self.epoch, done))
        states = self._position["random"]
        if len(states) == comm.get_world_size():  # else there is a warning already
            restore_random_state(states[comm.get_rank()])  # last: the loader draws a seed for its workers

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint in ``OUTPUT_DIR`` if asked, else load MODEL.WEIGHTS."""
        path = on_main(lambda: last_checkpoint(self.cfg.OUTPUT_DIR)) if resume else ""
        if path:
            self.resume_from(path)
        else:
            self.load_weights()

    def resume_from(self, path: str) -> None:
        """Resume from a checkpoint of this run."""
        what = f"cannot resume from {path}"

        def check(saved: dict[str, Any]) -> None:
            check_same_run(saved, self._given, what)
            check_same_images(saved, self.training_images(), what, self.cfg.SSKD.MAY_DIFFER)

        self._position = self.checkpointer.resume(path, check)
        self.start_epoch = self._position.get("epoch", -1) + 1
        now = comm.get_world_size()
        before = self._position.get("processes", now)
        if before != now:
            logger.warning(
                "saved by %d processes, resumed by %d: batch norm saw %d images at once and sees %d from "
                "now on, and bits, and what a network draws, differ; resume with %d for the same run",
                before, now, images_per_bn(self.cfg, before), images_per_bn(self.cfg, now), before,
            )  # fmt: skip

    def load_weights(self) -> None:
        """Load ``MODEL.WEIGHTS``, if any, without the state of its training."""
        if self.cfg.MODEL.WEIGHTS:
            load_model(self.model, self.cfg.MODEL.WEIGHTS)

    def start(self) -> None:
        """Take ``OUTPUT_DIR``, once, by :meth:`train` or what is done before it."""
        if not self._started:
            start_run(self.cfg, from_scratch=not self._position)
            self._started = True

    def train(self) -> dict:
        """Run from where the last checkpoint was to ``max_epoch``; the last evaluation's results, or {}.

        A run that was finished before and is resumed is evaluated again, unless ``TEST.EVAL_PERIOD`` is 0.

        Raises:
            Stopped: SIGTERM or SIGINT came; the run is saved.
            FloatingPointError: a loss or the model is not finite; the checkpoint before is kept.
        """
        self.start()
        if self.start_epoch >= self.max_epoch:
            logger.info("all %d epochs are done: nothing left to train", self.max_epoch)
            self.epoch = self.start_epoch - 1
            self._checkpoints.finish(self.epoch)
            return self.evaluate() if self.cfg.TEST.EVAL_PERIOD else {}
        done = self._position.get("step")  # steps of the epoch that was begun, None between two epochs
        self.iter = self.start_iter = self.start_epoch * self.iters_per_epoch + (done or 0)
        epochs = self.start_epoch, self.max_epoch, self.iters_per_epoch
        logger.info("training epochs %d to %d of %d iterations, from iteration %d", *epochs, self.iter)
        broadcast_model(self.model)
        with listen() as stop, EventStorage(self.start_iter) as self.storage:
            self.before_train()
            try:
                for epoch in range(self.start_epoch, self.max_epoch):
                    self.epoch = epoch
                    if done is None:
                        self.before_epoch()
                        self._between_steps(stop)
                    else:
                        self._take_up_epoch(done)
                    for _ in range(done or 0, self.iters_per_epoch):
                        self.before_step()
                        self.run_step()
                        self.after_step()
                        self.iter += 1
                        self._between_steps(stop)
                    done = None
                    self._end_epoch()
                    self._between_epochs(stop)
            except Stopped:
                comm.synchronize()  # the others end when the main process has written
                logger.warning("stopped after %d iterations; --resume continues from there", self.iter)
                raise
            finally:
                self.after_train()
        return self._last_eval_results

    def _between_steps(self, stop: StopRequest) -> None:
        """Save if it is time to, or to leave; a resumed run continues with the next step."""
        leave, due = agree(stop.signal is not None, self._checkpoints.due(self.iter))
        if leave or due:
            self._save_inside(random_state())
        if leave:
            raise Stopped

    def _save_inside(self, random: dict) -> None:
        self._trainer.losses.read()  # of a run that has diverged nothing is saved
        done = self.iter - self.epoch * self.iters_per_epoch
        self._checkpoints.save_inside(self.iter, epoch=self.epoch - 1, step=done, random=on_every(random))

    def _end_epoch(self) -> None:
        """The hooks' end of an epoch; an evaluation that a signal ends is made again on resume."""
        random = random_state()
        try:
            self.after_epoch()
        except Stopped:
            self._save_inside(random)
            raise

    def _between_epochs(self, stop: StopRequest) -> None:
        (leave,) = agree(stop.signal is not None)
        if leave and self.epoch + 1 < self.max_epoch:
            self._checkpoints.save_epoch(self.epoch)
            raise Stopped
