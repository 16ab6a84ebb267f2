"""Stage 2 on tiny data: what moves, what is replaced, what is drawn, and what is written down."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastreid.engine.train_loop import HookBase

from fastreid_sskd.clustering import pseudo_labels
from fastreid_sskd.data import extraction_loader
from fastreid_sskd.engine.hooks import PseudoLabelRefresh
from fastreid_sskd.evaluation.features import extract_features
from fastreid_sskd.modeling import ensemble_feature

LOSSES = ("id", "soft", "ms", "nn")


def refresh_of(trainer) -> PseudoLabelRefresh:
    return next(hook for hook in trainer._hooks if isinstance(hook, PseudoLabelRefresh))


def copy_of(module):
    return copy.deepcopy(module.state_dict())


def trained(module):
    """Names and parameters that train: all but the bias of the BN-neck, which the host freezes."""
    found = [
        (name, p) for name, p in module.named_parameters() if not name.endswith("heads.bottleneck.0.bias")
    ]
    assert len(found) > 6
    return found


class Spy(HookBase):
    """Calls functions of the trainer's events; registered last, so after everything else happened."""

    def __init__(self, **events):
        for name, function in events.items():
            setattr(self, name, function)


class Seen:
    """What reached the model in training: the batches of every epoch."""

    def __init__(self, trainer):
        self.epochs = []
        trainer.register_hooks([Spy(before_epoch=lambda: self.epochs.append([]))])
        trainer.model.register_forward_pre_hook(self._note)

    def _note(self, model, args):
        if model.training:
            self.epochs[-1].append({key: copy.deepcopy(value) for key, value in args[0].items()})


# ---- what moves ----------------------------------------------------------------------------------


def test_students_and_teachers_move(trainer):
    """Teachers lag behind, and have statistics of their own."""
    made = trainer()
    before = copy_of(made.model)
    made.train()
    for kind in ("students", "teachers"):
        for name, parameter in trained(getattr(made.model, kind)):
            assert not torch.equal(parameter, before[f"{kind}.{name}"]), name
            assert torch.isfinite(parameter).all()
    assert not any(p.requires_grad or p.grad is not None for p in made.model.teachers.parameters())
    students, teachers = made.model.students.state_dict(), made.model.teachers.state_dict()
    buffers = [name for name in students if "running_" in name]
    differ = [name for name, _ in trained(made.model.students)] + buffers
    assert buffers and not [name for name in differ if torch.equal(students[name], teachers[name])]


def test_teachers_follow_the_schedule_at_every_step(trainer):
    """teacher <- alpha teacher + (1 - alpha) student after the step, alpha = min(1 - 1/(t+1), MOMENTUM)."""
    before, alphas = {}, []

    def note():
        before.update({name: p.detach().clone() for name, p in made.model.teachers.named_parameters()})

    def compare():
        t = made.iter
        alpha = min(1 - 1 / (t + 1), 0.7)
        for (name, teacher), student in zip(
            made.model.teachers.named_parameters(), made.model.students.parameters()
        ):
            expected = alpha * before[name] + (1 - alpha) * student
            assert torch.allclose(teacher, expected, rtol=1e-5, atol=1e-7), (t, name)
        alphas.append((alpha, made.storage.latest()["ema_decay"][0]))

    made = trainer("SSKD.EMA.MOMENTUM 0.7", hooks=[Spy(before_step=note, after_step=compare)])
    made.train()
    expected, logged = zip(*alphas)
    assert expected == pytest.approx([0, 0.5, 2 / 3, 0.7, 0.7, 0.7])  # the second epoch goes on counting
    assert logged == pytest.approx(expected)


# ---- the refresh ---------------------------------------------------------------------------------


def test_classifiers_are_the_centroids_after_a_refresh(trainer):
    """Row j of every student and teacher: the normalised mean of F over cluster j, from loops."""
    checked = []

    def compare():
        features = ensemble_feature(extract_features(made.model, extraction_loader(made.cfg, made.items)))
        labels = refresh_of(made).labels
        clusters = int(labels.max()) + 1
        assert clusters > 1 and (labels == -1).any()
        rows = [F.normalize(features[labels == j].mean(0), dim=0) for j in range(clusters)]
        for peer in (*made.model.students, *made.model.teachers):
            assert peer.heads.weight.shape == (clusters, 16)
            for j, row in enumerate(rows):
                assert torch.allclose(peer.heads.weight[j], row, atol=1e-5)
        checked.append(made.model.students[0].heads.weight.detach().clone())

    made = trainer(hooks=[Spy(before_epoch=compare)])
    made.train()
    assert len(checked) == 2
    assert not torch.equal(made.model.students[0].heads.weight, checked[-1])  # they are trained from there


def test_cluster_contrast_moves_the_classifier_as_a_memory(trainer):
    losses = {name: 0.0 for name in ("LabelSmoothCE", "SoftCE", "MultiSimilarity", "NuclearNorm")} | {
        "ClusterContrast": 1.0
    }
    opts = [item for name, weight in losses.items() for item in (f"SSKD.LOSSES.{name}.WEIGHT", str(weight))]
    made = trainer("MODEL.HEADS.NECK_FEAT after", "SSKD.EMA.MOMENTUM 0.0", *opts)
    start = []
    made.register_hooks([Spy(before_epoch=lambda: start.append(copy_of(made.model.students[0])))])
    made.train()
    student, teacher = made.model.students[0], made.model.teachers[0]
    memory, before = student.heads.weight, start[-1]["heads.weight"]
    torch.testing.assert_close(memory.norm(dim=1), torch.ones(len(memory)))
    assert not torch.equal(memory, before)
    assert memory not in made.optimizer.state, "the optimiser must not train the memory"
    assert torch.equal(teacher.heads.weight, memory)
    backbone = [name for name, _ in trained(student) if name.startswith("backbone.")]
    assert not any(torch.equal(student.state_dict()[name], start[-1][name]) for name in backbone)


def test_eps_is_estimated_once(trainer):
    own = []

    def estimate():
        features = ensemble_feature(extract_features(made.model, extraction_loader(made.cfg, made.items)))
        own.append(pseudo_labels(features, k1=6, k2=2, pairs_per_image=2.0).eps)

    # a large rate, so that the second epoch's own eps would clearly be another
    made = trainer("SOLVER.BASE_LR 0.05", hooks=[Spy(before_epoch=estimate)])
    made.train()
    history = refresh_of(made).history
    assert [entry["epoch"] for entry in history] == [0, 1]
    assert history[0]["eps"] == history[1]["eps"] == refresh_of(made).eps == pytest.approx(own[0], rel=1e-6)
    assert abs(own[1] - own[0]) > 1e-3


def test_eps_is_given_or_of_rho(trainer):
    """rho = 2 pairs / (N - 1), N = 48, where it is the only one."""
    found = []
    for opts in (("EPS 0.35",), ("PAIRS_PER_IMAGE 1.41",), ("PAIRS_PER_IMAGE 0.0", "RHO 0.06")):
        made = trainer(
            *(f"SSKD.CLUSTER.{opt}" for opt in opts), "SSKD.ITERS_PER_EPOCH 1", "TEST.EVAL_PERIOD 0"
        )
        made.train()
        found.append({entry["eps"] for entry in refresh_of(made).history})
    assert found[0] == {0.35} and found[1] == found[2] != found[0] and len(found[1]) == 1


def test_optimiser_starts_afresh_and_stays_the_same_object(trainer):
    steps, objects = [], []

    def note():
        objects.append(made.optimizer)
        steps.append((len(made.optimizer.state), made.epoch))

    made = trainer(hooks=[Spy(before_epoch=note)])
    held = made.optimizer
    made.train()
    assert steps == [(0, 0), (0, 1)]
    assert all(one is held for one in objects) and made.checkpointer.checkpointables["optimizer"] is held
    assert {int(state["step"]) for state in held.state.values()} == {3}  # the last epoch's, not six
    assert len(held.state) == len(trained(made.model.students))


# ---- the batches ---------------------------------------------------------------------------------


def test_batches_hold_pseudo_labelled_images_only(trainer):
    labels = []
    made = trainer(hooks=[Spy(before_epoch=lambda: labels.append(refresh_of(made).labels.clone()))])
    seen = Seen(made)
    made.train()
    assert len(seen.epochs) == 2
    for of_epoch, batches in zip(labels, seen.epochs):
        assert (of_epoch == -1).sum() > 4  # else this test would show nothing
        assert len(batches) == 3
        for batch in batches:
            assert batch["images"].shape == (8, 2, 3, 32, 16)
            assert (batch["images"][:, 0] != batch["images"][:, 1]).flatten(1).any(1).float().mean() > 0.7
            assert (batch["targets"] >= 0).all()
            assert torch.equal(batch["targets"], of_epoch[batch["indices"]])
            assert sorted(np.unique(batch["targets"], return_counts=True)[1]) == [4, 4]


def test_batches_are_drawn_anew_every_epoch(trainer):
    """With the same labels too, and each epoch's batches again the same."""
    made, labels = trainer(), [k // 8 for k in range(48)]

    def batches(epoch):
        made.epoch = epoch
        made.start_epoch_with(labels)
        return [
            (batch["indices"].tolist(), float(batch["images"].sum())) for batch in made.epoch_batches(epoch)
        ]

    first, second = batches(0), batches(1)
    assert not set(map(str, first)) & set(map(str, second))
    assert batches(0) == first


def test_length_of_an_epoch(trainer):
    """More batches than the 30 or so labelled images fill, fewer than the data set would."""
    for iters in (1, 5):
        made = trainer("SSKD.ITERS_PER_EPOCH", str(iters), "TEST.EVAL_PERIOD 0")
        seen = Seen(made)
        made.train()
        assert [len(batches) for batches in seen.epochs] == [iters, iters]
        assert made.iter == 2 * iters


# ---- what is written down ------------------------------------------------------------------------


def test_metrics_hold_every_loss_of_every_peer(finished):
    steps = [line for line in finished.metrics if "total_loss" in line]
    assert [line["iteration"] for line in steps] == list(range(6))
    names = {f"loss_{loss}_peer{k}" for loss in LOSSES for k in range(2)}
    for line in steps:
        assert {key for key in line if key.startswith("loss_")} == names
        assert {"ema_decay", "data_time"} <= set(line) and line["lr"] == 3.5e-4
    first = steps[0]
    assert first["total_loss"] == pytest.approx(sum(first[name] for name in names), rel=1e-5)
    assert [line["ema_decay"] for line in steps] == pytest.approx([1 - 1 / (t + 1) for t in range(6)])


def test_metrics_hold_every_refresh(finished):
    refreshes = [line for line in finished.metrics if "refresh/clusters" in line]
    assert [line["iteration"] for line in refreshes] == [0, 3]  # the first step of each epoch
    for line in refreshes:
        sizes = {"clusters", "noise_share", "eps", "largest_cluster", "median_cluster"}
        stages = ("features", "knn", "jaccard", "eps", "dbscan", "centroids")
        seconds = {f"seconds_{stage}" for stage in stages}
        assert {f"refresh/{name}" for name in sizes | seconds} <= set(line)
        assert {f"diagnostics/{name}" for name in ("NMI", "AMI", "ARI", "BCubed F")} <= set(line)
    assert "refresh/changed_share" not in refreshes[0] and 0 <= refreshes[1]["refresh/changed_share"] <= 1
    assert refreshes[0]["refresh/eps"] == refreshes[1]["refresh/eps"]


def test_metrics_hold_every_evaluation(finished):
    evaluations = [line for line in finished.metrics if "metric" in line]
    assert [line["iteration"] for line in evaluations] == [2, 5]
    for line, entry in zip(evaluations, finished.record["evaluations"][1:]):
        for row in ("teacher0", "teacher1", "ensemble"):
            assert line[f"Market1501/{row}/mAP"] == pytest.approx(entry["results"]["Market1501"][row]["mAP"])


def test_diagnostics_are_left_out_where_there_are_no_identities(trainer):
    made = trainer("TEST.EVAL_PERIOD 0")
    made.items[:] = [(path, "unknown", camera) for path, _, camera in made.items]
    made.train()
    assert not any(key.startswith("diagnostics/") for key in made.storage.latest())
    assert "NMI" not in refresh_of(made).history[0]


def test_identities_of_the_target_change_nothing(finished, trainer):
    """Every image a person of its own: the diagnostics differ, the training does not."""
    made = trainer()
    made.items[:] = [(path, k, camera) for k, (path, _, camera) in enumerate(made.items)]
    made.train()
    assert_equal_states(made.model.state_dict(), finished.final["model"], but=("best_peer",))


def assert_equal_states(one, other, but=()):
    assert set(one) == set(other)
    for name in one:
        assert name in but or torch.equal(one[name], other[name]), name
