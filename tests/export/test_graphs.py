"""Graphs: the model's features by onnxruntime, torch and OpenVINO, at any batch, for pixels of any kind."""

import inspect
import json
import subprocess
import sys

import pytest
import torch
from fastreid.modeling import build_model
from host_backbones import BACKBONES, config
from tiny_reid import CONFIGS

from fastreid_sskd.export import deployed, export_graph, graphs
from fastreid_sskd.export.deployed import random_images

onnx = pytest.importorskip("onnx", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')
onnxruntime = pytest.importorskip(
    "onnxruntime", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"'
)
pytest.importorskip("onnxscript", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')

OPENVINO = 'needs the extra openvino: pip install "fastreid-sskd[onnx,openvino]"'
SIZE = [32, 16]


@pytest.fixture
def tiny(make_trained):
    """A model whose graph is made in a second."""
    return lambda *opts: make_trained(*opts, network=())


def features_of(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_network_is_left_as_it_is(tiny, tmp_path):
    """It shares its weights with a model that may go on training."""
    _, model = tiny()
    network = deployed(model).train()
    export_graph(network, str(tmp_path / "t.onnx"), SIZE)
    assert network.training and all(module.training for module in network.modules())


def as_taken(images, pixels, colours="RGB"):
    """Images of 0..255 as a graph of these pixels takes them, by hand."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = {"0-255": images, "0-1": images / 255}.get(pixels, (images / 255 - mean) / std)
    return images if colours == "RGB" else images[:, [2, 1, 0]]


@pytest.mark.parametrize(
    ("pixels", "colours"),
    [("0-255", "RGB"), ("0-1", "RGB"), ("normalised", "RGB"), ("imagenet", "BGR"), ("0-255", "BGR")],
)
def test_a_teacher_at_any_batch(tiny, tmp_path, pixels, colours):
    _, model = tiny()
    path = tmp_path / "new folder" / "t.onnx"
    error = export_graph(
        deployed(model, pixels=pixels, colours=colours), str(path), SIZE, metadata={"a": "b", "c": [1]}
    )
    assert 0 <= error <= 1e-4 and [file.name for file in path.parent.iterdir()] == ["t.onnx"]
    for batch in (1, 2, 7):
        images = random_images(SIZE, batch, seed=9)
        with torch.no_grad():
            expected = model.teachers[1](model.pixels(images))
        assert_close(features_of(path, as_taken(images, pixels, colours)), expected)
    graph = onnx.load(str(path))
    assert [value.name for value in graph.graph.input] == ["images"]
    assert [value.name for value in graph.graph.output] == ["features"]
    sizes = [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [0, 3, *SIZE]  # 0: a name, not a number
    said = {prop.key: prop.value for prop in graph.metadata_props}
    assert said["a"] == "b" and said["c"] == "[1]" and said["resize"] == "bicubic"
    assert said["colour_order"] == colours and json.loads(said["size"]) == SIZE
    assert said["pixel_values"].startswith({"0-255": "0..255", "0-1": "0..1"}.get(pixels, "normalised"))
    assert ("pixel_mean" in said) == (pixels in ("normalised", "imagenet"))


def test_a_model_with_its_own_mean(tiny, tmp_path):
    """A consumer normalises with ImageNet's whatever the model's are."""
    _, model = tiny("MODEL.PIXEL_MEAN", "[100.0, 90.0, 80.0]", "MODEL.PIXEL_STD", "[50.0, 60.0, 255.0]")
    images = random_images(SIZE, 3)
    with torch.no_grad():
        expected = model.teachers[1](model.pixels(images))
        for pixels in ("imagenet", "0-1"):
            found = deployed(model, pixels=pixels)(as_taken(images, pixels))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
        assert torch.equal(deployed(model, pixels="normalised")(model.pixels(images)), expected)


def test_the_callers_images_are_left_alone(tmp_path, make_trained):
    """A model of the host's normalises in place; the file of it does not."""
    cfg, _ = make_trained(network=())
    cfg.defrost()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.HEADS.NUM_CLASSES = "Baseline", 3
    export_graph(deployed(build_model(cfg).eval()), str(tmp_path / "b.torchscript"), SIZE)
    images = random_images(SIZE)
    torch.jit.load(str(tmp_path / "b.torchscript"))(images)
    assert torch.equal(images, random_images(SIZE))


def in_torch(path, values):
    return torch.jit.load(str(path))(values)


def in_openvino(path, values):
    import openvino

    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return torch.from_numpy(openvino.Core().compile_model(str(path), "CPU", exact)(values.numpy())[0])


@pytest.mark.parametrize(("ending", "run"), [(".torchscript", in_torch), (".xml", in_openvino)])
def test_other_formats(tiny, tmp_path, ending, run):
    if ending == ".xml":
        pytest.importorskip("openvino", reason=OPENVINO)
    _, model = tiny()
    path = tmp_path / f"t{ending}"
    assert (
        export_graph(deployed(model, "ensemble", pixels="0-1"), str(path), SIZE, metadata={"a": [1]}) <= 1e-4
    )
    files = {file.name for file in tmp_path.glob("t*") if file.name != "trained.pth"}
    assert files == ({"t.xml", "t.bin"} if ending == ".xml" else {"t.torchscript"})
    for batch in (1, 5):
        images = random_images(SIZE, batch, seed=9)
        assert_close(run(path, images / 255), deployed(model, "ensemble").expected(images))
    if ending == ".xml":
        said = path.read_text()
        assert 'pixel_values value="0..1"' in said and 'a value="[1]"' in said
    else:
        extra = {"fastreid_sskd.json": ""}
        torch.jit.load(str(path), _extra_files=extra)
        assert json.loads(extra["fastreid_sskd.json"])["pixel_values"] == "0..1"


def test_half_precision(tiny, tmp_path):
    """Half the bytes of the weights, float32 at both ends, and still the model's features."""
    _, model = tiny()
    assert 0 < export_graph(deployed(model), str(tmp_path / "h.onnx"), SIZE, half=True) < 1e-2
    graph = onnx.load(str(tmp_path / "h.onnx")).graph
    kinds = {value.data_type for value in graph.initializer if len(value.dims) == 4}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert features_of(tmp_path / "h.onnx", random_images(SIZE)).dtype == torch.float32
    with pytest.raises(ValueError, match="gets its precision from who loads it"):
        export_graph(deployed(model), str(tmp_path / "h.torchscript"), SIZE, half=True)
    assert not (tmp_path / "h.torchscript").exists()


@pytest.mark.parametrize("combine", ["features", "distances"])
def test_the_ensemble(tiny, tmp_path, combine):
    _, model = tiny("SSKD.COMBINE", combine)
    path = tmp_path / "ensemble.onnx"
    export_graph(deployed(model, "ensemble"), str(path), SIZE)
    images = random_images(SIZE, 3)
    with torch.no_grad():
        expected = model.combine(model.teacher_features({"images": images}))
    assert expected.shape == (3, 16 if combine == "features" else 32)
    assert_close(features_of(path, images), expected)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone(tmp_path, backbone):
    torch.manual_seed(0)
    model = build_model(config(backbone, num_peers=1)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    assert export_graph(deployed(model), str(tmp_path / "t.onnx"), SIZE) <= 1e-4


def test_the_exporter_by_tracing(tiny, tmp_path, monkeypatch):
    """What torch before 2.6 has."""
    signature = inspect.signature(torch.onnx.export)
    names = ("images", "features")
    options = graphs._exporter_options(names)
    if "dynamo" not in options:
        pytest.skip("this torch has no other exporter, and the tests above went through it")
    without = [value for name, value in signature.parameters.items() if name != "dynamic_shapes"]
    with monkeypatch.context() as patch:
        patch.setattr(graphs.inspect, "signature", lambda function: signature.replace(parameters=without))
        older = graphs._exporter_options(names)
    assert "dynamo" not in older and older["opset_version"] == 17
    monkeypatch.setattr(graphs, "_exporter_options", lambda names: {**older, "dynamo": False})
    _, model = tiny()
    assert export_graph(deployed(model), str(tmp_path / "t.onnx"), SIZE) <= 1e-4


def test_unit_length(tiny, tmp_path):
    _, model = tiny()
    export_graph(deployed(model, unit_length=True), str(tmp_path / "u.onnx"), SIZE)
    assert torch.allclose(
        features_of(tmp_path / "u.onnx", random_images(SIZE)).norm(dim=1), torch.ones(4), atol=1e-5
    )


def test_a_graph_with_other_features_is_not_left_behind(tiny, tmp_path, monkeypatch):
    _, model = tiny()
    network = deployed(model)
    expected = network.expected
    monkeypatch.setattr(network, "expected", lambda images: expected(images) + 1)
    with pytest.raises(RuntimeError, match="other features"):
        export_graph(network, str(tmp_path / "t.onnx"), SIZE)
    assert not list(tmp_path.glob("t.onnx*"))
    (tmp_path / "t.onnx").write_text("older")
    with pytest.raises(RuntimeError, match="other features"):
        export_graph(network, str(tmp_path / "t.onnx"), SIZE)
    assert (tmp_path / "t.onnx").read_text() == "older" and len(list(tmp_path.glob("t.onnx*"))) == 1
    with pytest.raises(ValueError, match="end in one of .onnx, .torchscript, .xml"):
        export_graph(network, str(tmp_path / "t.pth"), SIZE)


def test_the_graph_is_compared_with_the_models_own_evaluation(tiny, tmp_path, monkeypatch):
    """Not with what was traced: a network that leaves a part of the model out is refused."""
    _, model = tiny()
    network = deployed(model, "ensemble")
    network.encoder.networks = network.encoder.networks[:1]
    with pytest.raises(RuntimeError, match="other features than the model"):
        export_graph(network, str(tmp_path / "t.onnx"), SIZE)


def test_missing_packages_are_named(tiny, tmp_path, monkeypatch):
    _, model = tiny()
    for module, ending, extras in (
        ("openvino", ".xml", r"onnx,openvino"),
        ("onnxruntime", ".onnx", "onnx"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"needs onnx, .*fastreid-sskd\[{extras}\]"):
            export_graph(deployed(model), str(tmp_path / f"t{ending}"), SIZE)
    assert not list(tmp_path.glob("t.*"))


# ---- the command ---------------------------------------------------------------------------------


def export(tmp_path, *args):
    tool = CONFIGS.parent / "tools" / "export.py"
    command = [sys.executable, str(tool), "--config-file", str(tmp_path / "config.yaml"), *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_command(make_trained, tmp_path):
    _, model = make_trained()
    done = export(
        tmp_path,
        "--format",
        "onnx",
        "--output",
        str(tmp_path / "m.onnx"),
        "--peer",
        "0",
        "--pixels",
        "normalised",
    )
    assert done.returncode == 0, done.stderr
    assert "m.onnx: the graph gives the same features" in done.stdout
    images = random_images([64, 32])
    with torch.no_grad():
        assert_close(
            features_of(tmp_path / "m.onnx", model.pixels(images)), model.teachers[0](model.pixels(images))
        )
    said = {prop.key: prop.value for prop in onnx.load(str(tmp_path / "m.onnx")).metadata_props}
    assert json.loads(said["pixel_mean"])[0] == pytest.approx(123.675) and said["pixel_values"].startswith(
        "normalised"
    )

    done = export(tmp_path, "--format", "fastreid", "--output", str(tmp_path / "m.pth"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "m.pth").exists() and (tmp_path / "m.yml").exists()


@pytest.mark.slow
def test_command_that_cannot(make_trained, tmp_path):
    make_trained()
    done = export(tmp_path, "--format", "fastreid", "--peer", "ensemble", "--output", str(tmp_path / "m.pth"))
    assert done.returncode == 2 and "the ensemble is several networks" in done.stderr
    assert "Traceback" not in done.stderr
    done = export(tmp_path, "--format", "fastreid", "--unit-length", "--output", str(tmp_path / "m.pth"))
    assert done.returncode == 2 and "--unit-length" in done.stderr
