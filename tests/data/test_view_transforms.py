"""The host's transforms in two parts, with the method's random erasing."""

import numpy as np
import pytest
import torch
from fastreid.data.transforms import build_transforms
from PIL import Image
from torchvision import transforms as T

from fastreid_sskd.data.samplers import seeded
from fastreid_sskd.data.views import build_view_transforms
from fastreid_sskd.modeling.pixels import PixelNormalisation


def picture(height=40, width=24):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def kinds(transform):
    return [type(step).__name__ for step in transform.transforms]


def test_resize_is_done_once_and_the_rest_anew(cfg):
    once, augment = build_view_transforms(cfg)
    assert kinds(once) == ["Resize"]
    assert kinds(augment) == ["Pad", "RandomCrop", "RandomHorizontalFlip", "ToTensor", "RandomErasing"]
    assert once(picture()).size == (16, 32)
    view = augment(once(picture()))
    assert view.shape == (3, 32, 16) and view.dtype == torch.float32
    assert 1 < view.max() <= 255  # not scaled: the model normalises


def test_together_they_are_the_hosts(cfg):
    cfg.INPUT.REA.ENABLED = False
    cfg.INPUT.CJ.ENABLED = True
    once, augment = build_view_transforms(cfg)
    host = build_transforms(cfg, is_train=True)
    for seed in range(5):
        with seeded(seed):
            ours = augment(once(picture()))
        with seeded(seed):
            theirs = host(picture())
        assert torch.equal(ours, theirs)


def test_random_steps_before_the_resize_are_not_shared_by_the_views(cfg):
    cfg.INPUT.AUTOAUG.ENABLED = True
    once, augment = build_view_transforms(cfg)
    assert kinds(once) == [] and kinds(augment)[:2] == ["RandomApply", "Resize"]


def test_without_erasing(cfg):
    cfg.INPUT.REA.ENABLED = False
    assert "RandomErasing" not in kinds(build_view_transforms(cfg)[1])


def erased(cfg, count):
    """(height, width, fill) of the rectangles that erasing alone leaves in white images of 256 x 128."""
    cfg.INPUT.SIZE_TRAIN = [256, 128]
    cfg.INPUT.FLIP.ENABLED = cfg.INPUT.PADDING.ENABLED = False
    once, augment = build_view_transforms(cfg)
    white = once(Image.new("RGB", (128, 256), "white"))
    found = []
    for seed in range(count):
        with seeded(seed):
            view = augment(white)
        rows, columns = torch.nonzero((view != 255).any(0), as_tuple=True)
        if not len(rows):
            found.append(None)
            continue
        box = view[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert len(rows) == box.shape[1] * box.shape[2], "not a rectangle"
        assert torch.equal(box, box[:, :1, :1].expand_as(box)), "not one colour"
        found.append((box.shape[1], box.shape[2], box[:, 0, 0]))
    return found


def test_erasing_rectangles(cfg):
    """Area 2-40 % and aspect 0.3-3.3 (rounding to pixels apart), the whole range of both."""
    cfg.INPUT.REA.PROB = 1.0
    boxes = [box for box in erased(cfg, 400) if box]
    area = np.array([height * width / (256 * 128) for height, width, _ in boxes])
    aspect = np.array([height / width for height, width, _ in boxes])
    assert len(boxes) == 400
    assert 0.019 < area.min() < 0.04 and 0.36 < area.max() < 0.405  # the host's would end at 0.33
    assert 0.28 < aspect.min() < 0.4 and 2.6 < aspect.max() < 3.5
    assert abs(np.log(aspect).mean()) < 0.25


def test_erasing_range_is_the_configs(cfg):
    cfg.INPUT.REA.PROB = 1.0
    cfg.SSKD.ERASING.AREA = (0.1, 0.12)
    cfg.SSKD.ERASING.ASPECT = (1.9, 2.1)
    for height, width, _ in erased(cfg, 40):
        assert 0.095 < height * width / (256 * 128) < 0.125
        assert 1.8 < height / width < 2.2


def test_erasing_probability(cfg):
    share = np.mean([box is not None for box in erased(cfg, 400)])
    assert abs(share - 0.5) < 4 * (0.25 / 400) ** 0.5


def test_erasing_fills_with_the_methods_value(cfg):
    """(.485, .456, .406) in normalised units, although erasing comes before the normalisation."""
    cfg.INPUT.REA.PROB = 1.0
    (_, _, fill), *_ = erased(cfg, 1)
    normalised = PixelNormalisation(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)(fill.view(1, 3, 1, 1))
    assert normalised.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406], abs=1e-4)


def test_result_is_a_plain_composition(cfg):
    assert all(isinstance(part, T.Compose) for part in build_view_transforms(cfg))
