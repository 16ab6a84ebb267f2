"""Epochs that can be taken up at any batch: an epoch's batches are a list that its seed makes, read from a place on."""
import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized

from fastreid.utils import comm
from torch.utils.data import DataLoader, Dataset

from ..processes import share_of
from .epoch_loader import Epoch, EpochLoader
from .seeding import derive_seed, seeded

__all__ = ["BatchesFrom", "HostEpochs", "SharedBatches"]


class BatchesFrom:
    """A batch sampler without its first ``start`` batches: they are drawn, but nobody reads their images.

    Args:
        batches: gives the batches of an epoch, the same at every ``iter``.
        start: batches to leave out.

    Raises:
        ValueError: if there are not so many.
    """

    def __init__(self, batches: Iterable[Sequence], start: int = 0):
        if isinstance(batches, Sized) and not 0 <= start <= len(batches):
            raise ValueError(f"an epoch of {len(batches)} batches cannot go on after {start}")
        self.batches = batches
        self.start = start

    def __len__(self) -> int:
        return len(self.batches) - self.start

    def __iter__(self) -> Iterator[Sequence]:
        return itertools.islice(iter(self.batches), self.start, None)


class SharedBatches:
    """Of every batch the contiguous share of this process: images and their seeds are those of the whole batch.

    Args:
        batches: gives the whole batches of an epoch, the same in every process.
    """

    def __init__(self, batches: Sized):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Sequence]:
        return (share_of(batch) for batch in self.batches)


class _Seeded(Dataset):
    """A data set of the host whose random transforms are drawn from the seed that comes with the index."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: tuple[int, int]):
        index, seed = draw
        with seeded(seed):
            return self.dataset[index]


class HostEpochs:
    """The epochs of one of the host's training loaders, each a function of (seed, epoch).

    The host's samplers go on for ever and draw from NumPy's global generator, as its transforms do from three of them, so
    that no place in their sequence can be found again. Here a sampler begins anew every epoch, with a seed of its own, and
    every image is augmented under its own seed.

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
            _Seeded(loader.dataset), num_workers=loader.num_workers, collate_fn=loader.collate_fn, pin_memory=loader.pin_memory
        )

    def epoch(self, epoch: int, start: int = 0) -> Epoch:
        """The batches of an epoch from number ``start`` on."""
        return self._epochs.epoch(BatchesFrom(self._batches(derive_seed(self.seed, epoch)), start))

    def _batches(self, seed: int) -> list[list[tuple[int, int]]]:
        sampler, size = self.loader.batch_sampler.sampler, self.loader.batch_sampler.batch_size
        with seeded(seed):
            sampler._seed = seed  # the host's samplers seed the generator themselves, with this
            indices = list(itertools.islice(iter(sampler), self.num_batches * size))
        first = comm.get_rank() * size  # the host's samplers give every process a share of their own
        return [
            [(int(index), derive_seed(seed, batch, place)) for place, index in enumerate(indices[at:at + size], first)]
            for batch, at in enumerate(range(0, len(indices), size))
        ]
