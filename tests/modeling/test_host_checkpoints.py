"""Checkpoints of fast-reid's own architectures start a peer."""

import pytest
import torch
import yaml
from fastreid.modeling import build_model
from fastreid.utils.checkpoint import Checkpointer

from fastreid_sskd.export.baseline import baseline_config
from fastreid_sskd.modeling import load_source_weights


@pytest.fixture
def resnet(cfg):
    """A small ResNet that fast-reid's other architectures take as well."""
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH, cfg.MODEL.BACKBONE.FEAT_DIM = "build_resnet_backbone", "18x", 512
    cfg.MODEL.QUEUE_SIZE = 16
    return cfg


def saved(cfg, folder, architecture):
    """A checkpoint as fast-reid writes it, and its model."""
    cfg = cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.HEADS.NUM_CLASSES = 7
    folder.mkdir(exist_ok=True)
    torch.manual_seed(3)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    Checkpointer(model, str(folder)).save("host")
    return model, str(folder / "host.pth")


@pytest.mark.parametrize("architecture", ["Baseline", "MoCo", "SSKDSource"])
def test_backbone_and_neck_are_taken(resnet, tmp_path, architecture):
    host, path = saved(resnet, tmp_path, architecture)
    resnet.SSKD.NUM_PEERS = 1
    model = build_model(resnet)
    load_source_weights(model, [path])
    for part in ("backbone", "heads.bottleneck"):
        theirs, mine = host.get_submodule(part).state_dict(), model.teachers[0].get_submodule(part).state_dict()
        assert all(torch.equal(value, mine[key]) for key, value in theirs.items()) and theirs
    images = torch.rand(2, 3, 32, 16) * 255
    with torch.no_grad():
        torch.testing.assert_close(host.eval()({"images": images.clone()}), model.eval()({"images": images}))


def test_a_distillers_student_is_taken(resnet, tmp_path):
    """Its teachers are in no checkpoint: fast-reid keeps them in a plain list."""
    _, teacher = saved(resnet, tmp_path / "teacher", "Baseline")
    described = baseline_config(resnet, 0, 7, teacher)
    described["MODEL"]["DEVICE"] = "cpu"
    (tmp_path / "teacher.yml").write_text(yaml.safe_dump(described))
    resnet.KD.MODEL_CONFIG, resnet.KD.MODEL_WEIGHTS = [str(tmp_path / "teacher.yml")], [teacher]
    student, path = saved(resnet, tmp_path, "Distiller")
    assert not any("model_ts" in key for key in torch.load(path, weights_only=True)["model"])
    model = build_model(resnet)
    load_source_weights(model, [path])
    assert torch.equal(model.students[0].backbone.conv1.weight, student.backbone.conv1.weight)


def test_mgns_backbone_is_refused_in_a_sentence(resnet, tmp_path):
    """It is cut into branches: no peer of the same backbone has these shapes."""
    resnet.MODEL.HEADS.EMBEDDING_DIM = 16
    resnet.MODEL.BACKBONE.DEPTH, resnet.MODEL.BACKBONE.FEAT_DIM = "50x", 2048
    _, path = saved(resnet, tmp_path, "MGN")
    resnet.SSKD.NUM_PEERS = 1
    with pytest.raises(ValueError, match="host.pth.*another network"):
        load_source_weights(build_model(resnet), [path])
