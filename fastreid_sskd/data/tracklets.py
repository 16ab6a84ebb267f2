"""Tracklets: images that a tracker says show one person, and which of them are seen at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .datasets import Item


@dataclass(frozen=True)
class Tracklets:
    """The T tracklets of N images, numbered in the order of their first images.

    Attributes:
        of_image: (N,) int64, the tracklet of each image.
        scene: (T,) int64, equal for tracklets of one clip of one camera.
        first, last: (T,) int64, frames of the first and the last image; 1 and 0 where frames are not known.
    """

    of_image: np.ndarray
    scene: np.ndarray
    first: np.ndarray
    last: np.ndarray

    @classmethod
    def from_items(cls, items: Sequence[Item]) -> Tracklets | None:
        """The tracklets of training images; None where no image has a track.

        Args:
            items: (path, identity, camera) or (path, identity, camera, track). An image without a track is a
                tracklet of its own.
        """
        if all(len(item) < 4 for item in items):
            return None
        numbers: dict = {}
        scenes: dict = {}
        of_image, spans = [], []
        for item in items:
            camera, track = item[2], item[3] if len(item) > 3 else None
            key = item[0] if track is None else (camera, track.clip, track.name)
            number = numbers.setdefault(key, len(numbers))
            of_image.append(number)
            frame = None if track is None else track.frame
            if number == len(spans):
                scene = scenes.setdefault(key if track is None else key[:2], len(scenes))
                spans.append([scene, *((1, 0) if frame is None else (frame, frame))])
            elif frame is not None:
                spans[number][1:] = min(spans[number][1], frame), max(spans[number][2], frame)
        return cls(np.asarray(of_image), *np.asarray(spans, dtype=np.int64).T)

    def __len__(self) -> int:
        return len(self.scene)

    def overlap(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Whether tracklets are of one camera and clip and overlap in time, so that they are two people.

        Args:
            i, j: numbers of tracklets, of shapes that broadcast.
        """
        return (
            (self.scene[i] == self.scene[j])
            & (self.first[i] <= self.last[j])
            & (self.first[j] <= self.last[i])
            & (i != j)
        )
