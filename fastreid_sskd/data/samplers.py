"""Batches as a pure function of (seed, epoch): no generator state, so a run can be taken up at any batch."""
import contextlib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import NamedTuple

import numpy as np
import torch

from ..processes import share_of

__all__ = [
    "BatchesFrom",
    "Draw",
    "IdentityBatches",
    "SharedBatches",
    "ShuffledBatches",
    "check_batch",
    "derive_seed",
    "seeded",
    "seeded_torch",
]


def derive_seed(*keys: int) -> int:
    """A 32-bit seed from any number of non-negative integers (run seed, epoch, position, ...)."""
    return int(np.random.SeedSequence([int(key) for key in keys]).generate_state(1)[0])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run the body with Python's, NumPy's and torch's CPU generators seeded, and restore them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        # torch.manual_seed would also queue a call for every CUDA device in every worker
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


@contextlib.contextmanager
def seeded_torch(seed: int) -> Iterator[None]:
    """As :func:`seeded` for bodies that draw from torch's CPU generator only: what it draws is the same, in 3 us, not 100."""
    state = torch.default_generator.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        torch.default_generator.set_state(state)


class Draw(NamedTuple):
    """One place in a batch: which image, with which label, and the seed of its augmentation."""

    index: int
    label: int
    seed: int


def check_batch(batch_size: int, num_instances: int) -> None:
    """Check that a batch is P >= 1 identities x ``num_instances`` images.

    Raises:
        ValueError: if it cannot be.
    """
    if num_instances < 1 or batch_size < num_instances or batch_size % num_instances:
        raise ValueError(
            f"a batch of SOLVER.IMS_PER_BATCH = {batch_size} images cannot hold identities of "
            f"DATALOADER.NUM_INSTANCE = {num_instances} images each: make the first a multiple of the second"
        )


class IdentityBatches:
    """P identities x ``num_instances`` images a batch (method, refresh step 6).

    The identities come in random permutations; of each, the first image is drawn at random, the others from other
    cameras where there are any, else from the same camera; without replacement unless there are too few. The rest of
    a permutation that does not fill a batch is dropped; with fewer than P identities a batch goes through several
    permutations. Images with label -1 are never drawn.

    Args:
        labels: (N,) identity of each image, -1 for none.
        cameras: (N,) any hashable camera names.
        batch_size: images, a multiple of ``num_instances``.
        num_instances: images per identity.
        num_batches: length of an epoch.
        seed: of the whole sequence, see :func:`.seeding.derive_seed`.

    Raises:
        ValueError: if a batch cannot hold P x K or no image has a label.
    """

    def __init__(self, labels: Sequence[int], cameras: Sequence, *, batch_size: int, num_instances: int,
                 num_batches: int, seed: int):
        check_batch(batch_size, num_instances)
        labels = np.asarray(labels)
        _, self.cameras = np.unique(np.asarray([str(camera) for camera in cameras]), return_inverse=True)
        if len(self.cameras) != len(labels):
            raise ValueError(f"{len(labels)} labels for {len(self.cameras)} cameras")
        order = np.argsort(labels, kind="stable")
        identities, starts = np.unique(labels[order], return_index=True)
        groups = np.split(order, starts[1:])
        self.members = [group for identity, group in zip(identities, groups) if identity >= 0]
        if not self.members:
            raise ValueError("no image has a label: all pseudo-labels are noise")
        self.labels = labels
        self.num_instances = num_instances
        self.identities_per_batch = batch_size // num_instances
        self.num_batches = num_batches
        self.seed = seed

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng(self.seed)
        queue: list[int] = []
        for batch in range(self.num_batches):
            if len(queue) < self.identities_per_batch:
                queue = []
                while len(queue) < self.identities_per_batch:
                    queue.extend(rng.permutation(len(self.members)).tolist())
            chosen, queue = queue[:self.identities_per_batch], queue[self.identities_per_batch:]
            images = [image for identity in chosen for image in self._images_of(identity, rng)]
            yield [
                Draw(int(image), int(self.labels[image]), derive_seed(self.seed, batch, place))
                for place, image in enumerate(images)
            ]

    def _images_of(self, identity: int, rng: np.random.Generator) -> list[int]:
        members = self.members[identity]
        first = rng.choice(members)
        others = members[self.cameras[members] != self.cameras[first]]
        if not len(others):
            others = members[members != first]
        if not len(others):
            others = members
        wanted = self.num_instances - 1
        return [first, *rng.choice(others, size=wanted, replace=len(others) < wanted)]


class ShuffledBatches:
    """Random batches of all images, without labels: permutation after permutation.

    Args:
        num_images: N >= 1.
        batch_size, num_batches, seed: as for :class:`IdentityBatches`.
    """

    def __init__(self, num_images: int, *, batch_size: int, num_batches: int, seed: int):
        if num_images < 1:
            raise ValueError("no images to draw from")
        self.num_images = num_images
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = np.random.default_rng(self.seed)
        queue: list[int] = []
        for batch in range(self.num_batches):
            while len(queue) < self.batch_size:
                queue.extend(rng.permutation(self.num_images).tolist())
            chosen, queue = queue[:self.batch_size], queue[self.batch_size:]
            yield [Draw(i, -1, derive_seed(self.seed, batch, place)) for place, i in enumerate(chosen)]


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
