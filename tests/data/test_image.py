"""Every kind of file becomes 8-bit RGB, and what cannot is named in the error."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastreid_sskd.data.datasets import find_images, image_paths
from fastreid_sskd.data.views import read_image


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


# ---- finding images ----------------------------------------------------------------------------------------------


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(folder):
    return [os.path.relpath(path, folder) for path in find_images(str(folder))]


def test_links_to_folders_are_followed(tmp_path):
    touch(tmp_path, "disk/a/1.jpg", "disk/b/2.jpg", "crops/own/3.jpg")
    (tmp_path / "crops" / "cam2").symlink_to(tmp_path / "disk" / "a")
    (tmp_path / "crops" / "own" / "deep").symlink_to("../../disk/b")
    (tmp_path / "link").symlink_to("crops")
    for root in ("crops", "link"):
        assert found(tmp_path / root) == ["cam2/1.jpg", "own/3.jpg", "own/deep/2.jpg"]


def test_loops_end_and_a_folder_is_listed_once(tmp_path, caplog):
    """Real folders keep their own path, whatever the names of links to them."""
    touch(tmp_path, "crops/z/1.jpg", "elsewhere/2.jpg", "disk/3.jpg")
    for link, at in (("z/up", "../.."), ("z/self", "."), ("a", "z"), ("y", "../disk"), ("x", "../disk")):
        (tmp_path / "crops" / link).symlink_to(at)
    (tmp_path / "disk" / "back").symlink_to("../crops")
    assert found(tmp_path / "crops") == ["x/3.jpg", "z/1.jpg"]
    assert "5 links to folders that are listed already are left out" in caplog.text


@pytest.mark.parametrize("name", ["cam2", "1.jpg"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, name):
    touch(tmp_path, "0.jpg")
    (tmp_path / name).symlink_to("/not mounted/here")
    with pytest.raises(FileNotFoundError, match=f"link '.*{name}' leads to '/not mounted/here'"):
        find_images(str(tmp_path))


def test_what_is_left_out_is_counted(tmp_path, caplog):
    caplog.set_level("INFO", logger="fastreid.sskd")
    touch(tmp_path, "a.JPG", "b.gif", "c.gif", "d.txt", "e", ".hidden.gif", "Thumbs.db", "desktop.ini")
    assert found(tmp_path) == ["a.JPG"]
    assert "4 files without an image's ending are left out (2 .gif, 1" in caplog.text


def test_names_are_taken_literally(tmp_path):
    touch(tmp_path, "data[1] *?/\u00e9 b/\u4eba \u00fc.Png")
    assert found(tmp_path / "data[1] *?") == ["\u00e9 b/\u4eba \u00fc.Png"]


def test_no_folder_a_file_and_no_image(tmp_path):
    touch(tmp_path, "one.jpg", "empty/notes.txt")
    with pytest.raises(FileNotFoundError, match="'.*none' not found"):
        find_images(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="'.*one.jpg' is a file, not a folder"):
        find_images(str(tmp_path / "one.jpg"))
    assert found(tmp_path / "empty") == []
    with pytest.raises(ValueError, match="no image below"):
        image_paths(str(tmp_path / "empty"))
