"""Export of models whose forward is more than a backbone and a head: nothing of it is left out."""

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.modeling import build_model
from fastreid.modeling.meta_arch import Baseline
from fastreid.modeling.meta_arch.build import META_ARCH_REGISTRY
from fastreid.utils.checkpoint import Checkpointer
from tiny_reid import CONFIGS, TINY, overrides

from fastreid_sskd.engine import load_config, trainer_class
from fastreid_sskd.evaluation.features import Encoder
from fastreid_sskd.export import deployed, export_baseline, export_graph
from fastreid_sskd.export.deployed import random_images

SIZE = [32, 16]


@META_ARCH_REGISTRY.register()
class StripesForTests(Baseline):
    """The mean of two halves of the image, each with a weight of its own."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.part = torch.nn.Parameter(torch.tensor([3.0, -1.0]))

    def forward(self, batched_inputs):
        maps = self.backbone(self.preprocess_image(batched_inputs))
        upper, lower = maps.chunk(2, dim=2)
        outputs = self.heads(
            upper * self.part[0] + lower * self.part[1],
            *([batched_inputs["targets"]] if self.training else []),
        )
        return self.losses(outputs, batched_inputs["targets"]) if self.training else outputs


MGN = overrides(
    "MODEL.BACKBONE.NAME build_resnet_backbone",
    "MODEL.BACKBONE.DEPTH 50x",
    "MODEL.BACKBONE.FEAT_DIM 2048",
    "MODEL.HEADS.EMBEDDING_DIM 4",
    "INPUT.SIZE_TEST [96, 32]",
)


@pytest.fixture(params=["plain", "SSKDSource", "SSKD"])
def kind(request):
    return request.param


@pytest.fixture
def made(tmp_path):
    """Makes (cfg, model) of an architecture: a plain model, a source model or the peers of an SSKD."""

    def make(kind, name, *opts):
        which = ["MODEL.META_ARCHITECTURE", name if kind == "plain" else kind]
        which += ["SSKD.PEER_ARCHITECTURE", name] if kind != "plain" else ["MODEL.HEADS.WITH_BNNECK", "True"]
        file = str(CONFIGS / "sskd_d2m.yml") if kind == "SSKD" else ""
        no_classes = (
            ["MODEL.HEADS.NUM_CLASSES", "5", "SSKD.LOSSES.SoftCE.WEIGHT", "0.0"] if kind != "SSKD" else []
        )
        cfg = load_config(
            file, [*TINY, "SSKD.NUM_PEERS", "2", "MODEL.QUEUE_SIZE", "64", *which, *no_classes, *opts]
        )
        torch.manual_seed(0)
        model = trainer_class(cfg).build_model(cfg)
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2.0)
        cfg.MODEL.WEIGHTS = str(tmp_path / "trained.pth")
        torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
        cfg.freeze()
        return cfg, model.eval()

    return make


def by_loops(model):
    """The features of StripesForTests, put together by hand from the weights of its model."""
    images = random_images(SIZE)
    with torch.no_grad():
        maps = model.backbone((images - torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1))
                              / torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1))  # fmt: skip
        upper, lower = maps.chunk(2, dim=2)
        return images, model.heads(upper * model.part[0] + lower * model.part[1])


def test_its_own_forward_is_what_is_exported(made, kind, tmp_path):
    cfg, model = made(kind, "StripesForTests")
    images, expected = by_loops(model.teachers[0] if kind == "SSKD" else model)
    network = deployed(model, "0")
    with torch.no_grad():
        assert torch.allclose(network(images), expected, atol=1e-5)
        assert torch.allclose(network.expected(images), expected, atol=1e-5)
        outside = deployed(model, "0", pixels="normalised")
        assert torch.allclose(outside(outside.prepared(images)), expected, atol=1e-5)
        assert torch.allclose(Encoder(model, "0")(images), expected, atol=1e-5)
    yml, error = export_baseline(cfg, model, str(tmp_path / "out.pth"), "0")
    assert error <= 1e-5
    plain = get_cfg()
    plain.merge_from_file(yml)
    plain.MODEL.DEVICE = "cpu"
    again = build_model(plain).eval()
    Checkpointer(again).load(str(tmp_path / "out.pth"))
    with torch.no_grad():
        assert isinstance(again, StripesForTests)
        assert torch.allclose(again({"images": images}), expected, atol=1e-5)


def in_onnxruntime(path, images):
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"'
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def test_its_graph(made, kind, tmp_path):
    pytest.importorskip("onnxscript", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')
    _, model = made(kind, "StripesForTests")
    images, expected = by_loops(model.teachers[0] if kind == "SSKD" else model)
    assert export_graph(deployed(model, "0"), str(tmp_path / "m.onnx"), SIZE) <= 1e-4
    assert torch.allclose(in_onnxruntime(tmp_path / "m.onnx", images), expected, atol=1e-4)


def test_a_model_that_needs_more_than_images(made, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')
    _, model = made("plain", "StripesForTests")
    forward = StripesForTests.forward
    monkeypatch.setattr(
        StripesForTests, "forward", lambda self, batch: forward(self, batch) + batch["camids"][:, None]
    )
    with pytest.raises(ValueError, match="also needs 'camids' of a batch"):
        export_graph(deployed(model), str(tmp_path / "m.onnx"), SIZE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, opts",
    [("MGN", MGN), ("MoCo", ()), ("Distiller", ()), ("Baseline", ("MODEL.HEADS.NAME", "ClasHead"))],
)
def test_the_hosts_architectures(made, tmp_path, name, opts):
    """As a plain model each gives what its own evaluation gives, in both formats."""
    pytest.importorskip("onnxscript", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')
    cfg, model = made("plain", name, *opts)
    size = cfg.INPUT.SIZE_TEST
    images = random_images(size, 3, seed=4)
    with torch.no_grad():
        expected = model({"images": images.clone()})
    for pixels in ("0-1",) if name == "MGN" else ("0-255", "normalised"):  # MGN's graph takes a while
        network = deployed(model, pixels=pixels)
        export_graph(network, str(tmp_path / "m.onnx"), size)
        found = in_onnxruntime(tmp_path / "m.onnx", network.prepared(images))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    yml, error = export_baseline(cfg, model, str(tmp_path / "m.pth"))
    assert error <= 1e-5
    plain = get_cfg()
    plain.merge_from_file(yml)
    # whose forward is the Baseline's
    assert plain.MODEL.META_ARCHITECTURE == ("Baseline" if name == "MoCo" else name)
    assert not any("memory" in key for key in torch.load(tmp_path / "m.pth", weights_only=True)["model"])


def test_a_model_whose_normalisation_is_not_known(made):
    _, model = made("plain", "StripesForTests")
    del model.pixel_mean
    with pytest.raises(ValueError, match="a StripesForTests has no pixel_mean and pixel_std"):
        deployed(model, pixels="0-1")
