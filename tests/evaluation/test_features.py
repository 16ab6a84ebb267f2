"""From images to features: in order, in evaluation mode, as the model answers."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fastreid.modeling import build_model

from fastreid_sskd.data import extraction_loader, training_items
from fastreid_sskd.evaluation.features import Encoder, encode_images, evaluation_mode, extract_features
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
    """Says whose, of how many images, and blames training only as one of the causes."""
    model.teachers[1].backbone[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(
        FloatingPointError,
        match="teacher 1 gives .* for 48 of 48 images: look for NaN or inf in the weights file",
    ):
        extract_features(model, loader)
    with pytest.raises(FloatingPointError, match="teacher 1"):
        encode_images(Encoder(model, "ensemble"), loader)
    assert torch.isfinite(encode_images(Encoder(model, "0"), loader)).all()


# ---- one network of any model --------------------------------------------------------------------


@pytest.mark.parametrize("combine", ["features", "distances"])
def test_encoder_gives_what_the_model_answers_with(cfg, loader, combine):
    cfg.SSKD.COMBINE = combine
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    batch = next(iter(loader))
    for answer in ("best", "0", "1", "ensemble"):
        model.eval_with = answer
        with torch.no_grad():
            expected = model(batch)
        assert torch.equal(Encoder(model, answer)(batch["images"]), expected), answer
        assert torch.equal(
            Encoder(model)(batch["images"].byte()), model(batch | {"images": batch["images"].byte().float()})
        )
        # in eval mode and without gradients, from another answer's model too
        model.eval_with = "best"
        assert torch.allclose(
            encode_images(Encoder(model.train(), answer), loader)[:32], expected, atol=1e-6
        ), answer
        model.eval()
    assert expected.shape == (32, 16 if combine == "features" else 32)
    with pytest.raises(ValueError, match="SSKD.EVAL_WITH must be one of"):
        Encoder(model, "2")


def test_ensemble_of_one_teacher_has_unit_length(cfg, loader):
    cfg.SSKD.NUM_PEERS = 1
    model = build_model(cfg)
    assert encode_images(Encoder(model, "ensemble"), loader).norm(dim=1) == pytest.approx(1, abs=1e-5)
    assert not torch.allclose(
        encode_images(Encoder(model, "0"), loader).norm(dim=1), torch.ones(48), atol=1e-2
    )


def test_mirror_images(model, loader):
    """As TEST.FLIP: the mean of both features, before they are combined."""
    model.eval()
    with torch.no_grad():
        pairs = [
            [
                model.teacher_features(batch | {"images": x})
                for x in (batch["images"], batch["images"].flip(3))
            ]
            for batch in loader
        ]
        expected = torch.cat([model.combine([(a + b) / 2 for a, b in zip(*pair)]) for pair in pairs])
    assert torch.allclose(encode_images(Encoder(model, "ensemble"), loader, flip=True), expected, atol=1e-6)


class Camera(torch.nn.Module):
    """A model whose features depend on more than the images, and that is given half a batch at most."""

    def forward(self, batch):
        assert not self.training
        if len(batch["images"]) > 20:
            raise torch.cuda.OutOfMemoryError("no more")
        return batch["images"].mean(dim=(2, 3)) + batch["camids"][:, None]


def test_a_model_of_ones_own(loader):
    batches = [batch | {"camids": torch.arange(len(batch["images"]))} for batch in loader]
    expected = torch.cat([batch["images"].mean(dim=(2, 3)) + batch["camids"][:, None] for batch in batches])
    model = Camera().train()
    assert torch.equal(encode_images(Encoder(model), batches), expected) and model.training
    with pytest.raises(ValueError, match="a Camera has one network"):
        Encoder(model, "ensemble")


def test_every_module_gets_its_own_mode_back(model):
    model.train()
    frozen = model.teachers[1].backbone.eval()
    try:
        with evaluation_mode(model):
            assert not any(module.training for module in model.modules())
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert {module.training for module in frozen.modules()} == {False}
        assert all(module.training for module in model.students.modules()) and model.teachers[1].training


def test_ensemble_is_the_normalised_mean_of_normalised_features(model, loader):
    one, two = extract_features(model, loader)
    expected = F.normalize(
        (one / one.norm(dim=1, keepdim=True) + two / two.norm(dim=1, keepdim=True)) / 2, dim=1
    )
    assert torch.allclose(ensemble_feature([one, two]), expected, atol=1e-6)


def memory_for(model, images):
    """A device that has memory for so many images; returns the sizes that it was asked for."""
    asked = []

    def ask(_, args):
        asked.append(len(args[0]))
        if asked[-1] > images:
            raise torch.cuda.OutOfMemoryError("no more")

    model.teachers[0].register_forward_pre_hook(ask)
    return asked


def test_batches_that_do_not_fit_are_halved(model, loader, caplog):
    """Of 32 and 16 images where 10 fit: 32, 16, then 8 at a time, and only the first batch asks for more.

    One image is asked for twice before, see `folded`.
    """
    expected, together = extract_features(model, loader), encode_images(Encoder(model, "ensemble"), loader)
    asked = memory_for(model, 10)
    found = extract_features(model, loader)
    assert asked == [1, 1, 32, 16, 8, 8, 8, 8, 8, 8]
    assert "going on with 8 at a time" in caplog.text
    for one, other in zip(found, expected):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
    assert torch.allclose(encode_images(Encoder(model, "ensemble"), loader), together, atol=1e-6)


def test_one_image_that_does_not_fit(model, loader):
    memory_for(model, 0)
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
