"""A folder of crops to load, where there is no data set: smooth noise, written as JPEG."""
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["write_crops"]


def write_crops(folder: Path, count: int, size: tuple[int, int] = (128, 64), seed: int = 0) -> list[tuple[str, int, int]]:
    """Write ``count`` images of (height, width) ``size``; (path, identity, camera) of each, four images an identity."""
    folder.mkdir(parents=True, exist_ok=True)
    random, (height, width) = np.random.default_rng(seed), size
    items = []
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        path = folder / f"{number:06d}.jpg"
        coarse.resize((width, height), Image.BICUBIC).save(path, quality=90)
        items.append((str(path), number // 4, number % 4 % 2))
    return items
