"""Runs on a device that is not the CPU.

`other_device`, strict about where tensors are, with the CPU's results.
"""

import json
import os
import shutil

import other_device
import pytest
import torch
from memory import step_bytes
from networks import benchmark_config
from own_processes import exit_status
from same_runs import assert_same_files
from tiny_reid import load_checkpoint, tiny_adaptation, tiny_baseline

from fastreid_sskd.engine import AdaptationTrainer, run
from fastreid_sskd.engine.train_step import TrainingStep, build_optimizer
from fastreid_sskd.export import deployed, export_graph
from fastreid_sskd.losses import nuclear_norm_loss
from fastreid_sskd.losses.nuclear_norm_loss import factor_by_eigenvectors
from fastreid_sskd.precision import Precision

reason = other_device.missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(reason is not None, reason=str(reason))]

DEVICE = ("MODEL.DEVICE", other_device.NAME)


@pytest.fixture(scope="session")
def build(tmp_path_factory):
    """The folder in which the first process builds the device."""
    return tmp_path_factory.mktemp("other_device") / "build"


def on_device(build, function, *args):
    """Run it in a process that has the device."""
    assert exit_status(_with_device, build, function, *args) == 0


def _with_device(build, function, *args):
    function(*args, other_device.register(build))


def train(cfg, resume, _):
    """With the CPU's way to the nuclear norm's gradient: the other one's differs in the last bits."""
    nuclear_norm_loss.orthogonal_factor = factor_by_eigenvectors
    run(cfg, resume)


def train_its_own_way(cfg, _):
    run(cfg)


def refuse(_):
    """What the device is for: it does not take what a GPU would not take, and it notices a wait."""
    here, there = torch.ones(3, device=other_device.NAME), torch.ones(3)
    for mixed in (lambda: here + there, lambda: torch.cat([here, there]), lambda: here @ there):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    assert (here * torch.tensor(2.0)).sum().item() == 6  # a 0-dimensional one may come along


def test_device_is_strict(build):
    on_device(build, refuse)


def test_both_stages_end_as_on_the_cpu(finished, build, tmp_path):
    """Source models, statistics of the target, refreshes, steps, evaluations: bit for bit."""
    cfg = tiny_adaptation(tmp_path / "out", *DEVICE)
    on_device(build, train, cfg, False)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)
    for k in range(2):
        assert_same_files(tmp_path / "out" / "source" / f"peer{k}", finished.output / "source" / f"peer{k}")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results == finished.record


def test_resumed_there_or_on_the_cpu(finished, adaptation, build, tmp_path):
    """A checkpoint of the CPU goes on there and the other way round."""
    there = adaptation(*DEVICE, output=tmp_path / "there")
    shutil.copytree(finished.output, there.OUTPUT_DIR)
    go_back(there)
    on_device(build, train, there, True)
    assert_same_files(there.OUTPUT_DIR, finished.output)

    here = adaptation(output=tmp_path / "here")
    shutil.copytree(there.OUTPUT_DIR, here.OUTPUT_DIR)
    go_back(here)
    run(here, resume=True)
    assert_same_files(here.OUTPUT_DIR, finished.output)


def go_back(cfg):
    """To the checkpoint of the first of two epochs."""
    os.remove(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    with open(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint"), "w", encoding="utf-8") as file:
        file.write("model_0000.pth")


@pytest.mark.parametrize(
    "options",
    [
        ("SSKD.CHANNELS_LAST", "True"),
        ("SSKD.BN_CHUNK", "4", "SSKD.EVAL_WITH", "ensemble", "SSKD.COMBINE", "distances"),
    ],
    ids=" ".join,
)
def test_options_end_as_on_the_cpu(adaptation, build, options, tmp_path):
    short = ("SOLVER.MAX_EPOCH", "1")
    here, there = (
        adaptation(*options, *short, output=tmp_path / "here"),
        adaptation(*options, *short, *DEVICE, output=tmp_path / "there"),
    )
    run(here)
    on_device(build, train, there, False)
    assert_same_files(there.OUTPUT_DIR, here.OUTPUT_DIR)


def test_half_precision(adaptation, build, tmp_path):
    """Networks in bfloat16 under the device's own autocast.

    Losses and weights float32, and near float32's.
    """
    options = ("SOLVER.MAX_EPOCH", "1", "TEST.EVAL_PERIOD", "0", *DEVICE)
    half = adaptation(*options, "SSKD.PRECISION", "bfloat16", output=tmp_path / "half")
    full = adaptation(*options, output=tmp_path / "full")
    on_device(build, train_its_own_way, half)
    on_device(build, train_its_own_way, full)
    found, expected = (
        load_checkpoint(os.path.join(cfg.OUTPUT_DIR, "model_final.pth")) for cfg in (half, full)
    )
    moved = []
    for name, value in expected["model"].items():
        assert found["model"][name].dtype == value.dtype
        if value.is_floating_point() and not torch.equal(found["model"][name], value):
            moved.append(name)
    assert moved, "bfloat16 has changed nothing"
    one, other = (
        checkpoint["scalars"]["storage"]["loss_id_peer0"]["values"][:, 0] for checkpoint in (found, expected)
    )
    torch.testing.assert_close(one, other, rtol=0.05, atol=0.0)


def test_losses_are_the_cpus(adaptation, build, tmp_path):
    """Where the nuclear norm's gradient comes by iteration, each step's values are the CPU's to float32's
    rounding.
    """
    options = ("SOLVER.MAX_EPOCH", "1", "TEST.EVAL_PERIOD", "0")
    here, there = (
        adaptation(*options, output=tmp_path / "here"),
        adaptation(*options, *DEVICE, output=tmp_path / "there"),
    )
    run(here)
    on_device(build, train_its_own_way, there)
    one, other = (
        load_checkpoint(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))["scalars"]["storage"]
        for cfg in (here, there)
    )
    for k in range(2):
        name = f"loss_nn_peer{k}"
        torch.testing.assert_close(one[name]["values"], other[name]["values"], rtol=1e-5, atol=0.0)


def test_plain_model_ends_as_on_the_cpu(build, tmp_path):
    """The host's own training and evaluation."""
    here, there = tiny_baseline(tmp_path / "here"), tiny_baseline(tmp_path / "there", *DEVICE)
    run(here)
    on_device(build, train, there, False)
    assert_same_files(there.OUTPUT_DIR, here.OUTPUT_DIR)


def export(cfg, path, _):
    model = AdaptationTrainer.build_model(cfg)
    export_graph(deployed(model), path, cfg.INPUT.SIZE_TEST)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {other_device.NAME}


def test_export_leaves_the_model_there(adaptation, build, tmp_path):
    for module in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(module, reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')
    on_device(build, export, adaptation(*DEVICE), str(tmp_path / "teacher.onnx"))
    assert (tmp_path / "teacher.onnx").is_file()


def count_waits(cfg, path, device):
    """Train, and write what was waited for between the beginnings of the steps."""
    step, found = AdaptationTrainer.run_step, []

    def run_step(self):
        found.append(device.take_waits())
        step(self)

    AdaptationTrainer.run_step = run_step
    run(cfg)
    path.write_text(json.dumps([*found, device.take_waits()]))


def test_waits_of_a_step(adaptation, build, tmp_path):
    """None: forward, backward, optimiser, average and all hooks only queue work.

    After an epoch's last step the losses are read.
    """
    cfg = adaptation(
        *DEVICE,
        "SSKD.LOG_PERIOD 100",
        "SSKD.ITERS_PER_EPOCH 5",
        "SOLVER.MAX_EPOCH 1",
        "TEST.EVAL_PERIOD 0",
    )
    on_device(build, count_waits, cfg, tmp_path / "waits.json")
    refresh, *steps, last = json.loads((tmp_path / "waits.json").read_text())
    assert refresh and last  # features for the labels; losses and a checkpoint
    assert steps == [{}] * 4


def measure_peak(network, options, classes, path, device):
    """The most memory of the second step, when the optimiser has its moments."""
    cfg = benchmark_config(network, other_device.NAME, **options)
    model = AdaptationTrainer.build_model(cfg).train()
    model.reset_classifiers(torch.randn(classes, model.centroid_size))
    step = TrainingStep(
        model, build_optimizer(cfg, list(model.students)), Precision(cfg), read_every=3, epoch_length=3
    )
    shape = (cfg.SOLVER.IMS_PER_BATCH, model.num_peers, 3, *cfg.INPUT.SIZE_TRAIN)
    batch = {"images": torch.randint(256, shape, dtype=torch.uint8), "targets": torch.arange(shape[0]) // 4}
    step.set_data_loader([batch] * 2)
    for step.iter in range(2):
        device.take_peak()
        step.run_step()
        model.update_teachers(step.iter, 0.999)
    path.write_text(str(device.take_peak()))


@pytest.mark.parametrize("network", ["resnet18", "osnet_x0_25"])
def test_memory_of_a_step_is_what_the_benchmark_computes(build, tmp_path, network):
    """With one student's graph at a time, in an allocator that counts.

    Without workspaces of kernels, which the CPU's have here.
    """
    options = {"batch": 16, "size": (64, 32), "peers": 3}
    on_device(build, measure_peak, network, options, 10, tmp_path / "peak")
    parts = step_bytes(benchmark_config(network, "cpu", **options), 10)
    found, computed = int((tmp_path / "peak").read_text()), sum(parts.values())
    assert 0.9 * computed <= found <= computed, (found, parts)
