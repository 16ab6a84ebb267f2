"""ONNX graphs: the model's features by onnxruntime, at any batch, pixels normalised inside or outside."""

import inspect
import json
import subprocess
import sys

import pytest
import torch
from fastreid.modeling import build_model
from host_backbones import BACKBONES, config
from tiny_reid import CONFIGS

from fastreid_sskd.export import deployed, export_onnx, onnx_graph
from fastreid_sskd.export.deployed import random_images

onnx = pytest.importorskip("onnx", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')
onnxruntime = pytest.importorskip(
    "onnxruntime", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"'
)
pytest.importorskip("onnxscript", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')

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
    export_onnx(network, str(tmp_path / "t.onnx"), SIZE)
    assert network.training and all(module.training for module in network.modules())


@pytest.mark.parametrize("inside", [True, False])
def test_a_teacher_at_any_batch(tiny, tmp_path, inside):
    _, model = tiny()
    path = tmp_path / "new folder" / "t.onnx"
    error = export_onnx(
        deployed(model, normalise_pixels=inside), str(path), SIZE, metadata={"a": "b", "size": SIZE}
    )
    assert 0 <= error <= 1e-4 and [file.name for file in path.parent.iterdir()] == ["t.onnx"]
    for batch in (1, 2, 7):
        images = random_images(SIZE, batch, seed=9)
        with torch.no_grad():
            expected = model.teachers[1](model.pixels(images))
        assert_close(features_of(path, images if inside else model.pixels(images)), expected)
    graph = onnx.load(str(path))
    assert [value.name for value in graph.graph.input] == ["images"]
    assert [value.name for value in graph.graph.output] == ["features"]
    sizes = [dim.dim_value for dim in graph.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == [0, 3, *SIZE]  # 0: a name, not a number
    assert {prop.key: prop.value for prop in graph.metadata_props} == {"a": "b", "size": json.dumps(SIZE)}


@pytest.mark.parametrize("combine", ["features", "distances"])
def test_the_ensemble(tiny, tmp_path, combine):
    _, model = tiny("SSKD.COMBINE", combine)
    path = tmp_path / "ensemble.onnx"
    export_onnx(deployed(model, "ensemble"), str(path), SIZE)
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
    assert export_onnx(deployed(model), str(tmp_path / "t.onnx"), SIZE) <= 1e-4


def test_the_exporter_by_tracing(tiny, tmp_path, monkeypatch):
    """What torch before 2.6 has."""
    signature = inspect.signature(torch.onnx.export)
    options = dict(onnx_graph._exporter_options())
    if "dynamo" not in options:
        pytest.skip("this torch has no other exporter, and the tests above went through it")
    without = [value for name, value in signature.parameters.items() if name != "dynamic_shapes"]
    with monkeypatch.context() as patch:
        patch.setattr(onnx_graph.inspect, "signature", lambda function: signature.replace(parameters=without))
        older = onnx_graph._exporter_options()
    assert "dynamo" not in older and older["opset_version"] == 17
    monkeypatch.setattr(onnx_graph, "_exporter_options", lambda: {**older, "dynamo": False})
    _, model = tiny()
    assert export_onnx(deployed(model), str(tmp_path / "t.onnx"), SIZE) <= 1e-4


def test_unit_length(tiny, tmp_path):
    _, model = tiny()
    export_onnx(deployed(model, unit_length=True), str(tmp_path / "u.onnx"), SIZE)
    assert torch.allclose(
        features_of(tmp_path / "u.onnx", random_images(SIZE)).norm(dim=1), torch.ones(4), atol=1e-5
    )


def test_a_graph_with_other_features_is_not_left_behind(tiny, tmp_path, monkeypatch):
    _, model = tiny()
    network = deployed(model)
    expected = network.expected
    monkeypatch.setattr(network, "expected", lambda images: expected(images) + 1)
    with pytest.raises(RuntimeError, match="other features"):
        export_onnx(network, str(tmp_path / "t.onnx"), SIZE)
    assert not list(tmp_path.glob("t.onnx*"))
    (tmp_path / "t.onnx").write_text("older")
    with pytest.raises(RuntimeError, match="other features"):
        export_onnx(network, str(tmp_path / "t.onnx"), SIZE)
    assert (tmp_path / "t.onnx").read_text() == "older" and len(list(tmp_path.glob("t.onnx*"))) == 1
    with pytest.raises(ValueError, match="end in .onnx"):
        export_onnx(network, str(tmp_path / "t.pth"), SIZE)


def test_the_graph_is_compared_with_the_models_own_evaluation(tiny, tmp_path, monkeypatch):
    """Not with what was traced: a network that leaves a part of the model out is refused."""
    _, model = tiny()
    network = deployed(model, "ensemble")
    network.encoder.networks = network.encoder.networks[:1]
    with pytest.raises(RuntimeError, match="other features than the model"):
        export_onnx(network, str(tmp_path / "t.onnx"), SIZE)


def test_missing_packages_are_named(tiny, tmp_path, monkeypatch):
    _, model = tiny()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"fastreid-sskd\[onnx\]"):
        export_onnx(deployed(model), str(tmp_path / "t.onnx"), SIZE)


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
        "outside",
    )
    assert done.returncode == 0, done.stderr
    assert "m.onnx: onnxruntime gives the same features" in done.stdout
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
