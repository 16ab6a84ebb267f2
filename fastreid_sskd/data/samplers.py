"""Batches as a function of (seed, epoch, place): a run can be resumed at any batch."""

import contextlib
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from fastreid.config import CfgNode
from fastreid.utils import comm

from ..processes import share_of


def derive_seed(*keys: int) -> int:
    """Derive a 32-bit seed from any number of non-negative integers (run seed, epoch, place, ...)."""
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


class Draw(NamedTuple):
    """One place in a batch: which image, with which label, and the seed of its augmentation."""

    index: int
    label: int
    seed: int


class _Batches:
    """The batches of an epoch: of each this rank's contiguous shard, with the seeds of the whole batch."""

    def __init__(self, labels: np.ndarray, batch_size: int, num_batches: int, seed: int):
        self.labels = labels
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.seed = seed

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch, images in enumerate(self._images(np.random.default_rng(self.seed))):
            yield share_of([
                Draw(int(image), int(self.labels[image]), derive_seed(self.seed, batch, place))
                for place, image in enumerate(images)
            ])  # fmt: skip

    def _images(self, rng: np.random.Generator) -> Iterator[list[int]]:
        """The images of each whole batch."""
        raise NotImplementedError


class IdentityBatches(_Batches):
    """P identities x ``num_instances`` images a batch (method, refresh step 6).

    The identities come in random permutations. The first image of an identity is drawn at random, the others
    from other cameras where there are any, else from the same camera; without replacement unless there are
    too few. With tracklets the others are drawn one from each tracklet in turn, those of other cameras first
    in every turn and the first image's tracklet from the second turn on, all again if there are too few. The
    rest of a permutation that does not fill a batch is dropped. With fewer than P identities a
    batch takes several permutations. Images with label -1 are never drawn.

    Args:
        labels: (N,) identity of each image, -1 for none.
        cameras: (N,) any hashable camera names.
        tracklets: (N,) the tracklet of each image, numbered from 0; None without.
        batch_size: images of all ranks, a multiple of ``num_instances``.
        num_instances: images per identity.
        num_batches: length of an epoch.
        seed: of the epoch, see :func:`derive_seed`.

    Raises:
        ValueError: if a batch cannot hold P x K or no image has a label.
    """

    def __init__(
        self, labels: Sequence[int], cameras: Sequence, tracklets: np.ndarray | None = None, *,
        batch_size: int, num_instances: int, num_batches: int, seed: int,
    ):  # fmt: skip
        check_batch(batch_size, num_instances)
        super().__init__(np.asarray(labels), batch_size, num_batches, seed)
        _, self.cameras = np.unique(np.asarray([str(camera) for camera in cameras]), return_inverse=True)
        if len(self.cameras) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels for {len(self.cameras)} cameras")
        order = np.argsort(self.labels, kind="stable")
        identities, starts = np.unique(self.labels[order], return_index=True)
        groups = np.split(order, starts[1:])
        self.members = [group for identity, group in zip(identities, groups) if identity >= 0]
        if not self.members:
            raise ValueError("no image has a label: all pseudo-labels are noise")
        self.num_instances = num_instances
        self.tracklets = tracklets

    def _images(self, rng: np.random.Generator) -> Iterator[list[int]]:
        wanted = self.batch_size // self.num_instances
        queue: list[int] = []
        for _ in range(self.num_batches):
            if len(queue) < wanted:
                queue = []
                while len(queue) < wanted:
                    queue.extend(rng.permutation(len(self.members)).tolist())
            chosen, queue = queue[:wanted], queue[wanted:]
            yield [image for identity in chosen for image in self._images_of(identity, rng)]

    def _images_of(self, identity: int, rng: np.random.Generator) -> list[int]:
        members = self.members[identity]
        first = rng.choice(members)
        if self.tracklets is not None:
            return [first, *self._by_tracklets(first, members, rng)]
        others = members[self.cameras[members] != self.cameras[first]]
        if not len(others):
            others = members[members != first]
        if not len(others):
            others = members
        wanted = self.num_instances - 1
        return [first, *rng.choice(others, size=wanted, replace=len(others) < wanted)]

    def _by_tracklets(self, first: int, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        drawn = np.concatenate([[first], rng.permutation(members[members != first])])
        turn, seen = np.empty_like(drawn), Counter()
        for at, tracklet in enumerate(self.tracklets[drawn].tolist()):
            turn[at] = seen[tracklet]
            seen[tracklet] += 1
        order = np.lexsort((self.cameras[drawn] == self.cameras[first], turn))
        others = drawn[order[order != 0]] if len(drawn) > 1 else drawn
        return np.resize(others, self.num_instances - 1)  # begins again where there are too few


class ShuffledBatches(_Batches):
    """Random batches of all images, without labels: permutation after permutation.

    Args:
        num_images: N >= 1.
        batch_size, num_batches, seed: as for :class:`IdentityBatches`.
    """

    def __init__(self, num_images: int, *, batch_size: int, num_batches: int, seed: int):
        if num_images < 1:
            raise ValueError("no images to draw from")
        super().__init__(np.full(num_images, -1), batch_size, num_batches, seed)

    def _images(self, rng: np.random.Generator) -> Iterator[list[int]]:
        queue: list[int] = []
        for _ in range(self.num_batches):
            while len(queue) < self.batch_size:
                queue.extend(rng.permutation(len(self.labels)).tolist())
            yield queue[: self.batch_size]
            queue = queue[self.batch_size :]


# ---- can this batch be split? --------------------------------------------------------------------


def check_batch(
    batch_size: int, num_instances: int = 1, processes: int = 1, bn_chunk: int | None = None
) -> None:
    """Check that a batch can be split into processes, whole identities and batch-norm chunks.

    Args:
        batch_size: images of all processes.
        num_instances: images per identity.
        processes: each takes an equal part of the batch.
        bn_chunk: images that share batch-norm statistics within a process; 0: all of them; None: not checked.

    Raises:
        ValueError: if a process has no equal part in whole identities, or its last chunk is one image.
    """
    unit = processes * num_instances
    if num_instances < 1 or batch_size < unit or batch_size % unit:
        by = f"shared by {processes} processes" if processes > 1 else "split"
        kept = f" in whole identities of DATALOADER.NUM_INSTANCE = {num_instances} images"
        into = kept if num_instances != 1 else ""
        fix = f"make it a multiple of {unit}" if unit > 0 else "an identity takes 1 image or more"
        raise ValueError(f"a batch of SOLVER.IMS_PER_BATCH = {batch_size} images cannot be {by}{into}: {fix}")
    own = batch_size // processes
    if bn_chunk is not None and (own % bn_chunk if bn_chunk else own) == 1:
        raise ValueError(
            f"a batch of {own} images in chunks of SSKD.BN_CHUNK = {bn_chunk or own} ends with a chunk of "
            "one image, which has no variance: change SSKD.BN_CHUNK or SOLVER.IMS_PER_BATCH"
        )


def check_training_batch(cfg: CfgNode) -> None:
    """Check the batch of a config, for the processes of this run; raises as :func:`check_batch`."""
    check_batch(
        cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE, comm.get_world_size(), cfg.SSKD.BN_CHUNK
    )


def images_per_bn(config: Mapping, processes: int) -> int:
    """Count the images of a training batch that share batch-norm statistics.

    Args:
        config: of the run, or the dict that its ``config.yaml`` is read as.
        processes: of the run.
    """
    images, model = config["SOLVER"]["IMS_PER_BATCH"], config["MODEL"]
    own = images if model["BACKBONE"].get("NORM") == "syncBN" else images // processes
    sskd = model["META_ARCHITECTURE"] in ("SSKD", "SSKDSource")
    chunk = config.get("SSKD", {}).get("BN_CHUNK", 0) if sskd else 0
    return min(chunk or own, own)
