"""Checkpoints of fast-reid's own architectures start a peer."""

import pytest
import torch
import yaml
from fastreid.modeling import build_model
from fastreid.utils.checkpoint import Checkpointer

from fastreid_sskd.export.baseline import baseline_config
from fastreid_sskd.modeling import load_source_weights
from fastreid_sskd.modeling.weights import WeightsError, load_model


@pytest.fixture
def resnet(cfg):
    """A small ResNet that fast-reid's other architectures take as well."""
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH, cfg.MODEL.BACKBONE.FEAT_DIM = (
        "build_resnet_backbone",
        "18x",
        512,
    )
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
        theirs, mine = (
            host.get_submodule(part).state_dict(),
            model.teachers[0].get_submodule(part).state_dict(),
        )
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


RESNET50 = ("MODEL.BACKBONE.DEPTH", "50x", "MODEL.BACKBONE.FEAT_DIM", 2048)


@pytest.fixture
def architectures(resnet):
    """Configs of every meta-architecture of one network, for evaluation."""

    def make(name, *opts):
        cfg = resnet.clone()
        cfg.MODEL.META_ARCHITECTURE = name
        if name == "MGN":
            cfg.merge_from_list(["MODEL.HEADS.EMBEDDING_DIM", 16, *RESNET50])
        cfg.merge_from_list(list(opts))
        return cfg

    return make


def features(model):
    with torch.no_grad():
        return model.eval()({"images": torch.linspace(0, 255, 2 * 3 * 96 * 32).view(2, 3, 96, 32)})


@pytest.mark.parametrize("architecture", ["Baseline", "MGN", "MoCo", "SSKDSource"])
def test_evaluated_as_saved(architectures, tmp_path, architecture):
    """Also with another number of identities, and counters of batches as older torch wrote them."""
    host, path = saved(architectures(architecture), tmp_path, architecture)
    content = torch.load(path, weights_only=True)
    content["model"] = {
        key: value[None] if value.ndim == 0 else value for key, value in content["model"].items()
    }
    torch.save(content, path)
    model = build_model(architectures(architecture, "MODEL.HEADS.NUM_CLASSES", 2))
    load_model(model, path, evaluation=True)
    assert torch.equal(features(model), features(host))


@pytest.mark.parametrize(
    ("theirs", "architecture"),
    [("MGN", "Baseline"), ("Baseline", "MGN"), ("Baseline", "SSKD"), ("MGN", "SSKDSource")],
)
def test_another_architecture_is_refused_in_a_few_lines(architectures, tmp_path, theirs, architecture):
    _, path = saved(architectures(theirs), tmp_path, theirs)
    model = build_model(architectures(architecture))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for evaluation in (True, False):
        with pytest.raises(WeightsError, match=r"host.pth' holds weights of another network") as error:
            load_model(model, path, evaluation=evaluation)
        assert len(str(error.value)) < 900 and str(error.value).count("\n") <= 4
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_network_that_is_mostly_beside_its_backbone_is_no_start(architectures, tmp_path):
    """A bare ResNet-50 has the first layers of MGN; its three branches would be random."""
    torch.save(build_model(architectures("Baseline", *RESNET50)).backbone.state_dict(), tmp_path / "bare.pth")
    with pytest.raises(WeightsError, match="missing: b1.0.0.conv1.weight"):
        load_model(build_model(architectures("MGN")), str(tmp_path / "bare.pth"))


@pytest.mark.parametrize("architecture", ["Baseline", "MoCo", "SSKDSource"])
def test_a_bare_backbone_is_evaluated_with_a_plain_neck(architectures, tmp_path, architecture, monkeypatch):
    """Its features go through unchanged, but for the neck's epsilon, and the log says so."""
    host, _ = saved(architectures(architecture), tmp_path, architecture)
    torch.save({"state_dict": host.backbone.state_dict()}, tmp_path / "bare.pth")
    model = build_model(architectures(architecture))
    messages = []
    for level in ("info", "warning"):
        monkeypatch.setattr(
            f"fastreid_sskd.modeling.weights.logger.{level}", lambda text, *args: messages.append(text % args)
        )
    load_model(model, str(tmp_path / "bare.pth"), evaluation=True)
    assert any(
        "no weights for heads.bottleneck.0.weight" in text and "keep their initial values" in text
        for text in messages
    )
    assert any("loaded 100 of 100 backbone tensors" in text and "state_dict." in text for text in messages)
    pooled = build_model(architectures("Baseline", "MODEL.HEADS.WITH_BNNECK", False))
    load_model(pooled, str(tmp_path / "bare.pth"), evaluation=True)
    torch.testing.assert_close(features(model), features(pooled), rtol=1e-4, atol=1e-5)


def test_a_random_projection_is_not_evaluated(architectures, tmp_path):
    """But trained: a bare backbone is a start."""
    host, _ = saved(architectures("Baseline"), tmp_path, "Baseline")
    torch.save(host.backbone.state_dict(), tmp_path / "bare.pth")
    model = build_model(architectures("Baseline", "MODEL.HEADS.EMBEDDING_DIM", 16))
    with pytest.raises(WeightsError, match="1 missing: heads.bottleneck.0.weight"):
        load_model(model, str(tmp_path / "bare.pth"), evaluation=True)
    load_model(model, str(tmp_path / "bare.pth"))
    assert torch.equal(model.backbone.conv1.weight, host.backbone.conv1.weight)


def test_a_neck_that_the_config_lacks_is_not_dropped_in_evaluation(architectures, tmp_path):
    _, path = saved(architectures("Baseline"), tmp_path, "Baseline")
    model = build_model(architectures("Baseline", "MODEL.HEADS.WITH_BNNECK", False))
    with pytest.raises(WeightsError, match="only in the file: heads.bottleneck.0.weight"):
        load_model(model, path, evaluation=True)
    load_model(model, path)


def test_a_head_that_answers_with_its_classifier_needs_it(architectures, tmp_path):
    clas = ("MODEL.HEADS.NAME", "ClasHead")
    host, path = saved(architectures("Baseline", *clas), tmp_path, "Baseline")
    model = build_model(architectures("Baseline", *clas, "MODEL.HEADS.NUM_CLASSES", 2))
    with pytest.raises(
        WeightsError, match="a classifier of 7 identities.*MODEL.HEADS.NUM_CLASSES to 7, here 2"
    ):
        load_model(model, path, evaluation=True)
    model = build_model(architectures("Baseline", *clas, "MODEL.HEADS.NUM_CLASSES", 7))
    load_model(model, path, evaluation=True)
    assert torch.equal(features(model), features(host))


def test_an_sskd_model_gives_a_baseline_its_best_teacher(architectures, tmp_path):
    model, _ = saved(architectures("SSKD"), tmp_path, "SSKD")
    model.best_peer.fill_(1)
    with torch.no_grad():
        model.teachers[1].backbone.conv1.weight.mul_(2)
    torch.save({"model": model.state_dict()}, tmp_path / "sskd.pth")
    plain = build_model(architectures("Baseline"))
    load_model(plain, str(tmp_path / "sskd.pth"), evaluation=True)
    assert torch.equal(features(plain), features(model))
    smaller = build_model(architectures("Baseline", "MODEL.BACKBONE.DEPTH", "34x"))
    with pytest.raises(WeightsError, match="100 of 180 backbone tensors"):
        load_model(smaller, str(tmp_path / "sskd.pth"), evaluation=True)


def test_a_distillers_teacher_of_another_network_is_refused(resnet, tmp_path):
    _, teacher = saved(resnet, tmp_path / "teacher", "Baseline")
    described = baseline_config(resnet, 0, 7, teacher)
    described["MODEL"].update(DEVICE="cpu")
    described["MODEL"]["BACKBONE"]["DEPTH"] = "34x"
    (tmp_path / "teacher.yml").write_text(yaml.safe_dump(described))
    resnet.KD.MODEL_CONFIG, resnet.KD.MODEL_WEIGHTS = [str(tmp_path / "teacher.yml")], [teacher]
    with pytest.raises(WeightsError, match="a smaller network"):
        saved(resnet, tmp_path, "Distiller")


def test_real_files(weights, resnet):
    """An ImageNet MobileNetV2 and an OSNet of MSMT17, as a peer's start and as PRETRAIN_PATH."""
    for file, name, depth, size in (
        ("mobilenetv2_imagenet.pth", "build_mobilenetv2_backbone", "1.0x", 1280),
        ("osnet_x0_25_msmt17.pth", "build_osnet_backbone", "x0_25", 128),
    ):
        path = str(weights / file)
        resnet.MODEL.BACKBONE.NAME, resnet.MODEL.BACKBONE.DEPTH, resnet.MODEL.BACKBONE.FEAT_DIM = (
            name,
            depth,
            size,
        )
        resnet.SSKD.NUM_PEERS = 1
        model = build_model(resnet)
        load_source_weights(model, [path])
        cfg = resnet.clone()
        cfg.MODEL.META_ARCHITECTURE = "Baseline"
        cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.BACKBONE.PRETRAIN_PATH = True, path
        state = torch.load(path, weights_only=True)
        for backbone in (model.teachers[0].backbone, build_model(cfg).backbone):
            assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
