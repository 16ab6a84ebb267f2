"""A gallery file: features of images that are computed once and added to, of one model."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..engine.files import write_atomically

#: largest difference of a value of the fingerprint: devices and batch sizes round differently
TOLERANCE = 1e-3
#: (height, width) of the image that makes the fingerprint, of no usual INPUT.SIZE_TEST
PROBE = 171, 83


def model_fingerprint(encode: Callable[[Sequence[str]], np.ndarray]) -> np.ndarray:
    """The feature (d,) of a fixed image: what differs in weights, teacher, size or pixels differs here.

    Args:
        encode: maps paths of N images to features (N, d) of unit length.
    """
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (8, 4, 3), dtype=np.uint8))
    image = np.asarray(coarse.resize(PROBE[::-1])) // 2 + random.integers(0, 128, (*PROBE, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "probe.png")
        Image.fromarray(image).save(path)
        return encode([path])[0]


@dataclass(frozen=True)
class Gallery:
    """Features of N images of one model.

    Attributes:
        paths: N absolute paths, each once. features: (N, d) float32 of unit length.
        cameras: N names, "" where none is known.
        fingerprint: (d,), see :func:`model_fingerprint`.
    """

    paths: list[str]
    features: np.ndarray
    cameras: list[str]
    fingerprint: np.ndarray

    @classmethod
    def empty(cls, fingerprint: np.ndarray) -> Gallery:
        """One of no images yet."""
        return cls([], np.empty((0, len(fingerprint)), np.float32), [], fingerprint)

    def extended(
        self, paths: Sequence[str], cameras: Sequence[str], encode: Callable[[Sequence[str]], np.ndarray]
    ) -> Gallery:
        """This gallery with the images that it does not have yet; only these are encoded.

        An image is known by its path: one that was replaced keeps the old feature.

        Args:
            paths, cameras: of each image.
            encode: see :func:`model_fingerprint`; called only where an image is new.
        """
        known = set(self.paths)
        new = {
            path: str(camera)
            for path, camera in zip(map(os.path.abspath, paths), cameras, strict=True)
            if path not in known
        }
        if not new:
            return self
        features = np.concatenate([self.features, encode(list(new))])
        return Gallery([*self.paths, *new], features, [*self.cameras, *new.values()], self.fingerprint)

    def check_model(self, fingerprint: np.ndarray, name: str) -> None:
        """Refuse another model than the gallery's; ``name`` is its file's. Raises ValueError."""
        same = fingerprint.shape == self.fingerprint.shape
        if not same or not np.allclose(fingerprint, self.fingerprint, atol=TOLERANCE):
            raise ValueError(
                f"the gallery {name!r} was made by another model (weights, SSKD.EVAL_WITH, INPUT.SIZE_TEST, "
                "TEST.FLIP, ...), whose features cannot be compared: give that model, or another gallery file"
            )

    def write(self, path: str) -> None:
        """Write the file (.npz), all or nothing."""
        arrays = {
            "paths": np.array(self.paths, dtype=str), "features": self.features,
            "cameras": np.array(self.cameras, dtype=str), "fingerprint": self.fingerprint,
        }  # fmt: skip
        write_atomically(path, lambda file: np.savez(file, **arrays))


def read_gallery(path: str) -> Gallery:
    """Read the file that :meth:`Gallery.write` wrote.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, or no gallery.
    """
    try:
        with np.load(path) as file:
            paths, features, cameras, fingerprint = (
                file[name] for name in ("paths", "features", "cameras", "fingerprint")
            )
        shapes = paths.shape + fingerprint.shape, cameras.shape + fingerprint.shape
        if any(shape != features.shape for shape in shapes):
            raise ValueError("its arrays do not fit")
    except (AttributeError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile):
        raise ValueError(
            f"{path!r} is no whole gallery file: build it again with --gallery under another name"
        ) from None
    return Gallery(paths.tolist(), features, cameras.tolist(), fingerprint)
