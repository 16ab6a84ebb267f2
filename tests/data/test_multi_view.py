"""K views of an image: independent, reproducible from the draw alone, decoded once, blind to identities."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from fastreid_sskd.data import Draw, MultiViewDataset, views
from fastreid_sskd.data.loaders import adaptation_loader, extraction_loader
from fastreid_sskd.data.views import build_view_transforms


@pytest.fixture
def items(tmp_path):
    """Two images: left half black, right half white; and random pixels."""
    halves = np.zeros((32, 16, 3), dtype=np.uint8)
    halves[:, 8:] = 255
    noise = np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    for name, pixels in (("a.png", halves), ("b.png", noise)):
        Image.fromarray(pixels).save(tmp_path / name)
    return [(str(tmp_path / "a.png"), 11, 0), (str(tmp_path / "b.png"), 12, 1)]


class NoIdentity(tuple):
    """(path, identity, camera) that breaks whoever asks for the identity."""

    def __getitem__(self, i):
        if i not in (0, 2):
            raise AssertionError("the identity of a target image was asked for")
        return super().__getitem__(i)

    def __iter__(self):
        raise AssertionError("the identity of a target image was unpacked")


def flips(count, views, items):
    """For each draw, which of its views are flipped."""
    flip = T.Compose([T.RandomHorizontalFlip(0.5), T.PILToTensor()])
    dataset = MultiViewDataset(items, T.Compose([]), flip, num_views=views)
    for seed in range(count):
        images = dataset[Draw(0, 0, seed)]["images"]
        yield tuple(bool(view[0, 0, 0] == 255) for view in images)


def test_sample_has_the_hosts_keys(items, cfg):
    sample = MultiViewDataset(items, *build_view_transforms(cfg), num_views=3)[Draw(1, 42, 7)]
    assert sample["images"].shape == (3, 3, 32, 16)
    assert sample["targets"] == 42 and sample["indices"] == 1 and sample["img_paths"] == items[1][0]


def test_one_view_is_not_stacked(items, cfg):
    dataset = MultiViewDataset(items, *build_view_transforms(cfg))
    assert dataset[Draw(0, 0, 0)]["images"].shape == (3, 32, 16)
    assert len(dataset) == 2


def test_views_are_independent(items):
    """All 8 combinations of three flips are equally frequent: no view follows another."""
    found = Counter(flips(800, 3, items))
    assert len(found) == 8
    assert all(abs(count - 100) < 4 * (800 / 8 * 7 / 8) ** 0.5 for count in found.values()), found


def test_draws_are_independent(items):
    """Neighbouring seeds do not give neighbouring augmentations."""
    first = [flipped[0] for flipped in flips(400, 1, items)]
    changes = sum(a != b for a, b in itertools.pairwise(first))
    assert 140 < sum(first) < 260 and 140 < changes < 260


def test_view_pipeline_makes_views_differ(items, cfg):
    dataset = MultiViewDataset(items, *build_view_transforms(cfg), num_views=3)
    equal = 0
    for seed in range(40):
        a, b, c = dataset[Draw(1, 0, seed)]["images"]
        equal += torch.equal(a, b) + torch.equal(b, c) + torch.equal(a, c)
    assert equal <= 5  # of 120 pairs, about 1 in 200 by chance


def test_views_come_from_the_draw_alone(items, cfg):
    dataset = MultiViewDataset(items, *build_view_transforms(cfg), num_views=2)
    torch.manual_seed(0)
    one = dataset[Draw(1, 0, 7)]["images"]
    dataset[Draw(0, 0, 8)]
    torch.manual_seed(1)
    assert torch.equal(dataset[Draw(1, 5, 7)]["images"], one)
    assert not torch.equal(dataset[Draw(1, 0, 8)]["images"], one)


def test_global_generators_are_left_alone(items, cfg):
    cfg.INPUT.AUTOAUG.ENABLED = True  # draws from Python's and NumPy's generators
    cfg.INPUT.AUTOAUG.PROB = 1.0
    dataset = MultiViewDataset(items, *build_view_transforms(cfg), num_views=2)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    dataset[Draw(1, 0, 7)]
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.random.get_rng_state(), before[2])


def test_image_is_decoded_and_resized_once(items, cfg, monkeypatch):
    read, calls = views.read_image, []
    monkeypatch.setattr(views, "read_image", lambda path: calls.append(path) or read(path))
    once, augment = build_view_transforms(cfg)
    resized = []
    dataset = MultiViewDataset(items, lambda image: resized.append(1) or once(image), augment, num_views=3)
    dataset[Draw(1, 0, 7)]
    assert calls == [items[1][0]] and resized == [1]


def test_identity_is_never_used(items, cfg):
    blind = [NoIdentity(item) for item in items]
    dataset = MultiViewDataset(blind, *build_view_transforms(cfg), num_views=2)
    assert dataset[Draw(0, 3, 1)]["targets"] == 3


def test_adaptation_loader_never_uses_the_identity(items, cfg):
    blind = [NoIdentity(item) for item in items]
    for batch in adaptation_loader(cfg, blind, [1, 0], seed=5):
        assert torch.equal(batch["targets"], 1 - batch["indices"])


def test_extraction_loader_never_uses_the_identity(items, cfg):
    (batch,) = extraction_loader(cfg, [NoIdentity(item) for item in items])
    assert batch["img_paths"] == [item[0] for item in items]


def test_workers_change_nothing(items, cfg):
    many = [items[k % 2][:1] + (k, k % 3) for k in range(12)]
    labels = [k // 3 for k in range(12)]
    torch.manual_seed(0)
    here = list(adaptation_loader(cfg, many, labels, seed=5))
    cfg.DATALOADER.NUM_WORKERS = 2
    torch.manual_seed(1)
    there = list(adaptation_loader(cfg, many, labels, seed=5))
    assert len(here) == len(there) == cfg.SSKD.ITERS_PER_EPOCH
    for one, other in zip(here, there):
        assert torch.equal(one["images"], other["images"]) and torch.equal(one["targets"], other["targets"])


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_named(items, cfg, workers, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = adaptation_loader(cfg, [*items, (str(broken), 1, 1)], [0, 0, 0], seed=1)
    with pytest.raises(OSError, match="broken.png"):
        list(loader)
