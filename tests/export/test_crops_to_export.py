"""From a folder of crops without cameras or identities to a plain fast-reid model and an ONNX graph."""

import numpy as np
import pytest
import torch
from fastreid.config import get_cfg
from fastreid.modeling import build_model
from fastreid.utils.checkpoint import Checkpointer
from tiny_reid import CONFIGS, TINY_TARGET, draw

from fastreid_sskd.engine import load_config, predict, run
from fastreid_sskd.engine.pipeline import load_trained
from fastreid_sskd.export import deployed, export_baseline, export_onnx
from fastreid_sskd.export.feature_files import nearest


@pytest.fixture
def adapted(tmp_path, monkeypatch, make_trained):
    """The config that ships for crops, adapted from an OSNet for one epoch of two steps."""
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    (tmp_path / "crops" / "day 1").mkdir(parents=True)
    for number in range(48):
        draw(number % 6, 0, number // 6, seed=3).save(tmp_path / "crops" / ("day 1" if number % 2 else "") / f"{number:03d}.png")
    source, _ = make_trained("INPUT.SIZE_TEST", "[32, 16]")
    cfg = load_config(str(CONFIGS / "sskd_crops.yml"), [
        *TINY_TARGET, "MODEL.BACKBONE.NAME", "build_osnet_backbone", "MODEL.BACKBONE.DEPTH", "x0_25", "MODEL.BACKBONE.FEAT_DIM",
        "128", "SSKD.SOURCE.WEIGHTS", f"['{source.MODEL.WEIGHTS}']", "SSKD.SELECT_BY", "silhouette", "SOLVER.MAX_EPOCH", "1",
        "SSKD.ITERS_PER_EPOCH", "2", "OUTPUT_DIR", str(tmp_path / "out"),
    ])  # fmt: skip
    run(cfg)
    cfg.MODEL.WEIGHTS = str(tmp_path / "out" / "model_best.pth")
    return cfg


def test_adapts_exports_and_finds(adapted, tmp_path):
    paths, features = predict(adapted, str(tmp_path / "crops"))
    assert len(paths) == 48 and "day 1" in "".join(paths)
    order, similarities = nearest(features, features[0], 4)
    assert order[0] == 0 and similarities[0] == pytest.approx(1, abs=1e-5)

    model = load_trained(adapted)
    assert int(model.best_peer) >= 0  # chosen without labels
    yml, error = export_baseline(adapted, model, str(tmp_path / "plain.pth"))
    assert error <= 1e-5
    plain = get_cfg()
    plain.merge_from_file(yml)
    plain.MODEL.DEVICE = "cpu"
    stock = build_model(plain).eval()
    Checkpointer(stock).load(plain.MODEL.WEIGHTS)
    images = torch.stack([torch.from_numpy(np.array(draw(k, 0, 0, seed=3))).permute(2, 0, 1).float() for k in range(3)])
    with torch.no_grad():
        torch.testing.assert_close(stock({"images": images.clone()}), model({"images": images}), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_adapts_and_exports_as_onnx(adapted, tmp_path):
    pytest.importorskip("onnxscript", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')
    pytest.importorskip("onnxruntime", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')
    model = load_trained(adapted)
    assert export_onnx(deployed(model, "ensemble"), str(tmp_path / "e.onnx"), [32, 16]) <= 1e-4
