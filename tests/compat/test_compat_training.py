"""Stock training after the patches changes the parameters."""

import pytest
import torch


def step(model, optimizer, batch):
    from fastreid.utils.events import EventStorage

    with EventStorage():
        losses = sum(model.train()(batch).values())
    optimizer.zero_grad()
    losses.backward()
    optimizer.step()


@pytest.mark.parametrize("contiguous", [None, True])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_a_step_moves_every_parameter(cfg, batch, caplog, name, contiguous):
    from fastreid.engine import defaults
    from fastreid.modeling import build_model
    from fastreid.solver import build_optimizer

    assert defaults.build_optimizer is build_optimizer
    cfg.SOLVER.OPT = name
    model = build_model(cfg)
    arguments = {} if contiguous is None else {"contiguous": contiguous}
    optimizer, parameters = build_optimizer(cfg, model, **arguments)
    assert isinstance(parameters, list)
    assert ("contiguous=True is ignored" in caplog.text) == bool(contiguous)
    for _ in range(2):  # the first step after a zero_grad is the one that used to do nothing
        before = {key: value.detach().clone() for key, value in model.named_parameters()}
        step(model, optimizer, batch)
        trained = [key for key, value in model.named_parameters() if value.requires_grad]
        assert trained
        still = [key for key in trained if torch.equal(before[key], model.get_parameter(key))]
        assert not still


def test_who_builds_the_flat_buffer_alone_is_told(cfg, batch):
    from fastreid.modeling import build_model
    from fastreid.solver.build import get_default_optimizer_params
    from fastreid.utils.params import ContiguousParams

    model = build_model(cfg)
    flat = ContiguousParams(get_default_optimizer_params(model, base_lr=0.1, weight_decay=0.0))
    optimizer = torch.optim.SGD(flat.contiguous())
    flat.assert_buffer_is_valid()
    step(model, optimizer, batch)
    with pytest.raises(ValueError, match="invalidated"):
        flat.assert_buffer_is_valid()


@pytest.mark.slow
def test_the_stock_trainer_trains_and_evaluates_on_the_cpu(cfg, items, monkeypatch):
    """Two epochs of the host's own DefaultTrainer, with every augmentation, flip test, re-ranking and ROC."""
    import os

    from fastreid.data.datasets import DATASET_REGISTRY
    from fastreid.data.datasets.bases import ImageDataset
    from fastreid.engine import DefaultTrainer

    class Tiny(ImageDataset):
        def __init__(self, root="", **kwargs):
            train = [(path, f"t{pid}", f"t{camera}") for path, pid, camera in items]
            super().__init__(train, items[::4], items, **kwargs)

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "Tiny", Tiny)
    cfg.DATASETS.NAMES = cfg.DATASETS.TESTS = ("Tiny",)
    cfg.DATALOADER.SAMPLER_TRAIN = "NaiveIdentitySampler"
    cfg.DATALOADER.NUM_INSTANCE = 2
    cfg.MODEL.HEADS.NUM_CLASSES = 0
    cfg.SOLVER.MAX_EPOCH, cfg.TEST.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD = 2, 1, 1
    cfg.TEST.FLIP.ENABLED = cfg.TEST.RERANK.ENABLED = cfg.TEST.ROC.ENABLED = cfg.TEST.PRECISE_BN.ENABLED = (
        True
    )
    cfg.TEST.RERANK.K1, cfg.TEST.RERANK.K2 = 4, 2
    cfg.TEST.PRECISE_BN.DATASET, cfg.TEST.PRECISE_BN.NUM_ITER = "Tiny", 2
    cfg.INPUT.AFFINE.ENABLED = cfg.INPUT.AUGMIX.ENABLED = cfg.INPUT.REA.ENABLED = cfg.INPUT.CJ.ENABLED = True
    os.makedirs(cfg.OUTPUT_DIR)
    trainer = DefaultTrainer(cfg)
    before = {key: value.detach().clone() for key, value in trainer.model.named_parameters()}
    results = trainer.train()
    assert 0 <= results["mAP"] <= 100
    assert not any(
        torch.equal(before[key], value)
        for key, value in trainer.model.named_parameters()
        if value.requires_grad
    )
    assert os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    resumed = DefaultTrainer(cfg)
    resumed.resume_or_load(resume=True)
    assert resumed.start_epoch == 2
