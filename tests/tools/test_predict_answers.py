"""tools/predict.py: galleries, folders of queries, thresholds and clusters, with a tiny network."""

import csv
import json

import numpy as np
import pytest
import torch
from tiny_reid import CONFIGS, TINY, draw, write_split

from fastreid_sskd.answers import read_gallery
from fastreid_sskd.engine import AdaptationTrainer, load_config

PEOPLE = 16
OPTS = ("SSKD.CLUSTER.K1", "8", "SSKD.CLUSTER.K2", "3", "SSKD.CLUSTER.PAIRS_PER_IMAGE", "3")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Weights of two models, their config, and crops of 16 people under two cameras in two folders."""
    at = tmp_path_factory.mktemp("made")
    cfg = load_config(str(CONFIGS / "sskd_d2m.yml"), [*TINY, "SSKD.NUM_PEERS", "1"])
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save({"model": AdaptationTrainer.build_model(cfg).state_dict()}, at / f"{seed}.pth")
    (at / "config.yaml").write_text(cfg.dump())
    write_split(at / "crops", range(PEOPLE), (0, 1), 4, seed=0)
    write_split(at / "later", range(PEOPLE, PEOPLE + 2), (0, 1), 1, seed=0)
    (at / "queries").mkdir()
    for who in (3, 5):
        draw(who, 1, 9, seed=0).save(at / "queries" / f"{who:04d}.png")
    return at


@pytest.fixture
def predict(run_tool, made, tmp_path, monkeypatch):
    """Run the tool in an empty folder: (*arguments, weights) -> code, out, err."""
    monkeypatch.chdir(tmp_path)

    def run(*args, weights="0.pth", images="crops"):
        of = ("--images", made / images) if images else ()
        config = ("--config-file", made / "config.yaml")
        return run_tool("predict", *map(str, (*config, *of, *args, "MODEL.WEIGHTS", made / weights, *OPTS)))

    return run


CAMERA = ("--camera", r"_c(\d+)")


def test_a_gallery_is_built_and_added_to(predict, made, tmp_path):
    assert "g.npz: 128 images, 128 new" in predict("--gallery", "g.npz", *CAMERA)[1]
    assert "g.npz: 132 images, 4 new" in predict("--gallery", "g.npz", images="later")[1]
    gallery = read_gallery("g.npz")
    assert len(gallery.paths) == 132 and set(gallery.cameras) == {"images_1", "images_2", ""}
    before = (tmp_path / "g.npz").read_bytes()
    query = ("--query", made / "queries" / "0003.png", "--neighbours", "3", "--threshold", "0.5")
    code, out, _ = predict("--gallery", "g.npz", *query, images=None)
    assert code == 0 and "g.npz: 132 images, 0 new" in out and (tmp_path / "neighbours.png").is_file()
    assert (tmp_path / "g.npz").read_bytes() == before
    ranked = [line.split("\t") for line in out.splitlines() if "\t" in line]
    assert [row[2] for row in ranked] == ["same"] * 3 and all("/0003_" in row[3] for row in ranked)
    code, _, err = predict("--gallery", "g.npz", images="later", weights="1.pth")
    assert code == 2 and "was made by another model" in err and (tmp_path / "g.npz").read_bytes() == before


def test_a_folder_of_queries_with_an_estimated_threshold(predict, made):
    code, out, err = predict(
        "--query", made / "queries", *CAMERA, "--false-match-rate", "0.01", "--rerank", "--matches", "m.csv"
    )
    assert code == 0, err
    assert "same person from cosine" in out and "pairs across cameras, estimated from 128 images" in out
    with open("m.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and [row["rank"] for row in rows[:10]] == [str(k) for k in range(1, 11)]
    assert len([line for line in out.splitlines() if "\t" in line]) == 20
    threshold = float(out.split("cosine ")[1].split()[0])
    assert all((row["person"] == "same") == (float(row["similarity"]) >= threshold) for row in rows)
    assert f"/{3:04d}_" in rows[0]["image"] and f"/{5:04d}_" in rows[10]["image"]


def test_features_outlive_what_is_refused_after_them(predict):
    code, _, err = predict("--output", "f.npz", "--false-match-rate", "1e-7")
    assert code == 2 and "pairs of different people" in err
    assert np.load("f.npz")["features"].shape[0] == 128


def test_clusters_as_folders_beside_features(predict, made, tmp_path):
    code, out, err = predict("--clusters", "clusters", "--copy", "--output", "f.npz")
    assert code == 0 and "clusters of 128 images" in out, err
    files = list((tmp_path / "clusters").glob("*/*"))
    assert len(files) == 128 and not any(file.is_symlink() for file in files)
    assert np.load("f.npz")["features"].shape[0] == 128


def test_an_export_carries_the_threshold(run_tool, predict, made, tmp_path):
    """In the graph's metadata, and the one that predict finds for the same images and teacher."""
    onnx = pytest.importorskip("onnx", reason='needs the extra onnx: pip install "fastreid-sskd[onnx]"')
    images = (
        "DATASETS.NAMES", "('CropFolder',)", "DATASETS.TESTS", "()",
        "SSKD.FOLDERS.CropFolder.TRAIN", made / "crops", "SSKD.FOLDERS.CropFolder.CAMERA", CAMERA[1],
    )  # fmt: skip
    given = ("--config-file", made / "config.yaml", "--format", "onnx", "--output", "m.onnx")
    opts = ("MODEL.WEIGHTS", made / "0.pth", *OPTS, *images)
    code, out, err = run_tool("export", *map(str, (*given, "--false-match-rate", "0.01", *opts)))
    assert code == 0, err
    said = {entry.key: entry.value for entry in onnx.load(str(tmp_path / "m.onnx")).metadata_props}
    found = json.loads(said["same_person"])
    assert found["false_match_rate"] == 0.01 and found["across_cameras"] and found["images"] == 128
    assert f"same person from cosine {found['similarity']:.4f}" in out
    assert f"cosine {found['similarity']:.4f}" in predict(*CAMERA, "--false-match-rate", "0.01")[1]


@pytest.mark.parametrize(
    "args, images, message",
    [
        (("--gallery", "g.npz"), None, "nothing to do"),
        (("--gallery", "g.npz", "--output", "f.npz"), None, "no file 'g.npz': give --images"),
        (("--gallery", "g.npy"), "crops", "has to end in .npz"),
        (("--gallery", "f.npz", "--output", "f.npz"), "crops", "are one file"),
        (("--gallery", "text.npz"), "crops", "no whole gallery file"),
        (("--clusters", "full"), "crops", "not an empty folder"),
        (("--clusters", "INSIDE"), "crops", "would be among the images of"),
        (("--query", "QUERIES", "--picture", "p.png"), "crops", "--picture is of one query"),
        (("--query", "QUERIES", "--matches", "m.txt"), "crops", "has to end in .csv"),
        (("--output", "f.npz", "--rerank"), "crops", "--rerank goes with --query"),
        (("--output", "f.npz", "--threshold", "0"), "crops", "--threshold goes with --query"),
        (("--query", "QUERIES", "--threshold", "1.5"), "crops", "cosine between -1 and 1"),
        (("--false-match-rate", "0"), "crops", "lies between 0 and 1"),
        (("--false-match-rate", "1e-7"), "crops", "needs 100,000,000 pairs of different people"),
        (("--false-match-rate", "0.1", "--camera", "_z"), "crops", "finds nothing in 128 of 128 paths"),
        (("--false-match-rate", "0.1", "--camera", "("), "crops", "no regular expression"),
    ],
)
def test_what_is_refused(predict, made, tmp_path, args, images, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "text.npz").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    folders = {"QUERIES": made / "queries", "INSIDE": made / "crops" / "clusters"}
    code, _, err = predict(*(folders.get(arg, arg) for arg in args), images=images)
    assert code == 2 and message in err and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before
