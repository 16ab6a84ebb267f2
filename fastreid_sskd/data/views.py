"""What is random in the views of an image, as numbers: drawn by themselves, carried out later, by a worker or on the device."""
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torchvision.transforms as T
from fastreid.data.transforms import ToTensor

from .cutting import cut, cut_batch, erase, erase_batch

__all__ = ["ViewNumbers", "Views", "without_numbers"]

_ORDER = (T.Pad, T.RandomCrop, T.RandomHorizontalFlip, ToTensor, T.RandomErasing)


class ViewNumbers(NamedTuple):
    """One view: where it is cut out of the padded crop, whether it is mirrored (0 or 1), what is erased of it [pixels]."""

    top: int
    left: int
    mirrored: int
    erased_top: int = 0
    erased_left: int = 0
    erased_height: int = 0
    erased_width: int = 0


def without_numbers(steps: Sequence) -> list[str]:
    """Names of the steps that :class:`Views` cannot stand for; [] if it can."""
    rest = list(steps)
    for kind in _ORDER:
        if rest and type(rest[0]) is kind and (kind is not T.RandomErasing or not isinstance(rest[0].value, str)):
            rest.pop(0)
    return [type(step).__name__ for step in rest]


class Views:
    """The host's padding, random crop, flip and random erasing, drawn first and carried out afterwards.

    The draws are torchvision's own, in its order, from torch's CPU generator: under the same seed a view has the pixels
    that the steps themselves would give, wherever it is made.

    Args:
        steps: of the host's training transforms, after the resize.

    Raises:
        ValueError: if a step cannot be written as :class:`ViewNumbers`, naming it.
    """

    def __init__(self, steps: Sequence):
        if unknown := without_numbers(steps):
            raise ValueError(f"{', '.join(unknown)} cannot be drawn beforehand: apply the steps themselves")
        found = {type(step): step for step in steps}
        self._pad, self._crop, self._flip = (found.get(kind) for kind in (T.Pad, T.RandomCrop, T.RandomHorizontalFlip))
        self.erasing: T.RandomErasing | None = found.get(T.RandomErasing)
        value = self.erasing.value if self.erasing else 0
        self._fill = list(value) if isinstance(value, Sequence) else [value]
        # torchvision compares in float32
        self._flip_share, self._erased_share = (torch.tensor(step.p if step else 0).float().item() for step in (self._flip, self.erasing))
        self._shapes: dict[torch.Size, tuple[torch.Tensor, torch.Tensor]] = {}

    def draw(self, count: int, shape: torch.Size) -> list[ViewNumbers]:
        """The numbers of ``count`` views of a crop of ``shape`` (3, H, W)."""
        padded, view = self._frames(shape)
        return [self._draw(padded, view) for _ in range(count)]

    def cut(self, crop: torch.Tensor, numbers: Sequence[Sequence[int]]) -> torch.Tensor:
        """Views (K, 3, h, w) of one crop (3, H, W), uint8, nothing erased yet."""
        return cut(self._padded(crop), numbers, self._frames(crop.shape)[1].shape)

    def cut_batch(self, crops: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Views (B, K, 3, h, w) of crops (B, 3, H, W) for numbers (B, K, 7) on one device: what :meth:`cut` gives for each."""
        return cut_batch(self._padded(crops), numbers, self._frames(crops.shape[1:])[1].shape)

    def erase(self, views: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Views (B, K, 3, h, w) in 0..255 with their rectangles filled, float32; without erasing as they are.

        Numbers (B, K, 7) are on the CPU.
        """
        return views if self.erasing is None else erase(views, numbers[..., 3:].tolist(), self._fill)

    def erase_batch(self, views: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """As :meth:`erase`, of numbers on the views' device."""
        return views if self.erasing is None else erase_batch(views, numbers[..., 3:], self._fill)

    def _padded(self, crops: torch.Tensor) -> torch.Tensor:
        return crops if self._pad is None else self._pad(crops)

    def _frames(self, shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
        """Stand-ins without pixels for the padded crop and the view, which torchvision asks for their shapes."""
        if shape not in self._shapes:
            padded = torch.empty(self._padded(torch.empty(shape, dtype=torch.uint8)).shape, device="meta")
            view = padded if self._crop is None else torch.empty((shape[0], *self._crop.size), device="meta")
            self._shapes[shape] = padded, view
        return self._shapes[shape]

    def _draw(self, padded: torch.Tensor, view: torch.Tensor) -> ViewNumbers:
        top = left = 0
        if self._crop is not None:
            top, left, *_ = self._crop.get_params(padded, self._crop.size)
        mirrored = self._flip is not None and torch.rand(1).item() < self._flip_share
        numbers = ViewNumbers(top, left, int(mirrored))
        erasing = self.erasing
        if erasing is None or torch.rand(1).item() >= self._erased_share:
            return numbers
        *box, fill = erasing.get_params(view, erasing.scale, erasing.ratio, [0.0])
        return numbers if fill is view else ViewNumbers(*numbers[:3], *box)  # itself: no rectangle fitted
