"""Seeded features like a re-ID network's of many people under several cameras."""

import numpy as np

#: rows made at a time
BLOCK = 16384
#: images per identity on average (Market-1501: 17.2), and cameras
IMAGES_PER_IDENTITY = 17
CAMERAS = 6
#: length of an identity's, a camera's, a passage's (one person before one camera) and an image's part
IDENTITY, CAMERA, PASSAGE, IMAGE = 1.0, 0.45, 0.75, 0.85
#: identities that are dressed alike share a part of this length
OUTFIT, IDENTITIES_PER_OUTFIT = 0.9, 6
#: dimensions that the parts live in, with a falling spectrum; the network's features have more, which add
#: little
INNER = 96


def camera_features(count: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(count, dim) float32 unit rows and (count,) identities, in random order.

    Sums of an outfit's, an identity's, a camera's, a passage's and an image's random vector, embedded by a
    random ReLU layer and centred, as after a batch-norm neck. Identities differ in size (geometric, at least
    2), overlap where outfits are shared, and are spread by their cameras, so that clusters come out neither
    perfect nor random.
    """
    rng = np.random.default_rng(seed)
    sizes = []
    while sum(sizes) < count:
        sizes.append(2 + rng.geometric(1 / (IMAGES_PER_IDENTITY - 2)))
    identity = np.repeat(np.arange(len(sizes)), sizes)[:count]
    identity = identity[rng.permutation(count)]
    camera = rng.integers(0, CAMERAS, count)
    passage, number = np.unique(identity * CAMERAS + camera, return_inverse=True)
    scale = (1.0 / np.sqrt(1 + np.arange(INNER) / 16)).astype(np.float32)
    scale /= np.linalg.norm(scale)

    def parts(rows: int, length: float) -> np.ndarray:
        return rng.standard_normal((rows, INNER), dtype=np.float32) * scale * np.float32(length)

    outfits = parts(-(-len(sizes) // IDENTITIES_PER_OUTFIT), OUTFIT)
    people = parts(len(sizes), IDENTITY) + outfits[rng.integers(0, len(outfits), len(sizes))]
    cameras, passages = parts(CAMERAS, CAMERA), parts(len(passage), PASSAGE)
    layer = rng.standard_normal((INNER, dim), dtype=np.float32)
    features = np.empty((count, dim), dtype=np.float32)
    for start in range(0, count, BLOCK):
        rows = slice(start, min(start + BLOCK, count))
        inner = people[identity[rows]] + cameras[camera[rows]] + passages[number[rows]]
        inner += parts(len(inner), IMAGE)
        np.matmul(inner, layer, out=features[rows])
    np.maximum(features, 0, out=features)
    features -= features[:: max(1, count // 4096)].mean(0)
    for start in range(0, count, BLOCK):
        block = features[start : start + BLOCK]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return features, identity
