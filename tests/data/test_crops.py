"""Decoded images: the pixels of the host's transforms, read once where they fit, in memory that forked processes share."""

import os
import pickle

import numpy as np
import pytest
import torch
from fastreid.data.transforms import build_transforms
from PIL import Image

from fastreid_sskd.data import views as module
from fastreid_sskd.data.views import CropCache, Crops, build_view_transforms, open_cache, to_pixels

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
    paths, read_image = [], module.read_image
    monkeypatch.setattr(module, "read_image", lambda path: paths.append(path) or read_image(path))
    return paths


def made(once, paths, cache=None):
    crops = Crops(once, cache)
    return [crops.pixels(path) for path in paths]


def test_pixels_are_the_hosts(cfg, once, paths):
    host = build_transforms(cfg, is_train=False)
    for path, pixels in zip(paths, made(once, paths)):
        assert pixels.dtype == torch.uint8 and pixels.is_contiguous() and pixels.shape == (3, *SIZE)
        assert torch.equal(pixels.float(), host(Image.open(path)))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_to_pixels_of_small_images(size, recwarn):
    image = Image.fromarray(np.arange(3 * size[0] * size[1], dtype=np.uint8).reshape(*size, 3))
    pixels = to_pixels(image)
    pixels += 1
    assert pixels.flatten(1).t().flatten().tolist() == list(range(1, pixels.numel() + 1)) and not recwarn.list


def test_cached_pixels_are_the_same_and_read_once(once, paths, read):
    cache = CropCache(paths, SIZE, repr(once))
    first = [pixels.clone() for pixels in made(once, paths, cache)]
    assert len(cache) == 2 and read == paths
    again = made(once, paths, cache)
    assert read == paths
    for a, b, plain in zip(first, again, made(once, paths)):
        assert torch.equal(a, plain) and torch.equal(b, plain)
        assert np.array_equal(Crops(once, cache).picture(paths[0]), Crops(once).picture(paths[0]))


def test_changed_files_are_not_looked_at(once, paths):
    cache = CropCache(paths, SIZE, repr(once))
    (before, _) = made(once, paths, cache)
    os.remove(paths[0])
    assert torch.equal(made(once, paths[:1], cache)[0], before)


def test_a_path_that_comes_twice_takes_one_place(once, paths):
    cache = CropCache([*paths, paths[0]], SIZE, repr(once))
    made(once, [*paths, paths[0]], cache)
    assert len(cache) == 2


def test_other_images_pass(once, paths, read):
    """Those that the cache has no place for are read each time."""
    cache = CropCache(paths[:1], SIZE, repr(once))
    made(once, [paths[1], paths[1]], cache)
    assert read == [paths[1]] * 2 and len(cache) == 0


def test_other_transforms_do_not_use_it(cfg, once, paths, read):
    cfg.INPUT.SIZE_TRAIN = [16, 8]
    other = build_view_transforms(cfg)[0]
    cache = CropCache(paths, SIZE, repr(once))
    assert made(other, paths, cache)[0].shape == (3, 16, 8) and len(cache) == 0
    made(once, paths, cache)
    assert made(other, paths, cache)[0].shape == (3, 16, 8)


def test_another_size_is_left_out(once, paths):
    cache = CropCache(paths, (8, 8), repr(once))
    assert made(once, paths, cache)[0].shape == (3, *SIZE) and len(cache) == 0


def test_unreadable_image_is_named(once, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    cache = CropCache([str(broken)], SIZE, repr(once))
    for _ in range(2):
        with pytest.raises(OSError, match="broken.png"):
            made(once, [str(broken)], cache)
    assert len(cache) == 0


def test_forked_processes_fill_it_for_all(once, paths):
    cache = CropCache(paths, SIZE, repr(once))
    child = os.fork()
    if not child:
        made(once, paths[:1], cache)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(cache) == 1 and torch.equal(cache.get(paths[0]), made(once, paths)[0])
    assert cache.get(paths[1]) is None


def test_a_process_that_is_not_forked_has_an_empty_one(once, paths):
    cache = CropCache(paths, SIZE, repr(once))
    made(once, paths, cache)
    other = pickle.loads(pickle.dumps(cache))
    assert len(other) == 0 and other.get(paths[0]) is None
    assert torch.equal(made(once, paths, other)[0], cache.get(paths[0]))


# ---- the option -------------------------------------------------------------------------------------------------


def test_off(cfg, once, paths):
    cfg.SSKD.CACHE_IMAGES = 0
    assert open_cache(cfg, paths, once) is None


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
    for key, value in (("INPUT.AUTOAUG.ENABLED", "True"), ("INPUT.SIZE_TRAIN", "[32]"), ("INPUT.SIZE_TRAIN", "[0, 0]")):
        changed = cfg.clone()
        changed.merge_from_list([key, value])
        with caplog.at_level("WARNING", "fastreid.sskd.data"):
            caplog.clear()
            assert open_cache(changed, paths, build_view_transforms(changed)[0]) is None
        assert "so they are not kept" in caplog.text


def test_negative_limit_is_refused(cfg, once, paths):
    cfg.SSKD.CACHE_IMAGES = -1
    with pytest.raises(ValueError, match=r"SSKD.CACHE_IMAGES must be .* got -1"):
        open_cache(cfg, paths, once)
