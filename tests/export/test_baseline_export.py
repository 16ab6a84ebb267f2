"""A peer as a plain fast-reid Baseline: the same features without this package."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fastreid.config import get_cfg
from fastreid.modeling import build_model
from fastreid.utils.checkpoint import Checkpointer
from tiny_reid import CONFIGS, TINY_TARGET, draw, overrides

import fastreid_sskd
from fastreid_sskd.answers import search
from fastreid_sskd.engine import load_config, predict, run
from fastreid_sskd.engine.pipeline import load_trained
from fastreid_sskd.export import deployed, export_baseline, export_graph
from fastreid_sskd.export.deployed import check_parity, random_images

# fast-reid as it is, but for the names that torch and Python have dropped since: without those it cannot be
# imported here. Of this package only `compat` is there, and of that only what holds while fast-reid is
# imported: the package's own __init__, which would register its models, does not run.
STOCK = """
import contextlib, sys, types
package = types.ModuleType("fastreid_sskd")
package.__path__ = [sys.argv[1]]
sys.modules["fastreid_sskd"] = package
from fastreid_sskd.compat import PATCHES, host_import
with contextlib.ExitStack() as stack:
    for patch in PATCHES:
        if patch.at_import and patch.needed():
            stack.enter_context(patch.action())
    host_import.import_host()
import torch
from fastreid.config import get_cfg
from fastreid.modeling import build_model
from fastreid.utils.checkpoint import Checkpointer
cfg = get_cfg()
cfg.merge_from_file(sys.argv[2])
cfg.MODEL.DEVICE = "cpu"
model = build_model(cfg)
Checkpointer(model).load(cfg.MODEL.WEIGHTS)
images = torch.load(sys.argv[3], weights_only=True)
with torch.no_grad():
    features = model.eval()({"images": images})
torch.save(features, sys.argv[4])
loaded = sorted(name for name in sys.modules if name.startswith("fastreid_sskd"))
assert all(name == "fastreid_sskd" or name.startswith("fastreid_sskd.compat") for name in loaded), loaded
assert type(model).__module__ == "fastreid.modeling.meta_arch.baseline"
"""


def in_stock_fastreid(tmp_path, yml, images):
    """Features by fast-reid in a process of its own, and what it said."""
    torch.save(images, tmp_path / "images.pt")
    arguments = [
        str(Path(fastreid_sskd.__file__).parent),
        yml,
        str(tmp_path / "images.pt"),
        str(tmp_path / "features.pt"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", STOCK, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return torch.load(tmp_path / "features.pt", weights_only=True), done.stdout + done.stderr


@pytest.mark.parametrize("peer, k", [("best", 1), ("0", 0)])
def test_the_same_features_in_stock_fastreid(make_trained, tmp_path, peer, k):
    cfg, model = make_trained()
    path = str(tmp_path / "out" / "plain.pth")
    yml, error = export_baseline(cfg, model, path, peer)
    assert error <= 1e-5
    images = random_images([64, 32], batch=5, seed=3)
    found, said = in_stock_fastreid(tmp_path, yml, images)
    with torch.no_grad():
        expected = model.teachers[k](model.pixels(images))
    assert expected.std() > 1e-3 and not torch.allclose(expected[0], expected[1], rtol=1e-2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
    # every tensor found its place
    assert "not found" not in said and "not loaded" not in said and "Skip loading" not in said


def test_a_clas_head_gives_features(make_trained, tmp_path):
    cfg, model = make_trained("MODEL.HEADS.NAME", "ClasHead")
    yml, error = export_baseline(cfg, model, str(tmp_path / "plain.pth"))
    assert error <= 1e-5
    found, _ = in_stock_fastreid(tmp_path, yml, random_images([64, 32]))
    assert found.shape == (4, 128)


def test_the_yml_says_what_differs_and_nothing_of_this_package(make_trained, tmp_path):
    cfg, model = make_trained(
        "MODEL.BACKBONE.PRETRAIN", "True", "MODEL.BACKBONE.PRETRAIN_PATH", "nowhere.pth"
    )
    path = str(tmp_path / "plain.pth")
    yml, _ = export_baseline(cfg, model, path)
    with open(yml, encoding="utf-8") as file:
        text = file.read()
    said = yaml.safe_load(text)
    assert "SSKD" not in text and "SEED" not in text and set(said) <= {"MODEL", "INPUT", "TEST"}
    assert "META_ARCHITECTURE" not in said["MODEL"]  # Baseline is fast-reid's default
    assert said["MODEL"]["HEADS"]["NUM_CLASSES"] == 7 and said["MODEL"]["WEIGHTS"] == path
    assert said["MODEL"]["BACKBONE"] == {"NAME": "build_osnet_backbone", "DEPTH": "x0_25", "FEAT_DIM": 128}
    assert "DEVICE" not in said["MODEL"]  # whoever loads it has another
    assert "PIXEL_MEAN" not in said["MODEL"]  # fast-reid's default

    plain = get_cfg()
    plain.merge_from_file(yml)
    plain.MODEL.DEVICE = "cpu"
    plain.MODEL.WEIGHTS = ""
    assert plain.INPUT.SIZE_TEST == [64, 32]
    assert set(build_model(plain).state_dict()) == set(torch.load(path, weights_only=True)["model"])


def test_the_exported_checkpoint_starts_a_peer(make_trained, tmp_path):
    """Round trip: what was exported is a source model again."""
    from fastreid_sskd.modeling import load_source_weights

    cfg, model = make_trained()
    export_baseline(cfg, model, str(tmp_path / "plain.pth"), "0")
    _, other = make_trained()
    for parameter in other.parameters():
        parameter.data.zero_()
    load_source_weights(other, [str(tmp_path / "plain.pth")])
    for key, value in model.teachers[0].backbone.state_dict().items():
        assert torch.equal(other.students[1].backbone.state_dict()[key], value)


def test_the_ensemble_is_no_baseline(make_trained, tmp_path):
    cfg, model = make_trained()
    with pytest.raises(ValueError, match="ensemble is several networks"):
        export_baseline(cfg, model, str(tmp_path / "plain.pth"), "ensemble")
    with pytest.raises(ValueError, match="SSKD.EVAL_WITH must be one of"):
        export_baseline(cfg, model, str(tmp_path / "plain.pth"), "2")
    with pytest.raises(ValueError, match="end in .pth"):
        export_baseline(cfg, model, str(tmp_path / "plain.onnx"))
    before = Path(cfg.MODEL.WEIGHTS).read_bytes()
    with pytest.raises(ValueError, match="is read by this command"):
        export_baseline(cfg, model, cfg.MODEL.WEIGHTS)
    assert Path(cfg.MODEL.WEIGHTS).read_bytes() == before
    assert not list(tmp_path.glob("plain*"))


def test_other_features_are_refused_and_an_older_export_stays(make_trained, tmp_path, monkeypatch):
    from fastreid_sskd.export import baseline

    def other_pixels(cfg, *args):
        described = baseline_config(cfg, *args)
        described["MODEL"]["PIXEL_MEAN"] = [0.0, 0.0, 0.0]
        return described

    baseline_config = baseline.baseline_config
    monkeypatch.setattr(baseline, "baseline_config", other_pixels)
    cfg, model = make_trained()
    with pytest.raises(RuntimeError, match="plain.pth gives other features"):
        export_baseline(cfg, model, str(tmp_path / "plain.pth"))
    assert not list(tmp_path.glob("plain*"))
    for ending in ("pth", "yml"):
        (tmp_path / f"plain.{ending}").write_text("older")
    with pytest.raises(RuntimeError, match="plain.pth gives other features"):
        export_baseline(cfg, model, str(tmp_path / "plain.pth"))
    assert {(file.name, file.read_text()) for file in tmp_path.glob("plain*")} == {
        ("plain.pth", "older"),
        ("plain.yml", "older"),
    }
    monkeypatch.undo()
    assert export_baseline(cfg, model, str(tmp_path / "plain.pth"))[1] <= 1e-5
    assert (tmp_path / "plain.yml").read_text() != "older"


# ---- what is deployed, and the comparison itself -------------------------------------------------


def test_deployed_teacher_and_ensemble(make_trained):
    _, model = make_trained()
    images = random_images([64, 32])
    batch = {"images": images}
    with torch.no_grad():
        for peer in ("best", "0", "1", "ensemble"):
            model.eval_with = peer
            assert torch.equal(deployed(model, peer)(images), model(batch)), peer
            assert torch.equal(deployed(model, peer).expected(images), model(batch)), peer
        outside = deployed(model, "0", pixels="normalised")
        assert torch.equal(outside(model.pixels(images)), deployed(model, "0")(images))
        assert torch.equal(outside.prepared(images), model.pixels(images))  # and the model still normalises
        assert torch.allclose(deployed(model, "0", unit_length=True)(images).norm(dim=1), torch.ones(4))


def test_ensemble_of_one_teacher_has_unit_length(make_trained):
    _, model = make_trained("SSKD.NUM_PEERS", "1")
    model.best_peer.fill_(0)
    with torch.no_grad():
        length = {
            peer: deployed(model, peer)(random_images([64, 32])).norm(dim=1) for peer in ("ensemble", "best")
        }
    assert torch.allclose(length["ensemble"], torch.ones(4)) and (length["best"] > 2).all()


def test_deployed_baseline_and_source_model(make_trained):
    cfg, _ = make_trained()
    cfg.defrost()
    images = random_images([64, 32])
    cfg.MODEL.HEADS.NUM_CLASSES = 3
    for architecture in ("Baseline", "SSKDSource"):
        cfg.MODEL.META_ARCHITECTURE = architecture
        model = build_model(cfg).eval()
        with torch.no_grad():
            assert torch.equal(deployed(model)(images), model({"images": images.clone()}))
        with pytest.raises(ValueError, match="has one network"):
            deployed(model, "ensemble")
    with pytest.raises(TypeError, match="got a Linear"):
        deployed(torch.nn.Linear(1, 1))


def test_parity_of_the_wrong_kind():
    network = torch.nn.Conv2d(3, 4, 1)
    images = [torch.rand(2, 3, 1, 1)]
    assert check_parity(network, network, images, 0.0, "copy") == 0
    with pytest.raises(RuntimeError, match="shape"):
        check_parity(network, lambda batch: network(batch)[:1], images, 1.0, "half")
    with pytest.raises(
        RuntimeError, match="broken gives other features than the model and is not usable: .* nan"
    ):
        check_parity(network, lambda batch: network(batch) * float("nan"), images, 1.0, "broken")
    with pytest.raises(RuntimeError, match="Greatest absolute difference"):
        check_parity(network, lambda batch: network(batch) * 1.1, images, 0.09, "scaled")
    assert check_parity(network, lambda batch: network(batch) * 1.1, images, 0.11, "scaled") == pytest.approx(
        0.1, abs=1e-5
    )


@pytest.fixture
def adapted(tmp_path, monkeypatch, make_trained):
    """The config that ships for crops, adapted from an OSNet for one epoch of two steps."""
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    (tmp_path / "crops" / "day 1").mkdir(parents=True)
    for number in range(48):
        draw(number % 6, 0, number // 6, seed=3).save(
            tmp_path / "crops" / ("day 1" if number % 2 else "") / f"{number:03d}.png"
        )
    source, _ = make_trained("INPUT.SIZE_TEST", "[32, 16]")
    cfg = load_config(
        str(CONFIGS / "sskd_crops.yml"),
        overrides(
            *TINY_TARGET,
            "MODEL.BACKBONE.NAME build_osnet_backbone",
            "MODEL.BACKBONE.DEPTH x0_25",
            "MODEL.BACKBONE.FEAT_DIM 128",
            "SSKD.SOURCE.WEIGHTS",
            f"['{source.MODEL.WEIGHTS}']",
            "SSKD.SELECT_BY silhouette",
            "SOLVER.MAX_EPOCH 1",
            "SSKD.ITERS_PER_EPOCH 2",
            "OUTPUT_DIR",
            str(tmp_path / "out"),
        ),
    )
    run(cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "out" / "model_best.pth")
    return cfg


def test_adapts_exports_and_finds(adapted, tmp_path):
    paths, features = predict(adapted, str(tmp_path / "crops"))
    assert len(paths) == 48 and "day 1" in "".join(paths)
    ((best, *_),) = search(paths[:1], features[:1], paths, features, 4)
    assert best.image != paths[0] and best.similarity == pytest.approx((features[1:] @ features[0]).max())

    model = load_trained(adapted)
    assert int(model.best_peer) >= 0  # chosen without labels
    yml, error = export_baseline(adapted, model, str(tmp_path / "plain.pth"))
    assert error <= 1e-5
    plain = get_cfg()
    plain.merge_from_file(yml)
    plain.MODEL.DEVICE = "cpu"
    stock = build_model(plain).eval()
    Checkpointer(stock).load(plain.MODEL.WEIGHTS)
    images = torch.stack(
        [torch.from_numpy(np.array(draw(k, 0, 0, seed=3))).permute(2, 0, 1).float() for k in range(3)]
    )
    with torch.no_grad():
        torch.testing.assert_close(
            stock({"images": images.clone()}), model({"images": images}), rtol=1e-5, atol=1e-5
        )


@pytest.mark.slow
def test_adapts_and_exports_as_onnx(adapted, tmp_path):
    pytest.importorskip("onnxscript", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')
    pytest.importorskip("onnxruntime", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')
    model = load_trained(adapted)
    assert export_graph(deployed(model, "ensemble"), str(tmp_path / "e.onnx"), [32, 16]) <= 1e-4
