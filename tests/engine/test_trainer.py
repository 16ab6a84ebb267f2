"""The host's trainer, mended: a plain Baseline trains, evaluates, saves, resumes and predicts."""

import os

import numpy as np
import pytest
import torch
from fastreid.engine import DefaultPredictor
from fastreid.utils import comm
from PIL import Image
from tiny_reid import MARKET, load_checkpoint, tiny_adaptation, tiny_baseline, tiny_source

from fastreid_sskd.engine import Trainer, evaluate, run, seed_everything, trainer_class


def changed(cfg, **model):
    cfg = cfg.clone()
    cfg.defrost()
    for key, value in model.items():
        cfg.MODEL[key] = value
    return cfg


@pytest.fixture
def cfg(tmp_path):
    return tiny_baseline(tmp_path / "out")


def image_batch(world):
    path = next((world / MARKET / "query").iterdir())
    pixels = np.asarray(Image.open(path)).copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float()


def test_plain_config_from_training_to_prediction(cfg, world):
    """Parameters move, a checkpoint gives the run's numbers again, the host's predictor reads it."""
    seed_everything(1)
    before = {name: p.detach().clone() for name, p in Trainer(cfg).model.named_parameters()}
    seed_everything(1)
    results = run(cfg)
    folder = cfg.OUTPUT_DIR
    saved = load_checkpoint(os.path.join(folder, "model_final.pth"))
    for name, value in before.items():
        if name != "heads.bottleneck.0.bias":  # frozen by the host
            assert not torch.equal(saved["model"][name], value), name
    assert saved["epoch"] == 1 and {"model_best.pth", "metrics.json", "config.yaml"} <= set(
        os.listdir(folder)
    )

    weights = os.path.join(folder, "model_final.pth")
    again = evaluate(changed(cfg, WEIGHTS=weights))
    assert {"mAP", "Rank-1", "mINP"} <= set(results)
    assert {key: float(value) for key, value in again.items()} == {
        key: float(value) for key, value in results.items()
    }

    predictor = DefaultPredictor(changed(cfg, WEIGHTS=weights))
    batch = image_batch(world)
    feature = predictor(batch)
    assert feature.shape == (1, 16)
    expected = predictor.model({"images": batch}).detach()
    assert torch.equal(feature, expected)
    assert torch.equal(predictor.model.backbone[0].weight, saved["model"]["backbone.0.weight"])


@pytest.mark.parametrize("eval_with, teacher", [("0", 0), ("1", 1)])
def test_hosts_predictor_reads_sskd_checkpoints(finished, world, eval_with, teacher):
    cfg = changed(finished.cfg, WEIGHTS=str(finished.output / "model_final.pth"))
    cfg.SSKD.EVAL_WITH = eval_with
    predictor = DefaultPredictor(cfg)
    batch = image_batch(world)
    with torch.no_grad():
        expected = predictor.model.teacher_features({"images": batch})[teacher]
    assert torch.equal(predictor(batch), expected)
    saved = finished.final["model"][f"teachers.{teacher}.backbone.0.weight"]
    assert torch.equal(predictor.model.teachers[teacher].backbone[0].weight, saved)


def test_weights_are_loaded_without_the_state_of_their_training(cfg, tmp_path):
    run(cfg)
    other = changed(
        tiny_baseline(tmp_path / "other"), WEIGHTS=os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    )
    made = Trainer(other)
    made.resume_or_load(resume=True)  # nothing to resume in its own folder
    assert made.start_epoch == 0 and not made.optimizer.state
    saved = load_checkpoint(other.MODEL.WEIGHTS)["model"]
    assert torch.equal(made.model.backbone[0].weight, saved["backbone.0.weight"])


def test_epoch_has_at_least_one_iteration(tmp_path):
    """The host divides by the number of iterations: 48 images, batches of 64."""
    made = Trainer(
        tiny_baseline(tmp_path, "SOLVER.IMS_PER_BATCH 64", "DATALOADER.SAMPLER_TRAIN TrainingSampler")
    )
    assert made.iters_per_epoch == 1 and made.max_iter == 2
    assert Trainer(tiny_baseline(tmp_path)).iters_per_epoch == 48 // 8


def test_evaluation_can_be_off(tmp_path):
    cfg = tiny_baseline(tmp_path, "TEST.EVAL_PERIOD 0", "SOLVER.MAX_EPOCH 1", "DATASETS.TESTS ()")
    assert run(cfg) == {}
    assert not (tmp_path / "model_best.pth").exists() and (tmp_path / "model_final.pth").exists()


def test_several_test_sets(tmp_path):
    cfg = tiny_baseline(tmp_path, "DATASETS.TESTS ('DukeMTMC', 'Market1501')", "SOLVER.MAX_EPOCH 1")
    results = run(cfg)
    assert set(results) == {"DukeMTMC", "Market1501"}
    best = load_checkpoint(tmp_path / "model_best.pth")["checkpoints"]["best_metric"]
    assert best == pytest.approx(results["DukeMTMC"]["metric"])  # the first one's


def test_rate_in_steps(tmp_path):
    """x 0.1 after the first of three epochs."""
    cfg = tiny_baseline(
        tmp_path, "SOLVER.MAX_EPOCH 3", "SOLVER.STEPS [1]", "TEST.EVAL_PERIOD 0", "SOLVER.BASE_LR 0.01"
    )
    made, rates = Trainer(cfg), []
    step = made.run_step
    made.run_step = lambda: (rates.append(made.optimizer.param_groups[0]["lr"]), step())
    made.train()
    assert rates == pytest.approx([0.01] * 6 + [0.001] * 12)


@pytest.mark.parametrize(
    "opts, message",
    [
        (("SOLVER.SCHED", "OneCycleLR"), "SOLVER.SCHED must be"),
        (
            ("SOLVER.SCHED", "CosineAnnealingLR", "SOLVER.WARMUP_ITERS", "12"),
            "warm-up and delay take 2 epochs",
        ),
        (("TEST.EVAL_PERIOD", "-1"), "TEST.EVAL_PERIOD"),
        (("SOLVER.CHECKPOINT_PERIOD", "0"), "SOLVER.CHECKPOINT_PERIOD"),
        (("SSKD.KEEP_CHECKPOINTS", "0"), "SSKD.KEEP_CHECKPOINTS"),
    ],
)
def test_settings_that_cannot_work(tmp_path, opts, message):
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_baseline(tmp_path, *opts))


def test_cosine_rate(tmp_path):
    made = Trainer(tiny_baseline(tmp_path, "SOLVER.SCHED CosineAnnealingLR", "TEST.EVAL_PERIOD 0"))
    made.train()
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(made.cfg.SOLVER.ETA_MIN_LR)


@pytest.mark.parametrize("make, processes, message", [
    (tiny_baseline, 3, "8 images cannot be shared by 3 processes: make it a multiple of 3"),
    (tiny_source, 4, "8 images cannot be shared by 4 processes in whole identities of DATALOADER.NUM_INST"),
    (tiny_adaptation, 4, "make it a multiple of 16"),
])  # fmt: skip
def test_batches_that_the_processes_cannot_share(tmp_path, monkeypatch, make, processes, message):
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    cfg = make(tmp_path)
    with pytest.raises(ValueError, match=message):
        trainer_class(cfg)(cfg)


def test_share_that_batch_norm_cannot_chunk(tmp_path, monkeypatch):
    """8 images in two processes: chunks of 3 and 1."""
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    cfg = tiny_adaptation(tmp_path, "SSKD.BN_CHUNK 3")
    with pytest.raises(ValueError, match="4 images in chunks of SSKD.BN_CHUNK = 3 ends with a chunk of one"):
        trainer_class(cfg)(cfg)


def test_error_of_a_step_is_shown_as_it_is(cfg):
    """The host's hooks hide an error of the first step behind one of their own."""
    made = Trainer(cfg)
    made.run_step = lambda: (_ for _ in ()).throw(ZeroDivisionError("the real one"))
    with pytest.raises(ZeroDivisionError, match="the real one"):
        made.train()


def test_mixed_precision_on_the_cpu(tmp_path):
    cfg = tiny_baseline(
        tmp_path,
        "SOLVER.AMP.ENABLED True",
        "SSKD.AMP_DTYPE bfloat16",
        "SOLVER.MAX_EPOCH 1",
        "TEST.EVAL_PERIOD 0",
    )
    made = Trainer(cfg)
    before = made.model.backbone[0].weight.detach().clone()
    kinds = []
    made.model.backbone[0].register_forward_hook(lambda module, args, out: kinds.append(out.dtype))
    made.train()
    assert set(kinds) == {torch.bfloat16}
    assert not torch.equal(made.model.backbone[0].weight, before)
    assert made.model.backbone[0].weight.dtype == torch.float32


def test_precise_bn(tmp_path):
    cfg = tiny_baseline(
        tmp_path, "TEST.PRECISE_BN.ENABLED True", "TEST.PRECISE_BN.NUM_ITER 2", "SOLVER.MAX_EPOCH 1",
        "TEST.EVAL_PERIOD 0",
    )  # fmt: skip
    made = Trainer(cfg)
    names = [type(hook).__name__ for hook in made._hooks]
    assert names.index("PreciseBN") < names.index("PeriodicEvaluation") < names.index("Checkpoints")
    at_last_step = []
    step = made.run_step
    made.run_step = lambda: (step(), at_last_step.append(made.model.backbone[1].running_mean.clone()))
    made.train()
    assert not torch.equal(made.model.backbone[1].running_mean, at_last_step[-1])
