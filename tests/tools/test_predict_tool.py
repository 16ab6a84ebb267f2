"""tools/predict.py: features of a folder in a file, and a picture of the images nearest to a query."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_reid import CONFIGS, draw, overrides

from fastreid_sskd.engine import AdaptationTrainer, load_config
from fastreid_sskd.engine.pipeline import image_features

SMALL = overrides(
    "MODEL.DEVICE cpu",
    "MODEL.BACKBONE.NAME build_osnet_backbone",
    "MODEL.BACKBONE.DEPTH x0_25",
    "MODEL.BACKBONE.FEAT_DIM 128",
    "INPUT.SIZE_TEST [32, 16]",
    "DATALOADER.NUM_WORKERS 0",
    "SSKD.NUM_PEERS 2",
)

pytestmark = pytest.mark.slow  # a process a test


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with config.yaml, model.pth and crops of three people."""
    at = tmp_path_factory.mktemp("trained")
    cfg = load_config(str(CONFIGS / "sskd_d2m.yml"), SMALL)
    torch.manual_seed(0)
    model = AdaptationTrainer.build_model(cfg)
    torch.save({"model": model.state_dict()}, at / "model.pth")
    (at / "config.yaml").write_text(cfg.dump())
    (at / "crops" / "sub").mkdir(parents=True)
    for identity in range(3):
        draw(identity, 0, 0, seed=0).save(at / "crops" / "sub" / f"{identity}.png")
    cfg.MODEL.WEIGHTS = str(at / "model.pth")
    return at, cfg, model.eval()


def predict(at, *args):
    command = [
        sys.executable,
        str(CONFIGS.parent / "tools" / "predict.py"),
        "--config-file",
        str(at / "config.yaml"),
        "--images",
        str(at / "crops"),
        *args,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_features_and_neighbours(trained, tmp_path):
    at, cfg, model = trained
    shutil.copy(at / "crops" / "sub" / "1.png", tmp_path / "query.png")
    done = predict(
        at, "--output", str(tmp_path / "f.npy"), "--query", str(tmp_path / "query.png"), "--neighbours", "2",
        "--picture", str(tmp_path / "new" / "found.png"), "MODEL.WEIGHTS", str(at / "model.pth"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    paths = (tmp_path / "f.txt").read_text().splitlines()
    assert paths == [str(at / "crops" / "sub" / f"{k}.png") for k in range(3)]
    features = np.load(tmp_path / "f.npy")
    assert np.allclose(features, image_features(cfg, model, paths), atol=1e-5)
    features_line, first, second, last = done.stdout.splitlines()[-4:]
    assert first.startswith("1\t1.0000\t") and first.endswith("1.png")  # the copy of the query
    assert (
        second.startswith("2\t")
        and last == f"2 neighbours of {tmp_path / 'query.png'} in {tmp_path / 'new' / 'found.png'}"
    )
    assert features_line.startswith("3 features of 128 values in ")
    assert Image.open(tmp_path / "new" / "found.png").width > 3 * 128


def test_a_query_of_the_folder_does_not_find_itself(trained, tmp_path):
    at, _, _ = trained
    query = at / "crops" / "sub" / "0.png"
    done = predict(
        at,
        "--query",
        str(query),
        "--picture",
        str(tmp_path / "p.png"),
        "MODEL.WEIGHTS",
        str(at / "model.pth"),
    )
    assert done.returncode == 0, done.stderr
    listed = [line.split("\t")[2] for line in done.stdout.splitlines() if "\t" in line]
    assert len(listed) == 2 and str(query) not in listed


@pytest.mark.parametrize(
    "args, status, message",
    [
        ((), 2, "nothing to do"),
        (("--query", "q.png", "--neighbours", "0"), 2, "--neighbours must be at least 1"),
        (("--output", "f.csv"), 2, "the file to write has to end in one of .npy"),
        (("--output", "f.npy"), 2, "a trained model is needed"),
    ],
)
def test_mistakes_are_said_in_a_line(trained, args, status, message):
    done = predict(trained[0], *args)
    assert done.returncode == status and message in done.stderr and "Traceback" not in done.stderr
