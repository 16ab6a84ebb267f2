"""Peers of a meta-architecture that is not the host's Baseline."""

import copy

import pytest
import torch
from fastreid.config import get_cfg
from fastreid.modeling import build_model
from fastreid.modeling.meta_arch import Baseline
from fastreid.modeling.meta_arch.build import META_ARCH_REGISTRY
from fastreid.utils.checkpoint import Checkpointer
from torch import nn

from fastreid_sskd.engine import load_config
from fastreid_sskd.engine.train_step import build_optimizer
from fastreid_sskd.export.baseline import export_baseline
from fastreid_sskd.modeling import build_peer, load_source_weights


@META_ARCH_REGISTRY.register()
class GatedForTests(Baseline):
    """A gate with a parameter, a buffer and a layer of its own between backbone and head."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.gate = nn.Parameter(torch.full((512, 1, 1), 0.5))
        self.mix = nn.BatchNorm2d(512)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batched_inputs):
        maps = self.mix(self.backbone(self.preprocess_image(batched_inputs))) * self.gate
        if not self.training:
            return self.heads(maps)
        self.seen += 1
        outputs = self.heads(maps, batched_inputs["targets"])
        return self.losses(outputs, batched_inputs["targets"])


@META_ARCH_REGISTRY.register()
class SilentForTests(Baseline):
    """Returns no logits."""

    def forward(self, batched_inputs):
        return {"features": self.heads(self.backbone(self.preprocess_image(batched_inputs)))}


NETWORK = (
    "BACKBONE: {NAME: build_resnet_backbone, DEPTH: 18x, FEAT_DIM: 512}, HEADS: {WITH_BNNECK: True, "
    "POOL_LAYER: GlobalAvgPool}"
)


@pytest.fixture
def config(tmp_path):
    """An SSKD config with one peer per architecture, or two equal ones of ``SSKD.PEER_ARCHITECTURE``."""

    def make(*architectures, opts=()):
        files = []
        for name in architectures:
            files.append(str(tmp_path / f"{name}.yml"))
            (tmp_path / f"{name}.yml").write_text(f"MODEL: {{META_ARCHITECTURE: {name}, {NETWORK}}}\n")
        (tmp_path / "run.yml").write_text(f"MODEL: {{META_ARCHITECTURE: SSKD, DEVICE: cpu, {NETWORK}}}\n")
        cfg = load_config(str(tmp_path / "run.yml"), [
            "MODEL.BACKBONE.PRETRAIN", "False", "INPUT.SIZE_TRAIN", "[32, 16]", "INPUT.SIZE_TEST", "[32, 16]",
            "SSKD.NUM_PEERS", "2", *(["SSKD.PEERS", str(files)] if files else []), *opts,
        ])  # fmt: skip
        cfg.freeze()
        return cfg

    return make


def batch(peers=2):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, peers, 3, 32, 16, generator=generator) * 255
    return {"images": images, "targets": torch.arange(2).repeat_interleave(4)}


@pytest.mark.parametrize("files", [True, False])
def test_its_own_layers_learn_and_its_teacher_follows(config, files):
    torch.manual_seed(0)
    cfg = (
        config("GatedForTests", "Baseline")
        if files
        else config(opts=["SSKD.PEER_ARCHITECTURE", "GatedForTests"])
    )
    model = build_model(cfg).train()
    student, teacher = model.students[0], model.teachers[0]
    assert student.gate is not teacher.gate and hasattr(model.students[1], "gate") is not files
    model.reset_classifiers(torch.randn(2, model.centroid_size))
    optimizer = build_optimizer(cfg, list(model.students))
    before = copy.deepcopy(student.gate.data), copy.deepcopy(teacher.gate.data)
    for step in range(2):
        optimizer.zero_grad()
        losses = model(batch())
        sum(losses.values()).backward()
        optimizer.step()
        model.update_teachers(step, 0.5)
    assert set(losses) == {f"loss_{name}_peer{k}" for name in ("id", "soft", "ms", "nn") for k in range(2)}
    assert (student.gate.data != before[0]).any() and (teacher.gate.data != before[1]).any()
    assert teacher.gate.grad is None and student.seen == 2 and teacher.seen == 2
    assert teacher.mix.running_mean.abs().max() > 0


def test_its_teacher_labels_in_evaluation_mode(config):
    """By the running statistics of its own layers too; what it returns is still what losses take."""
    torch.manual_seed(0)
    teacher = build_model(config(opts=["SSKD.PEER_ARCHITECTURE", "GatedForTests"])).train().teachers[0]
    images, before = torch.rand(4, 3, 32, 16), teacher.mix.running_mean.clone()
    with torch.no_grad():
        with teacher.labelling():
            outputs = teacher(images, torch.zeros(4, dtype=torch.long))
        assert teacher.training and teacher.mix.training and teacher.architecture.training
        features = teacher.eval()(images)
    torch.testing.assert_close(outputs["pred_class_logits"], features @ teacher.heads.weight.T)
    assert torch.equal(teacher.mix.running_mean, before)


def test_states_have_the_architectures_names(config):
    cfg = config("GatedForTests", "Baseline")
    model = build_model(cfg)
    alone = get_cfg()
    alone.merge_from_file(cfg.SSKD.PEERS[0])
    alone.MODEL.DEVICE, alone.MODEL.BACKBONE.PRETRAIN, alone.MODEL.HEADS.NUM_CLASSES = "cpu", False, 1
    plain = build_model(alone)
    assert set(plain.state_dict()) == set(model.teachers[0].state_dict())
    assert not any("architecture" in name for name in model.state_dict())


def test_evaluation_mode_reaches_it(config):
    model = build_model(config("GatedForTests", "Baseline"))
    copied = copy.deepcopy(model.students[0])
    for peer in (model.students[0], model.teachers[0], copied):
        peer.train()
        assert peer.architecture.training
        peer.eval()
        assert not peer.architecture.training and not peer.mix.training
    images = torch.rand(2, 3, 32, 16)
    with torch.no_grad():
        expected = copied(images)
        copied.gate.mul_(2.0)
        assert not torch.allclose(copied(images), expected) and torch.equal(
            model.students[0](images), expected
        )


def test_moves_between_types(config):
    peer = build_model(config("GatedForTests", "Baseline")).students[0].double().eval()
    assert peer.seen.dtype == torch.float64 and peer(torch.rand(2, 3, 32, 16).double()).dtype == torch.float64


def test_exports_as_itself(config, tmp_path):
    cfg = config("GatedForTests", "Baseline")
    model = build_model(cfg).eval()
    model.reset_classifiers(torch.randn(3, model.centroid_size))
    with torch.no_grad():
        model.teachers[0].gate.uniform_(0.1, 2.0)
    yml, error = export_baseline(cfg, model, str(tmp_path / "out.pth"), "0")
    assert error <= 1e-5
    plain = get_cfg()
    plain.merge_from_file(yml)
    plain.MODEL.DEVICE = "cpu"
    again = build_model(plain)
    Checkpointer(again).load(str(tmp_path / "out.pth"))
    assert isinstance(again, GatedForTests) and torch.equal(again.gate, model.teachers[0].gate)


def test_source_stage_trains_it(config):
    cfg = config(opts=["SSKD.PEER_ARCHITECTURE", "GatedForTests", "MODEL.META_ARCHITECTURE", "SSKDSource",
                       "MODEL.HEADS.NUM_CLASSES", "2", "SSKD.LOSSES.SoftCE.WEIGHT", "0.0"])  # fmt: skip
    model = build_model(cfg).train()
    one = {
        "images": batch()["images"][:, 0],
        "bn_images": batch()["images"][:, 1],
        "targets": batch()["targets"],
    }
    sum(model(one).values()).backward()
    assert model.gate.grad.abs().max() > 0 and model.seen == 2  # source and target


@pytest.mark.parametrize("name", ["MoCo", "Distiller"])
def test_the_hosts_architectures(config, name):
    torch.manual_seed(0)
    peer = build_peer(config(opts=["SSKD.PEER_ARCHITECTURE", name])).train()
    outputs = peer(batch()["images"][:, 0], batch()["targets"])
    assert {"features", "cls_outputs", "pred_class_logits"} <= set(outputs) and len(outputs["features"]) == 8
    assert peer.eval()(batch()["images"][:, 0]).shape == (8, 512)


def test_what_cannot_be_a_peer(config):
    resnet50 = ["MODEL.BACKBONE.DEPTH", "50x", "MODEL.BACKBONE.FEAT_DIM", "2048"]  # MGN knows no other
    for name, message in [
        ("NoSuchThing", "not registered"),
        ("MGN", "one head"),
        ("SSKD", "must name one network"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_peer(config(opts=["SSKD.PEER_ARCHITECTURE", name, *resnet50]))
    silent = build_peer(config(opts=["SSKD.PEER_ARCHITECTURE", "SilentForTests"])).train()
    with pytest.raises(TypeError, match="cls_outputs"):
        silent(batch()["images"][:, 0], batch()["targets"])


def test_source_weights_hold_all_of_it(config, tmp_path):
    """Stage 1 trains what the architecture has besides backbone and head: stage 2 starts from that too."""
    cfg = config(opts=["SSKD.PEER_ARCHITECTURE", "GatedForTests"])
    model, source = build_model(cfg), build_peer(cfg)
    for value in source.state_dict().values():
        if value.is_floating_point():
            torch.nn.init.uniform_(value, 0.1, 1.0)
    saved = source.state_dict()
    torch.save({"model": {**saved, "pixel_mean": torch.zeros(3)}}, tmp_path / "source.pth")
    load_source_weights(model, [str(tmp_path / "source.pth")])
    for peer in (*model.students, *model.teachers):
        found = peer.state_dict()
        assert {"gate", "seen", "mix.weight", "mix.running_mean"} <= set(found)
        assert all(torch.equal(found[name], value) for name, value in saved.items() if name != "heads.weight")


def test_source_weights_without_part_of_it(config, tmp_path, caplog):
    cfg = config(opts=["SSKD.PEER_ARCHITECTURE", "GatedForTests"])
    model, saved = build_model(cfg), build_peer(cfg).state_dict()
    del saved["gate"]
    torch.save(saved, tmp_path / "source.pth")
    load_source_weights(model, [str(tmp_path / "source.pth")])
    assert "has no weights for gate" in caplog.text and torch.all(model.students[0].gate == 0.5)
