"""Data loaders of the two stages."""
from collections.abc import Iterable, Iterator, Sequence

import torch
from fastreid.config import CfgNode
from fastreid.data.common import CommDataset
from fastreid.data.transforms import build_transforms
from fastreid.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..processes import share_of
from .epochs import BatchesFrom, SharedBatches
from .items import Item, test_items, training_items
from .multi_view import MultiViewDataset
from .samplers import IdentityBatches, ShuffledBatches
from .seeding import derive_seed
from .transforms import build_view_transforms

__all__ = ["SourceLoader", "adaptation_loader", "extraction_loader", "test_loader"]


def _loader(cfg: CfgNode, dataset: Dataset, **kwargs) -> DataLoader:
    on_cuda = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    return DataLoader(dataset, num_workers=cfg.DATALOADER.NUM_WORKERS, pin_memory=on_cuda, **kwargs)


def _in_order(cfg: CfgNode, dataset: Dataset, shared: bool) -> DataLoader:
    """Every image once, in batches of ``TEST.IMS_PER_BATCH``; ``shared``: this process's share of the batches."""
    size, world = cfg.TEST.IMS_PER_BATCH, comm.get_world_size()
    if not shared or world == 1:
        return _loader(cfg, dataset, batch_size=size)
    if len(dataset) < size * world:  # fewer batches than processes
        size = max(1, -(-len(dataset) // world))
    batches = [range(at, min(at + size, len(dataset))) for at in range(0, len(dataset), size)]
    return _loader(cfg, dataset, batch_sampler=share_of(batches))


def extraction_loader(cfg: CfgNode, items: Sequence[Item], shared: bool = False) -> DataLoader:
    """Every image once, in order, with the test transforms: for the features that are clustered, blind to identities.

    ``shared``: this process's share of the batches, in the order of the ranks; see :func:`..processes.gather_rows`.
    """
    blind = [(item[0], 0, 0) for item in items]
    dataset = CommDataset(blind, build_transforms(cfg, is_train=False), relabel=False)
    return _in_order(cfg, dataset, shared)


def test_loader(cfg: CfgNode, name: str) -> tuple[DataLoader, int]:
    """The query images, then the gallery of a data set, and the number of queries; every process has its share.

    The host's evaluators gather what they are given, in the order of the ranks.
    """
    query, gallery = test_items(name, cfg.SSKD.FOLDERS)
    dataset = CommDataset(query + gallery, build_transforms(cfg, is_train=False), relabel=False)
    return _in_order(cfg, dataset, shared=True), len(query)


def adaptation_loader(
    cfg: CfgNode, items: Sequence[Item], labels: Sequence[int], seed: int, start: int = 0
) -> DataLoader:
    """One epoch of ``SSKD.ITERS_PER_EPOCH`` batches of K views, images without a pseudo-label left out.

    Args:
        cfg: the run's config.
        items: (path, identity, camera) of the target's N images; the identities are not read.
        labels: (N,) pseudo-labels, -1 for none.
        seed: of this epoch.
        start: batches to leave out at its beginning.
    """
    dataset = MultiViewDataset(items, *build_view_transforms(cfg), num_views=cfg.SSKD.NUM_PEERS)
    batches = IdentityBatches(
        labels, [item[2] for item in items], batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_instances=cfg.DATALOADER.NUM_INSTANCE, num_batches=cfg.SSKD.ITERS_PER_EPOCH, seed=seed,
    )
    return _loader(cfg, dataset, batch_sampler=BatchesFrom(SharedBatches(batches), start))


class _Beside:
    """Batches of one loader with the images of another's beside them; the workers of both start with ``iter``."""

    def __init__(self, source: DataLoader, target: DataLoader):
        self.source = source
        self.target = target

    def __iter__(self) -> Iterator[dict]:
        pairs = zip(iter(self.source), iter(self.target))
        return ({**batch, "bn_images": bn_batch["images"]} for batch, bn_batch in pairs)


class SourceLoader:
    """Epochs of batches of the labelled source, with a batch of unlabelled target images beside each.

    Args:
        cfg: a stage 1 config: ``DATASETS.NAMES`` the source, ``SSKD.SOURCE.BN_DATASETS`` the target (may be empty).
        seed: of the run.
    """

    def __init__(self, cfg: CfgNode, seed: int):
        self.cfg = cfg
        self.seed = seed
        self.items = training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS)
        nobody = next((item[0] for item in self.items if item[1] is None), None)
        if nobody is not None:
            raise ValueError(
                f"a source needs identities, and {nobody!r} has none: set the IDENTITY of its node in SSKD.FOLDERS, or "
                "train on this data set as a target"
            )
        names = sorted({item[1] for item in self.items})
        number = {name: i for i, name in enumerate(names)}
        self.labels = [number[item[1]] for item in self.items]
        self.num_classes = len(names)
        self.bn_items = (
            training_items(cfg.SSKD.SOURCE.BN_DATASETS, cfg.SSKD.FOLDERS) if cfg.SSKD.SOURCE.BN_DATASETS else []
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterable[dict]:
        """The ``SSKD.ITERS_PER_EPOCH`` batches of an epoch from number ``start`` on."""
        cfg, transforms = self.cfg, build_view_transforms(self.cfg)
        shape = {"batch_size": cfg.SOLVER.IMS_PER_BATCH, "num_batches": cfg.SSKD.ITERS_PER_EPOCH}
        batches = IdentityBatches(
            self.labels, [item[2] for item in self.items], num_instances=cfg.DATALOADER.NUM_INSTANCE,
            seed=derive_seed(self.seed, epoch, 0), **shape,
        )
        batches = BatchesFrom(SharedBatches(batches), start)
        source = _loader(cfg, MultiViewDataset(self.items, *transforms), batch_sampler=batches)
        if not self.bn_items:
            return source
        shuffled = ShuffledBatches(len(self.bn_items), seed=derive_seed(self.seed, epoch, 1), **shape)
        shuffled = BatchesFrom(SharedBatches(shuffled), start)
        target = _loader(cfg, MultiViewDataset(self.bn_items, *transforms), batch_sampler=shuffled)
        return _Beside(source, target)
