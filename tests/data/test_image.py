"""Every kind of file becomes 8-bit RGB, and what cannot is named in the error."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastreid_sskd.data.image import read_image


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
