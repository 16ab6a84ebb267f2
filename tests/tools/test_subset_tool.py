"""tools/make_subset.py: links to the images of the first identities, and nothing half made."""

import os

from tiny_reid import MARKET


def test_first_identities_with_query_and_gallery_whole(run_tool, world, tmp_path):
    code, out, _ = run_tool("make_subset", "--source", world / MARKET, "--output", tmp_path / "sub", "--identities", 2)
    assert code == 0
    for split in ("query", "bounding_box_test"):
        assert sorted(os.listdir(tmp_path / "sub" / split)) == sorted(os.listdir(world / MARKET / split))
    train = sorted(os.listdir(tmp_path / "sub" / "bounding_box_train"))
    assert train == [name for name in sorted(os.listdir(world / MARKET / "bounding_box_train")) if name[:4] in ("0001", "0002")]
    assert f"bounding_box_train: {len(train)} images" in out
    assert (tmp_path / "sub" / "query" / os.listdir(tmp_path / "sub" / "query")[0]).read_bytes()


def test_any_ending_and_no_hidden_file(run_tool, world, tmp_path):
    source = tmp_path / MARKET
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        (source / split).mkdir(parents=True)
        for name in ("0001_c1s1_0.JPG", "0002_c10s1_0.png", "._0001_c1s1_0.JPG", "Thumbs.db"):
            (source / split / name).touch()
    code, _, err = run_tool("make_subset", "--source", source, "--output", tmp_path / "sub", "--identities", 2)
    assert code == 0, err
    assert sorted(os.listdir(tmp_path / "sub" / "bounding_box_train")) == ["0001_c1s1_0.JPG", "0002_c10s1_0.png"]


def test_refusals(run_tool, world, tmp_path):
    source = ("--source", world / MARKET)
    for args, message in (
        ((*source, "--output", tmp_path / "sub", "--identities", 7), "must be 1 to 6, got 7"),
        ((*source, "--output", tmp_path, "--identities", 2), "is there already"),
        ((*source, "--output", __file__ + "/sub", "--identities", 2), "a file is in its place"),
        ((*source, "--output", world / MARKET / "query" / "sub", "--identities", 2), "is inside --source"),
        (("--source", world, "--output", tmp_path / "sub", "--identities", 2), "has no bounding_box_train"),
    ):
        code, _, err = run_tool("make_subset", *args)
        assert code == 2 and message in err and not (tmp_path / "sub").exists()
