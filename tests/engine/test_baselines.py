"""What SSKD is compared with: one network, the supervised bound, and statistics of the target."""

import copy

import pytest
import torch
from fastreid.engine.train_loop import HookBase
from tiny_reid import tiny_adaptation

from fastreid_sskd.data import extraction_loader, training_items
from fastreid_sskd.engine import AdaptationTrainer, SourceTrainer
from fastreid_sskd.engine.refresh import one_network_config, reestimate_batch_norm, supervised_config
from fastreid_sskd.modeling import chunk_batch_norm, load_source_weights


@pytest.fixture
def cfg(finished, tmp_path):
    return tiny_adaptation(tmp_path / "out", "SSKD.SOURCE.WEIGHTS", str(finished.sources))


# ---- one network ---------------------------------------------------------------------------------


def test_one_network_differs_in_what_sskd_adds(cfg):
    one = one_network_config(cfg)
    assert one.SSKD.NUM_PEERS == 1 and one.SSKD.EMA.MOMENTUM == 0
    cfg.defrost()
    cfg.SSKD.EMA.WINDOW = 0.5
    assert one_network_config(cfg).SSKD.EMA.WINDOW == 0
    cfg.SSKD.EMA.WINDOW = 0.0
    weights = {name: node.WEIGHT for name, node in one.SSKD.LOSSES.items()}
    assert weights == {
        "LabelSmoothCE": 1.0,
        "SoftCE": 0.0,
        "MultiSimilarity": 3.0,
        "NuclearNorm": 1.5,
        "ClusterContrast": 0.0,
        "SoftTriplet": 0.0,
        "PeerSoftTriplet": 0.0,
    }
    one.SSKD.NUM_PEERS, one.SSKD.EMA.MOMENTUM = cfg.SSKD.NUM_PEERS, cfg.SSKD.EMA.MOMENTUM
    one.SSKD.LOSSES = cfg.SSKD.LOSSES.clone()
    assert one == cfg


def test_config_given_is_not_changed(cfg):
    before = copy.deepcopy(cfg)
    one_network_config(cfg)
    supervised_config(cfg)
    assert cfg == before and cfg.is_frozen()


def test_teacher_of_one_network_is_the_student(cfg, finished):
    """After every step; only batch norm's statistics are its own."""
    one = one_network_config(cfg)
    made = AdaptationTrainer(one)
    load_source_weights(made.model, finished.sources[:1])
    steps = []

    class Compare(HookBase):
        def after_step(self):
            student, teacher = made.model.students[0], made.model.teachers[0]
            assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters()))
            steps.append(made.iter)

    made.register_hooks([Compare()])
    results = made.train()
    assert steps == list(range(6))
    assert list(results["Market1501"]) == ["teacher0"]
    assert not any("soft" in key or "peer1" in key for key in made.storage.latest())


# ---- supervised bound ----------------------------------------------------------------------------


def test_supervised_bound_trains_on_the_targets_identities(cfg, finished):
    bound = supervised_config(cfg)
    assert bound.MODEL.META_ARCHITECTURE == "SSKDSource" and bound.DATASETS.NAMES == cfg.DATASETS.NAMES
    assert (
        bound.SOLVER.MAX_EPOCH == cfg.SOLVER.MAX_EPOCH
        and bound.SSKD.ITERS_PER_EPOCH == cfg.SSKD.ITERS_PER_EPOCH
    )
    assert bound.INPUT.REA == cfg.INPUT.REA and bound.SOLVER.BASE_LR == cfg.SOLVER.BASE_LR
    bound.MODEL.WEIGHTS = finished.sources[0]
    made = SourceTrainer(bound)
    assert made.model.num_classes == 6
    seen = []
    made.model.register_forward_pre_hook(
        lambda module, args: seen.append(args[0]) if module.training else None
    )
    made.resume_or_load(resume=False)
    made.train()
    assert len(seen) == 6  # as many steps
    assert all("Market" in path for batch in seen for path in batch["img_paths"])
    assert all("bn_images" not in batch for batch in seen)


# ---- statistics of the target --------------------------------------------------------------------


@pytest.fixture
def model(cfg, finished):
    made = AdaptationTrainer.build_model(cfg)
    load_source_weights(made, finished.sources)
    return made


def batch_statistics(teacher, batches):
    """Mean over the batches of the inputs' mean and unbiased variance at each batch norm, from loops."""
    sums = {}
    teacher = copy.deepcopy(teacher).train()
    hooks = []
    for name, module in teacher.named_modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):

            def note(module, args, name=name):
                x = args[0].detach().double().transpose(0, 1).flatten(1)
                sums.setdefault(name, []).append((x.mean(1), x.var(1, unbiased=True)))

            hooks.append(module.register_forward_pre_hook(note))
    with torch.no_grad():
        for images in batches:
            teacher(images, torch.zeros(len(images), dtype=torch.long))
    return {
        name: tuple(torch.stack(part).mean(0).float() for part in zip(*values))
        for name, values in sums.items()
    }


@pytest.mark.parametrize(
    "size, batches, chunk", [(20, 2, 0), (48, 1, 0), (100, 1, 0), (20, 2, 8), (48, 1, 16), (20, 2, 64)]
)
def test_statistics_are_the_mean_over_full_batches(cfg, model, size, batches, chunk):
    """48 images: of batches of 20 the last 8 are left out; fewer images than a batch are one batch.

    With SSKD.BN_CHUNK over all full chunks of these batches, not over the first of each.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.IMS_PER_BATCH, cfg.SSKD.BN_CHUNK = size, chunk
    chunk_batch_norm(model, chunk)
    items = training_items(cfg.DATASETS.NAMES)
    images = [model.pixels(batch["images"]) for batch in extraction_loader(cfg, items)][:batches]
    images = [
        part
        for batch in images
        for part in batch.split(chunk or size)
        if not chunk or len(part) == min(chunk, len(batch))
    ]
    expected = [batch_statistics(teacher, images) for teacher in model.teachers]
    reestimate_batch_norm(cfg, model, items)
    for teacher, of_teacher in zip(model.teachers, expected):
        assert len(of_teacher) == 3
        for name, (mean, variance) in of_teacher.items():
            module = teacher.get_submodule(name)
            assert torch.allclose(module.running_mean, mean, rtol=1e-4, atol=1e-5), name
            assert torch.allclose(module.running_var, variance, rtol=1e-4, atol=1e-5), name
            assert module.momentum == 0.1  # as it was


@pytest.mark.parametrize("training", [True, False])
def test_nothing_else_changes(cfg, model, training):
    model.train(training)
    before = copy.deepcopy(model.state_dict())
    reestimate_batch_norm(cfg, model, training_items(cfg.DATASETS.NAMES))
    assert all(module.training == training for module in model.modules())
    for name, value in model.state_dict().items():
        is_statistic = name.startswith("teachers.") and ("running_" in name or "num_batches" in name)
        assert is_statistic or torch.equal(value, before[name]), name
    assert not torch.equal(
        model.teachers[0].backbone[1].running_mean, before["teachers.0.backbone.1.running_mean"]
    )


def test_statistics_do_not_depend_on_those_before(cfg, model):
    items = training_items(cfg.DATASETS.NAMES)
    reestimate_batch_norm(cfg, model, items)
    once = copy.deepcopy(model.teachers.state_dict())
    reestimate_batch_norm(cfg, model, iter(items))
    assert all(
        torch.allclose(value, once[name])
        for name, value in model.teachers.state_dict().items()
        if "running" in name
    )
