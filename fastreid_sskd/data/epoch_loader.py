"""One data loader for all epochs: its workers start once, and what they load comes with each epoch's batches."""
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from ..compat import SteadyLoader

__all__ = ["Epoch", "EpochLoader"]


class _Batches:
    """The batch sampler of a loader that lives longer than its batches."""

    def __init__(self):
        self.current: Iterable[Sequence] = []

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.current)


class EpochLoader:
    """Loads the batches of one epoch after the other with the same workers.

    Everything that changes with an epoch (labels, seeds) is in the batches, which the main process draws; workers know the data set
    only. torch's generators are left alone, the seed for workers included.

    Args:
        dataset: takes what the batches are made of; a change to it after the first epoch does not reach the workers.
        finish: applied to every batch in the main process.
        num_workers, **kwargs: for :class:`torch.utils.data.DataLoader`.
    """

    def __init__(self, dataset: Dataset, *, finish: Callable[[Any], Any] | None = None, num_workers: int = 0, **kwargs):
        self.dataset = dataset
        self._finish = finish
        self._batches = _Batches()
        self._loader = SteadyLoader(
            dataset, batch_sampler=self._batches, num_workers=num_workers, persistent_workers=num_workers > 0,
            generator=torch.Generator(), **kwargs,
        )  # fmt: skip
        self._begun = 0

    def epoch(self, batches: Iterable[Sequence]) -> "Epoch":
        """The batches of an epoch. Nothing is loaded before ``iter``; then the epoch that was being read before is over."""
        return Epoch(self, batches)

    def read(self, batches: Iterable[Sequence]) -> Iterator:
        """Begin to load (with ``iter``'s meaning: workers start now, not at the first ``next``)."""
        self._begun += 1
        self._batches.current = batches
        return self._read(iter(self._loader), self._begun)

    def _read(self, loaded: Iterator, number: int) -> Iterator:
        while True:
            if number != self._begun:  # its workers load for another one
                raise RuntimeError("another epoch of this loader has begun: read one after the other")
            try:
                batch = next(loaded)
            except StopIteration:
                return
            yield batch if self._finish is None else self._finish(batch)


class Epoch:
    """The batches of one epoch of an :class:`EpochLoader`; every ``iter`` begins it anew."""

    def __init__(self, loader: EpochLoader, batches: Iterable[Sequence]):
        self.loader = loader
        self.batches = batches

    @property
    def dataset(self) -> Dataset:
        """The loader's."""
        return self.loader.dataset

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator:
        return self.loader.read(self.batches)
