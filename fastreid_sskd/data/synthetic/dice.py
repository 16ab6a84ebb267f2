"""Keyed randomness: every random decision of the synthetic data has a name, so the order of calls is free."""

import hashlib
from collections.abc import Mapping

import numpy as np


class Dice:
    """Random numbers that are a function of their key alone.

    Only the raw output of PCG64 is used (numpy keeps that stream, but may change ``Generator.normal`` and the
    like), so that the same key gives the same numbers in every process, order and numpy version.

    Args:
        *key: what the numbers are for, e.g. ``(seed, "person", "target", 17)``; integers and strings.

    Example:
        >>> Dice(1, "pose", 3).uniform(0, 1) == Dice(1, "pose", 3).uniform(0, 1)
        True
    """

    def __init__(self, *key: int | str) -> None:
        text = "/".join(f"{type(part).__name__}:{part}" for part in key)
        words = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype="<u4")
        self._bits = np.random.PCG64(np.random.SeedSequence([int(word) for word in words]))

    def unit(self) -> float:
        """A number in [0, 1)."""
        return int(self._bits.random_raw() >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self.unit()

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return int(self.unit() * count)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.unit() < probability

    def choice(self, weights: Mapping[str, float]) -> str:
        """One key of ``weights``, with a probability proportional to its value."""
        point = self.unit() * sum(weights.values())
        for name, weight in weights.items():
            point -= weight
            if point < 0:
                return name
        return name

    def order(self, count: int) -> list[int]:
        """A permutation of 0..count-1."""
        return sorted(range(count), key=lambda _: self.unit())

    def noise(self, *shape: int) -> np.ndarray:
        """Nearly normal noise (the sum of four bytes) of mean 0 and variance 1, float32 of this shape."""
        size = int(np.prod(shape))
        raw = np.atleast_1d(self._bits.random_raw((size + 1) // 2)).astype("<u8").view(np.uint8)
        total = raw.reshape(-1, 4)[:size].sum(1, dtype=np.float32).reshape(shape)
        return (total - np.float32(510.0)) / np.float32(147.8)
