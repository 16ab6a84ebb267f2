"""A gallery file: built once, added to, of one model."""

import os

import numpy as np
import pytest
from PIL import Image

from fastreid_sskd.answers import Gallery, model_fingerprint, read_gallery

PROBE = np.array([0.6, 0.8], np.float32)


class Encoder:
    """Counts what it is asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, paths):
        self.asked.append(list(paths))
        return np.array([[np.cos(len(path)), np.sin(len(path))] for path in paths], np.float32)


def test_only_new_images_are_encoded(tmp_path):
    encode, file = Encoder(), str(tmp_path / "new" / "g.npz")
    gallery = Gallery.empty(PROBE).extended(["/x/a.png", "/x/bb.png"], ["1", "2"], encode)
    gallery.write(file)
    again = read_gallery(file)
    again.check_model(PROBE + 1e-4, file)
    assert again.extended(["/x/bb.png"], ["2"], encode) is again
    more = again.extended(["/x/bb.png", "/x/ü.png", "/x/ü.png"], ["2", 3, 3], encode)
    assert encode.asked == [["/x/a.png", "/x/bb.png"], ["/x/ü.png"]]
    assert more.paths == ["/x/a.png", "/x/bb.png", "/x/ü.png"] and more.cameras == ["1", "2", "3"]
    assert np.array_equal(more.features, Encoder()(more.paths))


def test_a_path_has_one_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gallery = Gallery.empty(PROBE).extended(["a.png", str(tmp_path / "a.png")], ["", ""], Encoder())
    assert gallery.paths == [os.path.abspath("a.png")]


@pytest.mark.parametrize("other", [np.array([0.8, 0.6]), np.ones(3)])
def test_another_model_is_refused(other):
    with pytest.raises(ValueError, match="'g.npz' was made by another model"):
        Gallery.empty(PROBE).check_model(other, "g.npz")


def test_what_is_no_gallery(tmp_path):
    file = tmp_path / "g.npz"
    with pytest.raises(FileNotFoundError):
        read_gallery(str(file))
    good = {
        "paths": np.array(["a"]),
        "features": PROBE[None],
        "cameras": np.array([""]),
        "fingerprint": PROBE,
    }
    for content in (
        {**good, "cameras": np.array([])},
        {"features": PROBE},
        {**good, "paths": np.array([None])},
    ):
        np.savez(file, **content)
        with pytest.raises(ValueError, match="no whole gallery file"):
            read_gallery(str(file))
    for data in (b"", b"PK\x03\x04 cut off", b"text"):
        file.write_bytes(data)
        with pytest.raises(ValueError, match="no whole gallery file"):
            read_gallery(str(file))


def test_the_fingerprint_is_that_of_one_image():
    seen = []

    def encode(paths):
        seen.extend(np.asarray(Image.open(path)) for path in paths)
        return PROBE[None]

    assert model_fingerprint(encode) is not None and model_fingerprint(encode).tolist() == PROBE.tolist()
    assert all(np.array_equal(image, seen[0]) for image in seen) and seen[0].std() > 30
