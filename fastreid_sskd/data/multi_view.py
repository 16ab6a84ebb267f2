"""Several independently augmented views of each image, decoded and resized once."""
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from .image import read_image
from .seeding import seeded

__all__ = ["Draw", "MultiViewDataset"]


class Draw(NamedTuple):
    """One place in a batch: which image, with which label, and the seed of its augmentation."""

    index: int
    label: int
    seed: int


class MultiViewDataset(Dataset):
    """Images under the keys of the host's batches, with ``num_views`` views each.

    Args:
        items: (path, identity, camera) as the host's data sets list them; the identity is not used: labels come with
            the :class:`Draw`, so that identities of the target cannot leak into training.
        once: applied once to the decoded image.
        augment: applied ``num_views`` times, returns a tensor (3, H, W).
        num_views: K views stacked as (K, 3, H, W); 0: one view, not stacked, (3, H, W).
    """

    def __init__(self, items: Sequence[tuple], once: Callable, augment: Callable, num_views: int = 0):
        self.paths = [item[0] for item in items]
        self.once = once
        self.augment = augment
        self.num_views = num_views

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw) -> dict:
        path = self.paths[draw.index]
        with seeded(draw.seed):
            image = self.once(read_image(path))
            if self.num_views:
                images = torch.stack([self.augment(image) for _ in range(self.num_views)])
            else:
                images = self.augment(image)
        return {"images": images, "targets": draw.label, "img_paths": path, "indices": draw.index}
