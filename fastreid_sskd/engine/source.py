"""Stage 1: pre-train one peer on the labelled source."""
from collections.abc import Iterable

from fastreid.config import CfgNode
from torch import nn

from ..data import SourceLoader, training_items
from ..data.loaders import source_items
from ..data.samplers import check_batch
from ..data.transforms import build_view_transforms
from ..modeling.weights import load_network, read_state_dict
from .setup import without_pretraining
from .shares import check_shares
from .trainer import Trainer

__all__ = ["SourceTrainer"]


class SourceTrainer(Trainer):
    """Trains an ``SSKDSource``: identity batches of the source, and the target's images through batch norm."""

    def prepare_data(self, cfg: CfgNode) -> tuple[int, int]:
        check_shares(cfg)
        self._loader = SourceLoader(cfg, seed=cfg.SEED)
        return self._loader.num_classes, cfg.SSKD.ITERS_PER_EPOCH

    @classmethod
    def check_data(cls, cfg: CfgNode) -> tuple[int, int]:
        check_batch(cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE)
        check_shares(cfg)
        _, labels = source_items(cfg)
        if cfg.SSKD.SOURCE.BN_DATASETS:
            training_items(cfg.SSKD.SOURCE.BN_DATASETS, cfg.SSKD.FOLDERS)
        build_view_transforms(cfg)
        return max(labels) + 1, cfg.SSKD.ITERS_PER_EPOCH

    def epoch_batches(self, epoch: int, start: int = 0) -> Iterable:
        return self._loader.epoch(epoch, start)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The network; ImageNet weights are not looked for where ``MODEL.WEIGHTS`` takes their place."""
        return super().build_model(without_pretraining(cfg) if cfg.MODEL.WEIGHTS else cfg)

    def load_weights(self) -> None:
        """Start from ``MODEL.WEIGHTS``: any fast-reid checkpoint of the same backbone, or a bare backbone."""
        path = self.cfg.MODEL.WEIGHTS
        if path:
            load_network(self.model, read_state_dict(path), path)
