"""Features of all teachers: in order, in evaluation mode, with the model left as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fastreid_sskd.data import extraction_loader, training_items
from fastreid_sskd.evaluation.features import TeacherFeatures, extract_features
from fastreid_sskd.modeling import ensemble_feature


@pytest.fixture
def loader(cfg):
    return extraction_loader(cfg, training_items(cfg.DATASETS.NAMES))


def test_features_are_the_teachers_in_the_loaders_order(model, loader):
    found = extract_features(model, loader)
    assert len(found) == 2 and all(feature.shape == (48, 16) for feature in found)
    for k, teacher in enumerate(model.teachers):
        teacher.eval()
        for i in (0, 31, 32, 47):  # both batches
            image = loader.dataset[i]["images"][None]
            with torch.no_grad():
                expected = teacher(model.pixels(image))[0]
            assert torch.allclose(found[k][i], expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[0], found[1])


def test_they_do_not_come_from_the_students(model, loader):
    before = extract_features(model, loader)
    for parameter in model.students.parameters():
        parameter.data.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, extract_features(model, loader)))


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_statistics_stay(model, loader, training):
    model.train(training)
    before = copy.deepcopy(model.state_dict())
    found = extract_features(model, loader)
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(feature.requires_grad for feature in found)


def test_features_that_are_not_finite(model, loader):
    model.teachers[1].backbone[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="teacher 1"):
        extract_features(model, loader)


def test_teachers_as_one_network(model, loader):
    batch = next(iter(loader))
    model.eval()
    with torch.no_grad():
        side_by_side = TeacherFeatures(model)(batch)
        expected = model.teacher_features(batch)
    assert side_by_side.shape == (32, 2 * 16)
    assert all(torch.equal(side_by_side[:, 16 * k:16 * (k + 1)], expected[k]) for k in range(2))


@pytest.mark.parametrize("training", [True, False])
def test_wrapper_has_the_models_mode(model, training):
    """The host's evaluation restores the mode of the network that it is given."""
    assert TeacherFeatures(model.train(training)).training == training


def test_ensemble_is_the_normalised_mean_of_normalised_features(model, loader):
    one, two = extract_features(model, loader)
    expected = F.normalize((one / one.norm(dim=1, keepdim=True) + two / two.norm(dim=1, keepdim=True)) / 2, dim=1)
    assert torch.allclose(ensemble_feature([one, two]), expected, atol=1e-6)


def memory_for(model, images, monkeypatch):
    """A device that has memory for so many images; returns the sizes that it was asked for."""
    asked, real = [], model.teacher_features

    def features(batch):
        asked.append(len(batch["images"]))
        if asked[-1] > images:
            raise torch.cuda.OutOfMemoryError("no more")
        return real(batch)

    monkeypatch.setattr(model, "teacher_features", features)
    return asked


def test_batches_that_do_not_fit_are_halved(model, loader, monkeypatch, caplog):
    """Of 32 and 16 images where 10 fit: 32, 16, then 8 at a time, and only the first batch asks for more."""
    expected = extract_features(model, loader)
    asked = memory_for(model, 10, monkeypatch)
    found = extract_features(model, loader)
    assert asked == [32, 16, 8, 8, 8, 8, 8, 8]
    assert "going on with 8 at a time" in caplog.text
    for one, other in zip(found, expected):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
    asked.clear()
    model.eval()
    side_by_side = TeacherFeatures(model)(next(iter(loader)))
    assert asked == [32, 16, 8, 8, 8, 8] and torch.allclose(side_by_side, torch.cat(expected, dim=1)[:32], atol=1e-6)


def test_one_image_that_does_not_fit(model, loader, monkeypatch):
    memory_for(model, 0, monkeypatch)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        extract_features(model, loader)


def test_features_can_be_trained_on(model, loader):
    """They come from inference mode, whose tensors autograd refuses."""
    found = extract_features(model, loader)
    weight = torch.ones(16, requires_grad=True)
    (found[0] * weight).sum().backward()
    found[1] += 1
    assert not any(feature.is_inference() for feature in found) and weight.grad is not None
    model.train()
    assert not any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers()))
