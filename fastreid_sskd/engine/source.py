"""Stage 1: pre-train one peer on the labelled source."""
from collections.abc import Iterable

from fastreid.config import CfgNode

from ..data import SourceLoader, training_items
from ..data.loaders import source_items
from ..data.samplers import check_training_batch
from ..data.views import build_view_transforms
from ..modeling.losses_config import build_losses
from ..modeling.weights import load_network, read_state_dict
from .trainer import Trainer

__all__ = ["SourceTrainer"]


class SourceTrainer(Trainer):
    """Trains an ``SSKDSource``: identity batches of the source, and the target's images through batch norm."""

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
                    f"{type(loss).__name__} needs {', '.join(loss.requires)}, which stage 1 has not: set its WEIGHT in SSKD.LOSSES to 0"
                )
        _, labels = source_items(cfg)
        if cfg.SSKD.SOURCE.BN_DATASETS:
            training_items(cfg.SSKD.SOURCE.BN_DATASETS, cfg.SSKD.FOLDERS)
        build_view_transforms(cfg)
        return max(labels) + 1, cfg.SSKD.ITERS_PER_EPOCH

    def epoch_batches(self, epoch: int, start: int = 0) -> Iterable:
        return self._loader.epoch(epoch, start)

    def load_weights(self) -> None:
        """Start from ``MODEL.WEIGHTS``: any fast-reid checkpoint of the same backbone, or a bare backbone."""
        path = self.cfg.MODEL.WEIGHTS
        if path:
            load_network(self.model, read_state_dict(path), path)
