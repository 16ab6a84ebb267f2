"""Faults of disks, files and numbers in the middle of a run.

It ends with a sentence and goes on from what it kept.
"""

import errno
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from same_runs import assert_same_files, before_step, cut
from tiny_reid import MARKET, load_checkpoint, tiny_baseline

from fastreid_sskd.data.loaders import EpochLoader
from fastreid_sskd.engine import run
from fastreid_sskd.engine.checkpoint import last_checkpoint
from fastreid_sskd.engine.events import MetricsFile

EVERY_STEP = ("SSKD.CHECKPOINT_ITERS 1",)


@pytest.fixture
def own_images(world, tmp_path, monkeypatch):
    """A copy of the data sets that a test may spoil: the folder of the target's training images."""
    shutil.copytree(world, tmp_path / "datasets")
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "datasets"))
    return tmp_path / "datasets" / MARKET / "bounding_box_train"


# ---- images --------------------------------------------------------------------------------------

SPOILS = {
    "deleted": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:300]),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_spoiled_image_stops_the_run(finished, adaptation, own_images, tmp_path, monkeypatch, spoil):
    """All of them, so that the next batch has one: it is named. Put back, the run goes on as before."""
    cfg = adaptation(*EVERY_STEP, "SSKD.CACHE_IMAGES 0")  # an image that has been kept is not read again
    shutil.copytree(own_images, tmp_path / "kept")
    with monkeypatch.context() as patch:
        before_step(patch, 4, lambda trainer: [SPOILS[spoil](path) for path in own_images.iterdir()])
        with pytest.raises(OSError, match=r"000\d_c\ds1_00000\d_00.jpg"):
            run(cfg)
    shutil.copytree(tmp_path / "kept", own_images, dirs_exist_ok=True)
    run(cfg, resume=True)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


def odd_image(path, kind):
    image = Image.open(path).convert("RGB")
    if kind == "16 bits":
        values = np.asarray(image.convert("L")).astype(np.uint16) * 257
        return Image.fromarray(values).save(path, "png")
    if kind == "1x1":
        image = image.resize((1, 1))
    else:
        image = image.quantize(16) if kind == "palette" else image.convert(kind)
    image.save(path, "jpeg" if kind in ("1x1", "CMYK", "L") else "png")


def test_odd_images_train(adaptation, own_images):
    """Each kind among the others, in clustering and training, under the names that the data set expects."""
    paths = sorted(own_images.iterdir())
    kinds = ("1x1", "CMYK", "palette", "16 bits", "L", "RGBA", "1")
    for path, kind in zip(paths, kinds * 3):
        odd_image(path, kind)
    cfg = adaptation("SOLVER.MAX_EPOCH 1", "TEST.EVAL_PERIOD 0")
    run(cfg)
    final = load_checkpoint(os.path.join(cfg.OUTPUT_DIR, "model_final.pth"))
    assert len(final["refresh"]["labels"]) == 48
    assert all(torch.isfinite(value).all() for value in final["model"].values())


# ---- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_batch_that_is_not_finite(finished, adaptation, monkeypatch, value):
    """Step, losses and peers are named, nothing of it is saved, the checkpoint before it goes on."""
    cfg, finish = adaptation(*EVERY_STEP), EpochLoader._on_device

    def spoiled(self, batch):
        batch = finish(self, batch)
        batch["images"][:, 1, 0, 0, 0] = value  # the second view
        return batch

    with monkeypatch.context() as patch:
        before_step(patch, 4, lambda trainer: patch.setattr(EpochLoader, "_on_device", spoiled))
        with pytest.raises(FloatingPointError, match=r"step 4: .*loss_\w+ of peer 1 is nan") as raised:
            run(cfg)
    assert "SOLVER.BASE_LR" in str(raised.value)
    saved = last_checkpoint(cfg.OUTPUT_DIR)
    assert os.path.basename(saved) == "step_0000004.pth"
    assert all(torch.isfinite(value).all() for value in load_checkpoint(saved)["model"].values())
    run(cfg, resume=True)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


def test_gradient_that_is_not_finite(adaptation, monkeypatch):
    """The losses of its step are finite, its parameters are not: they do not become the last checkpoint."""
    cfg = adaptation(*EVERY_STEP, "SOLVER.MAX_EPOCH 1", "TEST.EVAL_PERIOD 0")

    def spoil(trainer):
        trainer.model.students[0].backbone[0].weight.register_hook(lambda gradient: gradient * float("nan"))

    before_step(monkeypatch, 1, spoil)
    with pytest.raises(
        FloatingPointError, match=r"students.0.backbone.0.weight of the model is not finite.*step_0000002"
    ):
        run(cfg)
    assert os.path.basename(last_checkpoint(cfg.OUTPUT_DIR)) == "step_0000001.pth"


def test_plain_model_names_its_loss(tmp_path, monkeypatch):
    cfg = tiny_baseline(tmp_path, "SOLVER.BASE_LR 1e30", "TEST.EVAL_PERIOD 0", "SOLVER.OPT SGD")
    with pytest.raises(FloatingPointError, match=r"step \d: .*loss_\w+ is (nan|inf)"):
        run(cfg)


# ---- disks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_checkpoint_that_cannot_be_written(finished, adaptation, monkeypatch, number):
    """File and cause are named, the checkpoint before stays the last; with room the run goes on."""
    cfg, save = adaptation(*EVERY_STEP), torch.save

    def no_room(data, file):
        file.write(b"the beginning")
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        before_step(patch, 4, lambda trainer: patch.setattr(torch, "save", no_room))
        with pytest.raises(OSError, match=rf"{os.strerror(number)}.*step_0000005.pth") as raised:
            run(cfg)
    assert raised.value.errno == number and torch.save is save
    assert os.path.basename(last_checkpoint(cfg.OUTPUT_DIR)) == "step_0000004.pth"
    assert not [name for name in os.listdir(cfg.OUTPUT_DIR) if name.endswith(".tmp")]
    run(cfg, resume=True)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


def test_metrics_that_cannot_be_written(finished, adaptation, monkeypatch):
    """Half a line is cut off when the run goes on."""
    cfg, write = adaptation(*EVERY_STEP), MetricsFile.write

    def no_room(self):
        self._file_handle.write('{"half of')
        self._file_handle.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        before_step(patch, 4, lambda trainer: patch.setattr(MetricsFile, "write", no_room))
        with pytest.raises(OSError, match="No space left"):
            run(cfg)
    assert MetricsFile.write is write
    run(cfg, resume=True)
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


def test_the_kept_start_is_no_place_to_go_on_from(finished, adaptation, tmp_path, caplog):
    """It is of before the run's first hooks: without another checkpoint the run begins again."""
    cfg = adaptation(*EVERY_STEP)
    cut(cfg, 1)
    assert load_checkpoint(tmp_path / "out" / "model_best.pth")["epoch"] == -1
    for path in (tmp_path / "out").glob("step_*.pth"):
        path.write_bytes(b"")
    run(cfg, resume=True)
    assert "the run starts from its beginning" in caplog.text
    assert_same_files(cfg.OUTPUT_DIR, finished.output)


@pytest.mark.parametrize("damage", ["torn", "zeros", "gone"])
def test_damaged_last_checkpoint(finished, adaptation, caplog, damage):
    """The one before it is gone on from, warned; the run ends the same."""
    cfg = adaptation(*EVERY_STEP)
    cut(cfg, 5)
    path = last_checkpoint(cfg.OUTPUT_DIR)
    assert os.path.basename(path) == "step_0000005.pth"
    size = os.path.getsize(path)
    if damage == "gone":
        os.remove(path)
    elif damage == "zeros":  # as some file systems leave after a power cut
        with open(path, "r+b") as file:
            file.seek(size // 2)
            file.write(bytes(size // 4))
    else:
        os.truncate(path, size // 2)
    run(cfg, resume=True)
    assert "step_0000005.pth cannot be used" in caplog.text
    assert_same_files(cfg.OUTPUT_DIR, finished.output)
