"""From three lines of Python: adapt, load, and features of arrays and paths."""

import doctest
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_reid import CONFIGS, MARKET, TINY_TARGET

import fastreid_sskd
from fastreid_sskd import adapt, api, load
from fastreid_sskd.engine.pipeline import image_features, load_trained


@pytest.fixture(scope="module")
def paths(world):
    return sorted(map(str, (world / MARKET / "query").iterdir()))


@pytest.fixture
def run(finished_folder, data_sets):
    """A finished run, where its data sets are."""
    return finished_folder


def pixels(path):
    return np.asarray(Image.open(path))


def test_the_package_stays_light():
    """Trainers are imported when they are asked for; what it does not have is said as Python does."""
    code = (
        "import sys, fastreid_sskd\n"
        "assert not {'fastreid_sskd.api', 'fastreid_sskd.engine'} & set(sys.modules)\n"
        "assert fastreid_sskd.adapt is sys.modules['fastreid_sskd.api'].adapt\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not hasattr(fastreid_sskd, "adopt")


@pytest.mark.parametrize("teacher", ["", "ensemble", 1])
def test_features_are_the_evaluations(run, paths, teacher):
    model = load(run, teacher, device="cpu")
    cfg = model.cfg.clone()
    cfg.defrost()
    cfg.SSKD.EVAL_WITH = str(teacher) or "best"
    expected = image_features(cfg, load_trained(cfg), paths)
    found = model(paths)
    assert found.dtype == np.float32 and np.array_equal(found, expected)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-6)


def test_arrays_are_as_paths(run, paths, tmp_path):
    """One image, a batch, or a list of any sizes; several batches and workers; the input stays as it was."""
    model = load(run / "model_final.pth")
    batch = np.stack([pixels(path) for path in paths])
    before, expected = batch.copy(), model(paths)
    assert np.array_equal(model(batch), expected) and np.array_equal(batch, before)
    assert np.array_equal(model([paths[0], *batch[1:]]), expected)
    for one in (batch[0], paths[0], run.parent / paths[0]):
        assert model(one) == pytest.approx(expected[:1], abs=1e-6)
    tall = Image.open(paths[1]).resize((30, 90))
    tall.save(tmp_path / "tall.png")
    mixed = model([batch[0], np.asarray(tall), batch[2, :, ::-1]])
    assert mixed[1] == pytest.approx(model(tmp_path / "tall.png")[0], abs=1e-6)
    model.cfg.defrost()
    model.cfg.TEST.IMS_PER_BATCH, model.cfg.DATALOADER.NUM_WORKERS = 5, 2
    assert model(batch) == pytest.approx(expected, abs=1e-6)


def test_no_image(run):
    assert load(run)([]).shape == (0, 16) == load(run)(np.zeros((0, 32, 16, 3), np.uint8)).shape


@pytest.mark.parametrize(
    "wrong, said",
    [
        (np.zeros((8, 4, 3)), r"\(8, 4, 3\) of float64"),
        (np.zeros((8, 4), np.uint8), r"\(4,\) of uint8"),
        ([np.zeros((8, 4), np.uint8)], r"\(8, 4\) of uint8"),
        (np.zeros((3, 8, 4), np.uint8), r"\(3, 8, 4\) of uint8"),
        (np.zeros((2, 0, 4, 3), np.uint8), r"\(0, 4, 3\) of uint8"),
        (None, r"shape \(\) of object"),
        ("missing.jpg", "missing.jpg"),
        (__file__, "as an image"),
    ],
    ids=str,
)
def test_what_is_no_image(run, wrong, said):
    with pytest.raises((ValueError, OSError), match=said):
        load(run)(wrong)


def test_runs_that_cannot_be_loaded(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="the folder of a finished run, or a checkpoint"):
        load(tmp_path)
    shutil.copy(run / "model_final.pth", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.yaml' not found"):
        load(tmp_path)
    with pytest.raises(ValueError, match="must be one of best, ensemble, 0, 1"):
        load(run, 7)
    with pytest.raises(ValueError, match="MODEL.DEVICE"):
        load(run, device="gpu")


def test_adaptation_to_a_folder(run, world, tmp_path, host_logging):
    """Of a shipped config whose own target is a data set, so that nothing is evaluated."""
    crops = world / MARKET / "bounding_box_train"
    sources = [run / "source" / f"peer{k}" / "model_final.pth" for k in range(2)]
    done = adapt("sskd_d2m.yml", target=crops, weights=sources, output=tmp_path / "run", opts=TINY_TARGET)
    assert done == (str(tmp_path / "run"), {})
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "clusters" in log and "nothing is evaluated" in log
    cfg = load(done.output).cfg
    assert (cfg.DATASETS.NAMES, cfg.DATASETS.TESTS) == (("CropFolder",), ())
    assert cfg.SSKD.FOLDERS.CropFolder.TRAIN == str(crops)
    assert not np.allclose(load(done.output)(crops.iterdir()), load(sources[0])(crops.iterdir()))
    again = adapt(
        "sskd_d2m.yml", target=crops, weights=sources, output=done.output, opts=TINY_TARGET, resume=True
    )
    assert again == done and "nothing left to train" in (tmp_path / "run" / "log.txt").read_text()


def test_a_folder_of_the_config_keeps_its_settings_and_test_set(world, tmp_path):
    (tmp_path / "own.yml").write_text(
        "_BASE_: sskd_crops.yml\nDATASETS: {NAMES: shop, TESTS: shop}\n"
        "SSKD: {FOLDERS: {shop: {TRAIN: nowhere, CAMERA: c(.), QUERY: q, GALLERY: g}}}\n"
    )
    cfg = api._config(tmp_path / "own.yml", "crops", "a.pth", "out", ["SSKD.NUM_PEERS", 2])
    assert cfg.SSKD.FOLDERS.shop.TRAIN.endswith("/crops") and cfg.SSKD.FOLDERS.shop.CAMERA == "c(.)"
    assert (cfg.DATASETS.NAMES, cfg.DATASETS.TESTS) == (("shop",), ("shop",))
    assert (cfg.SSKD.SOURCE.WEIGHTS, cfg.OUTPUT_DIR, cfg.SSKD.NUM_PEERS) == (["a.pth"], "out", 2)


def test_adaptations_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="META_ARCHITECTURE SSKD, and 'source_d2m.yml' is of SSKDSource"):
        adapt("source_d2m.yml", output=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        adapt(
            "sskd_crops.yml", target=tmp_path / "nowhere", weights="a.pth", output=tmp_path, opts=TINY_TARGET
        )
    with pytest.raises(ValueError, match="by output"):
        adapt("sskd_crops.yml", opts=["OUTPUT_DIR", ""])
    assert not list(tmp_path.iterdir())


def test_example(run, world, tmp_path, monkeypatch, host_logging):
    """The README's three lines, which adapt's docstring has too, with the tests' network."""
    text = (CONFIGS.parent / "README.md").read_text(encoding="utf-8")
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "adapt(" in code)
    examples = doctest.DocTestParser().get_examples(adapt.__doc__)
    assert len(examples) == 4 and all(example.source.partition("  #")[0] in block for example in examples)

    shutil.copytree(world / MARKET / "bounding_box_train", tmp_path / "crops")
    for name in ("0001.jpg", "0002.jpg"):
        shutil.copy(next((world / MARKET / "query").iterdir()), tmp_path / "crops" / name)
    shutil.copy(run / "source" / "peer0" / "model_final.pth", tmp_path / "market.pth")
    keys = dict(zip(TINY_TARGET[::2], TINY_TARGET[1::2], strict=True))
    shipped = {"_BASE_": str(CONFIGS / "sskd_crops.yml"), **keys}
    (tmp_path / "sskd_crops.yml").write_text(yaml.dump(shipped))  # a file goes before the name
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(block, names)  # noqa: S102 - the project's own page
    assert names["features"].shape == (2, 16) and names["run"].output == "runs/mine"
