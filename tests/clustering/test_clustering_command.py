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


def test_saves_labels_and_centroids_and_reports(tmp_path, caplog):
    golden = np.load(GOLDEN)
    for name, key in (("features", "features"), ("identities", "ids")):
        np.save(tmp_path / f"{name}.npy", golden[key])
    paths = {
        name: str(tmp_path / f"{name}.npy") for name in ("features", "labels", "centroids", "identities")
    }
    with caplog.at_level(logging.INFO, logger="fastreid"):
        status = main(
            [paths["features"], "--out", paths["labels"], "--centroids", paths["centroids"], "--eps"]
            + [str(float(golden["eps"])), "--identities", paths["identities"]]
        )
    assert status == 0
    assert np.array_equal(np.load(paths["labels"]), golden["labels"])
    np.testing.assert_allclose(np.load(paths["centroids"]), golden["centroids"], rtol=0, atol=1e-5)
    assert "24 clusters of 324 images" in caplog.text
    assert "seconds: knn" in caplog.text and "NMI" in caplog.text


def test_all_noise_is_saved_and_fails(tmp_path, caplog):
    np.save(tmp_path / "features.npy", crowd(seed=1))
    status = main(
        [
            str(tmp_path / "features.npy"),
            "--out",
            str(tmp_path / "labels.npy"),
            "--eps",
            "1e-9",
            "--min-samples",
            "50",
        ]
    )
    assert status == 3
    assert (np.load(tmp_path / "labels.npy") == -1).all()
    assert "0 clusters at eps=1e-09" in caplog.text


def test_cameras_and_a_chosen_radius(tmp_path, caplog):
    features, cameras = crowd(seed=2, num_ids=20), np.arange(240) % 3
    np.save(tmp_path / "features.npy", features)
    np.save(tmp_path / "cameras.npy", cameras)
    options = ["--k1", "12", "--k2", "4", "--cameras", str(tmp_path / "cameras.npy"), "--eps-rule", "largest"]
    with caplog.at_level(logging.INFO, logger="fastreid"):
        main([str(tmp_path / "features.npy"), "--out", str(tmp_path / "labels.npy"), *options, "--eps-radii", "0.3", "0.4",
              "--eps-largest-share", "0.5"])  # fmt: skip
    expected = pseudo_labels(features, k1=12, k2=4, eps=0.4, cameras=cameras)
    assert np.array_equal(np.load(tmp_path / "labels.npy"), expected.labels) and "the radius by the rule largest" in caplog.text
    assert not np.array_equal(expected.labels, pseudo_labels(features, k1=12, k2=4, eps=0.4).labels)
    assert main([str(tmp_path / "features.npy"), "--out", str(tmp_path / "labels.npy"), *options, "--eps-radii", "0.3"]) == 2


def test_options_reach_the_refresh(tmp_path):
    features = crowd(seed=2)
    np.save(tmp_path / "features.npy", features)
    options = ["--k1", "9", "--k2", "3", "--variant", "faiss", "--pairs-per-image", "3", "--min-samples", "3"]
    main([str(tmp_path / "features.npy"), "--out", str(tmp_path / "labels.npy"), *options, "--knn", "torch"])
    expected = pseudo_labels(features, k1=9, k2=3, variant="faiss", pairs_per_image=3, min_samples=3)
    assert np.array_equal(np.load(tmp_path / "labels.npy"), expected.labels)


def test_one_way_to_set_the_radius():
    assert parse_arguments(["f.npy", "--out", "l.npy"]).rho == 1.6e-3
    given = parse_arguments(["f.npy", "--out", "l.npy", "--eps", "0.5"])
    assert (given.eps, given.rho, given.pairs_per_image) == (0.5, None, None)
    with pytest.raises(SystemExit):
        parse_arguments(["f.npy", "--out", "l.npy", "--eps", "0.5", "--rho", "0.1"])


def test_other_methods_and_searches(tmp_path, caplog):
    features = crowd(seed=3, num_ids=20, dim=40)
    np.save(tmp_path / "features.npy", features)
    paths = [str(tmp_path / "features.npy"), "--out", str(tmp_path / "labels.npy")]

    assert main([*paths, "--method", "kmeans", "--num-clusters", "15", "--seed", "3"]) == 0
    expected = pseudo_labels(features, method="kmeans", num_clusters=15, seed=3)
    assert np.array_equal(np.load(tmp_path / "labels.npy"), expected.labels)

    assert main([*paths, "--method", "hdbscan", "--k1", "9"]) == 0
    expected = pseudo_labels(features, method="hdbscan", k1=9)
    assert np.array_equal(np.load(tmp_path / "labels.npy"), expected.labels)

    with caplog.at_level(logging.INFO, logger="fastreid"):
        search = ["--knn", "reduced", "--reduced-dim", "10", "--min-recall", "0.5"]
        main([*paths, *search, "--rho", "0.05", "--eps-max", "0.05"])
    assert "k-NN 'reduced': recall at 21" in caplog.text and "0.0500 is used" in caplog.text


def test_a_radius_for_a_method_without_one(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["f.npy", "--out", "l.npy", "--method", "kmeans", "--eps", "0.5"])
    assert "--method kmeans has no radius" in capsys.readouterr().err
    given = parse_arguments(["f.npy", "--out", "l.npy", "--method", "hdbscan"])
    assert given.eps is given.rho is given.pairs_per_image is None


@pytest.mark.parametrize(
    "array, options, message",
    [
        (None, (), "No such file"),
        (np.zeros(5, np.float32), (), "features must be (N, d)"),
        (np.ones((1, 4), np.float32), (), "at least 2 images, got 1"),
        (SOME, ("--k1", "0"), "got k1=0, k2=6: see --k1 and --k2"),
        (SOME, ("--rho", "1e-9"), "rounds to 0 pairs: raise --rho or --pairs-per-image, or set --eps"),
        (SOME, ("--method", "kmeans"), "set --num-clusters"),
        (SOME, ("--identities", "features.npy"), "one for each image, got (30, 8) for features (30, 8)"),
        (SOME, ("--cameras", "features.npy"), "--cameras has to give one for each image, got (30, 8) for features (30, 8)"),
        (SOME, ("--identities", "."), "."),
        (SOME, ("--centroids", "features.npy/c.npy"), "'features.npy/c.npy' cannot be written"),
        (SOME, ("--centroids", "labels.npy"), "--out and --centroids are both labels.npy"),
        (SOME, ("--out", "features.npy"), "'features.npy' is read by this command"),
        (np.array([{}]), (), "features.npy is not a whole .npy or .npz file of numbers"),
        (SOME, ("--out", "."), "has to end in .npy; got '.'"),
        (SOME, ("--out", "labels"), "has to end in .npy; got 'labels'"),
        (np.float32(1), (), "features must be (N, d)"),
        (SOME, ("--device", "gpu"), "device"),
    ],
)
def test_mistakes_are_said_in_a_line_with_the_options_names(tmp_path, monkeypatch, caplog, array, options, message):
    monkeypatch.chdir(tmp_path)
    if array is not None:
        np.save("features.npy", array)
    assert main(["features.npy", "--out", "labels.npy", *options]) == 2
    said = caplog.records[-1].getMessage()
    assert message in said and "SSKD." not in said
    assert os.listdir() == ([] if array is None else ["features.npy"])
    assert array is None or np.array_equal(np.load("features.npy", allow_pickle=True), array)


@pytest.mark.parametrize("given", ["--identities", "--cameras"])
def test_an_image_without_a_name_is_refused(tmp_path, caplog, given):
    np.save(tmp_path / "features.npy", SOME)
    np.save(tmp_path / "names.npy", np.where(np.arange(30) % 20 == 5, np.nan, np.arange(30) % 2))
    assert main([str(tmp_path / "features.npy"), "--out", str(tmp_path / "l.npy"), given, str(tmp_path / "names.npy")]) == 2
    assert f"{given} is NaN for 2 of 30 images (first: row 5)" in caplog.text and not (tmp_path / "l.npy").exists()


@pytest.mark.parametrize("given", ["--identities", "--cameras"])
def test_no_other_input_is_overwritten(tmp_path, caplog, given):
    features, other = str(tmp_path / "features.npy"), str(tmp_path / "other.npy")
    np.save(features, SOME)
    np.save(other, np.arange(len(SOME)) % 2)
    assert main([features, "--out", other, given, other]) == 2
    assert "is read by this command" in caplog.text and np.array_equal(np.load(other), np.arange(len(SOME)) % 2)


@pytest.mark.parametrize("name, content", [("f.npy", b""), ("f.npy", b"text"), ("f.npz", b"PK\x03\x04 and no more")])
def test_files_that_are_not_whole(tmp_path, caplog, name, content):
    (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path / name), "--out", str(tmp_path / "l.npy")]) == 2
    assert f"{name} is not a whole .npy or .npz file" in caplog.text and "unsafe" not in caplog.text


def test_warnings_name_the_options_too(tmp_path, caplog):
    """The default share of all pairs is made for as many images as the paper's data sets have."""
    np.save(tmp_path / "features.npy", crowd(seed=1))
    main([str(tmp_path / "features.npy"), "--out", str(tmp_path / "l.npy")])
    assert "--pairs-per-image or --eps say the same at any size" in caplog.text and "SSKD." not in caplog.text


def test_features_of_a_prediction(tmp_path, caplog):
    """The .npz that --predict writes."""
    features = crowd(seed=2)
    np.savez(tmp_path / "features.npz", features=features, paths=np.array(["a.jpg"] * len(features)))
    np.save(tmp_path / "features.npy", features)
    for name in ("features.npz", "features.npy"):
        main([str(tmp_path / name), "--out", str(tmp_path / f"{name}.labels.npy"), "--pairs-per-image", "3"])
    labels = [np.load(tmp_path / f"features.{kind}.labels.npy") for kind in ("npz", "npy")]
    assert np.array_equal(*labels) and labels[0].max() > 0
    np.savez(tmp_path / "other.npz", rows=features)
    assert main([str(tmp_path / "other.npz"), "--out", str(tmp_path / "l.npy")]) == 2
    assert "no array 'features', only rows" in caplog.text


def test_folder_of_the_output_is_made(tmp_path):
    np.save(tmp_path / "features.npy", crowd(seed=2))
    assert main([str(tmp_path / "features.npy"), "--out", str(tmp_path / "new" / "l.npy"), "--pairs-per-image", "3"]) == 0
    assert os.listdir(tmp_path / "new") == ["l.npy"] and np.load(tmp_path / "new" / "l.npy").max() > 0


def test_folder_as_output(tmp_path, caplog):
    """Whatever it is called."""
    np.save(tmp_path / "features.npy", SOME)
    (tmp_path / "l.npy").mkdir()
    assert main([str(tmp_path / "features.npy"), "--out", str(tmp_path / "l.npy")]) == 2
    assert "l.npy' is a folder" in caplog.text and not os.listdir(tmp_path / "l.npy") and len(os.listdir(tmp_path)) == 2
