"""Pixel normalisation."""

import pytest
import torch

from fastreid_sskd.modeling.peer import PixelNormalisation

MEAN, STD = [10.0, 20.0, 30.0], [2.0, 4.0, 5.0]


def test_by_hand():
    images = torch.tensor([[12.0, 16.0, 30.0], [0.0, 255.0, 5.0]]).view(2, 3, 1, 1)
    expected = torch.tensor([[1.0, -1.0, 0.0], [-5.0, 58.75, -5.0]])
    assert torch.equal(PixelNormalisation(MEAN, STD)(images)[:, :, 0, 0], expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.int64])
def test_types_agree_and_the_input_is_left_alone(dtype):
    images = torch.randint(0, 256, (2, 3, 4, 5), generator=torch.Generator().manual_seed(0)).to(dtype)
    before = images.clone()
    out = PixelNormalisation(MEAN, STD)(images)
    assert out.dtype == torch.float32 and out.shape == images.shape
    assert torch.equal(out, PixelNormalisation(MEAN, STD)(before.float()))
    assert torch.equal(images, before) and images.dtype == dtype


def test_nothing_goes_into_checkpoints_but_the_type_follows_the_model():
    pixels = PixelNormalisation(MEAN, STD)
    assert not pixels.state_dict() and not list(pixels.parameters())
    assert pixels.double()(torch.zeros(1, 3, 2, 2)).dtype == torch.float64


def test_empty_batch():
    assert PixelNormalisation(MEAN, STD)(torch.zeros(0, 3, 4, 2)).shape == (0, 3, 4, 2)
