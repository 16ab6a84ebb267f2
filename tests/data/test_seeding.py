"""Seeds derived from what they are for, and a context that leaves the generators as they were."""

import random

import numpy as np
import pytest
import torch

from fastreid_sskd.data.samplers import derive_seed, seeded, seeded_torch


def numbers():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_derive_seed():
    assert derive_seed(1, 2, 3) == derive_seed(1, 2, 3)
    assert derive_seed(1, 2, 3) != derive_seed(1, 3, 2)
    found = {derive_seed(seed, epoch) for seed in range(20) for epoch in range(20)}
    assert len(found) == 400 and all(0 <= seed < 2**32 for seed in found)


def test_derive_seed_takes_numpy_integers():
    assert derive_seed(np.int64(5), np.uint32(7)) == derive_seed(5, 7)


def test_derive_seed_refuses_negative_numbers():
    with pytest.raises(ValueError):
        derive_seed(-1)


def test_seeded_gives_the_same_numbers():
    with seeded(5):
        first = numbers()
    with seeded(5):
        assert numbers() == first
    with seeded(6):
        other = numbers()
    assert all(a != b for a, b in zip(first, other))


@pytest.mark.parametrize("fails", [False, True])
def test_seeded_restores_the_generators(fails):
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(1)
    expected = numbers()
    for generator in (random.seed, np.random.seed, torch.manual_seed):
        generator(1)
    try:
        with seeded(99):
            numbers()
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert numbers() == expected


def test_seeded_nests():
    with seeded(1):
        first = numbers()
        second = numbers()
    with seeded(1):
        assert numbers() == first
        with seeded(2):
            numbers()
        assert numbers() == second


def test_seeded_torch_draws_as_seeded_and_leaves_the_generators():
    torch.manual_seed(3)
    expected = numbers()
    torch.manual_seed(3)
    random_state, numpy_state = random.getstate(), np.random.get_state()[1].tolist()
    with seeded(7):
        inside = torch.rand(3)
    with pytest.raises(KeyError), seeded_torch(7):
        assert torch.equal(torch.rand(3), inside)
        raise KeyError
    assert random.getstate() == random_state and np.random.get_state()[1].tolist() == numpy_state
    assert float(torch.rand(())) == expected[2]
