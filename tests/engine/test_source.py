"""Stage 1 on tiny data."""

import json

import pytest
import torch
from tiny_reid import load_checkpoint, tiny_source

from fastreid_sskd.engine import SourceTrainer, evaluate, run, seed_everything
from fastreid_sskd.engine.pipeline import check_run


def test_training(tmp_path):
    cfg = tiny_source(tmp_path, "SOLVER.MAX_EPOCH 1")
    seed_everything(1)
    made = SourceTrainer(cfg)
    assert made.model.num_classes == 6 and made.iters_per_epoch == 2
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    results = made.train()
    for name, parameter in made.model.named_parameters():
        if name != "heads.bottleneck.0.bias":  # frozen by the host
            assert not torch.equal(parameter, before[name]), name
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    losses = {key for line in lines for key in line if key.startswith("loss_")}
    assert losses == {"loss_id", "loss_ms", "loss_nn"}
    assert results["mAP"] == pytest.approx(evaluate_file(cfg, tmp_path / "model_final.pth")["mAP"])


def evaluate_file(cfg, path):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(path)
    return evaluate(cfg)


def test_best_on_the_source_is_kept(tmp_path, monkeypatch):
    """By mAP: the host's "metric", with Rank-1 in it, would keep another epoch."""
    values = iter([(3.0, 9.0), (9.0, 5.0), (5.0, 8.0)])
    monkeypatch.setattr(
        SourceTrainer, "test", classmethod(lambda cls, cfg, model: dict(zip(("mAP", "metric"), next(values))))
    )
    run(tiny_source(tmp_path, "SOLVER.MAX_EPOCH 3"))
    assert load_checkpoint(tmp_path / "model_best.pth")["epoch"] == 1
    assert load_checkpoint(tmp_path / "model_final.pth")["epoch"] == 2


def test_target_images_move_the_statistics_only(tmp_path):
    """With and without them: after one step the same gradients have acted, the running statistics differ."""
    opts = ("SOLVER.MAX_EPOCH 1", "SSKD.ITERS_PER_EPOCH 1", "TEST.EVAL_PERIOD 0")
    models = []
    for name, more in (("with", ()), ("without", ("SSKD.SOURCE.BN_DATASETS ()",))):
        cfg = tiny_source(tmp_path / name, *opts, *more)
        check_run(cfg)
        seed_everything(1)
        made = SourceTrainer(cfg)
        made.train()
        models.append(made.model.state_dict())
    one, other = models
    for name, value in one.items():
        assert torch.equal(value, other[name]) == ("running_" not in name and "num_batches" not in name), name


def test_start_from_weights_of_other_identities(tmp_path, finished):
    cfg = tiny_source(
        tmp_path, "MODEL.WEIGHTS", finished.sources[0], "DATASETS.NAMES ('DukeMTMC', 'Market1501')"
    )
    made = SourceTrainer(cfg)
    made.resume_or_load(resume=False)
    saved = load_checkpoint(finished.sources[0])["model"]
    assert torch.equal(made.model.backbone[0].weight, saved["backbone.0.weight"])
    assert made.model.num_classes == 12 and made.start_epoch == 0


@pytest.mark.parametrize("name", ["SoftCE", "PeerSoftTriplet"])
def test_a_loss_that_needs_what_stage_2_has_is_refused_before_the_run(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name} needs peer_teacher_\w+, which stage 1 has not"):
        run(tiny_source(tmp_path / "out", f"SSKD.LOSSES.{name}.WEIGHT", "1"))
    assert not (tmp_path / "out").exists()
