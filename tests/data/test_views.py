"""Views by numbers against the host's transforms: same draws give the same pixels, other draws the same distribution."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chi2_contingency, ks_2samp
from torchvision import transforms as T

from fastreid_sskd.data.samplers import seeded, seeded_torch
from fastreid_sskd.data.views import Views, build_view_transforms, build_views, to_pixels, without_numbers

ALPHA = 1e-4  # of the tests of distributions; seeds are fixed


def picture(height=32, width=16):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def numbered(views, crop, count, seed, batch):
    """Views made in the way of the worker, or of the device."""
    with seeded_torch(seed):
        numbers = views.draw(count, crop.shape)
    tensor = torch.tensor([numbers])
    if batch:
        return views.erase_batch(views.cut_batch(crop[None], tensor), tensor)[0]
    return views.erase(views.cut(crop, numbers)[None], tensor)[0]


VARIANTS = [
    [], ["INPUT.REA.ENABLED", "False"], ["INPUT.FLIP.ENABLED", "False"], ["INPUT.PADDING.ENABLED", "False"],
    ["INPUT.FLIP.PROB", "0.3", "INPUT.REA.PROB", "1.0"], ["INPUT.PADDING.MODE", "reflect"],
    ["INPUT.PADDING.MODE", "edge"], ["INPUT.PADDING.MODE", "symmetric"], ["INPUT.PADDING.SIZE", "0"],
    ["INPUT.REA.VALUE", "[0, 0, 0]", "INPUT.REA.PROB", "0.9"],
    ["INPUT.REA.ENABLED", "False", "INPUT.FLIP.ENABLED", "False", "INPUT.PADDING.ENABLED", "False"],
]  # fmt: skip


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: " ".join(options) or "the method's")
def test_same_draws_give_the_same_pixels(cfg, options, batch):
    """Bit for bit those of the host's own transforms, whatever is on; three views one after the other."""
    cfg.merge_from_list(options)
    _, augment = build_view_transforms(cfg)
    views, image = Views(augment.transforms), picture()
    crop = to_pixels(image)
    before = crop.clone()
    for seed in range(25):
        with seeded(seed):
            expected = torch.stack([augment(image) for _ in range(3)])
        found = numbered(views, crop, 3, seed, batch)
        assert torch.equal(found.float(), expected)
        assert found.dtype == (torch.float32 if cfg.INPUT.REA.ENABLED else torch.uint8)
    assert torch.equal(crop, before)


def test_rectangle_that_never_fits(cfg):
    """torchvision gives up after ten tries and leaves the image as it is."""
    cfg.INPUT.REA.PROB, cfg.SSKD.ERASING.AREA = 1.0, (0.99, 1.0)
    cfg.SSKD.ERASING.ASPECT = (3.0, 3.3)
    _, augment = build_view_transforms(cfg)
    views, image = Views(augment.transforms), picture()
    assert {numbers[3:] for numbers in views.draw(50, (3, 32, 16))} == {(0, 0, 0, 0)}
    with seeded(1):
        expected = augment(image)
    assert torch.equal(numbered(views, to_pixels(image), 1, 1, True)[0], expected)


def test_one_pixel(cfg):
    cfg.INPUT.SIZE_TRAIN, cfg.INPUT.PADDING.SIZE = [1, 1], 1
    _, augment = build_view_transforms(cfg)
    image = picture(1, 1)
    for seed in range(10):
        with seeded(seed):
            expected = augment(image)
        assert torch.equal(numbered(Views(augment.transforms), to_pixels(image), 1, seed, True)[0], expected)


# ---- distributions: other seeds than the host's ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def count():
    return 1500


def shapes_of(cfg):
    """Every pixel has its own colour, so that a view says where it comes from."""
    cfg.INPUT.SIZE_TRAIN, cfg.INPUT.PADDING.SIZE = [64, 32], 4
    rows, columns = np.mgrid[0:64, 0:32]
    return Image.fromarray(np.stack([rows + 1, columns + 1, np.zeros_like(rows)], axis=2).astype(np.uint8))


def host_views(augment, image, count):
    for seed in range(count):
        with seeded(10_000_000 + seed):
            yield augment(image)


def our_views(augment, image, count, batch):
    views, crop = Views(augment.transforms), to_pixels(image)
    for seed in range(count):
        yield numbered(views, crop, 1, seed, batch)[0]


def place(view):
    """(mirrored, top, left) of a view of `shapes_of`."""
    middle = view[:, 32, 16].int()
    mirrored = int(view[1, 32, 15] > view[1, 32, 16])
    column = 31 - 16 if mirrored else 16
    return mirrored, int(middle[0]) - 1 - 32, int(middle[1]) - 1 - column


@pytest.mark.parametrize("batch", [False, True], ids=["worker", "device"])
def test_flips_and_offsets_are_distributed_as_the_hosts(cfg, count, batch):
    cfg.INPUT.REA.ENABLED = False
    image = shapes_of(cfg)
    _, augment = build_view_transforms(cfg)
    ours = np.array([place(view) for view in our_views(augment, image, count, batch)])
    theirs = np.array([place(view) for view in host_views(augment, image, count)])
    assert set(ours[:, 1]) == set(ours[:, 2]) == set(range(-4, 5))
    assert abs(ours[:, 0].mean() - 0.5) < 4 * (0.25 / count) ** 0.5
    for column in range(3):
        values = sorted(set(theirs[:, column]))
        table = [[(found[:, column] == value).sum() for value in values] for found in (ours, theirs)]
        assert chi2_contingency(table).pvalue > ALPHA, table
    assert abs(np.corrcoef(ours.T) - np.eye(3)).max() < 4 / count**0.5  # and of each other independent


@pytest.mark.parametrize("batch", [False, True], ids=["worker", "device"])
def test_erased_rectangles_are_distributed_as_the_hosts(cfg, count, batch):
    """Share of images, area, aspect and place; and the mean of all pixels."""
    cfg.INPUT.SIZE_TRAIN = [64, 32]
    cfg.INPUT.FLIP.ENABLED = cfg.INPUT.PADDING.ENABLED = False
    image = Image.new("RGB", (32, 64), "white")
    _, augment = build_view_transforms(cfg)

    def measured(views):
        boxes, total = [], 0.0
        for view in views:
            total += view.mean().item() / count
            rows, columns = torch.nonzero((view != 255).any(0), as_tuple=True)
            if len(rows):
                high, wide = (int(at.max() - at.min()) + 1 for at in (rows, columns))
                boxes.append((high * wide, high / wide, int(rows.min()), int(columns.min())))
        return np.array(boxes), total

    ours, our_mean = measured(our_views(augment, image, count, batch))
    theirs, their_mean = measured(host_views(augment, image, count))
    assert abs(len(ours) / count - 0.5) < 4 * (0.25 / count) ** 0.5
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > ALPHA
    assert our_mean == pytest.approx(their_mean, abs=4 * 20 * (2 / count) ** 0.5)  # sd of an image's mean: about 17


# ---- what has no numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, name",
    [("CJ", "RandomApply"), ("AUTOAUG", "RandomApply"), ("AFFINE", "RandomAffine"), ("AUGMIX", "AugMix"),
     ("RPT", "RandomPatch"), ("CROP", "RandomResizedCrop")],
)  # fmt: skip
def test_other_steps_stay_the_hosts(cfg, key, name, caplog):
    """Said in the log; nothing is left out."""
    cfg.INPUT[key].ENABLED = True
    cfg.SSKD.AUGMENT_ON = "device"
    with caplog.at_level("WARNING", "fastreid.sskd.data"):
        _, augment = build_views(cfg)
    assert isinstance(augment, T.Compose) and name in without_numbers(augment.transforms)
    assert name in caplog.text and "made by the workers" in caplog.text
    with pytest.raises(ValueError, match=f"{name}.* cannot be drawn beforehand"):
        Views(augment.transforms)


def test_erasing_with_noise_has_no_numbers():
    assert without_numbers([T.RandomErasing(value="random")]) == ["RandomErasing"]
    assert without_numbers([T.RandomErasing(value=3)]) == without_numbers([]) == []


def test_steps_out_of_order_have_no_numbers():
    assert without_numbers([T.RandomHorizontalFlip(), T.Pad(2)]) == ["Pad"]


def test_unknown_place_is_refused(cfg):
    cfg.SSKD.AUGMENT_ON = "gpu"
    with pytest.raises(ValueError, match=r"SSKD.AUGMENT_ON must be worker or device, got 'gpu'"):
        build_views(cfg)
