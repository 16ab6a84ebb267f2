"""What a GPU has to show; `make gpu` runs it there. Without one all but the memory runs on the CPU."""

import json
import os
import shutil

import pytest
import torch
from memory import step_bytes
from networks import benchmark_config
from own_processes import exit_status
from same_runs import assert_same_files
from tiny_reid import load_checkpoint, tiny_adaptation

from fastreid_sskd.engine import AdaptationTrainer, run
from fastreid_sskd.engine.train_step import TrainingStep, build_optimizer
from fastreid_sskd.precision import Precision, precisions_of

pytestmark = pytest.mark.gpu

KIND = "cuda" if torch.cuda.is_available() else "cpu"
DEVICE = ("MODEL.DEVICE", KIND)


def in_own_process(function, *args):
    """What a run sets in torch, determinism for one, ends with its process."""
    assert exit_status(function, *args) == 0


def test_both_stages(data_sets, tmp_path):
    cfg = tiny_adaptation(tmp_path / "out", *DEVICE)
    in_own_process(run, cfg)
    for k in range(2):
        assert (tmp_path / "out" / "source" / f"peer{k}" / "model_final.pth").is_file()
    start, end = (
        load_checkpoint(tmp_path / "out" / name)["model"] for name in ("model_0000.pth", "model_final.pth")
    )
    assert any(not torch.equal(start[name], end[name]) for name in end if "students.0.backbone" in name)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry["epoch"] for entry in results["evaluations"]] == [0, 1, 2]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_resumed_equals_uninterrupted(adaptation, tmp_path, precision):
    """From the first of two epochs, bit for bit; float16 with the state of its scaler."""
    if precision not in precisions_of(KIND):
        pytest.skip(f"no CUDA device with {precision} here")
    opts = (*DEVICE, f"SSKD.PRECISION {precision}", "SSKD.DETERMINISTIC True", "SOLVER.CHECKPOINT_PERIOD 1")
    whole, resumed = (adaptation(*opts, output=tmp_path / name) for name in ("whole", "resumed"))
    in_own_process(run, whole)
    shutil.copytree(whole.OUTPUT_DIR, resumed.OUTPUT_DIR)
    os.remove(tmp_path / "resumed" / "model_final.pth")
    (tmp_path / "resumed" / "last_checkpoint").write_text("model_0000.pth")
    in_own_process(run, resumed, True)
    assert_same_files(resumed.OUTPUT_DIR, whole.OUTPUT_DIR)


def run_in_a_group(cfg, rendezvous):
    """A run whose process is the only one of a group."""
    torch.distributed.init_process_group(
        "nccl" if KIND == "cuda" else "gloo", init_method=rendezvous, rank=0, world_size=1
    )
    run(cfg)
    total = torch.ones(3, device=KIND)
    torch.distributed.all_reduce(total)
    assert total.tolist() == [1, 1, 1]
    torch.distributed.destroy_process_group()


def test_one_process_of_a_group_trains_as_one_without(adaptation, tmp_path):
    opts = (*DEVICE, "SSKD.DETERMINISTIC True", "SOLVER.MAX_EPOCH 1")
    alone, grouped = (adaptation(*opts, output=tmp_path / name) for name in ("alone", "grouped"))
    in_own_process(run, alone)
    in_own_process(run_in_a_group, grouped, f"file://{tmp_path / 'rendezvous'}")
    assert_same_files(grouped.OUTPUT_DIR, alone.OUTPUT_DIR)


def refuse_waits(cfg, path):
    """Train with an error where a step, or a hook between two steps, waits for the device."""
    step, begun = AdaptationTrainer.run_step, []

    def run_step(self):
        begun.append(self.iter)
        if KIND == "cuda" and self.iter in (1, 4):  # 0 begins with libraries, after 4 losses are read
            torch.cuda.set_sync_debug_mode("error" if self.iter == 1 else "default")
        step(self)

    AdaptationTrainer.run_step = run_step
    run(cfg)
    path.write_text(json.dumps(begun))


def test_a_step_does_not_wait(adaptation, tmp_path):
    cfg = adaptation(
        *DEVICE, "SSKD.LOG_PERIOD 100", "SSKD.ITERS_PER_EPOCH 5", "SOLVER.MAX_EPOCH 1", "TEST.EVAL_PERIOD 0"
    )
    in_own_process(refuse_waits, cfg, tmp_path / "steps.json")
    assert json.loads((tmp_path / "steps.json").read_text()) == [0, 1, 2, 3, 4]


def test_memory_of_three_resnet50():
    """That of one student's graph at a time; the libraries' workspaces come on top of what is computed.

    All graphs at once would be 2.4 times the computed bytes.
    """
    if KIND == "cpu":
        pytest.skip("no CUDA: a CPU does not count its memory")
    cfg = benchmark_config("resnet50", KIND, batch=64, size=(256, 128), peers=3)
    model = AdaptationTrainer.build_model(cfg).train()
    model.reset_classifiers(torch.randn(500, model.centroid_size, device=KIND))
    step = TrainingStep(
        model, build_optimizer(cfg, list(model.students)), Precision(cfg), read_every=3, epoch_length=3
    )
    images = torch.randint(256, (64, 3, 3, *cfg.INPUT.SIZE_TRAIN), dtype=torch.uint8)
    step.set_data_loader([{"images": images, "targets": torch.arange(64) // 4}] * 2)
    for step.iter in range(2):  # the optimiser has its moments in the second
        torch.cuda.reset_peak_memory_stats()
        step.run_step()
    computed = sum(step_bytes(cfg, 500).values())
    assert 0.9 * computed <= torch.cuda.max_memory_allocated() <= 1.5 * computed
