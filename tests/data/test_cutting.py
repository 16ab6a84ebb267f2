"""Cutting and erasing against loops over every pixel; one by one and in a batch."""

import pytest
import torch

from fastreid_sskd.data.views import cut, cut_batch, erase, erase_batch

SHAPE = (3, 5, 4)
NUMBERS = [(0, 0, 0), (2, 3, 1), (1, 0, 1), (2, 1, 0)]  # (top, left, mirrored) in a crop of 7 x 7
BOXES = [[(0, 0, 0, 0), (1, 2, 3, 2)], [(0, 0, 5, 4), (4, 3, 1, 1)]]


@pytest.fixture
def crops():
    return torch.randint(0, 256, (2, 3, 7, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def looped_cut(crop, numbers):
    """Pixel by pixel, as the words say it."""
    views = torch.zeros((len(numbers), *SHAPE), dtype=crop.dtype)
    for k, (top, left, mirrored) in enumerate(numbers):
        for y in range(SHAPE[1]):
            for x in range(SHAPE[2]):
                from_left = SHAPE[2] - 1 - x if mirrored else x
                views[k, :, y, x] = crop[:, top + y, left + from_left]
    return views


def looped_erase(views, boxes, value):
    filled = views.float()
    for b, row in enumerate(boxes):
        for k, (top, left, height, width) in enumerate(row):
            for y in range(top, top + height):
                for x in range(left, left + width):
                    filled[b, k, :, y, x] = torch.tensor(value)
    return filled


def test_cut(crops):
    views = cut(crops[0], NUMBERS, SHAPE)
    assert torch.equal(views, looped_cut(crops[0], NUMBERS)) and views.dtype == torch.uint8
    views.zero_()
    assert crops.any()  # memory of its own


def test_cut_batch(crops):
    numbers = torch.tensor([NUMBERS[:2], NUMBERS[2:]])
    views = cut_batch(crops, numbers, SHAPE)
    assert views.shape == (2, 2, *SHAPE) and views.is_contiguous() and views.dtype == torch.uint8
    for b in range(2):
        assert torch.equal(views[b], looped_cut(crops[b], numbers[b].tolist()))


def test_no_view_and_no_crop(crops):
    assert cut(crops[0], [], SHAPE).shape == (0, *SHAPE)
    assert cut_batch(crops[:0], torch.zeros(0, 2, 3, dtype=torch.long), SHAPE).shape == (0, 2, *SHAPE)


@pytest.mark.parametrize("value", [[7.25], [151.997, 142.327, 126.824]])
def test_erase(crops, value):
    """Fractions stay; the views do not change; what is outside is as it was."""
    views = crops[:, None, :, :5, :4].repeat(1, 2, 1, 1, 1)
    before, expected = views.clone(), looped_erase(views, BOXES, value)
    for found in (erase(views, BOXES, value), erase_batch(views, torch.tensor(BOXES), value)):
        assert found.dtype == torch.float32 and torch.equal(found, expected)
        assert found[0, 1, 0, 1, 2] == torch.tensor(value[0])
    assert torch.equal(views, before)


def test_erasing_floats_leaves_them_alone(crops):
    views = crops[:, None].repeat(1, 2, 1, 1, 1).float()
    before = views.clone()
    erase(views, BOXES, [0.5]), erase_batch(views, torch.tensor(BOXES), [0.5])
    assert torch.equal(views, before)
