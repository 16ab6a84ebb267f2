"""Features of the images of a folder."""

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_reid import MARKET

from fastreid_sskd.data import extraction_loader
from fastreid_sskd.data.datasets import image_paths
from fastreid_sskd.engine import predict
from fastreid_sskd.engine.pipeline import image_features, load_trained
from fastreid_sskd.modeling import Peer, ensemble_feature


@pytest.fixture
def folder(world, tmp_path):
    """Two images in sub-folders, one beside them, and a file that is none."""
    pictures = sorted((world / MARKET / "query").iterdir())[:3]
    for place, picture in zip(("b/one.jpg", "a/two.JPG", "three.jpeg"), pictures):
        (tmp_path / "crops" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, tmp_path / "crops" / place)
    (tmp_path / "crops" / "notes.txt").write_text("no image")
    return tmp_path / "crops"


def trained(finished, eval_with):
    cfg = finished.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(finished.output / "model_final.pth")
    cfg.SSKD.EVAL_WITH = eval_with
    return cfg


def test_paths(folder):
    assert image_paths(str(folder)) == [
        str(folder / name) for name in ("a/two.JPG", "b/one.jpg", "three.jpeg")
    ]


def test_no_folder_and_no_image(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        image_paths(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no image below"):
        image_paths(str(tmp_path))


@pytest.mark.parametrize("eval_with", ["1", "ensemble"])
def test_features(finished, folder, eval_with):
    cfg = trained(finished, eval_with)
    paths, features = predict(cfg, str(folder))
    assert paths == image_paths(str(folder))
    assert features.shape == (3, 16) and features.dtype == np.float32
    assert np.linalg.norm(features, axis=1) == pytest.approx(1, abs=1e-5)

    model = load_trained(cfg)
    (batch,) = extraction_loader(cfg, [(path, 0, 0) for path in paths])
    with torch.no_grad():
        teachers = model.teacher_features(batch)
    expected = ensemble_feature(teachers) if eval_with == "ensemble" else F.normalize(teachers[1], dim=1)
    assert np.allclose(features, expected.numpy(), atol=1e-6)


def test_features_are_the_evaluations(finished, folder):
    """TEST.FLIP, which evaluation follows, is followed here too."""
    cfg = trained(finished, "0")
    model, paths = load_trained(cfg), image_paths(str(folder))
    cfg.TEST.FLIP.ENABLED = True
    (batch,) = extraction_loader(cfg, [(path, 0, 0) for path in paths])
    with torch.no_grad():
        both = model(batch) + model({**batch, "images": batch["images"].flip(3)})
    assert np.allclose(image_features(cfg, model, paths), F.normalize(both, dim=1).numpy(), atol=1e-6)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_said_in_a_sentence(finished, folder, workers):
    cfg = trained(finished, "0")
    cfg.DATALOADER.NUM_WORKERS, cfg.TEST.IMS_PER_BATCH = workers, 1
    (folder / "three.jpeg").write_bytes(b"no image")
    with pytest.raises(OSError, match=r"^cannot read '.*three.jpeg' as an image .*data set$"):
        predict(cfg, str(folder))


def test_a_size_that_the_network_cannot_take_is_refused(finished, monkeypatch):
    """As of a ViT whose patches do not fit; nothing stays in the network that was asked."""
    assert not load_trained(trained(finished, "0")).teachers[0].backbone._forward_hooks

    def forward(self, images):
        raise AssertionError("not of 14")

    monkeypatch.setattr(Peer, "forward", forward)
    with pytest.raises(ValueError, match="fails on an image of 32 x 16 pixels, AssertionError: not of 14"):
        load_trained(trained(finished, "0"))


def test_prediction_needs_weights(finished, folder):
    with pytest.raises(FileNotFoundError, match="MODEL.WEIGHTS"):
        predict(finished.cfg, str(folder))
