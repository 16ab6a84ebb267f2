"""The loaders of both stages, of the features and of the evaluation."""

import gc
import multiprocessing

import pytest
import torch
from tiny_reid import tiny_source
from torch.utils.data import DataLoader

from fastreid_sskd.data import (
    Draw,
    SourceLoader,
    TargetLoader,
    adaptation_loader,
    extraction_loader,
    training_items,
    views,
)
from fastreid_sskd.data.loaders import test_loader as evaluation_loader
from fastreid_sskd.data.samplers import derive_seed, seeded
from fastreid_sskd.data.views import build_view_transforms, read_image


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in ("images", "targets", "bn_images"))


@pytest.fixture
def source_cfg(data_sets, tmp_path):
    cfg = tiny_source(tmp_path / "source")
    cfg.defrost()
    return cfg


def test_extraction_loader_gives_every_image_once_in_order(cfg):
    items = training_items(cfg.DATASETS.NAMES)
    found = list(extraction_loader(cfg, items))
    assert [len(batch["images"]) for batch in found] == [32, 16]
    assert [path for batch in found for path in batch["img_paths"]] == [item[0] for item in items]
    again = list(extraction_loader(cfg, items))
    assert all(torch.equal(a["images"], b["images"]) for a, b in zip(found, again))  # nothing random


def test_evaluation_loader_has_the_query_first(cfg):
    loader, num_query = evaluation_loader(cfg, "Market1501")
    paths = [path for batch in loader for path in batch["img_paths"]]
    assert num_query == 6 and len(paths) == 30
    assert all("/query/" in path for path in paths[:6])
    assert all("/bounding_box_test/" in path for path in paths[6:])
    (batch,) = loader
    assert batch["targets"][:6].tolist() == [101, 102, 103, 104, 105, 106]  # identities as they are
    assert batch["camids"][:6].tolist() == [0] * 6


@pytest.mark.parametrize("labelled", [4, 48])
def test_an_epoch_has_as_many_batches_as_the_config_says(cfg, labelled):
    """Whatever the number of labelled images."""
    items = training_items(cfg.DATASETS.NAMES)
    cfg.SSKD.ITERS_PER_EPOCH = 7
    labels = [k // 4 if k < labelled else -1 for k in range(48)]
    loader = adaptation_loader(cfg, items, labels, seed=1)
    assert len(loader) == 7
    found = list(loader)
    assert len(found) == 7
    for batch in found:
        assert batch["images"].shape == (8, cfg.SSKD.NUM_PEERS, 3, 32, 16)
        assert batch["targets"].tolist() == [labels[i] for i in batch["indices"]]
        assert (batch["targets"] >= 0).all()
        assert batch["img_paths"] == [items[i][0] for i in batch["indices"]]


def test_adaptation_epochs_differ_by_seed(cfg):
    items = training_items(cfg.DATASETS.NAMES)
    labels = [k // 8 for k in range(48)]
    first, again, other = (next(iter(adaptation_loader(cfg, items, labels, seed=s))) for s in (1, 1, 2))
    assert torch.equal(first["images"], again["images"])
    assert first["indices"].tolist() != other["indices"].tolist()


def test_number_of_views_follows_the_peers(cfg):
    cfg.SSKD.NUM_PEERS = 3
    batch = next(iter(adaptation_loader(cfg, training_items(cfg.DATASETS.NAMES), [0] * 48, seed=1)))
    assert batch["images"].shape[1] == 3


def test_source_batches(source_cfg):
    loader = SourceLoader(source_cfg, seed=1)
    assert loader.num_classes == 6 and len(loader.items) == 48
    found = list(loader.epoch(0))
    assert len(found) == 2
    for batch in found:
        assert batch["images"].shape == batch["bn_images"].shape == (8, 3, 32, 16)
        classes = [int(path.split("/")[-1][:4]) - 1 for path in batch["img_paths"]]
        assert batch["targets"].tolist() == classes  # identities 1..6, numbered from 0
        assert len(set(classes)) == 2
        assert all("DukeMTMC" in path for path in batch["img_paths"])


def test_target_images_in_the_source_batches_have_no_labels(source_cfg):
    batch = next(iter(SourceLoader(source_cfg, seed=1).epoch(0)))
    assert set(batch) == {"images", "targets", "img_paths", "indices", "bn_images"}


def test_source_without_target_images(source_cfg):
    source_cfg.SSKD.SOURCE.BN_DATASETS = ()
    found = list(SourceLoader(source_cfg, seed=1).epoch(0))
    assert len(found) == 2 and not any("bn_images" in batch for batch in found)


def test_source_epochs_differ_and_can_be_taken_up(source_cfg):
    """An epoch from its second batch on is what it would have been; its first is not read."""
    first, second = (list(SourceLoader(source_cfg, seed=1).epoch(epoch)) for epoch in (0, 1))
    assert not any(same(a, b) for a, b in zip(first, second))
    (later,) = SourceLoader(source_cfg, seed=1).epoch(1, start=1)
    assert same(later, second[1])
    assert list(SourceLoader(source_cfg, seed=1).epoch(1, start=2)) == []


def test_source_batches_differ_by_seed(source_cfg):
    one, again, other = (next(iter(SourceLoader(source_cfg, seed=seed).epoch(0))) for seed in (1, 1, 2))
    assert same(one, again) and not same(one, other)
    assert not torch.equal(one["bn_images"], other["bn_images"])


def test_adaptation_epoch_can_be_taken_up(cfg):
    items, labels = training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS), [k // 8 for k in range(48)]
    whole = list(adaptation_loader(cfg, items, labels, seed=1))
    later = list(adaptation_loader(cfg, items, labels, seed=1, start=1))
    assert len(whole) == len(later) + 1
    for a, b in zip(whole[1:], later):
        assert torch.equal(a["images"], b["images"]) and torch.equal(a["targets"], b["targets"])
    with pytest.raises(ValueError, match="epoch of 3 batches cannot go on after 4"):
        adaptation_loader(cfg, items, labels, seed=1, start=4)


# ---- where views are made, what is kept, who loads --------------------------------------------------------------------

WHERE = [("worker", 0, 0), ("worker", 8, 0), ("device", 0, 0), ("device", 8, 0), ("worker", 8, 2), ("device", 8, 2)]


def plain_views(cfg, items, batch, seeds):
    """The views of a batch as the host's transforms make them, image after image."""
    once, augment = build_view_transforms(cfg)
    for path, seed in zip(batch["img_paths"], seeds):
        with seeded(seed):
            image = once(read_image(path))
            yield torch.stack([augment(image) for _ in range(cfg.SSKD.NUM_PEERS)])


@pytest.fixture
def options(cfg):
    def choose(place, megabytes, workers):
        cfg.SSKD.AUGMENT_ON, cfg.SSKD.CACHE_IMAGES, cfg.DATALOADER.NUM_WORKERS = place, megabytes, workers
        return cfg

    return choose


@pytest.mark.parametrize("where", WHERE, ids=str)
def test_views_are_the_hosts_wherever_they_are_made(options, where):
    """Bit for bit those of the host's transforms under the seeds of their places, in every epoch."""
    cfg = options(*where)
    items, labels = training_items(cfg.DATASETS.NAMES), [k // 8 for k in range(48)]
    loader = TargetLoader(cfg, items)
    for epoch in (1, 2, 1):
        found = list(loader.epoch(labels, epoch, start=epoch - 1))
        assert len(found) == cfg.SSKD.ITERS_PER_EPOCH - epoch + 1
        for number, batch in enumerate(found, epoch - 1):
            assert set(batch) == {"images", "targets", "img_paths", "indices"}
            seeds = [derive_seed(epoch, number, place) for place in range(8)]
            expected = torch.stack(list(plain_views(cfg, items, batch, seeds)))
            assert torch.equal(batch["images"], expected) and batch["images"].is_contiguous()
    assert (loader.cache is not None) == bool(where[1])


@pytest.mark.parametrize("where", WHERE[1:4], ids=str)
def test_source_views_are_the_same_wherever_they_are_made(source_cfg, where):
    usual = [list(SourceLoader(source_cfg, seed=1).epoch(epoch)) for epoch in (0, 1)]
    source_cfg.SSKD.AUGMENT_ON, source_cfg.SSKD.CACHE_IMAGES, source_cfg.DATALOADER.NUM_WORKERS = where
    loader = SourceLoader(source_cfg, seed=1)
    for epoch in (0, 1):
        found = list(loader.epoch(epoch))
        assert all(same(a, b) for a, b in zip(found, usual[epoch], strict=True))
        assert found[0]["images"].shape == (8, 3, 32, 16)


@pytest.mark.parametrize("place", ["worker", "device"])
def test_pixels_are_8_bit_on_their_way(options, place):
    """Whole crops for the device, cut views from the workers; float only where something with fractions is filled in."""
    cfg = options(place, 0, 0)
    items = training_items(cfg.DATASETS.NAMES)
    data_set = TargetLoader(cfg, items).epoch([0] * 48, seed=1).dataset
    (batch,) = DataLoader(data_set, batch_sampler=[[Draw(0, 0, 1), Draw(1, 0, 2)]])
    shape = (2, 2, 3, 32, 16) if place == "worker" else (2, 3, 32, 16)
    assert batch["images"].dtype == torch.uint8 and batch["images"].shape == shape
    assert batch["views"].shape == (2, 2, 7)
    assert next(iter(adaptation_loader(cfg, items, [0] * 48, seed=1)))["images"].dtype == torch.float32
    cfg.INPUT.REA.ENABLED = False
    assert next(iter(adaptation_loader(cfg, items, [0] * 48, seed=1)))["images"].dtype == torch.uint8


@pytest.mark.parametrize("place", ["worker", "device"])
def test_other_transforms_are_done_by_the_workers(options, place):
    """Colour jitter draws from the same seeds wherever views are wanted."""
    cfg = options(place, 8, 0)
    cfg.INPUT.CJ.ENABLED, cfg.INPUT.CJ.PROB = True, 1.0
    items = training_items(cfg.DATASETS.NAMES)
    for _ in range(2):  # the second time from the cache
        batch = next(iter(adaptation_loader(cfg, items, [0] * 48, seed=1)))
        expected = torch.stack(list(plain_views(cfg, items, batch, [derive_seed(1, 0, place) for place in range(8)])))
        assert torch.equal(batch["images"], expected)


def test_extraction_shares_the_cache(options, monkeypatch):
    """An image that was read for training is not read for its features, and the other way round."""
    cfg = options("worker", 8, 0)
    items, reads = training_items(cfg.DATASETS.NAMES), []
    monkeypatch.setattr(views, "read_image", lambda path: reads.append(path) or read_image(path))
    loader = TargetLoader(cfg, items)
    usual = torch.cat([batch["images"] for batch in extraction_loader(cfg, items)])
    assert len(reads) == 48
    reads.clear()
    list(loader.epoch([0] * 8 + [-1] * 40, seed=1))
    assert sorted(reads) == sorted({item[0] for item in items[:8]})
    for _ in range(2):
        found = torch.cat([batch["images"] for batch in extraction_loader(cfg, items, cache=loader.cache)])
        assert torch.equal(found, usual) and found.dtype == torch.float32
    list(loader.epoch([0] * 48, seed=2))
    assert len(reads) == len(set(reads)) == 48


def test_extraction_at_another_size_reads_the_files(options):
    cfg = options("worker", 8, 0)
    cfg.INPUT.SIZE_TEST = [16, 8]
    items = training_items(cfg.DATASETS.NAMES)
    loader = TargetLoader(cfg, items)
    batch = next(iter(extraction_loader(cfg, items, cache=loader.cache)))
    assert batch["images"].shape == (32, 3, 16, 8) and len(loader.cache) == 0


def test_workers_live_from_epoch_to_epoch_and_fill_one_cache(options):
    cfg = options("worker", 8, 2)
    items = training_items(cfg.DATASETS.NAMES)
    loader = TargetLoader(cfg, items)
    seen, before = set(), None
    for epoch in range(3):
        labels = [(k + epoch) % 6 for k in range(48)]
        for batch in loader.epoch(labels, epoch):
            assert batch["targets"].tolist() == [labels[k] for k in batch["indices"]]
            seen |= set(batch["indices"].tolist())
        workers = {process.pid for process in multiprocessing.active_children()}
        assert len(workers) == 2 and before in (None, workers)
        before = workers
    assert len(loader.cache) == len(seen)
    del loader
    gc.collect()
    assert not multiprocessing.active_children()  # they end with their loader
