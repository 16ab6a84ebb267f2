"""Stage 1: pre-train one peer on the labelled source."""
from collections.abc import Iterable

from fastreid.config import CfgNode

from ..data import SourceLoader
from ..modeling.weights import load_network, read_state_dict
from .shares import check_shares
from .trainer import Trainer

__all__ = ["SourceTrainer"]


class SourceTrainer(Trainer):
    """Trains an ``SSKDSource``: identity batches of the source, and the target's images through batch norm."""

    def prepare_data(self, cfg: CfgNode) -> tuple[int, int]:
        check_shares(cfg)
        self._loader = SourceLoader(cfg, seed=cfg.SEED)
        return self._loader.num_classes, cfg.SSKD.ITERS_PER_EPOCH

    def epoch_batches(self, epoch: int, start: int = 0) -> Iterable:
        return self._loader.epoch(epoch, start)

    def load_weights(self) -> None:
        """Start from ``MODEL.WEIGHTS``: any fast-reid checkpoint of the same backbone, or a bare backbone."""
        path = self.cfg.MODEL.WEIGHTS
        if path:
            load_network(self.model, read_state_dict(path), path)
