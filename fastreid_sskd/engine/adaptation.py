"""Stage 2: adapt K peers to the unlabelled target."""
import logging
import os
from collections.abc import Iterable

import torch
from fastreid.config import CfgNode
from fastreid.engine.train_loop import HookBase
from torch import nn

from ..clustering import PseudoLabelError
from ..data import adaptation_loader, training_items
from ..data.seeding import derive_seed
from ..evaluation.peers import evaluate_peers
from ..modeling import load_source_weights
from ..modeling.weights import is_sskd_state, read_state_dict
from .hooks import PeerEMA
from .optimizer import build_optimizer, reset_optimizer
from .records import Record
from .refresh import PseudoLabelRefresh
from .setup import without_pretraining
from .trainer import Trainer

__all__ = ["AdaptationTrainer"]

logger = logging.getLogger("fastreid.sskd.adaptation")


class AdaptationTrainer(Trainer):
    """Trains an ``SSKD`` model: a refresh before every epoch, peer EMA after every step.

    Attributes:
        items: (path, identity, camera) of the target's training images; identities are for diagnostics only.
        record: every evaluation so far and the best teacher.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg)
        self.record = Record(cfg.DATASETS.TESTS)
        self.checkpointer.checkpointables["record"] = self.record

    def prepare_data(self, cfg: CfgNode) -> tuple[Iterable, int, int]:
        self.items = training_items(cfg.DATASETS.NAMES)
        return [], 0, cfg.SSKD.ITERS_PER_EPOCH  # the first refresh makes the loader and the classes

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The peers, without ImageNet weights: the source models' or a checkpoint's take their place."""
        return super().build_model(without_pretraining(cfg))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, list(model.students))

    def build_hooks(self) -> list[HookBase]:
        refresh = PseudoLabelRefresh(self.cfg, self.model, self.items, self.start_epoch_with)
        self.checkpointer.checkpointables["refresh"] = refresh
        return [refresh, PeerEMA(self.model, self.cfg.SSKD.EMA.MOMENTUM), *super().build_hooks()]

    def before_epoch(self) -> None:
        """Begin with a refresh; if its labels cannot be trained on, keep what the epochs so far have learned."""
        try:
            super().before_epoch()
        except PseudoLabelError:
            # a refused refresh changes nothing, so this is the state that the last epoch ended with
            if self.epoch > self.start_epoch and self.epoch % self.cfg.SOLVER.CHECKPOINT_PERIOD:
                self.checkpointer.save(f"model_{self.epoch - 1:04d}", epoch=self.epoch - 1)
            raise

    def start_epoch_with(self, labels) -> None:
        """Method, refresh step 6: a fresh optimiser and fresh batches over the labelled images (N,)."""
        reset_optimizer(self.optimizer)
        seed = derive_seed(self.cfg.SEED, self.epoch)
        self._trainer.set_data_loader(adaptation_loader(self.cfg, self.items, labels, seed))

    def load_weights(self) -> None:
        """Start from ``MODEL.WEIGHTS``: a whole SSKD checkpoint, or one source model for all peers."""
        path = self.cfg.MODEL.WEIGHTS
        if not path:
            return
        state = read_state_dict(path)
        if is_sskd_state(state):
            self.checkpointer.load(path, checkpointables=[])
        else:
            load_source_weights(self.model, [path])

    metric_name = "metric"  # see Record.metric

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module) -> dict:
        """Every teacher and the ensemble: {data set: {row: metrics}}."""
        return evaluate_peers(cfg, model)

    def evaluate(self, epoch: int | None = None) -> dict:
        """Evaluate, keep the result in ``record``, mark the best teacher in the model and log the table.

        Args:
            epoch: epochs done; None: those of the running training.
        """
        results = self.test(self.cfg, self.model)
        best = self.record.add(self.epoch + 1 if epoch is None else epoch, results)
        self.model.best_peer.fill_(best)
        logger.info("after %d epochs:\n%s", self.record.last["epoch"], self.record.table())
        if self.cfg.OUTPUT_DIR:
            self.record.write(os.path.join(self.cfg.OUTPUT_DIR, "results.json"))
        self._last_eval_results = {**results, "metric": self.record.metric}
        return self._last_eval_results
