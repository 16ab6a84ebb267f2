"""The loaders of both stages and of evaluation; epochs read by the same workers; the host's epochs."""

import gc
import multiprocessing
import os

import numpy as np
import pytest
import torch
from fastreid.data import build_reid_train_loader
from tiny_reid import tiny_baseline, tiny_source
from torch.utils.data import DataLoader, Dataset

from fastreid_sskd.data import (
    CropCache,
    SourceLoader,
    TargetLoader,
    adaptation_loader,
    extraction_loader,
    training_items,
    views,
)
from fastreid_sskd.data.loaders import EpochLoader, HostEpochs
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
    cfg.SSKD.ITERS_PER_EPOCH, cfg.SSKD.NUM_PEERS = 7, 3
    labels = [k // 4 if k < labelled else -1 for k in range(48)]
    loader = adaptation_loader(cfg, items, labels, seed=1)
    assert len(loader) == 7
    found = list(loader)
    assert len(found) == 7
    for batch in found:
        assert batch["images"].shape == (8, 3, 3, 32, 16)
        assert batch["targets"].tolist() == [labels[i] for i in batch["indices"]]
        assert (batch["targets"] >= 0).all()
        assert batch["img_paths"] == [items[i][0] for i in batch["indices"]]


def test_source_batches(source_cfg):
    loader = SourceLoader(source_cfg, seed=1)
    assert loader.num_classes == 6 and len(loader.items) == 48
    found = list(loader.epoch(0))
    assert len(found) == 2
    for batch in found:
        assert set(batch) == {"images", "targets", "img_paths", "indices", "bn_images"}
        assert batch["images"].shape == batch["bn_images"].shape == (8, 3, 32, 16)
        classes = [int(path.split("/")[-1][:4]) - 1 for path in batch["img_paths"]]
        assert batch["targets"].tolist() == classes  # identities 1..6, numbered from 0
        assert len(set(classes)) == 2
        assert all("DukeMTMC" in path for path in batch["img_paths"])


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
    with pytest.raises(ValueError, match="epoch of 3 batches cannot be resumed after 4"):
        adaptation_loader(cfg, items, labels, seed=1, start=4)


# ---- views, what is kept, who loads --------------------------------------------------------------

WHERE = [(0, 0), (8, 0), (0, 2), (8, 2)]  # MB of the cache, workers


def plain_views(cfg, items, batch, seeds):
    """The views of a batch as the host's transforms make them, image after image."""
    once, augment = build_view_transforms(cfg)
    for path, seed in zip(batch["img_paths"], seeds):
        crop = CropCache(once).read(path)
        with seeded(seed):
            yield torch.stack([augment(crop) for _ in range(cfg.SSKD.NUM_PEERS)])


@pytest.fixture
def options(cfg):
    def choose(megabytes, workers):
        cfg.SSKD.CACHE_IMAGES, cfg.DATALOADER.NUM_WORKERS = megabytes, workers
        return cfg

    return choose


@pytest.mark.parametrize("where", WHERE, ids=str)
def test_views_are_those_of_their_seeds(options, where):
    """Whether images are kept or not, whoever loads them, in every epoch."""
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
    assert (loader.cache is not None) == bool(where[0])


@pytest.mark.parametrize("where", WHERE[1:], ids=str)
def test_source_views_are_the_same_wherever_they_are_made(source_cfg, where):
    usual = [list(SourceLoader(source_cfg, seed=1).epoch(epoch)) for epoch in (0, 1)]
    source_cfg.SSKD.CACHE_IMAGES, source_cfg.DATALOADER.NUM_WORKERS = where
    loader = SourceLoader(source_cfg, seed=1)
    for epoch in (0, 1):
        found = list(loader.epoch(epoch))
        assert all(same(a, b) for a, b in zip(found, usual[epoch], strict=True))
        assert found[0]["images"].shape == (8, 3, 32, 16)


def test_extraction_shares_the_cache(options, monkeypatch):
    """An image that was read for training is not read for its features, and the other way round."""
    cfg = options(8, 0)
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
    cfg = options(8, 0)
    cfg.INPUT.SIZE_TEST = [16, 8]
    items = training_items(cfg.DATASETS.NAMES)
    loader = TargetLoader(cfg, items)
    batch = next(iter(extraction_loader(cfg, items, cache=loader.cache)))
    assert batch["images"].shape == (32, 3, 16, 8) and len(loader.cache) == 0


def test_workers_live_from_epoch_to_epoch_and_fill_one_cache(options):
    cfg = options(8, 2)
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


# ---- epochs --------------------------------------------------------------------------------------


EPOCHS = ([[0, 1], [2]], [[5, 4], [3, 2], [1, 0]], [])


class Squares(Dataset):
    """Index -> (its square, the process); 13 is an error."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index == 13:
            raise OSError("13.jpg cannot be read")
        return index * index, os.getpid()


def squares(batches):
    return [numbers.tolist() for numbers, _ in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_those_of_loaders_of_their_own(workers):
    loader = EpochLoader(Squares(), num_workers=workers)
    for batches in (*EPOCHS, EPOCHS[0]):
        epoch = loader.epoch(batches)
        assert len(epoch) == len(batches) and epoch.dataset is loader.dataset
        assert squares(epoch) == squares(DataLoader(Squares(), batch_sampler=batches)) == squares(epoch)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_was_left_changes_nothing(workers):
    """With batches on their way, an error among them."""
    loader = EpochLoader(Squares(), num_workers=workers)
    left = iter(loader.epoch([[1], [2], [13], [3], [4]]))
    assert next(left)[0].tolist() == [1]
    assert squares(loader.epoch(EPOCHS[1])) == squares(DataLoader(Squares(), batch_sampler=EPOCHS[1]))


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_read_one_after_the_other(workers, begun):
    """Both would get batches of the second, also where nothing of the first has been read."""
    loader = EpochLoader(Squares(), num_workers=workers)
    first = iter(loader.epoch(EPOCHS[0]))
    if begun:
        next(first)
    second = iter(loader.epoch(EPOCHS[1]))
    found = next(second)[0].tolist() if begun else []
    with pytest.raises(RuntimeError, match="another epoch of this loader has begun"):
        next(first)
    assert [*found, *next(second)[0].tolist()] == ([25, 16, 9, 4] if begun else [25, 16])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_and_the_next_epoch_goes_on(workers):
    loader = EpochLoader(Squares(), num_workers=workers)
    for _ in range(2):
        with pytest.raises(OSError, match="13.jpg cannot be read"):
            list(loader.epoch([[1], [12, 13], [3]]))
    assert squares(loader.epoch([[2]])) == [[4]]


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_start_with_iter(workers, monkeypatch):
    """Not at the first batch, so that they work while the main process does something else."""
    loader = EpochLoader(Squares(), num_workers=workers)
    begun = []
    monkeypatch.setattr(
        DataLoader, "__iter__", lambda self, usual=DataLoader.__iter__: begun.append(1) or usual(self)
    )
    batches = iter(loader.epoch([[1]]))
    assert begun == [1]
    assert squares(batches) == [[1]]


def test_generators_are_left_alone():
    before = torch.default_generator.get_state()
    list(EpochLoader(Squares()).epoch(EPOCHS[0]))
    list(EpochLoader(Squares(), num_workers=1).epoch(EPOCHS[0]))
    assert torch.equal(torch.default_generator.get_state(), before)


@pytest.mark.parametrize("start, expected", [(0, [[0], [1], [4]]), (2, [[4]]), (3, [])])
def test_an_epoch_from_a_later_batch_on(start, expected):
    epoch = EpochLoader(Squares()).epoch([[0], [1], [2]], start)
    assert len(epoch) == len(expected) and squares(epoch) == squares(epoch) == expected
    for beyond in (-1, 4):
        with pytest.raises(ValueError, match="an epoch of 3 batches cannot be resumed after"):
            EpochLoader(Squares()).epoch([[0], [1], [2]], beyond)


def test_images_of_a_batch_go_to_the_device():
    (batch,) = EpochLoader([{"images": torch.zeros(2), "targets": 1}], device="meta").epoch([[0]])
    assert batch["images"].device.type == "meta" and batch["targets"].device.type == "cpu"


# ---- the host's training loaders -----------------------------------------------------------------


@pytest.fixture(
    params=["NaiveIdentitySampler", "BalancedIdentitySampler", "TrainingSampler", "ImbalancedDatasetSampler"]
)
def host_loader(request, data_sets, tmp_path):
    cfg = tiny_baseline(
        tmp_path,
        "DATALOADER.SAMPLER_TRAIN",
        request.param,
        "INPUT.REA.ENABLED True",
        "INPUT.REA.PROB 1.0",
    )
    return build_reid_train_loader(cfg, combineall=False)


def content(batches):
    return [(batch["img_paths"], batch["images"].sum().item()) for batch in batches]


def test_an_epoch_is_a_function_of_seed_and_epoch(host_loader):
    """Whatever random numbers were drawn before, and whichever epochs were read."""
    whole = content(HostEpochs(host_loader, seed=3, num_batches=6).epoch(1))
    np.random.rand(7), torch.rand(7)
    epochs = HostEpochs(host_loader, seed=3, num_batches=6)
    other = content(epochs.epoch(0))
    assert content(epochs.epoch(1)) == whole != other
    assert content(epochs.epoch(1, start=4)) == whole[4:]
    assert content(HostEpochs(host_loader, seed=4, num_batches=6).epoch(1)) != whole


def test_shape_of_an_epoch(host_loader):
    found = list(HostEpochs(host_loader, seed=3, num_batches=6).epoch(0))
    assert [batch["images"].shape for batch in found] == [(8, 3, 32, 16)] * 6
    # of 48: not the same batch again
    assert len({path for batch in found for path in batch["img_paths"]}) > 24


def test_the_hosts_global_generators_are_left_alone(host_loader):
    """But for the seed that a loader draws for its workers."""
    np.random.seed(5)
    state = np.random.get_state()
    list(HostEpochs(host_loader, seed=3, num_batches=2).epoch(0))
    assert all(np.array_equal(a, b) for a, b in zip(state, np.random.get_state()))


def test_an_image_is_augmented_anew_each_time(host_loader):
    """Under the seed of its place, not of its index."""
    dataset = HostEpochs(host_loader, seed=3, num_batches=2).epoch(0).dataset
    assert len(dataset) == 48
    assert torch.equal(dataset[(0, 1)]["images"], dataset[(0, 1)]["images"])
    assert len({dataset[(0, seed)]["images"].sum().item() for seed in range(12)}) > 3
