"""Peers of timm from nothing to an exported teacher: both stages, refreshes, evaluation, ONNX."""

import json

import pytest
import torch
from tiny_reid import CONFIGS, load_checkpoint, tiny_adaptation

from fastreid_sskd.engine import evaluate, load_config, run
from fastreid_sskd.engine.pipeline import load_trained
from fastreid_sskd.export import deployed, export_baseline, export_onnx

pytest.importorskip("timm", reason='needs the extra timm: pip install "fastreid-sskd[timm]"')
for module in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(module, reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "pool", "network"),
    [
        ("test_vit", 64, "Identity", "sskd_m2d_vit_s.yml"),
        ("test_convnext", 64, "GlobalAvgPool", "sskd_m2d_convnext_t.yml"),
        ("test_efficientnet", 256, "GlobalAvgPool", "sskd_m2d.yml"),  # batch norm
    ],
)
def test_from_nothing_to_a_graph(name, width, pool, network, tmp_path):
    """With the rates of the shipped config of such peers."""
    shipped = load_config(str(CONFIGS / network))
    optimizer = ["SOLVER.OPT", shipped.SOLVER.OPT, "SOLVER.WEIGHT_DECAY", str(shipped.SOLVER.WEIGHT_DECAY)]
    cfg = tiny_adaptation(
        tmp_path / "run", "MODEL.BACKBONE.NAME build_timm_backbone", "MODEL.BACKBONE.DEPTH", name,
        "MODEL.BACKBONE.FEAT_DIM", str(width), "MODEL.HEADS.POOL_LAYER", pool, *optimizer,
    )  # fmt: skip
    run(cfg)
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [entry["epoch"] for entry in record["evaluations"]] == [0, 1, 2]
    state = load_checkpoint(tmp_path / "run" / "model_final.pth")["model"]
    source = load_checkpoint(tmp_path / "run" / "source" / "peer0" / "model_best.pth")["model"]
    learnt = [key for key in source if key.startswith("backbone.") and key.endswith(".weight")]
    assert learnt and any(not torch.equal(source[key], state[f"teachers.0.{key}"]) for key in learnt)

    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(tmp_path / "run" / "model_final.pth")
    cfg.freeze()
    again, last = evaluate(cfg)["Market1501"], record["evaluations"][-1]["results"]["Market1501"]
    assert all(again[row]["mAP"] == pytest.approx(found["mAP"], abs=1e-4) for row, found in last.items())
    model = load_trained(cfg)
    graph = str(tmp_path / "ensemble.onnx")
    assert export_onnx(deployed(model, "ensemble"), graph, cfg.INPUT.SIZE_TEST) <= 1e-4
    _, error = export_baseline(cfg, model, str(tmp_path / "baseline.pth"), "1")
    assert error <= 1e-5
