"""Every family of fast-reid's backbones trains as a peer: one step on the CPU, as small as it goes."""

import pytest
import torch
from fastreid.modeling import build_model
from host_backbones import BACKBONES, config, one_step

SHUFFLENET = ("NAME build_shufflenetv2_backbone", "DEPTH 0.5x", "FEAT_DIM 1024")
CASES = {name: (name, (), BACKBONES[name][2]) for name in BACKBONES} | {
    "shufflenet": ("resnet", [f"BACKBONE.{opt}" for opt in SHUFFLENET], 1024),
    "ClasHead, CosSoftmax": ("resnet", ("HEADS.NAME ClasHead", "HEADS.CLS_LAYER CosSoftmax"), 512),
    "embedding, ArcSoftmax": ("resnet", ("HEADS.EMBEDDING_DIM 16", "HEADS.CLS_LAYER ArcSoftmax"), 16),
}


@pytest.mark.parametrize("case", CASES)
def test_one_step(case):
    torch.manual_seed(0)
    backbone, opts, size = CASES[case]
    opts = [word for opt in opts for word in f"MODEL.{opt}".split()]
    cfg = config(backbone, *opts, num_peers=2 if backbone != "vit" else 1)
    one_step(cfg, build_model(cfg), size)


@pytest.mark.parametrize("backbone", ["resnet_ibn", "osnet", "mobilenet", "repvgg"])
def test_batch_norm_in_chunks(backbone):
    """They have plain batch norm throughout, so that SSKD.BN_CHUNK can stand in for the authors' GPUs."""
    cfg = config(backbone, "SSKD.BN_CHUNK", 4, num_peers=1)
    one_step(cfg, build_model(cfg), BACKBONES[backbone][2])
