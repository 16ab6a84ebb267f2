"""What benchmarks/step.py compares.

The plain step is the same step, the floor is less, saved tensors are counted.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import memory
import pytest
import step
import torch
import torch.nn.functional as F
from fastreid.modeling import build_model
from measure import Row, table
from networks import NETWORKS, benchmark_config, plain_batches, write_crops
from step import BareStep, PlainStep, looped_multi_similarity
from torch import nn

from fastreid_sskd.engine.train_step import TrainingStep, build_optimizer
from fastreid_sskd.losses import multi_similarity
from fastreid_sskd.precision import Precision

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A network of two convolutions under the name "small", in images of 32 x 16."""
    import tiny_reid  # noqa: F401  registers the backbone

    monkeypatch.setitem(NETWORKS, "small", ("build_tiny_reid_backbone", "0x", 16, 8, (32, 16)))


@pytest.fixture
def prepared():
    cfg = benchmark_config("small", "cpu", peers=2)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    model.reset_classifiers(F.normalize(torch.randn(6, 16)))
    batch = {
        "images": torch.randint(0, 256, (8, 2, 3, 32, 16), dtype=torch.uint8),
        "targets": torch.tensor([0, 0, 0, 0, 4, 4, 4, 4]),
    }
    return cfg, model, batch


def test_every_network_has_a_config():
    for name, (backbone, depth, channels, batch, size) in NETWORKS.items():
        cfg = benchmark_config(name, "cpu", dtype="bfloat16")
        assert (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FEAT_DIM) == (backbone, channels)
        assert str(cfg.MODEL.BACKBONE.DEPTH) == depth and cfg.SOLVER.IMS_PER_BATCH == batch
        assert tuple(cfg.INPUT.SIZE_TRAIN) == size and Precision(cfg).name == "bfloat16"
    assert Precision(benchmark_config("small", "cpu")).name == "float32"
    with pytest.raises(ValueError, match="no network 'large': known are resnet50"):
        benchmark_config("large", "cpu")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("identities", [1, 3, 8])
def test_looped_multi_similarity_is_ours(seed, identities):
    torch.manual_seed(seed)
    labels = torch.randint(0, identities, (8,))
    features = (torch.randn(8, 8)[labels] + torch.randn(8, 8)).requires_grad_()
    ours, looped = multi_similarity(features, labels), looped_multi_similarity(features, labels)
    torch.testing.assert_close(looped, ours, rtol=1e-5, atol=1e-6)
    expected, found = (torch.autograd.grad(loss, features)[0] for loss in (ours, looped))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_plain_step_is_our_step(prepared):
    """Losses, and students and teachers after the step.

    Adam's first step is as large as the rate wherever a gradient is.
    """
    cfg, model, batch = prepared
    plain = PlainStep(cfg, model)
    ours = TrainingStep(model, build_optimizer(cfg, list(model.students)), Precision(cfg))
    before = {name: value.clone() for name, value in model.named_parameters()}
    expected = ours._backward(batch)
    found = plain(batch, decay=0.9)
    assert sorted(found) == pytest.approx(
        sorted(loss.item() for loss in expected.values()), rel=1e-4, abs=1e-6
    )
    other = dict(plain.model.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            scale = parameter.grad.abs().max()
            assert (other[name].grad - parameter.grad).abs().max() <= 1e-4 * scale + 1e-9, name
            assert (other[name] - before[name]).abs().max() > 1e-4
    name = "backbone.0.weight"
    moved = 0.9 * before[f"teachers.1.{name}"] + 0.1 * other[f"students.1.{name}"]
    torch.testing.assert_close(other[f"teachers.1.{name}"], moved)


def test_bare_step_has_gradients_and_moves_nothing(prepared):
    cfg, model, batch = prepared
    before = {name: value.clone() for name, value in model.named_parameters()}
    statistics = model.teachers[0].backbone[1].running_mean.clone()
    views = [model.pixels(batch["images"][:, k]) for k in range(2)]
    bare = BareStep(model, views, batch["targets"], Precision(cfg))
    bare()
    first = model.students[1].backbone[0].weight.grad.clone()
    bare()
    assert torch.equal(model.students[1].backbone[0].weight.grad, first)  # not on top of the ones before
    assert first.abs().max() > 0 and model.students[0].heads.weight.grad.abs().max() > 0
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert not torch.equal(model.teachers[0].backbone[1].running_mean, statistics)
    assert all(p.grad is None for p in model.teachers.parameters())


def test_crops_and_plain_batches(tmp_path, prepared):
    cfg, _, _ = prepared
    items = write_crops(tmp_path / "crops", 8)
    assert [item[1] for item in items] == [0] * 4 + [1] * 4 and len({item[0] for item in items}) == 8
    (batch,) = plain_batches(cfg, items, [[(0, 5), (4, 3)]])
    assert batch["images"].shape == (2, 2, 3, 32, 16) and batch["targets"].tolist() == [5, 3]
    assert batch["images"].max() > 100 and not torch.equal(batch["images"][:, 0], batch["images"][:, 1])


# ---- memory --------------------------------------------------------------------------------------


def test_saved_sizes_by_hand():
    """A linear map keeps its input and its weight, the square what it is of.

    The view of a tensor is the tensor.
    """
    x, linear = torch.ones(4, 10), nn.Linear(10, 5, bias=False)
    y = linear(x).detach().requires_grad_()
    assert memory.saved_sizes(lambda: linear(x), but=linear.parameters()) == [4 * 10 * 4]
    assert memory.saved_sizes(lambda: y.square()) == [4 * 5 * 4]
    assert memory.saved_sizes(lambda: y.square() + y.view(-1).square().sum()) == [4 * 5 * 4]
    with torch.no_grad():
        assert memory.saved_sizes(lambda: linear(x)) == []


def test_saved_sizes_without_data(prepared):
    """The meta device gives what the CPU gives."""
    _, model, batch = prepared
    on_cpu = sum(memory.saved_sizes(lambda: model(batch), but=model.parameters()))
    model = model.to("meta")
    assert sum(memory.saved_sizes(lambda: model(batch), but=model.parameters())) == pytest.approx(
        on_cpu, rel=0.02
    )
    assert on_cpu > 2 * batch["images"].numel() * 4


def test_state(prepared):
    _, model, _ = prepared
    bytes_of = memory.state_bytes(model)
    learned = sum(p.numel() * 4 for p in model.students.parameters() if p.requires_grad)
    assert (bytes_of["gradients"], bytes_of["moments"]) == (learned, 2 * learned)
    assert bytes_of["students"] == bytes_of["teachers"] > learned


@pytest.mark.slow
def test_three_resnets_fit_eleven_gigabytes():
    (row,) = memory.rows(argparse.Namespace(peers=3, classes=700))
    assert row.section == "memory" and row.floor < 2 < row.ours < 8 < row.plain
    assert row.plain - row.ours == pytest.approx(2 * row.details["one_graph"] / 1e9)


# ---- the tool ------------------------------------------------------------------------------------


def arguments(**changes):
    values = {
        "models": ["small"],
        "batch": None,
        "size": None,
        "peers": 2,
        "classes": 6,
        "repeats": 2,
        "precision": "float32",
        "device": "cpu",
        "channels_last": False,
        "compile": False,
        "seed": 0,
    }
    return argparse.Namespace(**{**values, **changes})


@pytest.mark.parametrize(
    "changes, note",
    [({}, "float32"), ({"channels_last": True, "precision": "bfloat16"}, "bfloat16, channels last")],
)
def test_rows(changes, note):
    (row,) = step.rows(arguments(**changes))
    assert (row.section, row.unit, row.note) == ("step", "s/step", note)
    assert row.what == "small, K = 2, batch 8, 32x16"
    assert min(row.ours, row.plain, row.floor) > 0 and "(<= 10%)" in row.target
    assert {kind: len(each) for kind, each in row.details["seconds"].items()} == {
        "ours": 2,
        "plain": 2,
        "floor": 2,
    }
    assert Row(**json.loads(json.dumps(asdict(row)))) == row


def test_measured_in_turn():
    """Each kind is called once a round, none always first; the first rounds do not count."""
    calls = []
    kinds = {name: lambda number, name=name: calls.append((number, name)) for name in ("a", "b", "c")}
    wall, cpu = step._in_turn(kinds, 5, "cpu")
    assert len(calls) == 15 and {calls[3 * i][1] for i in range(3)} == {"a", "b", "c"}
    assert all(sorted(name for _, name in calls[3 * i : 3 * i + 3]) == ["a", "b", "c"] for i in range(5))
    assert all(len(each) == 3 for seconds in (wall, cpu) for each in seconds.values())


def test_a_row_without_anything_to_compare():
    row = Row("loader", "views", "views/s", 3.0)
    assert "| - " in table([row]) and "None" not in table([row])


@pytest.mark.slow
def test_tool(tmp_path):
    """One step of ResNet-18 from the command line: table and record."""
    command = [
        sys.executable, str(ROOT / "benchmarks" / "step.py"), "--models", "resnet18", "--batch", "4",
        "--peers", "1", "--size", "32", "16", "--repeats", "1", "--threads", "1", "--device", "cpu",
        "--json", str(tmp_path / "speed.json"), "--markdown", str(tmp_path / "speed.md"),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "speed.json").read_text())
    assert (
        record["rows"][0]["what"] == "resnet18, K = 1, batch 4, 32x16" and record["machine"]["threads"] == 1
    )
    written = (tmp_path / "speed.md").read_text()
    assert written.strip() == done.stdout.strip() and "| step" in written and "reached (target)" in written
