"""The command `python -m fastreid_sskd.clustering`: what it writes, and what it refuses in a line."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from dense_reference import crowd

from fastreid_sskd.clustering import pseudo_labels
from fastreid_sskd.clustering.__main__ import main, parse_arguments

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "cluster_a.npz"
SOME = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, caplog):
    """The working directory, with what is said there."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, logger="fastreid")


def command(options: str, features=None, out="labels.npy"):
    """The exit status of the command, and the labels that it wrote."""
    if features is not None:
        np.save("features.npy", features)
    status = main(["features.npy", "--out", out, *options.split()])
    return status, np.load(out) if status != 2 else None


def test_saves_labels_and_centroids_and_reports(caplog):
    golden = np.load(GOLDEN)
    np.save("identities.npy", golden["ids"])
    options = f"--centroids centroids.npy --eps {float(golden['eps'])} --identities identities.npy"
    status, labels = command(options, golden["features"])
    assert status == 0 and np.array_equal(labels, golden["labels"])
    np.testing.assert_allclose(np.load("centroids.npy"), golden["centroids"], rtol=0, atol=1e-5)
    assert "24 clusters of 324 images" in caplog.text
    assert "seconds: knn" in caplog.text and "NMI" in caplog.text


def test_all_noise_is_saved_and_fails(caplog):
    status, labels = command("--eps 1e-9 --min-samples 50", crowd(seed=1))
    assert status == 3 and (labels == -1).all() and "0 clusters at eps=1e-09" in caplog.text


def test_cameras_and_a_chosen_radius(caplog):
    features, cameras = crowd(seed=2, num_ids=20), np.arange(240) % 3
    np.save("cameras.npy", cameras)
    options = "--k1 12 --k2 4 --cameras cameras.npy --eps-rule largest --eps-radii 0.3"
    _, labels = command(f"{options} 0.4 --eps-largest-share 0.5", features)
    expected = pseudo_labels(features, k1=12, k2=4, eps=0.4, cameras=cameras)
    assert np.array_equal(labels, expected.labels) and "the radius by the rule largest" in caplog.text
    assert not np.array_equal(expected.labels, pseudo_labels(features, k1=12, k2=4, eps=0.4).labels)
    assert command(options)[0] == 2  # one radius is none to choose


@pytest.mark.parametrize("options, given", [
    ("--k1 9 --k2 3 --variant faiss --pairs-per-image 3 --min-samples 3 --knn torch",
     {"k1": 9, "k2": 3, "variant": "faiss", "pairs_per_image": 3, "min_samples": 3}),
    ("--method kmeans --num-clusters 15 --seed 3", {"method": "kmeans", "num_clusters": 15, "seed": 3}),
    ("--method hdbscan --k1 9", {"method": "hdbscan", "k1": 9}),
])  # fmt: skip
def test_options_reach_the_refresh(options, given):
    features = crowd(seed=3, num_ids=20, dim=40)
    status, labels = command(options, features)
    assert status == 0 and np.array_equal(labels, pseudo_labels(features, **given).labels)


def test_an_approximate_search_and_a_bound(caplog):
    search = "--knn reduced --reduced-dim 10 --min-recall 0.5 --rho 0.05 --eps-max 0.05"
    command(search, crowd(seed=3, num_ids=20, dim=40))
    assert "k-NN 'reduced': recall at 21" in caplog.text and "0.0500 is used" in caplog.text


def test_one_way_to_set_the_radius(capsys):
    files = ["f.npy", "--out", "l.npy"]
    assert not hasattr(parse_arguments(files), "rho")
    given = parse_arguments([*files, "--eps", "0.5"])
    assert given.eps == 0.5 and not hasattr(given, "rho") and not hasattr(given, "pairs_per_image")
    with pytest.raises(SystemExit):
        parse_arguments([*files, "--eps", "0.5", "--rho", "0.1"])
    with pytest.raises(SystemExit):
        parse_arguments([*files, "--method", "kmeans", "--eps", "0.5"])
    assert "--method kmeans has no radius" in capsys.readouterr().err
    parse_arguments([*files, "--method", "hdbscan"])


@pytest.mark.parametrize(
    "array, options, message",
    [
        (None, "", "No such file"),
        (np.zeros(5, np.float32), "", "features must be (N, d)"),
        (np.ones((1, 4), np.float32), "", "at least 2 images, got 1"),
        (SOME, "--k1 0", "--k1 must be a number of images >= 1; got 0"),
        (SOME, "--rho 1e-9", "rounds to 0 pairs: raise --rho or --pairs-per-image, or set --eps"),
        (SOME, "--method kmeans", "set --num-clusters"),
        (SOME, "--identities features.npy", "one for each image, got (30, 8) for features (30, 8)"),
        (SOME, "--cameras features.npy", "--cameras has to give one for each image, got (30, 8) for"),
        (SOME, "--identities .", "."),
        (SOME, "--centroids features.npy/c.npy", "'features.npy/c.npy' cannot be written"),
        (SOME, "--centroids labels.npy", "--out and --centroids are both labels.npy"),
        (SOME, "--out features.npy", "'features.npy' is read by this command"),
        (np.array([{}]), "", "features.npy is not a whole .npy or .npz file of numbers"),
        (SOME, "--out .", "has to end in .npy; got '.'"),
        (SOME, "--out labels", "has to end in .npy; got 'labels'"),
        (np.float32(1), "", "features must be (N, d)"),
        (SOME, "--device gpu", "device"),
    ],
)
def test_mistakes_are_said_in_a_line_with_the_options_names(caplog, array, options, message):
    assert command(options, array)[0] == 2
    said = caplog.records[-1].getMessage()
    assert message in said and "SSKD." not in said
    assert os.listdir() == ([] if array is None else ["features.npy"])
    assert array is None or np.array_equal(np.load("features.npy", allow_pickle=True), array)


@pytest.mark.parametrize("given", ["--identities", "--cameras"])
def test_other_inputs_that_are_refused(caplog, given):
    """An image without a name; and no input is overwritten."""
    np.save("names.npy", np.where(np.arange(30) % 20 == 5, np.nan, np.arange(30) % 2))
    before = Path("names.npy").read_bytes()
    assert command(f"{given} names.npy", SOME)[0] == 2
    assert f"{given} is NaN for 2 of 30 images (first: row 5)" in caplog.text
    assert command(f"{given} names.npy", out="names.npy")[0] == 2
    assert "is read by this command" in caplog.text and Path("names.npy").read_bytes() == before
    assert sorted(os.listdir()) == ["features.npy", "names.npy"]


@pytest.mark.parametrize(
    "name, content", [("f.npy", b""), ("f.npy", b"text"), ("f.npz", b"PK\x03\x04 and no more")]
)
def test_files_that_are_not_whole(tmp_path, caplog, name, content):
    (tmp_path / name).write_bytes(content)
    assert main([name, "--out", "l.npy"]) == 2
    assert f"{name} is not a whole .npy or .npz file" in caplog.text and "unsafe" not in caplog.text


def test_warnings_name_the_options_too(caplog):
    """The default share of all pairs is made for as many images as the paper's data sets have."""
    command("", crowd(seed=1))
    assert "--pairs-per-image or --eps say the same at any size" in caplog.text and "SSKD." not in caplog.text


def test_features_of_a_prediction(caplog):
    """The .npz that --predict writes; the folder of the output is made."""
    features = crowd(seed=2)
    np.savez("features.npz", features=features, paths=np.array(["a.jpg"] * len(features)))
    assert main(["features.npz", "--out", "new/l.npy", "--pairs-per-image", "3"]) == 0
    _, labels = command("--pairs-per-image 3", features)
    assert np.array_equal(labels, np.load("new/l.npy")) and labels.max() > 0
    assert os.listdir("new") == ["l.npy"]
    np.savez("other.npz", rows=features)
    assert main(["other.npz", "--out", "l.npy"]) == 2
    assert "no array 'features', only rows" in caplog.text


def test_folder_as_output(caplog):
    """Whatever it is called."""
    os.mkdir("l.npy")
    assert command("", SOME, out="l.npy")[0] == 2
    assert "l.npy' is a folder" in caplog.text and os.listdir("l.npy") == []
