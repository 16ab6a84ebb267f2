"""Checked feature rows: what the refresh takes in, without a copy where none is needed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

logger = logging.getLogger("fastreid.sskd.clustering")

#: rows whose norm is this close to 1 count as normalised by whoever made them (float32 rounding of long rows)
UNIT_NORM_TOLERANCE = 1e-5
#: a camera with fewer images has no statistics of its own: its images take those of all images
CAMERA_IMAGES = 10
#: a value that varies less than this share of the mean deviation is divided by that much: it may be constant
#: up to rounding
LEAST_DEVIATION = 1e-3


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor on the memory of `array`, also of a read-only one (a memory map): it is only ever read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


@dataclass(frozen=True)
class UnitRows:
    """Features of N images as float32 rows with their inverse norms; never rescaled in place.

    Attributes:
        tensor: (N, d) contiguous float32, on the device that searches; shares the caller's memory where it
            can.
        inverse_norms: (N,) float64, 1 / |row|.
        norm_error: largest ||row| - 1|.

    A float32 contiguous input is used as it is; any other dtype, layout or device costs one float32 copy.
    """

    tensor: torch.Tensor
    inverse_norms: np.ndarray
    norm_error: float

    @classmethod
    def from_features(
        cls, features, device: str | torch.device | None = None, cameras: Sequence | None = None
    ) -> UnitRows:
        """Check `features` (numpy array or torch tensor, (N, d), any real dtype) and find its norms.

        Args:
            cameras: (N,) names, whose statistics are taken out of the rows; see `without_camera_statistics`.

        Raises:
            TypeError: not an array of real numbers, or a masked one.
            ValueError: not 2-D, fewer than two rows, no columns, a row that is not finite, a row of zeros.
        """
        if isinstance(features, cls):
            return features
        if isinstance(features, torch.Tensor):
            tensor = features.detach()
            if tensor.is_complex() or tensor.dtype == torch.bool:
                raise TypeError(f"features must be real numbers, got dtype {tensor.dtype}")
        else:
            if np.ma.isMaskedArray(features):
                raise TypeError("features are a masked array, whose mask would be lost: leave those rows out")
            array = np.asanyarray(features)
            if array.dtype.kind not in "fiu":
                raise TypeError(f"features must be real numbers, got dtype {array.dtype}")
            if array.dtype != np.float32 or not array.flags.c_contiguous:
                with np.errstate(over="ignore"):  # float64 beyond float32 becomes inf, which is named below
                    array = np.ascontiguousarray(array, dtype=np.float32)
            tensor = as_tensor(array)
        if tensor.ndim != 2 or tensor.shape[1] == 0:
            raise ValueError(f"features must be (N, d) with d >= 1, got shape {tuple(tensor.shape)}")
        if tensor.shape[0] < 2:
            raise ValueError(
                f"clustering needs at least 2 images, got {tensor.shape[0]}: check the target dataset"
            )
        tensor = tensor.to(device=device or tensor.device, dtype=torch.float32).contiguous()

        norms = [torch.linalg.vector_norm(b, dim=1, dtype=torch.float64) for b in tensor.split(1024)]
        norms = torch.cat(norms).cpu().numpy()
        diverged = "not finite", "the network that extracted them has diverged, or its images cannot be read"
        empty = (
            "all zeros",
            "it has no direction to compare by; leave the image out or check the feature extraction",
        )
        for bad, (problem, advice) in ((~np.isfinite(norms), diverged), (norms == 0, empty)):
            if bad.any():
                raise ValueError(
                    f"features row {int(bad.argmax())} is {problem} ({int(bad.sum())} such rows of "
                    f"{len(bad)}): {advice}"
                )
        norm_error = float(np.abs(norms - 1).max())
        if norm_error > UNIT_NORM_TOLERANCE:
            logger.debug("features are not unit norm (off by up to %.3g): normalised inside", norm_error)
        rows = cls(tensor, 1 / norms, norm_error)
        return rows if cameras is None else rows.without_camera_statistics(cameras)

    def without_camera_statistics(self, cameras: Sequence) -> UnitRows:
        """Take each camera's mean and deviation out of its rows, which stay of unit length, in float64.

        A camera of fewer than `CAMERA_IMAGES` images, or of equal ones, takes mean and deviation of all
        images. With one camera of the (N,) names, the rows stay as they are.

        Raises:
            ValueError: another number of cameras than of rows, or a row that is nothing but its camera's
                mean.
        """
        names, camera, sizes = np.unique(
            [str(name) for name in cameras], return_inverse=True, return_counts=True
        )
        if len(camera) != len(self):
            raise ValueError(
                f"cameras must name one for each image, got {len(camera)} for {len(self)} images"
            )
        if len(names) < 2:
            return self
        members = np.split(np.argsort(camera, kind="stable"), np.cumsum(sizes)[:-1])
        sums, squares, own = 0, 0, []
        for numbers in members:
            x = self.take(numbers).double()
            sums, squares = sums + x.sum(0), squares + x.square().sum(0)
            own.append((x.mean(0), x.std(0, unbiased=False)))
        mean = sums / len(self)
        of_all = mean, (squares / len(self) - mean.square()).clamp_min(0).sqrt()
        out = torch.empty_like(self.tensor)
        for numbers, statistics in zip(members, own, strict=True):
            varies = bool(statistics[1].mean() > torch.finfo(torch.float32).eps / self.dim**0.5)
            mean, deviation = statistics if varies and len(numbers) >= CAMERA_IMAGES else of_all
            x = (self.take(numbers).double() - mean) / deviation.clamp_min(
                LEAST_DEVIATION * float(deviation.mean())
            )
            out[torch.from_numpy(numbers).to(out.device)] = torch.nn.functional.normalize(x, dim=1).float()
        return type(self).from_features(out)

    def __len__(self) -> int:
        return self.tensor.shape[0]

    @property
    def dim(self) -> int:
        """d, the length of a row."""
        return self.tensor.shape[1]

    def block(self, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop normalised in float32; a view when they came in normalised."""
        return self._unit(self.tensor[start:stop], self.inverse_norms[start:stop])

    def take(self, numbers: np.ndarray) -> torch.Tensor:
        """The rows of these numbers (R,) int64, normalised in float32; a copy."""
        rows = self.tensor[torch.from_numpy(numbers).to(self.tensor.device)]
        return self._unit(rows, self.inverse_norms[numbers])

    def _unit(self, rows: torch.Tensor, inverse_norms: np.ndarray) -> torch.Tensor:
        if self.norm_error <= UNIT_NORM_TOLERANCE:
            return rows
        return rows * torch.from_numpy(inverse_norms).to(rows.device, torch.float32)[:, None]

    def cpu(self) -> UnitRows:
        """The same rows on the CPU."""
        return UnitRows(self.tensor.cpu(), self.inverse_norms, self.norm_error)
