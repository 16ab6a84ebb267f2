"""Several independently augmented views of each image, decoded and resized once."""
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from .crops import CropCache, Crops
from .seeding import seeded, seeded_torch
from .views import Views

__all__ = ["Draw", "FinishViews", "MultiViewDataset"]


class Draw(NamedTuple):
    """One place in a batch: which image, with which label, and the seed of its augmentation."""

    index: int
    label: int
    seed: int


class MultiViewDataset(Dataset):
    """Images under the keys of the host's batches, with ``num_views`` views each.

    With :class:`.views.Views`, samples are 8-bit and carry "views", the numbers (K, 7) of their views, for :class:`FinishViews`.

    Args:
        items: (path, identity, camera) as the host's data sets list them; the identity is not used: labels come with
            the :class:`Draw`, so that identities of the target cannot leak into training.
        once: applied once to the decoded image.
        augment: applied ``num_views`` times: a function of a PIL image that returns a tensor (3, H, W), or ``Views``.
        num_views: K views stacked as (K, 3, H, W); 0: one view, not stacked, (3, H, W).
        cut: with ``Views``: whether to cut them here; if not, "images" is the whole crop (3, H, W).
        cache: of decoded images.
    """

    def __init__(
        self, items: Sequence[tuple], once: Callable, augment: Callable | Views, num_views: int = 0, *,
        cut: bool = True, cache: CropCache | None = None,
    ):  # fmt: skip
        self.paths = [item[0] for item in items]
        self.crops = Crops(once, cache)
        self.augment = augment
        self.num_views = num_views
        self.cut = cut

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, draw: Draw) -> dict:
        path = self.paths[draw.index]
        made = self._numbered(path, draw.seed) if isinstance(self.augment, Views) else self._augmented(path, draw.seed)
        return {**made, "targets": draw.label, "img_paths": path, "indices": draw.index}

    def _numbered(self, path: str, seed: int) -> dict:
        crop = self.crops.pixels(path)
        with seeded_torch(seed):
            numbers = self.augment.draw(max(1, self.num_views), crop.shape)
        if self.cut:
            views = self.augment.cut(crop, numbers)
            crop = views if self.num_views else views[0]
        return {"images": crop, "views": torch.tensor(numbers)}

    def _augmented(self, path: str, seed: int) -> dict:
        image = self.crops.picture(path)
        with seeded(seed):
            if self.num_views:
                return {"images": torch.stack([self.augment(image) for _ in range(self.num_views)])}
            return {"images": self.augment(image)}


class FinishViews:
    """Takes a batch to the device and does what is left of its views there: what workers did not cut, and erasing.

    Args:
        augment, num_views, cut: the data set's.
        device: where the model is.
    """

    def __init__(self, augment: Callable | Views, num_views: int, cut: bool, device: torch.device | str):
        self.augment = augment
        self.num_views = num_views
        self.cut = cut
        self.device = torch.device(device)

    def __call__(self, batch: dict) -> dict:
        """The batch with "images" (B, K, 3, H, W), or (B, 3, H, W) for ``num_views`` 0, in 0..255: uint8 or float32."""
        batch = dict(batch)
        images = batch["images"].to(self.device, non_blocking=True)
        numbers = batch.pop("views", None)
        if numbers is not None:
            here = numbers.to(self.device, non_blocking=True)
            images = images.view(*numbers.shape[:2], *images.shape[-3:]) if self.cut else self.augment.cut_batch(images, here)
            # on the CPU one rectangle after the other; elsewhere that would be as many launches
            images = self.augment.erase(images, here) if images.is_cpu else self.augment.erase_batch(images, here)
            images = images if self.num_views else images[:, 0]
        batch["images"] = images
        return batch
