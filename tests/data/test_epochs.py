"""Epochs of the host's loaders as functions of seed and epoch."""

import numpy as np
import pytest
import torch
from fastreid.data import build_reid_train_loader
from tiny_reid import tiny_baseline

from fastreid_sskd.data.loaders import HostEpochs
from fastreid_sskd.data.samplers import BatchesFrom


@pytest.mark.parametrize("start, expected", [(0, [[0], [1], [2]]), (2, [[2]]), (3, [])])
def test_batches_from(start, expected):
    batches = BatchesFrom([[0], [1], [2]], start)
    assert len(batches) == len(expected)
    assert list(batches) == list(batches) == expected


@pytest.mark.parametrize("start", [-1, 4])
def test_batches_from_beyond_the_epoch(start):
    with pytest.raises(ValueError, match="3 batches cannot go on after"):
        BatchesFrom([[0], [1], [2]], start)


@pytest.fixture(params=["NaiveIdentitySampler", "BalancedIdentitySampler", "TrainingSampler", "ImbalancedDatasetSampler"])
def loader(request, data_sets, tmp_path):
    cfg = tiny_baseline(tmp_path, "DATALOADER.SAMPLER_TRAIN", request.param, "INPUT.REA.ENABLED", "True", "INPUT.REA.PROB", "1.0")
    return build_reid_train_loader(cfg, combineall=False)


def content(batches):
    return [(batch["img_paths"], batch["images"].sum().item()) for batch in batches]


def test_an_epoch_is_a_function_of_seed_and_epoch(loader):
    """Whatever random numbers were drawn before, and whichever epochs were read."""
    whole = content(HostEpochs(loader, seed=3, num_batches=6).epoch(1))
    np.random.rand(7), torch.rand(7)
    epochs = HostEpochs(loader, seed=3, num_batches=6)
    other = content(epochs.epoch(0))
    assert content(epochs.epoch(1)) == whole != other
    assert content(epochs.epoch(1, start=4)) == whole[4:]
    assert content(HostEpochs(loader, seed=4, num_batches=6).epoch(1)) != whole


def test_shape_of_an_epoch(loader):
    found = list(HostEpochs(loader, seed=3, num_batches=6).epoch(0))
    assert [batch["images"].shape for batch in found] == [(8, 3, 32, 16)] * 6
    assert len({path for batch in found for path in batch["img_paths"]}) > 24  # of 48: not the same batch again


def test_global_generators_are_left_alone(loader):
    """But for the seed that a loader draws for its workers."""
    np.random.seed(5)
    state = np.random.get_state()
    list(HostEpochs(loader, seed=3, num_batches=2).epoch(0))
    assert all(np.array_equal(a, b) for a, b in zip(state, np.random.get_state()))


def test_an_image_is_augmented_anew_each_time(loader):
    """Under the seed of its place, not of its index."""
    dataset = HostEpochs(loader, seed=3, num_batches=2).epoch(0).dataset
    assert len(dataset) == 48
    assert torch.equal(dataset[(0, 1)]["images"], dataset[(0, 1)]["images"])
    assert len({dataset[(0, seed)]["images"].sum().item() for seed in range(12)}) > 3
