"""Stage 2: adapt K peers to the unlabelled target."""

import logging
import os
from collections.abc import Iterable, Sequence

import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase
from fastreid.utils import comm
from torch import nn

from ..clustering import ClusterOptions, PseudoLabelError, check_options
from ..data import SourceLoader, TargetLoader, Tracklets, training_items
from ..data.items import source_items
from ..data.samplers import check_training_batch, derive_seed
from ..data.views import build_view_transforms
from ..evaluation.evaluator import evaluate_peers
from ..losses.loss_set import build_losses
from ..modeling import ema_momentum, load_source_weights
from ..modeling.bn_chunk import say_without_batch_norm
from ..modeling.weights import is_sskd_state, load_exactly, load_network, read_state_dict
from ..processes import Stopped, broadcast_buffers, on_main
from .defaults import starts_from_backbone
from .events import Record
from .hooks import LabelFreeSelection, PeerEMA, PseudoLabelRefresh
from .refresh import estimate_necks
from .train_step import build_optimizer, reset_optimizer
from .trainer import Trainer

logger = logging.getLogger("fastreid.sskd.stages")

#: share of a run's steps that a teacher had better not average over: it lags behind by as much
LONG_WINDOW = 0.25


class AdaptationTrainer(Trainer):
    """Trains an ``SSKD`` model: a refresh before every epoch, peer EMA after every step.

    Attributes:
        items: (path, identity, camera) of the target's training images; identities are for diagnostics only.
        record: every evaluation so far and the best teacher.
        absent: tensors that the weights which a run starts from lacked, of each peer; () for a run that is
            resumed.
    """

    absent: Sequence[Sequence[str]] = ()

    def prepare_data(self, cfg: CfgNode) -> tuple[int, int]:
        check_training_batch(cfg)
        self.items = training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS)
        self._loader = TargetLoader(cfg, self.items)
        return 0, cfg.SSKD.ITERS_PER_EPOCH  # the first refresh makes the classes

    def training_images(self) -> dict[str, list[str]]:
        return {"DATASETS.NAMES": [item[0] for item in self.items]}

    @classmethod
    def check_data(cls, cfg: CfgNode) -> tuple[int, int]:
        check_training_batch(cfg)
        if cfg.DATASETS.COMBINEALL:
            raise ValueError(
                "DATASETS.COMBINEALL would train on the target's query and gallery, which the result is "
                "measured on: set it to False; a source may have it, in SSKD.SOURCE.CONFIG"
            )
        items = training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS)
        tracklets = Tracklets.from_items(items)
        check_options(ClusterOptions.from_cfg(cfg), len(items if tracklets is None else tracklets))
        build_view_transforms(cfg)
        return 0, cfg.SSKD.ITERS_PER_EPOCH

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the peers, without ImageNet weights if source models or a checkpoint replace them."""
        model = super().build_model(cfg)
        say_without_batch_norm(model.students)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, list(model.students))

    def build_hooks(self) -> list[HookBase]:
        self.refresh = PseudoLabelRefresh(
            self.cfg, self.model, self.items, self.start_epoch_with, self._loader.cache
        )
        self.record = Record(self.cfg.DATASETS.TESTS, self.cfg.SSKD.SELECT_BY)
        self.checkpointer.checkpointables.update(refresh=self.refresh, record=self.record)
        selection = [LabelFreeSelection(self.refresh, self.record)] if self.record.label_free else []
        return [self.refresh, PeerEMA(self.model, self._momentum()), *selection, *super().build_hooks()]

    def _momentum(self) -> float:
        """The upper bound of the teachers' alpha."""
        momentum = ema_momentum(self.cfg.SSKD.EMA.MOMENTUM, self.cfg.SSKD.EMA.WINDOW, self.max_iter)
        window = 1 / (1 - momentum) if momentum < 1 else float("inf")
        if momentum and window > self.max_iter * LONG_WINDOW * (1 + 1e-9):
            logger.warning(
                "the teachers average over %.0f steps, more than a quarter of the run's %d, and lag behind "
                "the students: set SSKD.EMA.WINDOW, a share of the run (the method's is 0.125)",
                window, self.max_iter,
            )  # fmt: skip
        return momentum

    def before_epoch(self) -> None:
        """Begin with a refresh; where it fails or is stopped, keep what the epochs so far have learned."""
        if self.absent:
            on_main(lambda: estimate_necks(self.cfg, self.model, self.items, self.absent, self._loader.cache))
            self.absent = ()
        try:
            super().before_epoch()
        except (PseudoLabelError, Stopped):
            # a refused refresh changes nothing, so this is the state that the last epoch ended with
            if self.epoch > self.start_epoch:
                self._checkpoints.save_epoch(self.epoch - 1)
            comm.synchronize()  # the others end when the main process has written
            raise

    def start_epoch_with(self, labels) -> None:
        """Method, refresh step 6: a fresh optimiser and fresh batches over the labelled images (N,)."""
        reset_optimizer(self.optimizer)
        self.labels = labels

    def epoch_batches(self, epoch: int, start: int = 0) -> Iterable:
        return self._loader.epoch(self.labels, derive_seed(self.cfg.SEED, epoch), start)

    def resume_from(self, path: str) -> None:
        super().resume_from(path)
        if self.refresh.labels is None:
            return
        self.labels = self.refresh.labels.numpy()
        if len(self.labels) != len(self.items):
            raise ValueError(
                f"{path} has labels of {len(self.labels)} images, and the target has {len(self.items)} now: "
                "resume with the images that the run began with, or give another OUTPUT_DIR to start from "
                "scratch"
            )

    def networks(self) -> Sequence[nn.Module]:
        return [*self.model.students, *self.model.teachers]

    def load_weights(self) -> None:
        """Start from ``MODEL.WEIGHTS``: a whole SSKD checkpoint, or one source model for all peers."""
        path = self.cfg.MODEL.WEIGHTS
        if not path:
            if starts_from_backbone(self.cfg):
                self.absent = [
                    [name for name in student.state_dict() if not name.startswith("backbone.")]
                    for student in self.model.students
                ]
            return
        state = read_state_dict(path)
        if is_sskd_state(state):
            load_exactly(self.model, state, path)
        else:
            self.start_from([path])

    def start_from(self, paths: Sequence[str]) -> None:
        """Start the peers from source weights, see :func:`..modeling.load_source_weights`."""
        self.absent = load_source_weights(self.model, paths)

    def keep_start(self, value: float) -> None:
        """Make the state before any epoch, whose metric is ``value``, the best so far."""
        self._checkpoints.save_start(value)

    @property
    def metric_name(self) -> str:
        """What ``model_best`` is chosen by: ``Record.metric``, or without labels ``LabelFreeSelection``."""
        return "selection/score" if self.record.label_free else "metric"

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """Every teacher and the ensemble: {data set: {row: metrics}}."""
        return evaluate_peers(cfg, model)

    def evaluate(self, epoch: int | None = None) -> dict:
        """Evaluate, keep the result in ``record``, mark the best teacher in the model and log the table.

        Args:
            epoch: epochs done; None: those of the running training.
        """
        broadcast_buffers(self.model)
        results = self.test(self.cfg, self.model)
        results = on_main(lambda: results)
        best = self.record.add(self.epoch + 1 if epoch is None else epoch, results)
        self.model.best_peer.fill_(best)
        logger.info("after %d epochs:\n%s", self.record.last["epoch"], self.record.table())
        if self.cfg.OUTPUT_DIR and comm.is_main_process():
            self.record.write(os.path.join(self.cfg.OUTPUT_DIR, "results.json"))
        self._last_eval_results = {**results, "metric": self.record.metric}
        return self._last_eval_results


class SourceTrainer(Trainer):
    """Trains an ``SSKDSource`` on identity batches of the source; batch norm sees the target too."""

    def prepare_data(self, cfg: CfgNode) -> tuple[int, int]:
        check_training_batch(cfg)
        self._loader = SourceLoader(cfg, seed=cfg.SEED)
        return self._loader.num_classes, cfg.SSKD.ITERS_PER_EPOCH

    @property
    def metric_name(self) -> str:
        """``model_best`` is chosen by mAP on the first test set, as in the released code."""
        tests = self.cfg.DATASETS.TESTS
        return f"{tests[0]}/mAP" if len(tests) > 1 else "mAP"

    def training_images(self) -> dict[str, list[str]]:
        loader = self._loader
        return {
            "DATASETS.NAMES": [item[0] for item in loader.items],
            "SSKD.SOURCE.BN_DATASETS": [item[0] for item in loader.bn_items],
        }

    @classmethod
    def check_data(cls, cfg: CfgNode) -> tuple[int, int]:
        check_training_batch(cfg)
        for _, loss in build_losses(cfg).active:
            if loss.requires:
                raise ValueError(
                    f"{type(loss).__name__} needs {', '.join(loss.requires)}, which stage 1 has not: set "
                    "its WEIGHT in SSKD.LOSSES to 0"
                )
        _, labels = source_items(cfg)
        if cfg.SSKD.SOURCE.BN_DATASETS:
            training_items(cfg.SSKD.SOURCE.BN_DATASETS, cfg.SSKD.FOLDERS)
        build_view_transforms(cfg)
        return max(labels) + 1, cfg.SSKD.ITERS_PER_EPOCH

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        say_without_batch_norm([model])
        return model

    def epoch_batches(self, epoch: int, start: int = 0) -> Iterable:
        return self._loader.epoch(epoch, start)

    def load_weights(self) -> None:
        """Start from ``MODEL.WEIGHTS``: any fast-reid checkpoint of the same backbone, or a bare backbone."""
        path = self.cfg.MODEL.WEIGHTS
        if path:
            load_network(self.model, read_state_dict(path), path)
