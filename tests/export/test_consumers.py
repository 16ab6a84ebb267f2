"""Exports for a consumer: its preprocessing by hand, and the features of evaluation through it."""

import dataclasses
import json
import shlex

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fastreid_sskd.export import CONSUMERS, deployed, export_graph
from fastreid_sskd.export.consumers import bilinear, bilinear_8bit

for module in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(module, reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')

SIZE = [32, 16]


def by_loops(image, size):
    """Bilinear: pixel centres at (i + .5) / scale - .5, the border repeated."""
    result = np.zeros((*size, 3))
    for y in range(size[0]):
        for x in range(size[1]):
            v = max((y + 0.5) * image.shape[0] / size[0] - 0.5, 0)
            u = max((x + 0.5) * image.shape[1] / size[1] - 0.5, 0)
            top, left = int(v), int(u)
            low, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
            upper = image[top, left] * (1 - (u - left)) + image[top, right] * (u - left)
            lower = image[low, left] * (1 - (u - left)) + image[low, right] * (u - left)
            result[y, x] = upper * (1 - (v - top)) + lower * (v - top)
    return result


@pytest.mark.parametrize("shape", [(9, 5), (4, 7), (1, 1), (6, 3)])
def test_resize(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    before = image.copy()
    np.testing.assert_allclose(bilinear(image, (6, 3)), by_loops(image, (6, 3)), atol=1e-3)
    rounded = bilinear_8bit(image[:, :, ::-1], (6, 3))  # a view with a negative step
    assert (
        np.array_equal(rounded, rounded.round())
        and np.abs(rounded - by_loops(image[:, :, ::-1], (6, 3))).max() < 0.51
    )
    assert np.array_equal(image, before)


# what one pixel, red 255 green 0 blue 51, becomes
GIVEN = {
    "boxmot": [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225],
    "ultralytics": [1, 0, 0.2],
    "deepstream": [255, 0, 51],
    "openvino": [51, 0, 255],
}
GRAPHS = [name for name in CONSUMERS if name != "fastreid"]


def test_every_consumer_of_a_graph_is_here():
    assert list(GIVEN) == GRAPHS


@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_given_to_the_graph(tmp_path, name):
    Image.new("RGB", (5, 9), (255, 0, 51)).save(tmp_path / "a.png")
    images, given = CONSUMERS[name].read([str(tmp_path / "a.png")], SIZE)
    assert given.shape == images.shape == (1, 3, *SIZE) and given.dtype == np.float32
    np.testing.assert_allclose(given[0, :, 7, 3], GIVEN[name], rtol=1e-5, atol=1e-6)
    assert images[0, :, 7, 3].tolist() == [255, 0, 51]


@pytest.fixture
def tiny(make_trained):
    return make_trained(network=())[1]


def export(model, name, path, **options):
    consumer = CONSUMERS[name]
    network = deployed(model, "ensemble", pixels=consumer.pixels, colours=consumer.colours)
    return export_graph(network, str(path), SIZE, consumer=consumer, **options)


@pytest.mark.parametrize("name", GRAPHS)
def test_the_features_of_evaluation_from_an_image_file_on(tiny, tmp_path, name):
    if name == "openvino":
        openvino = pytest.importorskip(
            "openvino", reason='needs the extra openvino: pip install "fastreid-sskd[onnx,openvino]"'
        )
    path = tmp_path / ("m.xml" if name == "openvino" else "m.onnx")
    assert export(tiny, name, path) <= 1e-4
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 31, 3), dtype=np.uint8)).save(
        tmp_path / "crop.png"
    )
    images, given = CONSUMERS[name].read([str(tmp_path / "crop.png")], SIZE)
    if name == "openvino":
        model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        assert list(model.input(0).shape) == [1, 3, *SIZE]
        names, found = (model.input(0).any_name, model.output(0).any_name), model(given)[0]
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = session.get_inputs()[0].name, session.get_outputs()[0].name
        found = session.run(None, {names[0]: given})[0]
        assert session.get_modelmeta().custom_metadata_map["resize"] == "bilinear"
    assert names == CONSUMERS[name].names
    assert (
        F.cosine_similarity(torch.from_numpy(found), deployed(tiny, "ensemble").expected(images)).min()
        >= 0.9999
    )


def test_the_files_beside_it(tiny, tmp_path):
    export(tiny, "boxmot", tmp_path / "m.onnx")
    said = json.loads((tmp_path / "m.onnx.metadata.json").read_text())
    assert said["model_kwargs"] == {"img_size": SIZE} and said["schema_version"] == 1
    spaced = tmp_path / "my models" / "m'é.onnx"
    export(tiny, "boxmot", spaced)
    assert shlex.split((spaced.parent / f"{spaced.name}.boxmot.txt").read_text(), comments=True)[-1] == str(
        spaced
    )
    export(tiny, "ultralytics", spaced)  # of the graph that was there nothing stays
    assert sorted(file.name for file in spaced.parent.iterdir()) == [
        spaced.name,
        f"{spaced.name}.ultralytics.txt",
    ]
    export(tiny, "deepstream", tmp_path / "d.onnx")
    import yaml

    said = yaml.safe_load((tmp_path / "d.onnx.deepstream.txt").read_text())["ReID"]
    assert (
        said["onnxFile"] == f"{tmp_path}/d.onnx"
        and said["inferDims"] == [3, *SIZE]
        and said["reidFeatureSize"] == 16
    )


def test_a_graph_that_the_consumer_would_misread(tiny, tmp_path):
    """Image files are read as the consumer does, not as the graph was made for."""
    wrong = dataclasses.replace(CONSUMERS["boxmot"], scale=CONSUMERS["ultralytics"].scale)
    network = deployed(tiny, "ensemble", pixels=wrong.pixels)
    with pytest.raises(RuntimeError, match="m.onnx, run as boxmot does, gives"):
        export_graph(network, str(tmp_path / "m.onnx"), SIZE, consumer=wrong)
    assert not list(tmp_path.glob("m.onnx*"))


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def command(make_trained, tmp_path, run_tool):
    make_trained(network=())

    def call(*args):
        config = str(tmp_path / "config.yaml")
        return run_tool(
            "export", "--config-file", config, *args, "MODEL.WEIGHTS", str(tmp_path / "trained.pth")
        )

    return call


def test_command(command, tmp_path):
    code, out, _ = command("--for", "ultralytics", "--output", str(tmp_path / "m.onnx"))
    snippet = (tmp_path / "m.onnx.ultralytics.txt").read_text()
    assert code == 0 and "the graph gives the same features" in out and out.endswith(snippet)
    assert f'model: "{tmp_path}/m.onnx"' in snippet and "with_reid: True" in snippet
    code, _, err = command(
        "--for", "boxmot", "--output", str(tmp_path / "m.torchscript"), "--format", "torchscript"
    )
    assert code == 0, err
    assert (tmp_path / "m.torchscript.metadata.json").is_file()
    crop = ("INPUT.SIZE_TEST", "[40, 24]", "INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "[32, 16]")
    code, _, err = command("--format", "torchscript", "--output", str(tmp_path / "crop.torchscript"), *crop)
    said = {"fastreid_sskd.json": ""}
    torch.jit.load(str(tmp_path / "crop.torchscript"), _extra_files=said)
    said = json.loads(said["fastreid_sskd.json"])
    assert said["size"] == "[32, 16]" and said["resize"] == "bicubic to [40, 24], and the middle cut out", err
    code, out, _ = command("--for", "fastreid", "--output", str(tmp_path / "m.pth"))
    assert code == 0 and (tmp_path / "m.yml").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--format", "onnx", "--pixels", "inside"), "inside is now called 0-255"),
        (("--format", "onnx", "--pixels", "outside"), "outside is now called normalised"),
        ((), "say --for WHOM or --format WHICH"),
        (("--for", "ultralytics", "--format", "torchscript"), "--for ultralytics takes onnx, not"),
        (("--for", "boxmot", "--pixels", "0-1"), "--for boxmot sets --pixels itself"),
        (("--for", "boxmot", "--unit-length"), "--for boxmot sets --unit-length itself"),
        (("--for", "fastreid", "--half"), "--half is for graphs"),
        (("--for", "openvino"), "has to end in .xml"),
        (("--for", "boxmot", "--format", "torchscript"), "has to end in .torchscript"),
        (("--for", "boxmot", "INPUT.CROP.ENABLED", "True"), "INPUT.CROP.ENABLED: evaluation cuts the middle"),
    ],
)
def test_command_that_cannot(command, tmp_path, args, message):
    code, out, err = command("--output", str(tmp_path / "m.onnx"), *args)
    assert code == 2 and not out and message in err and "Traceback" not in err
    assert not list(tmp_path.glob("m.*"))
