"""The mean teachers: their moving average, how they label, and how their features are combined."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.modeling import build_model
from torch import nn

from fastreid_sskd.modeling import (
    concatenated_feature,
    ema_decay,
    ema_momentum,
    ensemble_feature,
    update_teacher,
)
from fastreid_sskd.modeling.sskd import COMBINATIONS

# ---- the moving average --------------------------------------------------------------------------

GOLDEN = Path(__file__).parents[1] / "golden" / "ema.npz"


class Scalar(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(float(value), dtype=torch.float64))


def test_recorded_twelve_steps():
    with np.load(GOLDEN) as recorded:
        golden = {name: recorded[name] for name in recorded.files}
    assert len(golden["student"]) == 12
    teacher = Scalar(golden["initial"])
    for step, (value, expected) in enumerate(zip(golden["student"], golden["teacher"])):
        update_teacher(teacher, Scalar(value), ema_decay(step, float(golden["alpha"])))
        assert teacher.value.item() == pytest.approx(expected, rel=1e-12), step


def test_schedule():
    assert [ema_decay(step, 0.999) for step in (0, 1, 3, 9)] == pytest.approx([0.0, 0.5, 0.75, 0.9])
    assert ema_decay(998, 0.999) == pytest.approx(1 - 1 / 999) and ema_decay(998, 0.999) < 0.999
    # 1 - 1/1000 is the cap itself; from then on it binds
    assert [ema_decay(step, 0.999) for step in (999, 1000, 10**6)] == [0.999] * 3
    assert ema_decay(10**6, 1.0) == pytest.approx(1 - 1e-6, rel=1e-9)
    assert ema_decay(5, 0.0) == 0.0


def test_window_of_a_run():
    assert ema_momentum(0.999, 0.0, 180) == 0.999
    assert ema_momentum(0.999, 0.125, 8000) == pytest.approx(0.999, abs=1e-12)  # the method's
    assert ema_momentum(0.999, 0.125, 400) == pytest.approx(1 - 1 / 50)
    # a window of a step or less: the student itself
    assert ema_momentum(0.999, 0.5, 1) == ema_momentum(0.999, 1.0, 1) == 0.0


def test_no_graph_and_no_gradient(make_peer):
    teacher, student = make_peer(0), make_peer(1)
    update_teacher(teacher, student, 0.5)
    for parameter in (*teacher.parameters(), *student.parameters()):
        assert parameter.is_leaf and parameter.grad is None


def test_bad_arguments(make_peer):
    with pytest.raises(ValueError, match="step.*>= 0, got -1"):
        ema_decay(-1, 0.999)
    for momentum in (-0.1, 1.001, float("nan")):
        with pytest.raises(ValueError, match="SSKD.EMA.MOMENTUM"):
            ema_decay(0, momentum)
    with pytest.raises(RuntimeError):
        update_teacher(make_peer(0, num_classes=4), make_peer(0, num_classes=5), 0.5)


# ---- labels --------------------------------------------------------------------------------------


def in_evaluation(teacher, view):
    """Pooled features and logits of a copy in evaluation mode, layer by layer."""
    teacher = copy.deepcopy(teacher).eval()
    pooled = teacher.backbone(view).mean(dim=(2, 3))
    neck = teacher.heads.bottleneck(pooled[..., None, None])[..., 0, 0]
    return pooled, neck @ teacher.heads.weight.T


class GivenToLosses:
    """A set of losses that keeps what it is given."""

    requires = frozenset({"peer_teacher_logits"})

    def __init__(self):
        self.given = []

    def __call__(self, of_peer, peer):
        self.given.append(of_peer)
        return {f"loss_id_peer{peer}": of_peer.logits.sum()}


def what_losses_are_given(model, batch):
    model.losses = GivenToLosses()
    model(batch)
    return model.losses.given


@pytest.mark.parametrize("statistics", ["running", "student", "refresh"])
def test_labels_are_those_of_evaluation_mode(make_model, make_batch, normalised, statistics):
    """By the statistics from before the step, unlike the release's; students see no difference."""
    batch, model = make_batch(), make_model()
    model.label_statistics = statistics
    expected = [in_evaluation(t, normalised(batch["images"][:, k])) for k, t in enumerate(model.teachers)]
    released = what_losses_are_given(make_model(), batch)
    for k, (one, other) in enumerate(zip(what_losses_are_given(model, batch), released)):
        for fields, (features, logits) in (("teacher", expected[k]), ("peer_teacher", expected[(k + 1) % 3])):
            torch.testing.assert_close(getattr(one, f"{fields}_features"), features)
            torch.testing.assert_close(getattr(one, f"{fields}_logits"), logits)
            assert (getattr(other, f"{fields}_logits") - logits).abs().max() > 0.1
        assert torch.equal(one.logits, other.logits) and torch.equal(one.features, other.features)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("statistics", ["batch", "running", "student", "refresh"])
def test_which_statistics_a_step_moves(make_model, make_batch, copy_state, statistics):
    """With "running" those of the release, bit for bit, and the draws too; with the others none."""
    released, model, batch = make_model(), make_model(), make_batch()
    model.label_statistics = statistics
    for each in (*released.teachers, *model.teachers):
        each.backbone.conv2.register_forward_hook(lambda conv, args, out: F.dropout(out, 0.3, conv.training))
    before = copy_state(model)
    drawn = []
    for one in (released, model):
        torch.manual_seed(3)
        one(batch)
        drawn.append(float(torch.rand(())))
    follows = statistics in ("batch", "running")
    for name, value in model.state_dict().items():
        same = released.state_dict()[name] if follows or name.startswith("students") else before[name]
        assert torch.equal(value, same), name
    assert (drawn[0] == drawn[1]) == follows
    assert not torch.equal(
        released.teachers[0].backbone.bn2.running_mean, before["teachers.0.backbone.bn2.running_mean"]
    )


def test_students_statistics_are_averaged_along_with_their_weights(make_model, make_batch, copy_state):
    model = make_model()
    model.label_statistics = "student"
    model(make_batch())
    teachers, students = copy_state(model.teachers), copy_state(model.students)
    model.update_teachers(3, 0.999)
    for name, value in model.teachers.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(
                value, 0.75 * teachers[name] + 0.25 * students[name], rtol=1e-5, atol=1e-6, msg=name
            )


@pytest.mark.parametrize("statistics, passes", [("batch", 1), ("running", 2), ("student", 1), ("refresh", 1)])
def test_passes_of_a_teacher(make_model, make_batch, statistics, passes):
    """None for labels that nobody reads."""
    for losses, saved in (({}, 0), ({"losses": (("LabelSmoothCE", 1.0),)}, statistics != "batch")):
        model, calls = make_model(**losses), []
        model.label_statistics = statistics
        model.teachers[1].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        model(make_batch())
        assert len(calls) == passes - saved


def test_layers_that_are_frozen_stay_so(make_model, make_batch, copy_state):
    """A layer that is in evaluation mode before teachers label is in it afterwards."""
    model = make_model()
    model.label_statistics = "running"
    for teacher in model.teachers:
        teacher.backbone.eval()
    before = copy_state(model.teachers)
    model(make_batch())
    for name, value in model.teachers.state_dict().items():
        assert torch.equal(value, before[name]) == (
            "backbone" in name or "running" not in name and "tracked" not in name
        ), name
    assert all(t.training and t.heads.training and not t.backbone.bn1.training for t in model.teachers)


def test_unknown_statistics(cfg):
    cfg.SSKD.SOFT_LABELS.BN = "eval"
    with pytest.raises(
        ValueError, match="SSKD.SOFT_LABELS.BN must be one of batch, running, student, refresh; got 'eval'"
    ):
        build_model(cfg)


# ---- combination ---------------------------------------------------------------------------------


def spaces(*sizes, n=5):
    torch.manual_seed(0)
    return [torch.randn(n, size) * (k + 1) for k, size in enumerate(sizes)]


def test_cosine_is_the_mean_of_the_cosines():
    features = spaces(3, 8, 5)
    rows = concatenated_feature(features)
    assert rows.shape == (5, 16)
    for i in range(5):
        for j in range(5):
            cosines = [F.cosine_similarity(f[i], f[j], dim=0) for f in features]
            assert torch.allclose(rows[i] @ rows[j], sum(cosines) / 3, atol=1e-6)


def test_squared_distance_is_the_mean_of_the_squared_distances():
    features = spaces(4, 7)
    rows = concatenated_feature(features)
    distances = [torch.cdist(F.normalize(f), F.normalize(f)).square() for f in features]
    assert torch.allclose(torch.cdist(rows, rows).square(), sum(distances) / 2, atol=1e-5)


@pytest.mark.parametrize("combine", COMBINATIONS.values(), ids=list(COMBINATIONS))
def test_unit_length_and_input_unchanged(combine):
    features = spaces(6, 6)
    before = [f.clone() for f in features]
    assert torch.allclose(combine(features).norm(dim=1), torch.ones(5))
    assert all(torch.equal(f, b) for f, b in zip(features, before))
    assert combine([f.half() for f in features]).dtype == torch.float32


@pytest.mark.parametrize("combine", COMBINATIONS.values(), ids=list(COMBINATIONS))
def test_one_peer_and_no_image(combine):
    (features,) = spaces(6)
    assert torch.allclose(combine([features]), F.normalize(features))
    assert combine([torch.zeros(0, 6)] * 2).shape[0] == 0


def test_a_rotated_space_changes_the_mean_only():
    """What makes peers of different spaces comparable: their distances do not depend on the coordinates."""
    one, other = spaces(6, 6)
    turned = other @ torch.linalg.qr(torch.randn(6, 6))[0]
    cosines = [rows @ rows.T for rows in map(concatenated_feature, ([one, other], [one, turned]))]
    assert torch.allclose(*cosines, atol=1e-6)
    means = [rows @ rows.T for rows in map(ensemble_feature, ([one, other], [one, turned]))]
    assert not torch.allclose(*means, atol=1e-2)


def test_ensemble_feature_by_hand():
    features = [torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[10.0, 0.0], [0.0, 1.0]])]
    mean = torch.tensor([[(0.6 + 1.0) / 2, 0.8 / 2], [0.0, 1.0]])
    expected = mean / mean.norm(dim=1, keepdim=True)
    torch.testing.assert_close(ensemble_feature(features), expected)
    # every teacher counts the same, whatever the length of its features
    torch.testing.assert_close(ensemble_feature([features[0] * 100, features[1]]), expected)
    torch.testing.assert_close(ensemble_feature([f.half() for f in features]), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ensemble_feature(features[:1]), F.normalize(features[0]))
    assert ensemble_feature([torch.zeros(0, 5)] * 3).shape == (0, 5)
