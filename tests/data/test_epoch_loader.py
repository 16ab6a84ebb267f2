"""A loader whose workers live as long as it does: the batches of every epoch are those of a loader of their own."""

import os

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fastreid_sskd.data.loaders import EpochLoader

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


def processes(batches):
    return {process for _, found in batches for process in found.tolist()}


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_those_of_loaders_of_their_own(workers):
    loader = EpochLoader(Squares(), num_workers=workers)
    for batches in (*EPOCHS, EPOCHS[0]):
        epoch = loader.epoch(batches)
        assert len(epoch) == len(batches) and epoch.dataset is loader.dataset
        assert squares(epoch) == squares(DataLoader(Squares(), batch_sampler=batches)) == squares(epoch)


def test_workers_are_the_same_in_every_epoch():
    loader = EpochLoader(Squares(), num_workers=2)
    first, second = (processes(loader.epoch([[k], [k], [k], [k]])) for k in (1, 2))
    assert first == second and len(first) == 2 and os.getpid() not in first


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_was_left_changes_nothing(workers):
    """With batches on their way, an error among them."""
    loader = EpochLoader(Squares(), num_workers=workers)
    left = iter(loader.epoch([[1], [2], [13], [3], [4]]))
    assert next(left)[0].tolist() == [1]
    assert squares(loader.epoch(EPOCHS[1])) == squares(DataLoader(Squares(), batch_sampler=EPOCHS[1]))


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_read_one_after_the_other(workers):
    """Both would get batches of the second."""
    loader = EpochLoader(Squares(), num_workers=workers)
    first = iter(loader.epoch(EPOCHS[0]))
    next(first)
    second = iter(loader.epoch(EPOCHS[1]))
    next(second)
    with pytest.raises(RuntimeError, match="another epoch of this loader has begun"):
        next(first)
    assert next(second)[0].tolist() == [9, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_before_its_first_batch_is_over_too(workers):
    loader = EpochLoader(Squares(), num_workers=workers)
    first, second = iter(loader.epoch(EPOCHS[0])), iter(loader.epoch(EPOCHS[1]))
    with pytest.raises(RuntimeError, match="another epoch of this loader has begun"):
        next(first)
    assert next(second)[0].tolist() == [25, 16]


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
    monkeypatch.setattr(DataLoader, "__iter__", lambda self, usual=DataLoader.__iter__: begun.append(1) or usual(self))
    batches = iter(loader.epoch([[1]]))
    assert begun == [1]
    assert squares(batches) == [[1]]


def test_generators_are_left_alone():
    before = torch.default_generator.get_state()
    list(EpochLoader(Squares()).epoch(EPOCHS[0]))
    list(EpochLoader(Squares(), num_workers=1).epoch(EPOCHS[0]))
    assert torch.equal(torch.default_generator.get_state(), before)


def test_batches_are_finished_in_the_main_process():
    loader = EpochLoader(Squares(), finish=lambda batch: (batch[0].tolist(), os.getpid()), num_workers=1)
    assert list(loader.epoch(EPOCHS[0])) == [([0, 1], os.getpid()), ([4], os.getpid())]
