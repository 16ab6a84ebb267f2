"""Source weights: every form they come in, and what happens with those that do not fit."""

import argparse
import io
import logging
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from fastreid.modeling import build_model
from torch import nn

from fastreid_sskd.modeling import load_source_weights
from fastreid_sskd.modeling.weights import (
    WeightsError,
    load_exactly,
    load_model,
    load_network,
    read_state_dict,
)

weights_only_is_narrow = pytest.mark.skipif(
    torch.__version__ < (2, 6), reason="weights_only refuses numpy arrays and Counters before torch 2.6"
)


@pytest.fixture
def save(tmp_path):
    """Save an object under a new name and return its path."""
    count = iter(range(100))

    def write(content, **kwargs) -> str:
        path = tmp_path / f"{next(count)}.pth"
        torch.save(content, path, **kwargs)
        return str(path)

    return write


@pytest.fixture
def warnings():
    """Messages of the warnings so far; caplog misses them once the host has set its logger up."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("fastreid.sskd.weights")
    logger.addHandler(handler)
    yield lambda: messages
    logger.removeHandler(handler)


def holds(peer, state, classifier):
    """The peer has the state's backbone and neck, and its own classifier."""
    own = peer.state_dict()
    same = [
        torch.equal(own[name], torch.as_tensor(value))
        for name, value in state.items()
        if name != "heads.weight"
    ]
    return len(same) == len(own) - 1 and all(same) and torch.equal(own["heads.weight"], classifier)


def check(model, states, classifiers):
    for k, (student, teacher) in enumerate(zip(model.students, model.teachers)):
        assert holds(student, states[k], classifiers[k]), k
        for (name, value), other in zip(student.state_dict().items(), teacher.state_dict().values()):
            assert torch.equal(value, other) and value.data_ptr() != other.data_ptr(), name
        assert not any(p.requires_grad for p in teacher.parameters())


@pytest.fixture
def model(make_model):
    return make_model(3)


@pytest.fixture
def classifiers(model):
    return [student.heads.weight.detach().clone() for student in model.students]


# ---- what is accepted ----------------------------------------------------------------------------

OF_A_MODULE = "module.{}".format
LAYOUTS = {
    "under model": lambda state: {"model": state},
    "bare": lambda state: state,
    "wrapped, under model": lambda state: {
        "model": {OF_A_MODULE(name): value for name, value in state.items()}
    },
    "wrapped, under state_dict": lambda state: {
        "state_dict": {OF_A_MODULE(name): v for name, v in state.items()}
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_a_peer(model, classifiers, make_peer, save, warnings, layout):
    states = [make_peer(10 + k, num_classes=7).state_dict() for k in range(3)]
    load_source_weights(model, [save(LAYOUTS[layout](state)) for state in states])
    check(model, states, classifiers)
    assert not warnings()


@pytest.mark.parametrize("count", [1, 3])
def test_one_file_for_three_peers_warns_that_they_start_equal(
    model, classifiers, make_model, make_peer, save, warnings, count
):
    state = make_peer(10, num_classes=7).state_dict()
    path = save({"model": state})
    load_source_weights(make_model(1), [path])
    assert not warnings()
    load_source_weights(model, [path] * count)
    check(model, [state] * 3, classifiers)
    (message,) = warnings()
    assert "all 3 peers" in message and "start equal" in message and path in message


@pytest.mark.parametrize("layout", ["under model", "bare", "wrapped, under model"])
def test_an_sskd_checkpoint_gives_each_peer_its_teacher(
    model, classifiers, make_model, save, warnings, layout
):
    saved = make_model(3, num_classes=9)
    saved.best_peer.fill_(1)
    load_source_weights(model, [save({**LAYOUTS[layout](saved.state_dict()), "epoch": 3})])
    check(model, [teacher.state_dict() for teacher in saved.teachers], classifiers)
    assert not torch.equal(model.students[0].backbone.conv1.weight, saved.students[0].backbone.conv1.weight)
    assert not warnings() and model.best_peer == -1


@pytest.mark.parametrize(
    "beside",
    [
        {"scheduler": {"milestones": Counter([40, 70])}},  # the host's
        {"best_mAP": np.float64(3.2)},
        {"best_mAP": np.float32(0.5)},
        {"best_mAP": np.int64(7)},
        {"args": argparse.Namespace(lr=0.1)},  # as DINO and MAE save their command line
    ],
    ids=lambda beside: repr(beside),
)
@weights_only_is_narrow
def test_plain_objects_beside_the_tensors(save, beside):
    path = save({"model": {"a": torch.zeros(2)}, "best": np.zeros(2), **beside})
    assert list(read_state_dict(path)) == ["model.a", "best"]


def test_counters_of_batches_may_be_missing_or_vectors(make_peer):
    peer, state = make_peer(0), make_peer(10).state_dict()
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    load_network(peer, {name: value for name, value in state.items() if name not in counters}, "somewhere")
    assert torch.equal(peer.backbone.conv2.weight, state["backbone.conv2.weight"])
    load_network(peer, {**state, **dict.fromkeys(counters, torch.tensor([5]))}, "somewhere")
    assert peer.backbone.bn1.num_batches_tracked == 5 and peer.backbone.bn1.num_batches_tracked.shape == ()


def test_a_checkpoint_of_the_hosts_baseline(model, classifiers, cfg, save):
    cfg.MODEL.META_ARCHITECTURE = "Baseline"
    states = []
    for k in range(3):
        torch.manual_seed(20 + k)
        states.append(build_model(cfg).state_dict())
    extra = {"epoch": 7, "metric": 51.2, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    # as the host's older versions wrote it
    older = {"pixel_mean": torch.zeros(1, 3, 1, 1), "pixel_std": torch.ones(1, 3, 1, 1)}
    load_source_weights(
        model, [save({"model": OrderedDict({**state, **older}), **extra}) for state in states]
    )
    check(model, states, classifiers)


@weights_only_is_narrow
@pytest.mark.parametrize(
    "numpy_module", [None, b"numpy.core.", b"numpy._core."], ids=["own", "numpy 1", "numpy 2"]
)
def test_numpy_arrays(model, classifiers, make_peer, save, numpy_module):
    state = make_peer(10).state_dict()
    path = save(
        {"model": {name: value.numpy() for name, value in state.items()}},
        _use_new_zipfile_serialization=False,
    )
    if numpy_module:
        with open(path, "rb+") as file:
            content = file.read()
            assert b"numpy.core." in content or b"numpy._core." in content
            content = content.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", numpy_module)
            file.seek(0)
            file.truncate()
            file.write(content)
    load_source_weights(model, [path])
    check(model, [state] * 3, classifiers)


def test_a_bare_backbone_leaves_the_neck_alone_and_says_so(model, classifiers, make_peer, save, warnings):
    necks = [s.heads.state_dict()["bottleneck.0.running_mean"].clone() for s in model.students]
    backbones = [make_peer(10 + k).backbone.state_dict() for k in range(3)]
    load_source_weights(model, [save(state) for state in backbones])
    for student, state, neck, classifier in zip(model.students, backbones, necks, classifiers):
        assert all(torch.equal(student.backbone.state_dict()[name], value) for name, value in state.items())
        assert torch.equal(student.heads.bottleneck[0].running_mean, neck)
        assert torch.equal(student.heads.weight, classifier)
    assert len(warnings()) == 3
    assert all(
        "heads.bottleneck.0.weight" in text and "keep their initial values" in text for text in warnings()
    )


@pytest.mark.parametrize("classifier", ["fc", "classifier"])
def test_a_bare_backbone_may_bring_its_classifier(make_peer, save, classifier):
    state = make_peer(10).backbone.state_dict()
    extra = {f"{classifier}.{name}": value for name, value in nn.Linear(8, 1000).state_dict().items()}
    peer = make_peer(0)
    load_network(peer, read_state_dict(save({**state, **extra})), "somewhere")
    assert all(torch.equal(peer.backbone.state_dict()[name], value) for name, value in state.items())


def test_a_source_model_is_filled_too(cfg, make_model):
    cfg.MODEL.META_ARCHITECTURE = "SSKDSource"
    cfg.SSKD.LOSSES.SoftCE.WEIGHT = 0.0
    source, saved = build_model(cfg), make_model(2)
    load_network(source, saved.state_dict(), "somewhere", 1)
    assert torch.equal(source.backbone.conv1.weight, saved.teachers[1].backbone.conv1.weight)


def test_a_later_change_of_the_model_does_not_reach_the_next_peer(model, make_peer, save):
    load_source_weights(model, [save(make_peer(10).state_dict())])
    with torch.no_grad():
        model.students[0].backbone.conv1.weight.zero_()
    assert all(peer.backbone.conv1.weight.any() for peer in (*model.students[1:], *model.teachers))


# ---- what is refused -----------------------------------------------------------------------------


def broken(name, value, index=None):
    """Change one tensor of a state dict, or one value of it."""

    def change(state):
        if index is None:
            return {**state, name: value}
        tensor = state[name].clone()
        tensor.view(-1)[index] = value
        return {**state, name: tensor}

    return change


def whole_numbers(state):
    """A quantised file has the names and the shapes."""
    return {**state, "backbone.conv2.weight": state["backbone.conv2.weight"].to(torch.int8)}


def another_head(state):
    backbone = {name: value for name, value in state.items() if not name.startswith("heads.")}
    return {**backbone, "heads.bottleneck.0.weight": torch.ones(9)}


NECK = "heads.bottleneck.0.weight"
UNFIT = [
    (broken("backbone.bn2.weight", torch.ones(9)), "1 of another shape: bn2.weight"),
    (broken(NECK, torch.ones(9)), f"1 of another shape: {NECK}\n.*another head: compare MODEL.HEADS"),
    (another_head, "0 of .*another head: compare MODEL.HEADS"),
    (whole_numbers, "1 quantised to 8 bits or fewer: conv2.weight\n.*a quantised copy"),
    *(
        (broken(name, bad, -1), f"somewhere' has values that are not finite in its tensor {name}")
        for name in ("backbone.bn2.running_var", "backbone.conv1.weight", "heads.bottleneck.0.running_mean")
        for bad in (float("nan"), float("inf"), -float("inf"))
    ),
]


@pytest.mark.parametrize("change, message", UNFIT)
def test_tensors_that_do_not_fit_leave_the_peer_alone(
    make_peer, copy_state, assert_same_state, change, message
):
    peer = make_peer(0)
    before = copy_state(peer)
    with pytest.raises(WeightsError, match=f"(?s){message}"):
        load_network(peer, change(make_peer(10).state_dict()), "somewhere")
    assert_same_state(peer.state_dict(), before)


@pytest.mark.parametrize(
    "content, said",
    [
        ([torch.zeros(3)], "a list"),
        (torch.zeros(3), "a Tensor"),
        ({}, "a dict"),
        ({0: torch.zeros(3)}, "a dict of 0"),
        ({"lr": 0.1}, "a dict of 'lr'"),
        ({"model": {"epoch": 3}}, "a dict of 'model'"),
    ],
)
def test_files_without_a_state_dict(save, content, said):
    with pytest.raises(ValueError, match=f"holds no named tensors, but {said}: give a state dict"):
        read_state_dict(save(content))


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_wrong_number_of_files(model, make_peer, save, count):
    path = save(make_peer().state_dict())
    with pytest.raises(
        ValueError, match=f"SSKD.SOURCE.WEIGHTS takes 1 or SSKD.NUM_PEERS = 3 files, got {count}"
    ):
        load_source_weights(model, [path] * count)


def test_a_missing_file_changes_nothing(model, make_peer, save, tmp_path, copy_state, assert_same_state):
    before = copy_state(model)
    good, missing = save(make_peer(10).state_dict()), str(tmp_path / "no.pth")
    with pytest.raises(FileNotFoundError, match="no.pth.*SSKD.SOURCE.WEIGHTS"):
        load_source_weights(model, [good, good, missing])
    assert_same_state(model.state_dict(), before)
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        read_state_dict(str(tmp_path))


class Wider(nn.Module):
    """The tiny backbone's names with more channels."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 7, 3, bias=False), nn.BatchNorm2d(7)
        self.conv2, self.bn2 = nn.Conv2d(7, 8, 3, bias=False), nn.BatchNorm2d(8)


@pytest.mark.parametrize("bare", [True, False])
def test_another_width(model, save, bare):
    state = Wider().state_dict()
    path = save(state if bare else {"model": {f"backbone.{name}": value for name, value in state.items()}})
    with pytest.raises(
        ValueError, match=r"4 of 10 backbone tensors of this TinyBackbone fit \(40%\)"
    ) as error:
        load_source_weights(model, [path])
    said = str(error.value)
    assert path in said and "6 of another shape: conv1.weight, bn1.weight, bn1.bias, ..." in said
    assert "another depth or width: compare MODEL.BACKBONE.DEPTH" in said


def test_a_smaller_a_bigger_and_another_backbone(model, make_peer, save):
    state = make_peer(10).state_dict()
    smaller = {name: value for name, value in state.items() if ".conv2." not in name}
    bigger = {**state, "backbone.conv3.weight": torch.zeros(2), "backbone.conv3.bias": torch.zeros(2)}
    other = nn.Sequential(nn.Conv2d(3, 4, 1)).state_dict()
    for content, message in (
        (smaller, "9 of 10 .*1 missing: conv2.weight\n.*its last layers are left out"),
        (bigger, "10 of 10 .*2 only in the file: conv3.weight, conv3.bias\n.*a larger network"),
        (
            other,
            "0 of 10 .*10 missing: conv1.weight, .*2 only in the file: 0.weight, 0.bias\n.*another arch",
        ),
    ):
        with pytest.raises(ValueError, match=f"(?s){message}"):
            load_source_weights(model, [save(content)])


def test_an_sskd_checkpoint_of_fewer_peers(model, make_model, save):
    with pytest.raises(ValueError, match="no network for peer 2: lower SSKD.NUM_PEERS"):
        load_source_weights(model, [save(make_model(2).state_dict())])


def damaged(state) -> dict:
    """Contents that torch.load fails on in different ways."""
    new, old = io.BytesIO(), io.BytesIO()
    torch.save(state, new)
    torch.save(state, old, _use_new_zipfile_serialization=False)
    new, old = new.getvalue(), old.getvalue()
    return {
        "empty": (b"", "is empty"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS.* git lfs pull"),
        "page": (b"\n<!DOCTYPE html><p>" + bytes(9), "is a web page"),
        "text": (b"hello\n", "is a text file"),
        "other text": ("Gewichte f\u00fcr das Netz\n".encode() * 60, "is a text file"),
        "one letter": (b"e", "is a text file"),
        "safetensors": (b"\x40" + bytes(7) + b'{"__metadata__":{}}' + bytes(50), "is a safetensors file"),
        "zeros": (bytes(1000), "is damaged, or no file of torch.save"),
        "half": (new[: len(new) // 2], "is damaged"),
        "without its end": (new[:-30], "is damaged"),
        "old format, early": (old[:200], "is damaged"),
        "old format, late": (old[:-50], "is damaged"),
        "wrong pickle": (b"\x80\x02" + b"h\xff.", "is damaged"),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(damaged({})))
def test_damaged_files(kind, make_peer, tmp_path):
    path = tmp_path / "damaged.pth"
    content, said = damaged(make_peer().state_dict())[kind]
    path.write_bytes(content)
    with pytest.raises(
        WeightsError, match=f"damaged.pth' {said}" if said.startswith("is") else said
    ) as error:
        read_state_dict(str(path))
    assert "weights_only" not in str(error.value) and error.value.__suppress_context__


class Evil:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("at", ["beside the model", "in the model"])
def test_nothing_but_tensors_is_unpickled(make_peer, save, tmp_path, at):
    trace = str(tmp_path / "trace")
    state = make_peer().state_dict()
    content = (
        {"model": state, "hook": Evil(trace)}
        if at == "beside the model"
        else {"model": {**state, "x": Evil(trace)}}
    )
    with pytest.raises(
        ValueError, match="holds an object of Python, .*open.*save the tensors alone with torch.save"
    ):
        read_state_dict(save(content))
    assert not (tmp_path / "trace").exists()


def test_a_file_of_two_networks_gives_the_one_that_is_used(make_peer):
    """The mean teacher, and MoCo's query encoder, whatever their order."""
    one, other = (make_peer(seed).backbone.state_dict() for seed in (1, 2))
    for chosen, left in (
        ("teacher.", "student."),
        ("state_dict_ema.", "state_dict."),
        ("ema.module.", "model."),
        ("encoder_q.", "encoder_k."),
        ("base_encoder.", "momentum_encoder."),
    ):
        for names in ((chosen, left), (left, chosen)):
            state = {
                name + key: value
                for name in names
                for key, value in (one if name == chosen else other).items()
            }
            peer = make_peer(0)
            load_network(peer, state, "somewhere")
            assert torch.equal(peer.backbone.conv1.weight, one["conv1.weight"]), names


def test_a_backbone_of_other_names_is_taken_by_its_order(make_peer, warnings):
    """As of toolboxes that keep it as one nn.Sequential; another order is another network."""
    source, peer = make_peer(10).backbone, make_peer(0)
    state = {
        f"module.base.{key}": value for key, value in nn.Sequential(*source.children()).state_dict().items()
    }
    load_network(peer, {**state, "module.feat_bn.weight": torch.ones(8)}, "somewhere")
    assert all(
        torch.equal(peer.backbone.state_dict()[name], value) for name, value in source.named_parameters()
    )
    assert "loaded by order" in warnings()[0]
    with pytest.raises(WeightsError, match="0 of 10"):
        load_network(peer, dict(reversed(state.items())), "somewhere")


def test_the_best_teacher_is_taken_where_one_network_is_asked_for(make_model, make_peer, warnings):
    saved = make_model(3)
    saved.best_peer.fill_(2)
    peer = make_peer(0)
    load_network(peer, saved.state_dict(), "somewhere", classifier=True)
    assert all(
        torch.equal(value, saved.teachers[2].state_dict()[name]) for name, value in peer.state_dict().items()
    )
    assert "best teacher, 2, is taken" in warnings()[0]


# ---- whole models --------------------------------------------------------------------------------


def test_a_model_is_loaded_exactly(make_model, assert_same_state):
    """With the classifiers, and however it was wrapped."""
    saved, model = make_model(2, num_classes=9), make_model(2)
    state = {f"model.module.{name}": value for name, value in saved.state_dict().items()}
    load_exactly(model, {**state, "refresh.labels": torch.zeros(3)}, "somewhere")
    assert_same_state(model.state_dict(), saved.state_dict())
    assert model.teachers[1].num_classes == 9


@pytest.mark.parametrize("name", ["heads.weight", "heads.bottleneck.0.running_var", "backbone.bn1.bias"])
@pytest.mark.parametrize("part", ["students.1.", "teachers.0."])
def test_a_model_with_a_tensor_missing_is_refused(make_model, copy_state, assert_same_state, part, name):
    model, state = make_model(2), make_model(2, num_classes=9).state_dict()
    del state[part + name]
    before = copy_state(model)
    with pytest.raises(WeightsError, match=f"1 missing: {part}{name}"):
        load_exactly(model, state, "somewhere")
    assert_same_state(model.state_dict(), before)


def test_a_source_model_is_no_whole_model(make_model, make_peer, save):
    with pytest.raises(WeightsError, match="one network, and no SSKD model.*SSKD.SOURCE.WEIGHTS"):
        load_model(make_model(2), save({"model": make_peer(1).state_dict()}))


# ---- where a peer has no file --------------------------------------------------------------------


def test_a_peer_without_a_file_stays(model, make_peer, save, copy_state):
    before = [copy_state(peer) for peer in (*model.students, *model.teachers)]
    state = make_peer(10).state_dict()
    load_source_weights(model, ["", save(state), ""])
    for k in (0, 2):
        for peer, old in ((model.students[k], before[k]), (model.teachers[k], before[3 + k])):
            assert all(torch.equal(value, old[name]) for name, value in peer.state_dict().items())
    assert torch.equal(model.teachers[1].backbone.conv1.weight, state["backbone.conv1.weight"])
