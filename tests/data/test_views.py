"""Reading an image, its transforms in two parts, K views of it, and the memory that keeps it."""

import io
import itertools
import os
import pickle
import random
import struct
from collections import Counter

import numpy as np
import pytest
import torch
from fastreid.data.transforms import build_transforms
from PIL import Image, ImageOps
from torchvision import transforms as T

from fastreid_sskd.data import CropCache, Draw, MultiViewDataset, views
from fastreid_sskd.data.loaders import adaptation_loader, extraction_loader
from fastreid_sskd.data.samplers import seeded
from fastreid_sskd.data.views import build_view_transforms, open_cache, read_image
from fastreid_sskd.modeling.peer import PixelNormalisation


def picture(height=40, width=24):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def crop_of(image):
    """uint8 (3, H, W)."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


# ---- reading -------------------------------------------------------------------------------------


def pixels(image):
    return np.asarray(image).tolist()


def save(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


def test_rgb_is_read_exactly(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 3, 3), dtype=np.uint8)
    image = read_image(save(tmp_path, Image.fromarray(values), "a.png"))
    assert (image.mode, image.size) == ("RGB", (3, 5))
    np.testing.assert_array_equal(np.asarray(image), values)


@pytest.mark.parametrize(
    ("mode", "value", "suffix", "expected"),
    [
        ("L", 9, "png", [9, 9, 9]),
        ("1", 1, "png", [255, 255, 255]),
        ("LA", (7, 0), "png", [7, 7, 7]),
        ("RGBA", (1, 2, 3, 0), "png", [1, 2, 3]),
        ("CMYK", (255, 0, 0, 0), "tif", [0, 255, 255]),
        ("CMYK", (0, 0, 0, 255), "tif", [0, 0, 0]),
    ],
)
def test_modes_become_rgb_even_for_one_pixel(tmp_path, mode, value, suffix, expected):
    image = read_image(save(tmp_path, Image.new(mode, (1, 1), value), f"a.{suffix}"))
    assert (image.mode, image.size, pixels(image)) == ("RGB", (1, 1), [[expected]])


@pytest.mark.parametrize("options", [{}, {"transparency": 1}, {"transparency": b"\x00\x80"}])
def test_palette_gives_colours_not_indices(tmp_path, options):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    read = read_image(save(tmp_path, image, "a.png", **options))
    assert (read.mode, pixels(read)) == ("RGB", [[[10, 20, 30], [200, 100, 50]]])


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    read = read_image(save(tmp_path, Image.fromarray(values), f"a.{suffix}"))
    assert (read.mode, np.asarray(read)[0, :, 0].tolist()) == ("RGB", [0, 1, 128, 255])


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    path = save(tmp_path, Image.new("RGB", (8, 4)), "a.jpg", exif=exif)
    assert read_image(path).size == (4, 8)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, of the damage
def test_damaged_exif_does_not_hide_good_pixels(tmp_path, monkeypatch):
    exif = b"Exif\x00\x00II*\x00" + struct.pack("<I", 8) + b"\xff\xff" + b"\x12\x01\x09\x00" * 3
    path = save(tmp_path, Image.new("RGB", (8, 4), (255, 255, 255)), "a.jpg", exif=exif)
    assert pixels(read_image(path))[0][0] == [255, 255, 255]

    def damaged(image):  # as older versions of Pillow do
        raise struct.error("unpack requires a buffer of 2 bytes")

    monkeypatch.setattr(ImageOps, "exif_transpose", damaged)
    assert pixels(read_image(path))[0][0] == [255, 255, 255]


def test_other_formats_as_in_the_host(tmp_path):
    path = save(tmp_path, Image.new("RGB", (1, 1), (1, 2, 3)), "a.png")
    assert pixels(read_image(path, "BGR")) == [[[3, 2, 1]]]
    assert read_image(path, "L").mode == "L"


def jpeg():
    values = np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "jpeg")
    return buffer.getvalue()


def png():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)).save(
        buffer, "png"
    )
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "the file is empty"),
        (b"not an image at all", "cannot identify"),
        (jpeg()[: len(jpeg()) // 2], "truncated"),
        (jpeg()[:30], "OSError|SyntaxError|UnidentifiedImageError"),
        (png()[: len(png()) // 2], "OSError|SyntaxError"),
        (png()[:100] + bytes(200) + png()[300:], "OSError|SyntaxError|error"),
    ],
    ids=["empty", "text", "half a jpeg", "jpeg header", "half a png", "damaged png"],
)
def test_bad_files_are_named(tmp_path, content, cause):
    path = tmp_path / "bad_c1s1.jpg"
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"bad_c1s1\.jpg' as an image \(.*remove it") as caught:
        read_image(path)
    assert caught.match(cause)


def test_floating_point_is_refused(tmp_path):
    path = save(tmp_path, Image.new("F", (2, 2), 0.5), "a.tif")
    with pytest.raises(OSError, match=r"a\.tif.*8 or 16 bits"):
        read_image(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises((IsADirectoryError, PermissionError)):
        read_image(tmp_path)


def test_the_file_is_closed_and_the_opener_used(tmp_path):
    path = save(tmp_path, Image.new("L", (2, 2)), "a.png")
    opened = []

    def opener(name, mode):
        opened.append(open(name, mode))  # noqa: SIM115 - read_image closes it
        return opened[-1]

    assert read_image(str(path), opener=opener).mode == "RGB"
    assert [file.closed for file in opened] == [True]


# ---- transforms ----------------------------------------------------------------------------------


def kinds(transform):
    return [getattr(step, "__name__", type(step).__name__) for step in transform.transforms]


def test_resize_is_done_once_and_the_rest_for_each_view(cfg):
    once, augment = build_view_transforms(cfg)
    assert kinds(once) == ["Resize"]
    assert kinds(augment) == ["Pad", "RandomCrop", "RandomHorizontalFlip", "_to_float", "RandomErasing"]
    assert once(picture()).size == (16, 32)
    view = augment(crop_of(once(picture())))
    assert view.shape == (3, 32, 16) and view.dtype == torch.float32
    assert 1 < view.max() <= 255  # not scaled: the model normalises


VARIANTS = [
    [], ["INPUT.REA.ENABLED", "False"], ["INPUT.FLIP.ENABLED", "False"], ["INPUT.PADDING.ENABLED", "False"],
    ["INPUT.FLIP.PROB", "0.3", "INPUT.REA.PROB", "1.0"], ["INPUT.PADDING.MODE", "reflect"],
    ["INPUT.PADDING.MODE", "edge"], ["INPUT.PADDING.MODE", "symmetric"], ["INPUT.PADDING.SIZE", "0"],
    ["INPUT.REA.VALUE", "[0, 0, 0]", "INPUT.REA.PROB", "0.9"],
    ["INPUT.REA.ENABLED", "False", "INPUT.FLIP.ENABLED", "False", "INPUT.PADDING.ENABLED", "False"],
    ["INPUT.CJ.ENABLED", "True", "INPUT.CJ.PROB", "1.0"], ["INPUT.AUGMIX.ENABLED", "True"],
    ["INPUT.AFFINE.ENABLED", "True"], ["INPUT.RPT.ENABLED", "True"], ["INPUT.CROP.ENABLED", "True"],
    ["INPUT.AUTOAUG.ENABLED", "True", "INPUT.AUTOAUG.PROB", "1.0"],
]  # fmt: skip


@pytest.mark.parametrize("options", VARIANTS, ids=lambda options: " ".join(options) or "the method's")
def test_views_have_the_pixels_of_the_hosts_transforms(cfg, options):
    """Bit for bit, whatever is on; three views one after the other, erasing with the method's rectangle."""
    cfg.merge_from_list(options)
    once, augment = build_view_transforms(cfg)
    host = build_transforms(cfg, is_train=True)
    for step in host.transforms:
        if isinstance(step, T.RandomErasing):
            step.scale, step.ratio = cfg.SSKD.ERASING.AREA, cfg.SSKD.ERASING.ASPECT
    image = picture()
    crop = crop_of(once(image))
    before = crop.clone()
    for seed in range(25):
        with seeded(seed):
            expected = torch.stack([host(image) for _ in range(3)])
        with seeded(seed):
            found = torch.stack([augment(crop) for _ in range(3)])
        assert torch.equal(found, expected) and found.dtype == torch.float32
    assert torch.equal(crop, before)


def test_random_steps_before_the_resize_are_not_shared_by_the_views(cfg):
    cfg.INPUT.AUTOAUG.ENABLED = True
    once, augment = build_view_transforms(cfg)
    assert kinds(once) == [] and kinds(augment)[:3] == ["ToPILImage", "RandomApply", "Resize"]


def erased(cfg, count):
    """(height, width, fill) of the rectangles that erasing alone leaves in white images of 256 x 128."""
    cfg.INPUT.SIZE_TRAIN = [256, 128]
    cfg.INPUT.FLIP.ENABLED = cfg.INPUT.PADDING.ENABLED = False
    once, augment = build_view_transforms(cfg)
    white = crop_of(once(Image.new("RGB", (128, 256), "white")))
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


def test_erasing_fills_with_the_methods_value(cfg):
    """(.485, .456, .406) in normalised units, although erasing comes before the normalisation."""
    cfg.INPUT.REA.PROB = 1.0
    (_, _, fill), *_ = erased(cfg, 1)
    normalised = PixelNormalisation(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)(fill.view(1, 3, 1, 1))
    assert normalised.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406], abs=1e-4)


# ---- views ---------------------------------------------------------------------------------------


@pytest.fixture
def items(tmp_path):
    """Two images: left half black, right half white; and random pixels."""
    halves = np.zeros((32, 16, 3), dtype=np.uint8)
    halves[:, 8:] = 255
    noise = np.random.default_rng(0).integers(0, 256, (32, 16, 3), dtype=np.uint8)
    for name, pixels in (("a.png", halves), ("b.png", noise)):
        Image.fromarray(pixels).save(tmp_path / name)
    return [(str(tmp_path / "a.png"), 11, 0), (str(tmp_path / "b.png"), 12, 1)]


class NoIdentity(tuple):
    """(path, identity, camera) that breaks whoever asks for the identity."""

    def __getitem__(self, i):
        if i not in (0, 2):
            raise AssertionError("the identity of a target image was asked for")
        return super().__getitem__(i)

    def __iter__(self):
        raise AssertionError("the identity of a target image was unpacked")


def flips(count, views, items):
    """For each draw, which of its views are flipped."""
    flip = T.RandomHorizontalFlip(0.5)
    dataset = MultiViewDataset(items, T.Compose([]), flip, num_views=views)
    for seed in range(count):
        images = dataset[Draw(0, 0, seed)]["images"]
        yield tuple(bool(view[0, 0, 0] == 255) for view in images)


def test_sample_has_the_hosts_keys(items, cfg):
    sample = MultiViewDataset(items, *build_view_transforms(cfg), num_views=3)[Draw(1, 42, 7)]
    assert sample["images"].shape == (3, 3, 32, 16)
    assert sample["targets"] == 42 and sample["indices"] == 1 and sample["img_paths"] == items[1][0]


def test_one_view_is_not_stacked(items, cfg):
    dataset = MultiViewDataset(items, *build_view_transforms(cfg))
    assert dataset[Draw(0, 0, 0)]["images"].shape == (3, 32, 16)
    assert len(dataset) == 2


def test_views_are_independent(items):
    """All 8 combinations of three flips are equally frequent: no view follows another."""
    found = Counter(flips(800, 3, items))
    assert len(found) == 8
    assert all(abs(count - 100) < 4 * (800 / 8 * 7 / 8) ** 0.5 for count in found.values()), found


def test_draws_are_independent(items):
    """Neighbouring seeds do not give neighbouring augmentations."""
    first = [flipped[0] for flipped in flips(400, 1, items)]
    changes = sum(a != b for a, b in itertools.pairwise(first))
    assert 140 < sum(first) < 260 and 140 < changes < 260


def test_view_pipeline_makes_views_differ(items, cfg):
    dataset = MultiViewDataset(items, *build_view_transforms(cfg), num_views=3)
    equal = 0
    for seed in range(40):
        a, b, c = dataset[Draw(1, 0, seed)]["images"]
        equal += torch.equal(a, b) + torch.equal(b, c) + torch.equal(a, c)
    assert equal <= 5  # of 120 pairs, about 1 in 200 by chance


def test_views_come_from_the_draw_alone(items, cfg):
    dataset = MultiViewDataset(items, *build_view_transforms(cfg), num_views=2)
    torch.manual_seed(0)
    one = dataset[Draw(1, 0, 7)]["images"]
    dataset[Draw(0, 0, 8)]
    torch.manual_seed(1)
    assert torch.equal(dataset[Draw(1, 5, 7)]["images"], one)
    assert not torch.equal(dataset[Draw(1, 0, 8)]["images"], one)


def test_global_generators_are_left_alone(items, cfg):
    cfg.INPUT.AUTOAUG.ENABLED = True  # draws from Python's and NumPy's generators
    cfg.INPUT.AUTOAUG.PROB = 1.0
    dataset = MultiViewDataset(items, *build_view_transforms(cfg), num_views=2)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
    dataset[Draw(1, 0, 7)]
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.random.get_rng_state(), before[2])


def test_image_is_decoded_and_resized_once(items, cfg, monkeypatch):
    read, calls = views.read_image, []
    monkeypatch.setattr(views, "read_image", lambda path: calls.append(path) or read(path))
    once, augment = build_view_transforms(cfg)
    resized = []
    dataset = MultiViewDataset(items, lambda image: resized.append(1) or once(image), augment, num_views=3)
    dataset[Draw(1, 0, 7)]
    assert calls == [items[1][0]] and resized == [1]


def test_identity_is_never_used(items, cfg):
    """By a sample, by the loader of adaptation, by that of the features."""
    blind = [NoIdentity(item) for item in items]
    dataset = MultiViewDataset(blind, *build_view_transforms(cfg), num_views=2)
    assert dataset[Draw(0, 3, 1)]["targets"] == 3
    for batch in adaptation_loader(cfg, blind, [1, 0], seed=5):
        assert torch.equal(batch["targets"], 1 - batch["indices"])
    (batch,) = extraction_loader(cfg, blind)
    assert batch["img_paths"] == [item[0] for item in items]


# ---- memory --------------------------------------------------------------------------------------


SIZE = (32, 16)


@pytest.fixture
def paths(tmp_path):
    """Two images, of other sizes than the crops."""
    found = []
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 20, 3), dtype=np.uint8)
        found.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pixels).save(found[-1])
    return found


@pytest.fixture
def once(cfg):
    return build_view_transforms(cfg)[0]


@pytest.fixture
def read(monkeypatch):
    """Paths of the images that were decoded."""
    paths = []
    monkeypatch.setattr(views, "read_image", lambda path: paths.append(path) or read_image(path))
    return paths


def made(once, paths, cache=None):
    cache = CropCache(once) if cache is None else cache
    return [cache.read(path) for path in paths]


def test_pixels_are_the_hosts(cfg, once, paths):
    host = build_transforms(cfg, is_train=False)
    for path, pixels in zip(paths, made(once, paths)):
        assert pixels.dtype == torch.uint8 and pixels.is_contiguous() and pixels.shape == (3, *SIZE)
        assert torch.equal(pixels.float(), host(Image.open(path)))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_pixels_of_small_images(size, tmp_path, recwarn):
    values = np.arange(3 * size[0] * size[1], dtype=np.uint8).reshape(*size, 3)
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = CropCache(T.Compose([])).read(str(tmp_path / "a.png"))
    pixels += 1
    assert np.array_equal(pixels.permute(1, 2, 0), values + 1) and not recwarn.list


def test_cached_pixels_are_the_same_and_read_once(once, paths, read):
    cache = CropCache(once, paths, SIZE)
    first = [pixels.clone() for pixels in made(once, paths, cache)]
    assert len(cache) == 2 and read == paths
    again = made(once, paths, cache)
    assert read == paths
    for a, b, plain in zip(first, again, made(once, paths)):
        assert torch.equal(a, plain) and torch.equal(b, plain)


@pytest.mark.parametrize("held, asked, size, kept, reads", [
    ([0, 1, 0], [0, 1, 0], (32, 16), 2, 2), ([0], [1, 1], (32, 16), 0, 2), ([0, 1], [0, 0], (8, 8), 0, 2),
], ids=["a path that comes twice", "other images", "another size"])  # fmt: skip
def test_what_has_a_place_in_the_cache(once, paths, read, held, asked, size, kept, reads):
    cache = CropCache(once, [paths[k] for k in held], size)
    found = made(once, [paths[k] for k in asked], cache)
    assert len(cache) == kept and len(read) == reads and found[0].shape == (3, *SIZE)


def test_unreadable_image_is_not_kept(once, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    cache = CropCache(once, [str(broken)], SIZE)
    for _ in range(2):
        with pytest.raises(OSError, match="broken.png"):
            made(once, [str(broken)], cache)
    assert len(cache) == 0


def test_forked_processes_fill_it_for_all(once, paths):
    cache = CropCache(once, paths, SIZE)
    child = os.fork()
    if not child:
        made(once, paths[:1], cache)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(cache) == 1 and torch.equal(cache.read(paths[0]), made(once, paths)[0])


def test_a_process_that_is_not_forked_has_an_empty_one(once, paths):
    cache = CropCache(once, paths, SIZE)
    made(once, paths, cache)
    other = pickle.loads(pickle.dumps(cache))
    assert torch.equal(made(once, paths, other)[0], cache.read(paths[0])) and len(other) == 0


# ---- the option ----------------------------------------------------------------------------------


def test_no_cache_and_no_limit_below_zero(cfg, once, paths):
    cfg.SSKD.CACHE_IMAGES = 0
    assert open_cache(cfg, paths, once) is None
    cfg.SSKD.CACHE_IMAGES = -1
    with pytest.raises(ValueError, match=r"SSKD.CACHE_IMAGES must be .* got -1"):
        open_cache(cfg, paths, once)


def test_a_set_that_fits(cfg, once, paths, caplog):
    cfg.SSKD.CACHE_IMAGES = 1
    with caplog.at_level("INFO", "fastreid.sskd.data"):
        cache = open_cache(cfg, paths, once)
    assert cache.size == SIZE and "2 training images of 32x16 are read once" in caplog.text
    made(once, paths, cache)
    assert len(cache) == 2


def test_a_set_that_does_not_fit(cfg, once, caplog):
    """682 of 32 x 16 and their marks make 1 MB."""
    cfg.SSKD.CACHE_IMAGES = 1
    assert CropCache.num_bytes(682, SIZE) <= 2**20 < CropCache.num_bytes(683, SIZE)
    assert open_cache(cfg, [f"{number}.jpg" for number in range(682)], once) is not None
    with caplog.at_level("WARNING", "fastreid.sskd.data"):
        assert open_cache(cfg, [f"{number}.jpg" for number in range(683)], once) is None
    assert "683 training images of 32x16" in caplog.text and "SSKD.CACHE_IMAGES = 1 MB" in caplog.text


def test_images_without_one_size_are_not_kept(cfg, paths, caplog):
    cfg.SSKD.CACHE_IMAGES = 1
    for key, value in (
        ("INPUT.AUTOAUG.ENABLED", "True"),
        ("INPUT.SIZE_TRAIN", "[32]"),
        ("INPUT.SIZE_TRAIN", "[0, 0]"),
    ):
        changed = cfg.clone()
        changed.merge_from_list([key, value])
        with caplog.at_level("WARNING", "fastreid.sskd.data"):
            caplog.clear()
            assert open_cache(changed, paths, build_view_transforms(changed)[0]) is None
        assert "so they are not kept" in caplog.text
