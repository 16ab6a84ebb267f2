"""The registry of losses, and weighted sets of them."""

import pytest
import torch
from fastreid.config import CfgNode, get_cfg
from fastreid.utils import comm

from fastreid_sskd import add_sskd_config
from fastreid_sskd.losses import (
    SSKD_LOSS_REGISTRY,
    LossSet,
    PeerBatch,
    PeerLoss,
    build_loss,
    build_loss_set,
    build_losses,
    label_smooth_cross_entropy,
    multi_similarity,
    nuclear_norm,
    peer_soft_triplet,
    soft_cross_entropy,
    soft_triplet,
)


@pytest.fixture
def peer_batch(batch):
    return PeerBatch(
        features=batch["features"],
        logits=batch["logits"],
        labels=batch["labels"],
        # Deliberately not the next peer's: a loss that reads the own teacher gives another value.
        teacher_features=batch["features"] + 1,
        teacher_logits=-batch["teacher_logits"],
        peer_teacher_features=batch["teacher_features"],
        peer_teacher_logits=batch["teacher_logits"],
    )


@pytest.fixture
def registered():
    """Register a class for one test."""
    added = []

    def register(loss_class):
        SSKD_LOSS_REGISTRY.register(loss_class)
        added.append(loss_class.__name__)

    yield register
    for name in added:
        del SSKD_LOSS_REGISTRY._obj_map[name]


def test_every_loss_reads_its_fields_and_parameters(batch, peer_batch):
    features, logits, labels = batch["features"], batch["logits"], batch["labels"]
    ms = {"alpha": 1.0, "beta": 10.0, "base": 0.3, "margin": 0.4}
    expected = {
        ("LabelSmoothCE", "id"): ({"epsilon": 0.3}, label_smooth_cross_entropy(logits, labels, 0.3)),
        ("SoftCE", "soft"): ({}, soft_cross_entropy(logits, batch["teacher_logits"])),
        ("MultiSimilarity", "ms"): (ms, multi_similarity(features, labels, **ms)),
        ("NuclearNorm", "nn"): ({}, nuclear_norm(logits)),
        ("SoftTriplet", "tri"): ({"margin": 0.2}, soft_triplet(features, labels, margin=0.2)),
        ("PeerSoftTriplet", "ptri"): ({}, peer_soft_triplet(features, batch["teacher_features"], labels)),
    }
    for (name, short_name), (params, value) in expected.items():
        loss = build_loss(name, params)
        assert loss.short_name == short_name
        assert torch.equal(loss(peer_batch), value), name


def test_recorded_step(golden_step, assert_gradient):
    """The total of one step of three peers, soft labels cyclic, through a LossSet."""
    w = golden_step["weight"].item()
    loss_set = build_loss_set(
        [
            ("LabelSmoothCE", 1 - w, {"epsilon": 0.1}),
            ("SoftCE", w, {}),
            ("MultiSimilarity", golden_step["weight_ms"].item(), {}),
            ("NuclearNorm", golden_step["weight_nuclear"].item(), None),
        ]
    )
    features = [golden_step[f"features_{k}"].clone().requires_grad_() for k in range(3)]
    logits = [golden_step[f"logits_{k}"].clone().requires_grad_() for k in range(3)]
    losses = {}
    for k in range(3):
        batch = PeerBatch(
            features=features[k],
            logits=logits[k],
            labels=golden_step["labels"],
            peer_teacher_logits=golden_step[f"teacher_logits_{(k + 1) % 3}"],
        )
        losses.update(loss_set(batch, peer=k))
    short_names = ["id", "soft", "ms", "nn"]
    assert list(losses) == [f"loss_{name}_peer{k}" for k in range(3) for name in short_names]

    total = sum(losses.values())
    total.backward()
    assert total.item() == pytest.approx(golden_step["total"].item(), rel=1e-5)
    for name, recorded, weight in [
        ("id", "identity", 1 - w),
        ("soft", "soft", w),
        ("ms", "multi_similarity", golden_step["weight_ms"].item()),
        ("nn", "nuclear_norm_students", golden_step["weight_nuclear"].item()),
    ]:
        share = sum(losses[f"loss_{name}_peer{k}"].item() for k in range(3))
        assert share == pytest.approx(weight * golden_step[recorded].item(), rel=1e-5)
    for k in range(3):
        assert_gradient(features[k].grad, golden_step[f"features_grad_{k}"])
        assert_gradient(logits[k].grad, golden_step[f"logits_grad_{k}"])


def test_keys_without_a_peer_and_weights(peer_batch):
    logits, labels = peer_batch.logits, peer_batch.labels
    values = build_loss_set([("NuclearNorm", 1.5, {}), ("LabelSmoothCE", 0.5, {})])(peer_batch)
    assert list(values) == ["loss_nn", "loss_id"]
    assert torch.equal(values["loss_nn"], 1.5 * nuclear_norm(logits))
    assert torch.equal(values["loss_id"], 0.5 * label_smooth_cross_entropy(logits, labels))


def test_weight_zero_is_not_computed(peer_batch, registered):
    class Exploding(PeerLoss):
        short_name = "boom"
        requires = ("teacher_logits",)

        def __call__(self, batch):
            raise AssertionError("computed")

    registered(Exploding)
    loss_set = build_loss_set([("LabelSmoothCE", 1, {}), ("Exploding", 0, {})])
    assert list(loss_set(peer_batch, peer=2)) == ["loss_id_peer2"]
    assert loss_set.requires == frozenset()
    with pytest.raises(AssertionError, match="computed"):
        build_loss_set([("LabelSmoothCE", 1, {}), ("Exploding", 1, {})])(peer_batch)


def test_a_project_can_add_a_loss(peer_batch, registered):
    class Confidence(PeerLoss):
        short_name = "conf"

        def __init__(self, *, power):
            self.power = power

        def __call__(self, batch):
            return -batch.logits.softmax(dim=1).amax(dim=1).pow(self.power).mean()

    registered(Confidence)
    values = build_loss_set([("Confidence", 2.0, {"power": 3})])(peer_batch)
    expected = -2 * peer_batch.logits.softmax(dim=1).amax(dim=1).pow(3).mean()
    assert torch.equal(values["loss_conf"], expected)


@pytest.mark.parametrize(
    "name, field", [("SoftCE", "peer_teacher_logits"), ("PeerSoftTriplet", "peer_teacher_features")]
)
def test_missing_teacher_is_named(batch, name, field):
    loss_set = build_loss_set([("LabelSmoothCE", 1.0, {}), (name, 0.5, {})])
    assert loss_set.requires == {field}
    source_batch = PeerBatch(batch["features"], batch["logits"], batch["labels"])
    with pytest.raises(ValueError, match=f"{name} needs {field}.*weight to 0"):
        loss_set(source_batch)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="'Tripplet': known are ClusterContrast, LabelSmoothCE, .*SoftTriplet"
    ):
        build_loss("Tripplet")


def test_unknown_parameter_shows_the_signature():
    with pytest.raises(ValueError, match=r"MultiSimilarity must fit \(.*alpha.*gamma"):
        build_loss("MultiSimilarity", {"gamma": 1})


@pytest.mark.parametrize(
    "name, params",
    [("LabelSmoothCE", {"epsilon": 2}), ("MultiSimilarity", {"beta": 0}), ("SoftTriplet", {"margin": -1})],
)
def test_bad_parameters_are_refused_when_built(name, params):
    with pytest.raises(ValueError, match=f"{next(iter(params))}.* must be"):
        build_loss_set([("NuclearNorm", 1.0, {}), (name, 0.0, params)])


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_bad_weights(weight):
    with pytest.raises(ValueError, match="weight of NuclearNorm"):
        build_loss_set([("NuclearNorm", weight, {})])


def test_no_active_loss():
    with pytest.raises(ValueError, match="no loss has a weight above 0"):
        build_loss_set([("NuclearNorm", 0.0, {})])
    with pytest.raises(ValueError, match="no loss has a weight above 0"):
        LossSet([])


def test_short_names_must_differ():
    with pytest.raises(ValueError, match="two losses are called 'ms'"):
        build_loss_set([("MultiSimilarity", 1.0, {}), ("MultiSimilarity", 1.0, {"beta": 50.0})])


def test_repr_reads_as_a_formula():
    specs = [("LabelSmoothCE", 0.5, {}), ("SoftCE", 0, {}), ("NuclearNorm", 1.5, {})]
    assert repr(build_loss_set(specs)) == "LossSet(0.5 LabelSmoothCE + 1.5 NuclearNorm)"


def test_unfinished_loss_cannot_be_constructed(registered):
    class Unfinished(PeerLoss):
        short_name = "todo"

    registered(Unfinished)
    with pytest.raises(TypeError, match="abstract"):
        build_loss("Unfinished")


@pytest.mark.parametrize(
    "node, message",
    [
        (CfgNode({"SLOPE": 1.0}), "SSKD.LOSSES.Mine must be a node with a WEIGHT"),
        (0.5, "SSKD.LOSSES.Mine must be a node with a WEIGHT.*got 0.5"),
        (CfgNode({"WEIGHT": 1.0}), "no loss is registered as 'Mine'"),
    ],
)
def test_losses_that_a_config_names_wrongly(node, message):
    cfg = get_cfg()
    add_sskd_config(cfg)
    cfg.SSKD.LOSSES.Mine = node
    with pytest.raises(ValueError, match=message):
        build_losses(cfg)


def test_cluster_contrast_needs_the_neck_and_the_classifier_for_itself(monkeypatch):
    cfg = get_cfg()
    add_sskd_config(cfg)
    cfg.SSKD.LOSSES.ClusterContrast.WEIGHT = 1.0
    with pytest.raises(ValueError, match="ClusterContrast takes features from behind the BN-neck"):
        build_losses(cfg)
    cfg.MODEL.HEADS.NECK_FEAT = "after"
    with pytest.raises(ValueError, match="ClusterContrast moves the classifier, which LabelSmoothCE, SoftCE"):
        build_losses(cfg)
    for name in ("LabelSmoothCE", "SoftCE", "NuclearNorm"):
        cfg.SSKD.LOSSES[name].WEIGHT = 0.0
    cfg.SSKD.GATHER_LOSSES = False
    assert build_losses(cfg).requires == {"memory"}
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)  # each of which would move it in its own way
    with pytest.raises(ValueError, match="ClusterContrast .*GATHER_LOSSES.*: set it to True"):
        build_losses(cfg)
    cfg.SSKD.GATHER_LOSSES = True
    build_losses(cfg)
