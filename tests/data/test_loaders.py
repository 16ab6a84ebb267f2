"""The loaders of both stages, of the features and of the evaluation."""

import pytest
import torch
from tiny_reid import tiny_source

from fastreid_sskd.data import SourceLoader, adaptation_loader, extraction_loader, training_items
from fastreid_sskd.data.loaders import test_loader as evaluation_loader


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
