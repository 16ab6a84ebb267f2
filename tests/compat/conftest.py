"""The patched host, a data set of a few generated images, and a small model, for the tests of the patches."""

import numpy as np
import pytest
from PIL import Image

from fastreid_sskd import compat


@pytest.fixture(scope="session", autouse=True)
def host():
    """Names of the applied patches; every test of this folder runs with the host patched."""
    return compat.apply()


@pytest.fixture
def cfg(host, tmp_path):
    """The host's configuration with a ResNet-18 on the CPU and 64 x 32 images."""
    from fastreid.config import get_cfg

    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.DEPTH = "18x"
    cfg.MODEL.BACKBONE.FEAT_DIM = 512
    cfg.MODEL.BACKBONE.NORM = "BN"
    cfg.MODEL.BACKBONE.PRETRAIN = False
    cfg.MODEL.HEADS.NUM_CLASSES = 4
    cfg.INPUT.SIZE_TRAIN = [64, 32]
    cfg.INPUT.SIZE_TEST = [64, 32]
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 8
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    return cfg


@pytest.fixture
def items(tmp_path):
    """(path, identity, camera) of 4 identities x 2 cameras x 2 random images."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(16):
        path = tmp_path / f"{number:02d}.png"
        Image.fromarray(rng.integers(0, 256, (64, 32, 3), dtype=np.uint8)).save(path)
        found.append((str(path), number // 4, number // 2 % 2))
    return found


@pytest.fixture
def batch():
    """Eight images of four identities on the CPU; high enough for the three stripes of MGN."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.randint(0, 256, (8, 3, 96, 32), generator=generator).float(),
        "targets": torch.arange(8) // 2,
        "camids": torch.zeros(8, dtype=torch.int64),
        "img_paths": [f"{k}.png" for k in range(8)],
    }
