"""Exported models in the packages that they are for give the features of evaluation: `make clients`.

Not collected with the other tests: it runs in an environment of its own, since BoxMOT and ultralytics are
AGPL and nothing of this package requires them. The files are those of make_files.py.
"""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

FILES = Path(os.environ["CLIENT_FILES"])
CROPS = [str(FILES / f"{number}.png") for number in range(4)]


def cosines(name, found):
    """Between what a client gives for the crops and what evaluation does."""
    expected = np.load(FILES / "features.npz")[name]
    found = np.stack(found).astype(np.float64)
    assert found.shape == expected.shape
    others = (expected @ expected.T)[~np.eye(len(expected), dtype=bool)]
    assert others.min() < 0.99  # features that are all alike would show nothing
    return (found * expected).sum(1) / np.linalg.norm(found, axis=1)


def in_boxmot(name):
    from boxmot.reid.core.runtime import ReID

    model = ReID(FILES / name, device="cpu")
    frames = [cv2.imread(crop) for crop in CROPS]
    return [model(frame, boxes=[[0, 0, frame.shape[1], frame.shape[0]]])[0] for frame in frames]


@pytest.mark.parametrize("name", ["boxmot.onnx", "boxmot.torchscript", "boxmot.xml", "half.onnx"])
def test_boxmot(name):
    assert cosines(name, in_boxmot(name)).min() >= 0.9999


def test_boxmot_with_the_pixels_of_others():
    """A graph of 0..255, as was the default: wrong without an error, which is what --for is for."""
    assert cosines("plain.onnx", in_boxmot("plain.onnx")).min() < 0.99


def test_a_batch_in_boxmot():
    from boxmot.reid.core.runtime import ReID

    frames = [cv2.resize(cv2.imread(crop), (64, 128)) for crop in CROPS]
    together = ReID(FILES / "boxmot.onnx", device="cpu")(
        np.hstack(frames), boxes=[[64 * i, 0, 64 * i + 64, 128] for i in range(4)]
    )
    one_by_one = [ReID(FILES / "boxmot.onnx", device="cpu")([frame])[0] for frame in frames]
    np.testing.assert_allclose(together, one_by_one, atol=1e-5)


def test_ultralytics():
    from ultralytics.trackers.utils.reid import ReID

    model = ReID(str(FILES / "ultralytics.onnx"), device="cpu")
    found = []
    for crop in CROPS:
        frame = cv2.imread(crop)
        height, width = frame.shape[:2]
        found += model(frame, np.array([[width / 2, height / 2, width, height]], np.float32))
    assert cosines("ultralytics.onnx", found).min() >= 0.9999


def test_openvino():
    """The snippet, as it is written beside the file."""
    snippet = (FILES / "openvino.xml.openvino.txt").read_text()
    found = []
    for crop in CROPS:
        said = {}
        exec(snippet.replace("crop.jpg", crop), said)  # noqa: S102
        found.append(said["feature"][0])
    assert cosines("openvino.xml", found).min() >= 0.9999
