"""Data loaders of the two stages."""
from collections.abc import Iterator, Sequence

import torch
from fastreid.config import CfgNode
from fastreid.data.common import CommDataset
from fastreid.data.transforms import build_transforms
from torch.utils.data import DataLoader, Dataset

from .items import Item, test_items, training_items
from .multi_view import MultiViewDataset
from .samplers import IdentityBatches, ShuffledBatches
from .seeding import derive_seed
from .transforms import build_view_transforms

__all__ = ["SourceLoader", "adaptation_loader", "extraction_loader", "test_loader"]


def _loader(cfg: CfgNode, dataset: Dataset, **kwargs) -> DataLoader:
    on_cuda = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    return DataLoader(dataset, num_workers=cfg.DATALOADER.NUM_WORKERS, pin_memory=on_cuda, **kwargs)


def extraction_loader(cfg: CfgNode, items: Sequence[Item]) -> DataLoader:
    """Every image once, in order, with the test transforms: for the features that are clustered, blind to identities."""
    blind = [(item[0], 0, 0) for item in items]
    dataset = CommDataset(blind, build_transforms(cfg, is_train=False), relabel=False)
    return _loader(cfg, dataset, batch_size=cfg.TEST.IMS_PER_BATCH)


def test_loader(cfg: CfgNode, name: str) -> tuple[DataLoader, int]:
    """The query images, then the gallery of a registered data set, and the number of queries."""
    query, gallery = test_items(name)
    dataset = CommDataset(query + gallery, build_transforms(cfg, is_train=False), relabel=False)
    return _loader(cfg, dataset, batch_size=cfg.TEST.IMS_PER_BATCH), len(query)


def adaptation_loader(cfg: CfgNode, items: Sequence[Item], labels: Sequence[int], seed: int) -> DataLoader:
    """One epoch of ``SSKD.ITERS_PER_EPOCH`` batches of K views, images without a pseudo-label left out.

    Args:
        cfg: the run's config.
        items: (path, identity, camera) of the target's N images; the identities are not read.
        labels: (N,) pseudo-labels, -1 for none.
        seed: of this epoch.
    """
    dataset = MultiViewDataset(items, *build_view_transforms(cfg), num_views=cfg.SSKD.NUM_PEERS)
    batches = IdentityBatches(
        labels, [item[2] for item in items], batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_instances=cfg.DATALOADER.NUM_INSTANCE, num_batches=cfg.SSKD.ITERS_PER_EPOCH, seed=seed,
    )
    return _loader(cfg, dataset, batch_sampler=batches)


class SourceLoader:
    """Endless batches of the labelled source, with a batch of unlabelled target images beside each.

    Args:
        cfg: a stage 1 config: ``DATASETS.NAMES`` the source, ``SSKD.SOURCE.BN_DATASETS`` the target (may be empty).
        seed: of the run.
        start_epoch: epochs of ``SSKD.ITERS_PER_EPOCH`` batches to begin after.
    """

    def __init__(self, cfg: CfgNode, seed: int, start_epoch: int = 0):
        self.cfg = cfg
        self.seed = seed
        self.start_epoch = start_epoch
        self.items = training_items(cfg.DATASETS.NAMES)
        names = sorted({item[1] for item in self.items})
        number = {name: i for i, name in enumerate(names)}
        self.labels = [number[item[1]] for item in self.items]
        self.num_classes = len(names)
        self.bn_items = training_items(cfg.SSKD.SOURCE.BN_DATASETS) if cfg.SSKD.SOURCE.BN_DATASETS else []

    def _epoch(self, epoch: int) -> Iterator[dict]:
        cfg, transforms = self.cfg, build_view_transforms(self.cfg)
        shape = {"batch_size": cfg.SOLVER.IMS_PER_BATCH, "num_batches": cfg.SSKD.ITERS_PER_EPOCH}
        batches = IdentityBatches(
            self.labels, [item[2] for item in self.items], num_instances=cfg.DATALOADER.NUM_INSTANCE,
            seed=derive_seed(self.seed, epoch, 0), **shape,
        )
        source = _loader(cfg, MultiViewDataset(self.items, *transforms), batch_sampler=batches)
        if not self.bn_items:
            yield from source
            return
        shuffled = ShuffledBatches(len(self.bn_items), seed=derive_seed(self.seed, epoch, 1), **shape)
        target = _loader(cfg, MultiViewDataset(self.bn_items, *transforms), batch_sampler=shuffled)
        for batch, bn_batch in zip(source, target):
            yield {**batch, "bn_images": bn_batch["images"]}

    def __iter__(self) -> Iterator[dict]:
        epoch = self.start_epoch
        while True:
            yield from self._epoch(epoch)
            epoch += 1
