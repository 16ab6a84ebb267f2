"""The SSKD model: who learns what from whom, what teachers must not get, and what evaluation returns."""

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.modeling import build_model
from torch import nn

from fastreid_sskd.engine.train_step import build_optimizer
from fastreid_sskd.losses import build_loss_set
from fastreid_sskd.modeling import SSKD, Peer

GOLDEN = Path(__file__).parents[1] / "golden"
METHOD = (("LabelSmoothCE", 0.5), ("SoftCE", 0.5), ("MultiSimilarity", 3.0), ("NuclearNorm", 1.5))


@pytest.fixture
def outputs(normalised):
    """What copies of all students and teachers make of their views: {"s": [...], "t": [...]}."""

    def run(model, batch):
        kinds = {"s": copy.deepcopy(model.students), "t": copy.deepcopy(model.teachers)}
        views = [normalised(batch["images"][:, k]) for k in range(model.num_peers)]
        return {
            kind: [peer.train()(view, batch["targets"]) for peer, view in zip(peers, views)]
            for kind, peers in kinds.items()
        }

    return run


# ---- the losses ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_peers, cls_type", [(1, "Linear"), (2, "ArcSoftmax"), (3, "CosSoftmax")])
def test_what_a_loss_is_given(make_model, make_batch, outputs, num_peers, cls_type):
    """The own view and teacher, and those of the next peer.

    Only a student's logits have the margin, only a teacher's the temperature.
    """
    model, batch, given = make_model(num_peers, cls_type=cls_type), make_batch(num_peers), []
    for peer in (*model.students, *model.teachers):
        peer.heads.cls_layer.m, peer.heads.cls_layer.s = 0.3, 4
    out = outputs(model, batch)

    def keep(of_peer, peer):
        given.append(of_peer)
        return {f"loss_id_peer{peer}": of_peer.logits.sum()}

    model.temperature, model.losses = 0.25, keep
    model(batch)
    for k, one in enumerate(given):
        student, own, peer = out["s"][k], out["t"][k], out["t"][(k + 1) % num_peers]
        expected = {
            "features": student["features"],
            "logits": student["cls_outputs"],
            "labels": batch["targets"],
            "teacher_features": own["features"],
            "teacher_logits": own["pred_class_logits"] / 0.25,
            "peer_teacher_features": peer["features"],
            "peer_teacher_logits": peer["pred_class_logits"] / 0.25,
            "memory": model.students[k].heads.weight,
        }
        for name, value in expected.items():
            assert torch.equal(getattr(one, name), value), name
        assert one.memory is model.students[k].heads.weight
        for outputs_of in (student, own) if cls_type != "Linear" else ():
            assert not torch.allclose(outputs_of["cls_outputs"], outputs_of["pred_class_logits"], atol=1e-3)
        assert torch.equal(own["features"], peer["features"]) == (num_peers == 1)


@pytest.mark.parametrize("num_peers", [1, 2, 3])
def test_every_loss_of_every_peer_has_a_name(make_model, make_batch, num_peers):
    losses = make_model(num_peers)(make_batch(num_peers))
    expected = {f"loss_{name}_peer{k}" for name in ("id", "soft", "ms", "nn") for k in range(num_peers)}
    assert set(losses) == expected
    assert all(loss.shape == () and torch.isfinite(loss) and loss.requires_grad for loss in losses.values())


class Recorded(nn.Module):
    """A network that gives recorded outputs, whatever it sees, as parameters that gradients can reach."""

    def __init__(self, features, logits):
        super().__init__()
        self.features, self.logits = nn.Parameter(features), nn.Parameter(logits)
        self.heads = SimpleNamespace(weight=None)

    def forward(self, images, targets=None):
        return {"features": self.features, "cls_outputs": self.logits * 1, "pred_class_logits": self.logits}


@pytest.mark.parametrize("name", ["step_a", "step_b"])
def test_recorded_step_of_three_peers(name, make_model):
    with np.load(GOLDEN / f"{name}.npz") as recorded:
        golden = {key: torch.from_numpy(np.asarray(recorded[key])) for key in recorded.files}
    w = golden["weight"].item()
    weights = (1 - w, w, golden["weight_ms"].item(), golden["weight_nuclear"].item())
    specs = [(name, weight, {}) for (name, _), weight in zip(METHOD, weights)]
    model = SSKD(
        students=[Recorded(golden[f"features_{k}"], golden[f"logits_{k}"]) for k in range(3)],
        losses=build_loss_set(specs),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    ).train()
    for k, teacher in enumerate(model.teachers):
        teacher.logits.data.copy_(golden[f"teacher_logits_{k}"])
    losses = model({"images": torch.zeros(64, 3, 3, 1, 1), "targets": golden["labels"]})
    total = sum(losses.values())
    total.backward()
    assert total.item() == pytest.approx(golden["total"].item(), rel=1e-5)
    for k, student in enumerate(model.students):
        for kind in ("features", "logits"):
            gradient, expected = getattr(student, kind).grad, golden[f"{kind}_grad_{k}"]
            assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert model.teachers[k].logits.grad is None


# ---- the views -----------------------------------------------------------------------------------


def test_a_view_reaches_its_own_student_and_teacher_only(make_model, make_batch, normalised):
    model, batch = make_model(), make_batch()
    seen = {}
    for kind, peers in (("student", model.students), ("teacher", model.teachers)):
        for k, peer in enumerate(peers):
            peer.register_forward_pre_hook(
                lambda module, args, key=(kind, k): seen.setdefault(key, []).append(
                    (args[0].clone(), module.training)
                )
            )
    model(batch)
    assert len(seen) == 6
    for (_, k), calls in seen.items():
        ((view, training),) = calls  # one pass a step
        assert training
        torch.testing.assert_close(view, normalised(batch["images"][:, k]))


@pytest.mark.parametrize("shape", [(16, 2, 3, 12, 6), (16, 4, 3, 12, 6), (16, 3, 12, 6), (48, 3, 12, 6)])
def test_a_wrong_number_of_views_is_refused(make_model, shape):
    model = make_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"\(B, 3, 3, H, W\), one view a peer; got"):
        model({"images": torch.zeros(shape), "targets": torch.zeros(shape[0], dtype=torch.int64)})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "label, message", [(-1, "labels must be >= 0, got -1"), (4, "below the number of classes 4")]
)
def test_labels_without_a_class_are_refused(make_model, make_batch, label, message):
    batch = make_batch()
    batch["targets"][3] = label
    with pytest.raises(ValueError, match=message):
        make_model()(batch)


@pytest.mark.parametrize("training", [True, False])
def test_the_callers_batch_is_left_alone(make_model, make_batch, training):
    model = make_model().train(training)
    batch = {**make_batch(), "camids": torch.zeros(16), "img_paths": ["a"] * 16}
    if not training:
        batch["images"] = batch["images"][:, 0].contiguous()
    before = copy.deepcopy(batch)
    model(batch)
    assert batch.keys() == before.keys()
    for key, value in before.items():
        assert torch.equal(batch[key], value) if isinstance(value, torch.Tensor) else batch[key] == value


def test_bytes_are_as_good_as_floats(make_model, make_batch):
    model, batch = make_model(), make_batch()
    as_bytes = {**batch, "images": batch["images"].to(torch.uint8)}
    expected, got = copy.deepcopy(model)(batch), copy.deepcopy(model)(as_bytes)
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    features = [m.eval()({"images": b["images"][:, 0]}) for m, b in ((model, batch), (model, as_bytes))]
    assert torch.equal(*features)


# ---- the teachers --------------------------------------------------------------------------------


def test_teachers_start_as_copies_of_their_students(make_peer):
    students = [make_peer(k) for k in range(3)]
    model = SSKD(
        students=students,
        losses=build_loss_set([("SoftCE", 1.0, {})]),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    for student, teacher in zip(students, model.teachers):
        for (name, value), other in zip(student.state_dict().items(), teacher.state_dict().values()):
            assert torch.equal(value, other) and value.data_ptr() != other.data_ptr(), name
        assert not any(p.requires_grad for p in teacher.parameters())
        assert any(p.requires_grad for p in student.parameters())


def test_no_gradient_reaches_another_peer(make_model, make_batch):
    model = make_model()
    losses = model(make_batch())
    sum(losses[f"loss_{name}_peer1"] for name in ("id", "soft", "ms", "nn")).backward()
    assert all(p.grad is not None for p in model.students[1].parameters() if p.requires_grad)
    assert all(p.grad is None for k in (0, 2) for p in model.students[k].parameters())


def test_teachers_buffers_follow_their_own_passes(make_model, make_batch, normalised, copy_state):
    model, batch = make_model(), make_batch()
    before = copy_state(model)
    model(batch)
    for k in range(3):
        view = normalised(batch["images"][:, k])
        for kind in ("students", "teachers"):
            peer, name = getattr(model, kind)[k], f"{kind}.{k}.backbone.bn1."
            maps = F.conv2d(view, peer.backbone.conv1.weight, stride=2, padding=1)
            mean, var = maps.mean(dim=(0, 2, 3)), maps.var(dim=(0, 2, 3))
            bn = peer.backbone.bn1
            torch.testing.assert_close(bn.running_mean, 0.9 * before[name + "running_mean"] + 0.1 * mean)
            torch.testing.assert_close(bn.running_var, 0.9 * before[name + "running_var"] + 0.1 * var)
            assert bn.num_batches_tracked == before[name + "num_batches_tracked"] + 1
        own, students = model.teachers[k].backbone.bn1, model.students[k].backbone.bn1
        assert not torch.allclose(own.running_mean, students.running_mean, atol=1e-3)


def test_the_teachers_update_moves_parameters_and_no_buffer(make_model, make_batch, copy_state):
    model = make_model()
    model(make_batch())
    before = copy_state(model)
    assert model.update_teachers(3, 0.999) == 0.75
    parameters = {name for name, _ in model.named_parameters()}
    for name, value in model.state_dict().items():
        expected = before[name]
        if name.startswith("teachers.") and name in parameters:
            expected = 0.75 * expected + 0.25 * before[name.replace("teachers.", "students.")]
            assert not torch.equal(value, before[name]) or not value.any(), name
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)
    assert model.update_teachers(0, 0.999) == 0.0
    for student, teacher in zip(model.students.parameters(), model.teachers.parameters()):
        assert torch.equal(student, teacher) and student.data_ptr() != teacher.data_ptr()
    with pytest.raises(ValueError, match="SSKD.EMA.MOMENTUM"):
        model.update_teachers(0, 1.5)


def test_a_step_of_adam_moves_every_student_and_no_teacher(make_model, make_batch, cfg, copy_state):
    model = make_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    cfg.SOLVER.OPT = "Adam"
    optimizer = build_optimizer(cfg, list(model.students))
    in_groups = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert in_groups == {id(p) for p in model.parameters() if p.requires_grad}
    sum(model(make_batch()).values()).backward()
    optimizer.step()
    frozen = [f"{k}.heads.bottleneck.0.bias" for k in range(3)]  # as in the host
    assert [name for name, p in model.students.named_parameters() if not p.requires_grad] == frozen
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name
        moved = not torch.equal(parameter, before[name])
        assert moved == parameter.requires_grad, name


# ---- the classifiers -----------------------------------------------------------------------------


def test_centroids_become_the_classifier_of_all_six(make_model, make_batch):
    model = make_model()
    centroids = F.normalize(torch.randn(7, 8), dim=1)
    parameters = [peer.heads.weight for peer in (*model.students, *model.teachers)]
    model.reset_classifiers(centroids)
    assert len({p.data_ptr() for p in parameters}) == 6
    for peer, parameter in zip((*model.students, *model.teachers), parameters):
        assert peer.heads.weight is parameter and torch.equal(parameter, centroids)
    assert [p.requires_grad for p in parameters] == [True] * 3 + [False] * 3
    batch = make_batch()
    batch["targets"] = torch.arange(16) % 7
    sum(model(batch).values()).backward()
    assert all(p.grad.shape == (7, 8) for p in parameters[:3])
    with pytest.raises(ValueError, match="got"):
        model.reset_classifiers(torch.zeros(7, 9))


def test_a_checkpoint_of_another_number_of_clusters_and_of_the_best_peer(make_model, make_batch):
    saved, model = make_model(), make_model(num_classes=6)
    assert model.best_peer == -1
    saved.best_peer.fill_(2)
    saved.reset_classifiers(torch.randn(9, 8))
    saved.update_teachers(5, 0.999)
    model.load_state_dict(saved.state_dict(), strict=True)
    assert model.best_peer == 2 and model.students[0].num_classes == model.teachers[2].num_classes == 9
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in model.state_dict().items())
    images = {"images": make_batch()["images"][:, 0]}
    assert torch.equal(model.eval()(images), saved.eval()(images))


# ---- evaluation ----------------------------------------------------------------------------------


def test_evaluation_with_each_option(make_model, make_batch, normalised):
    images = make_batch()["images"][:, 1]
    model = make_model().eval()
    with torch.no_grad():
        teachers = [teacher(normalised(images)) for teacher in model.teachers]
    assert all((teachers[0] - other).abs().max() > 0.1 for other in teachers[1:])
    expected = {str(k): feature for k, feature in enumerate(teachers)}
    expected["ensemble"] = F.normalize(sum(F.normalize(f) for f in teachers) / 3)
    for eval_with, feature in expected.items():
        model.eval_with = model.check_eval_with(eval_with)
        torch.testing.assert_close(model({"images": images}), feature, rtol=1e-4, atol=1e-5)
    model.eval_with = "best"
    # nothing evaluated yet
    torch.testing.assert_close(model({"images": images}), teachers[0], rtol=1e-4, atol=1e-5)
    for k in range(3):
        model.best_peer.fill_(k)
        torch.testing.assert_close(model({"images": images}), teachers[k], rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(model.teacher_features({"images": images}), teachers):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_evaluation_changes_nothing_and_does_not_ask_the_students(make_model, make_batch, copy_state):
    model = make_model(eval_with="ensemble").eval()
    images = {"images": make_batch()["images"][:, 0]}
    before = copy_state(model)
    feature = model(images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter in model.students.parameters():
        nn.init.constant_(parameter, float("nan"))
    assert torch.equal(model(images), feature)


@pytest.mark.parametrize("eval_with", ["worst", "3", "-1", "", "Best"])
def test_an_unknown_choice_is_refused_with_the_known_ones(make_model, eval_with):
    with pytest.raises(ValueError, match="SSKD.EVAL_WITH must be one of best, ensemble, 0, 1, 2"):
        make_model(eval_with=eval_with)
    assert make_model(eval_with=1).eval_with == "1"


def test_no_peers_are_refused():
    with pytest.raises(ValueError, match="SSKD.NUM_PEERS must be at least 1"):
        SSKD(
            students=[],
            losses=build_loss_set([("SoftCE", 1.0, {})]),
            pixel_mean=[0.0] * 3,
            pixel_std=[1.0] * 3,
        )


# ---- from a config -------------------------------------------------------------------------------


def test_a_model_from_the_config(cfg, make_batch):
    cfg.SSKD.NUM_PEERS = 2
    cfg.SSKD.BN_CHUNK = 4
    cfg.SSKD.EVAL_WITH = "1"
    cfg.SSKD.LOSSES.NuclearNorm.WEIGHT = 0.0
    cfg.SSKD.LOSSES.LabelSmoothCE.EPSILON = 0.3
    model = build_model(cfg)
    assert isinstance(model, SSKD) and model.num_peers == 2 and model.eval_with == "1"
    assert all(
        isinstance(peer, Peer) and peer.backbone.bn1.chunk == 4 for peer in (*model.students, *model.teachers)
    )
    first = [student.backbone.conv1.weight for student in model.students]
    assert not torch.equal(*first)
    losses = model.train()(make_batch(2))
    assert set(losses) == {f"loss_{name}_peer{k}" for name in ("id", "soft", "ms") for k in range(2)}
    by_name = {type(loss).__name__: loss for _, loss in model.losses.active}
    assert by_name["LabelSmoothCE"].epsilon == 0.3
