"""Data loaders of the two stages, of feature extraction and of the host's baselines."""

import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized

import torch
import torchvision.transforms as T
from fastreid.config import CfgNode
from fastreid.data.transforms import ToTensor, build_transforms
from fastreid.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..compat import SteadyLoader
from ..processes import share_of, stop_if_asked
from .datasets import Item
from .items import source_items, test_items, training_items
from .samplers import IdentityBatches, ShuffledBatches, derive_seed, seeded
from .tracklets import Tracklets
from .views import CropCache, MultiViewDataset, build_view_transforms, open_cache

# ---- training: K views of the target, the source -------------------------------------------------


class TargetLoader:
    """Epochs of batches of K views of the unlabelled target.

    Args:
        cfg: the run's config.
        items: (path, identity, camera) of the target's N images, and their track where they have one; the
            identities are not read.

    Attributes:
        cache: of the decoded images, None without; for :func:`extraction_loader`.
    """

    def __init__(self, cfg: CfgNode, items: Sequence[Item]):
        self.cfg = cfg
        self.cameras = [item[2] for item in items]
        tracklets = Tracklets.from_items(items)
        self.tracklets = None if tracklets is None else tracklets.of_image
        (self._views,), self.cache = _view_loaders(cfg, items, num_views=cfg.SSKD.NUM_PEERS)

    def epoch(self, labels: Sequence[int], seed: int, start: int = 0) -> "Epoch":
        """One epoch of ``SSKD.ITERS_PER_EPOCH`` batches, images without a pseudo-label left out.

        Args:
            labels: (N,) pseudo-labels, -1 for none.
            seed: of this epoch.
            start: batches to leave out at its beginning.
        """
        cfg = self.cfg
        batches = IdentityBatches(
            labels, self.cameras, self.tracklets, batch_size=cfg.SOLVER.IMS_PER_BATCH,
            num_instances=cfg.DATALOADER.NUM_INSTANCE, num_batches=cfg.SSKD.ITERS_PER_EPOCH, seed=seed,
        )  # fmt: skip
        return self._views.epoch(batches, start)


def adaptation_loader(
    cfg: CfgNode, items: Sequence[Item], labels: Sequence[int], seed: int, start: int = 0
) -> "Epoch":
    """One epoch of a :class:`TargetLoader` of its own."""
    return TargetLoader(cfg, items).epoch(labels, seed, start)


class SourceLoader:
    """Epochs of batches of the labelled source, each with a batch of unlabelled target images.

    Args:
        cfg: a stage 1 config: ``DATASETS.NAMES`` the source, ``SSKD.SOURCE.BN_DATASETS`` the target (may be
            empty).
        seed: of the run.
    """

    def __init__(self, cfg: CfgNode, seed: int):
        self.cfg = cfg
        self.seed = seed
        self.items, self.labels = source_items(cfg)
        self.num_classes = max(self.labels) + 1
        bn_names = cfg.SSKD.SOURCE.BN_DATASETS
        self.bn_items = training_items(bn_names, cfg.SSKD.FOLDERS) if bn_names else []
        (self._source, self._bn), _ = _view_loaders(cfg, self.items, self.bn_items)

    def epoch(self, epoch: int, start: int = 0) -> Iterable[dict]:
        """The ``SSKD.ITERS_PER_EPOCH`` batches of an epoch from number ``start`` on."""
        cfg = self.cfg
        shape = {"batch_size": cfg.SOLVER.IMS_PER_BATCH, "num_batches": cfg.SSKD.ITERS_PER_EPOCH}
        batches = IdentityBatches(
            self.labels, [item[2] for item in self.items], num_instances=cfg.DATALOADER.NUM_INSTANCE,
            seed=derive_seed(self.seed, epoch, 0), **shape,
        )  # fmt: skip
        source = self._source.epoch(batches, start)
        if not self.bn_items:
            return source
        shuffled = ShuffledBatches(len(self.bn_items), seed=derive_seed(self.seed, epoch, 1), **shape)
        return _WithBNImages(source, self._bn.epoch(shuffled, start))


class _WithBNImages:
    """Source batches with the target's images as "bn_images"; the workers of both start with ``iter``."""

    def __init__(self, source: "Epoch", target: "Epoch"):
        self.source = source
        self.target = target

    def __iter__(self) -> Iterator[dict]:
        pairs = zip(iter(self.source), iter(self.target))
        return ({**batch, "bn_images": bn_batch["images"]} for batch, bn_batch in pairs)


def _view_loaders(
    cfg: CfgNode, *images: Sequence[Item], num_views: int = 0
) -> tuple[list["EpochLoader"], CropCache | None]:
    """For each of some sets of images, a loader of views; and the cache that all share."""
    once, augment = build_view_transforms(cfg)
    cache = open_cache(cfg, [item[0] for items in images for item in items], once)
    data_sets = (MultiViewDataset(items, once, augment, num_views, cache=cache) for items in images)
    return [EpochLoader(data_set, device=cfg.MODEL.DEVICE, **_options(cfg)) for data_set in data_sets], cache


def _options(cfg: CfgNode) -> dict:
    on_cuda = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    return {"num_workers": cfg.DATALOADER.NUM_WORKERS, "pin_memory": on_cuda}


# ---- epochs --------------------------------------------------------------------------------------


class EpochLoader:
    """Loads one epoch after the other with the same workers, which start once.

    What changes with an epoch (labels, seeds) is in its batches, which the main process draws; workers know
    the data set only. torch's generators are left alone, the seed for workers included.

    Args:
        dataset: takes what the batches are made of; a change to it after the first epoch does not reach the
            workers.
        device: where the images of a batch go; None: they stay.
        num_workers, **kwargs: for :class:`torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Dataset, *, device: str | None = None, num_workers: int = 0, **kwargs):
        self.dataset = dataset
        self.device = device
        self._batches: list[Iterable[Sequence]] = [[]]  # of the epoch that is being read
        self._loader = SteadyLoader(
            dataset, batch_sampler=_Current(self._batches), num_workers=num_workers,
            persistent_workers=num_workers > 0, generator=torch.Generator(), **kwargs,
        )  # fmt: skip
        self._begun = 0

    def epoch(self, batches: Sized, start: int = 0) -> "Epoch":
        """The batches of an epoch from number ``start`` on. Nothing is loaded before ``iter``.

        Args:
            batches: what each is made of; the same at every ``iter``.

        Raises:
            ValueError: if there are fewer than ``start``.
        """
        if not 0 <= start <= len(batches):
            raise ValueError(f"an epoch of {len(batches)} batches cannot be resumed after {start}")
        return Epoch(self, batches, start)

    def read(self, batches: Iterable[Sequence]) -> Iterator:
        """Begin an epoch, which ends the one before; workers start now, not at the first ``next``."""
        self._begun += 1
        self._batches[0] = batches
        return self._read(iter(self._loader), self._begun)

    def _read(self, loaded: Iterator, number: int) -> Iterator:
        while True:
            if number != self._begun:  # its workers load for another one
                raise RuntimeError("another epoch of this loader has begun: read one after the other")
            try:
                batch = next(loaded)
            except StopIteration:
                return
            yield self._on_device(batch)

    def _on_device(self, batch):
        if self.device is None:
            return batch
        return {**batch, "images": batch["images"].to(self.device, non_blocking=True)}


class _Current:
    """The batch sampler of a loader that lives longer than its batches."""

    def __init__(self, batches: list[Iterable[Sequence]]):
        self.batches = batches

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.batches[0])


class Epoch:
    """The batches of one epoch of an :class:`EpochLoader`; every ``iter`` begins it again."""

    def __init__(self, loader: EpochLoader, batches: Sized, start: int = 0):
        self.loader = loader
        self.batches = batches
        self.start = start

    @property
    def dataset(self) -> Dataset:
        """The loader's."""
        return self.loader.dataset

    def __len__(self) -> int:
        return len(self.batches) - self.start

    def __iter__(self) -> Iterator:
        return self.loader.read(itertools.islice(iter(self.batches), self.start, None))


# ---- every image once, in order ------------------------------------------------------------------


def extraction_loader(
    cfg: CfgNode, items: Sequence[Item], shared: bool = False, cache: CropCache | None = None
) -> Iterable[dict]:
    """Load every image once, in order, with the test transforms; blind to identities.

    Args:
        cfg: the run's config.
        items: (path, identity, camera) of N images; only the paths are read. A PIL image may take the place
            of its path.
        shared: this rank's shard of the batches, in the order of the ranks; see
            :func:`..processes.gather_rows`.
        cache: of a :class:`TargetLoader`; is used where training and test images are resized alike.
    """
    return _in_order(cfg, [(item[0], 0, 0) for item in items], shared, cache)


def test_loader(cfg: CfgNode, name: str) -> tuple[Iterable[dict], int]:
    """Load the query, then the gallery of a data set, this rank's shard; and count the queries.

    The host's evaluators gather what they are given, in the order of the ranks.
    """
    query, gallery = test_items(name, cfg.SSKD.FOLDERS)
    return _in_order(cfg, query + gallery, shared=True), len(query)


def image_size(cfg: CfgNode) -> list[int]:
    """(height, width) of the images of these loaders: of ``INPUT.CROP`` if it cuts them."""
    crop = cfg.INPUT.CROP
    return (list(crop.SIZE) * 2)[:2] if crop.ENABLED else list(cfg.INPUT.SIZE_TEST)


def _in_order(
    cfg: CfgNode, items: Sequence[tuple], shared: bool, cache: CropCache | None = None
) -> "_OnDevice":
    """Load every image once, in batches of ``TEST.IMS_PER_BATCH``."""
    *once, to_tensor = build_transforms(cfg, is_train=False).transforms
    assert isinstance(to_tensor, ToTensor)  # the host's test transforms end with it
    once = T.Compose(once)
    if cache is None or repr(cache.once) != repr(once):
        cache = CropCache(once)
    dataset, options = _InOrder(items, cache), _options(cfg)
    size, world = cfg.TEST.IMS_PER_BATCH, comm.get_world_size()
    if len(dataset) <= size:  # to start workers takes longer than the batch
        options["num_workers"] = 0
    if not shared or world == 1:
        batches: dict = {"batch_size": size}
    else:
        if len(dataset) < size * world:  # fewer batches than processes
            size = max(1, -(-len(dataset) // world))
        all_batches = [range(at, min(at + size, len(dataset))) for at in range(0, len(dataset), size)]
        batches = {"batch_sampler": share_of(all_batches)}
    return _OnDevice(SteadyLoader(dataset, **batches, **options), cfg.MODEL.DEVICE)


class _InOrder(Dataset):
    """Every image once, after the test transforms, 8-bit, under the keys of the host's batches."""

    def __init__(self, items: Sequence[tuple], crops: CropCache):
        self.items = items
        self.crops = crops

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        image, identity, camera = self.items[index]
        path = image if isinstance(image, str) else ""
        return {"images": self.crops.read(image), "targets": identity, "camids": camera, "img_paths": path}


class _OnDevice:
    """Batches with images on a device as float32 in 0..255; between two a signal may end the run."""

    def __init__(self, loader: DataLoader, device: str):
        self.loader = loader
        self.dataset, self.batch_size = loader.dataset, loader.batch_size  # the host's evaluation counts it
        self.device = device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict]:
        try:
            yield from map(self._on_device, iter(self.loader))
        except OSError as error:  # before what it says, torch puts the traceback of a worker
            kind = type(error)
            raise kind(str(error).strip().rpartition(f"\n{kind.__name__}: ")[2]) from error

    def _on_device(self, batch: dict) -> dict:
        stop_if_asked()
        return {**batch, "images": batch["images"].to(self.device, non_blocking=True).float()}


# ---- the host's training loaders -----------------------------------------------------------------


class HostEpochs:
    """The epochs of one of the host's training loaders, each a function of (seed, epoch).

    The host's samplers never end and draw from NumPy's global generator, as its transforms do from three of
    them, so that no place in their sequence can be found again. Here a sampler starts from scratch every
    epoch, with a seed of its own, and every image is augmented under its own seed.

    Args:
        loader: from ``build_reid_train_loader``; its sampler, data set, collation and workers are used.
        seed: of the run.
        num_batches: length of an epoch.
    """

    def __init__(self, loader: DataLoader, seed: int, num_batches: int):
        self.loader = loader
        self.seed = seed
        self.num_batches = num_batches
        self._epochs = EpochLoader(
            _Seeded(loader.dataset), num_workers=loader.num_workers, collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
        )  # fmt: skip

    def epoch(self, epoch: int, start: int = 0) -> Epoch:
        """The batches of an epoch from number ``start`` on."""
        return self._epochs.epoch(self._batches(derive_seed(self.seed, epoch)), start)

    def _batches(self, seed: int) -> list[list[tuple[int, int]]]:
        sampler, size = self.loader.batch_sampler.sampler, self.loader.batch_sampler.batch_size
        with seeded(seed):
            sampler._seed = seed  # the host's samplers seed the generator themselves, with this
            indices = list(itertools.islice(iter(sampler), self.num_batches * size))
        first = comm.get_rank() * size  # the host's samplers give every rank a shard of their own
        return [
            [
                (int(index), derive_seed(seed, batch, place))
                for place, index in enumerate(indices[at : at + size], first)
            ]
            for batch, at in enumerate(range(0, len(indices), size))
        ]


class _Seeded(Dataset):
    """A data set of the host whose random transforms are drawn under the seed beside the index."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: tuple[int, int]):
        index, seed = draw
        with seeded(seed):
            return self.dataset[index]
