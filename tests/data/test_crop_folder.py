"""Folders of crops: what their paths say, and what is refused."""

import logging
import os
import shutil

import pytest
import torch
from fastreid.data.datasets import DATASET_REGISTRY
from tiny_reid import (
    CONFIGS,
    DUKE,
    MARKET,
    TINY,
    TINY_SOURCE,
    TINY_TARGET,
    load_checkpoint,
    tiny_adaptation,
)

from fastreid_sskd.data import CropFolder, SourceLoader, training_items
from fastreid_sskd.data.datasets import folder_class, image_paths
from fastreid_sskd.data.datasets import test_items as query_and_gallery
from fastreid_sskd.engine import AdaptationTrainer, load_config, run, source_config
from fastreid_sskd.evaluation.peers import evaluate_peers

FIRST_FOLDER = "^([^/]+)/"


@pytest.fixture
def tree(tmp_path):
    """Makes files below a folder of data sets; returns that folder."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"not looked into")
        return str(tmp_path)

    return make


def open_folder(root, **settings):
    return folder_class("site", settings)(root=root)


# ---- training images ---------------------------------------------------------------------------------------------


def test_any_tree_without_identities_and_cameras(tree):
    root = tree("crops/b/x.jpg", "crops/a.PNG", "crops/b/deep/y.webp", "crops/notes.txt", "crops/.hidden.jpg", "crops/.t/z.jpg")
    train = open_folder(root, TRAIN="crops").train
    assert [os.path.relpath(item[0], root) for item in train] == ["crops/a.PNG", "crops/b/deep/y.webp", "crops/b/x.jpg"]
    assert {item[1] for item in train} == {None} and len({item[2] for item in train}) == 1


def test_cameras_from_folders(tree):
    root = tree("crops/north gate/x.jpg", "crops/hall/day 1/y.jpg", "crops/hall/day 2/y.jpg")
    cameras = [item[2] for item in open_folder(root, TRAIN="crops", CAMERA=FIRST_FOLDER).train]
    assert cameras == ["site_hall", "site_hall", "site_north gate"]


def test_group_or_whole_match(tree):
    root = tree("crops/0002_c1s1.jpg", "crops/0007_c3s2.jpg")
    for rule, expected in ((r"_c(\d)", ["site_1", "site_3"]), (r"c\d", ["site_c1", "site_c3"])):
        assert [item[2] for item in open_folder(root, TRAIN="crops", CAMERA=rule).train] == expected


def test_identities_in_training_are_prefixed(tree):
    train = open_folder(tree("crops/0002_a.jpg"), TRAIN="crops", IDENTITY=r"^(\d+)_").train
    assert train[0][1] == "site_0002"


def test_training_images_need_no_identity(tree):
    """The expression is for query and gallery; where it finds one in training, that is for diagnostics."""
    train = open_folder(tree("crops/0002_a.jpg", "crops/x.jpg"), TRAIN="crops", IDENTITY=r"^(\d+)_").train
    assert [item[1] for item in train] == ["site_0002", None]


def test_the_rule_sees_the_path_below_the_folder_only(tree):
    root = tree("cam9/crops/cam1/x.jpg")
    assert open_folder(root, TRAIN="cam9/crops", CAMERA=r"cam(\d)").train[0][2] == "site_1"


def test_absolute_folder(tree, tmp_path):
    tree("elsewhere/x.jpg")
    data = open_folder("nowhere", TRAIN=str(tmp_path / "elsewhere"))
    assert data.train[0][0] == str(tmp_path / "elsewhere" / "x.jpg")


def test_the_group_that_takes_part(tree):
    train = open_folder(tree("crops/cam2/x.jpg", "crops/x_c1.jpg"), TRAIN="crops", CAMERA=r"cam(\d)|_c(\d)").train
    assert [item[2] for item in train] == ["site_2", "site_1"]


@pytest.mark.parametrize("rule", [r"_c(\d)", r"_c(\d)?x", r"_c(\d*)x"])
def test_path_without_a_camera_is_named(tree, rule):
    root = tree("crops/a_c1x.jpg", "crops/b_cx.jpg", "crops/d_cx.jpg")
    with pytest.raises(ValueError, match=r"SSKD.FOLDERS.site.CAMERA .*2 of 3 paths \(first: 'b_cx.jpg'\)"):
        open_folder(root, TRAIN="crops", CAMERA=rule)


def test_not_a_regular_expression(tree):
    with pytest.raises(ValueError, match=r"SSKD.FOLDERS.site.CAMERA '\(' is no regular expression"):
        open_folder(tree("crops/a.jpg"), TRAIN="crops", CAMERA="(")


def test_missing_and_empty_folders(tree, tmp_path):
    root = tree("crops/notes.txt")
    with pytest.raises(FileNotFoundError, match="SSKD.FOLDERS.site.TRAIN: .*none.*FASTREID_DATASETS"):
        open_folder(root, TRAIN="none")
    with pytest.raises(ValueError, match="no image below"):
        open_folder(root, TRAIN="crops")
    (tmp_path / "one.jpg").touch()
    with pytest.raises(FileNotFoundError):
        image_paths(str(tmp_path / "one.jpg"))


def test_unknown_settings():
    with pytest.raises(ValueError, match="SSKD.FOLDERS.site.TRIAN = 'x'.*TRAIN, QUERY"):
        folder_class("site", {"TRIAN": "x"})
    with pytest.raises(ValueError, match="SSKD.FOLDERS.site.CAMERA = 3"):
        folder_class("site", {"CAMERA": 3})
    with pytest.raises(TypeError, match="SSKD.FOLDERS.site must be a node"):
        folder_class("site", "crops")


# ---- query and gallery -------------------------------------------------------------------------------------------

LABELLED = {"QUERY": "q", "GALLERY": "g", "IDENTITY": r"^([a-z]+)\d"}


def test_query_and_gallery_share_numbers(tree):
    root = tree("q/bo1_c2.jpg", "g/ann1_c1.jpg", "g/bo2_c1.jpg", "g/0000_c2.jpg")
    data = open_folder(root, **LABELLED, CAMERA=r"_c(\d)")
    assert [item[1:] for item in data.query] == [(1, 1)]
    assert {os.path.basename(item[0]): item[1:] for item in data.gallery} == {
        "ann1_c1.jpg": (0, 0), "bo2_c1.jpg": (1, 0), "0000_c2.jpg": (-1, 1),
    }  # fmt: skip
    assert data.train == []


def test_without_cameras_nothing_is_left_out(tree):
    data = open_folder(tree("q/bo1.jpg", "g/bo1.jpg", "g/ann1.jpg"), **LABELLED)
    assert {item[2] for item in data.query} == {0} and {item[2] for item in data.gallery} == {1}


def test_without_cameras_a_query_must_not_find_itself(tree, tmp_path):
    root = tree("q/bo1.jpg", "g/ann1.jpg")
    os.symlink(tmp_path / "q" / "bo1.jpg", tmp_path / "g" / "bo1.jpg")
    with pytest.raises(ValueError, match="1 images are in query and gallery both.*bo1.jpg"):
        open_folder(root, **LABELLED)
    assert len(open_folder(root, **LABELLED, CAMERA="o|n").gallery) == 2  # with cameras the protocol leaves it out


@pytest.mark.parametrize("missing", ["QUERY", "GALLERY", "IDENTITY"])
def test_query_gallery_and_identities_go_together(tree, missing):
    with pytest.raises(ValueError, match=f"SSKD.FOLDERS.site.*{missing}"):
        open_folder(tree("q/bo1.jpg", "g/bo2.jpg"), **{**LABELLED, missing: ""})


def test_queries_need_an_identity_and_the_gallery_at_least_one(tree):
    with pytest.raises(ValueError, match="IDENTITY .*1 of 2 paths .first: '77.jpg'"):
        open_folder(tree("q/77.jpg", "q/bo1.jpg", "g/bo2.jpg"), **LABELLED)
    with pytest.raises(ValueError, match="IDENTITY .*1 of 1 paths .first: '88.jpg'"):
        open_folder(tree("w/bo1.jpg", "h/88.jpg"), **{**LABELLED, "QUERY": "w", "GALLERY": "h"})


MARKET_NAMES = {"QUERY": "q", "GALLERY": "g", "IDENTITY": r"^(\d+)_", "CAMERA": r"_c(\d+)"}


@pytest.mark.parametrize("identity", [r"^(\d+)_", r"^(-?\d+)_", r"^([-\d]+)_c"])
def test_junk_takes_no_place_and_distractors_do(tree, identity, caplog):
    """Market-1501's -1 are detections of nobody, its 0000 are people whom no query shows."""
    caplog.set_level(logging.INFO, logger="fastreid.sskd")
    names = ("g/0002_c2s1.jpg", "g/-1_c2s1.jpg", "g/sub/-1_c3s1.jpg", "g/0000_c2s1.jpg", "g/-10_c1s1.jpg")
    root = tree("q/0002_c1s1.jpg", "q/-1_c1s1.jpg", *names)
    data = open_folder(root, **{**MARKET_NAMES, "IDENTITY": identity})
    assert [os.path.basename(item[0]) for item in data.query] == ["0002_c1s1.jpg"]
    assert [os.path.basename(item[0]) for item in data.gallery] == ["-10_c1s1.jpg", "0000_c2s1.jpg", "0002_c2s1.jpg"]
    assert "1 query and 2 gallery images are junk by SSKD.FOLDERS.site.JUNK" in caplog.text
    assert "1 query and 3 gallery images, 2 of these of people whom no query shows" in caplog.text


def test_a_rule_of_ones_own_for_junk(tree):
    root = tree("q/0002_c1s1.jpg", "g/0002_c2s1.jpg", "g/-1_c2s1.jpg", "g/junk/0003_c2s1.jpg")

    def gallery(**rule):
        return [os.path.relpath(item[0], root) for item in open_folder(root, **MARKET_NAMES, **rule).gallery]

    assert gallery(JUNK="") == ["g/0002_c2s1.jpg", "g/junk/0003_c2s1.jpg"]
    assert gallery(JUNK="^junk/") == ["g/-1_c2s1.jpg", "g/0002_c2s1.jpg"]
    assert len(gallery(JUNK="(?!)")) == 3
    with pytest.raises(ValueError, match=r"SSKD.FOLDERS.site.JUNK '\[' is no regular expression"):
        gallery(JUNK="[")


def test_junk_has_no_identity_in_training(tree):
    root = tree("crops/-1_a.jpg", "crops/0002_a.jpg")
    train = open_folder(root, TRAIN="crops", IDENTITY=r"^(-?\d+)_").train
    assert [item[1] for item in train] == [None, "site_0002"]


# ---- through the config ------------------------------------------------------------------------------------------


@pytest.fixture
def crops(world, tmp_path, monkeypatch):
    """The tiny target's images in folders of cameras with names that say nothing, and its test images."""
    root = tmp_path / "root"
    for number, path in enumerate(sorted((world / MARKET / "bounding_box_train").iterdir())):
        at = root / "crops" / f"cam{path.name.split('_c')[1][0]}"
        at.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, at / f"{number * 37 % 101:03d}.jpg")
    for split, name in (("query", "q"), ("bounding_box_test", "g")):
        shutil.copytree(world / MARKET / split, root / name)
    shutil.copytree(world / DUKE, root / DUKE)
    shutil.copytree(world / MARKET, root / MARKET)
    monkeypatch.setenv("FASTREID_DATASETS", str(root))
    return root


FOLDER = ("DATASETS.NAMES", "('CropFolder',)", "DATASETS.TESTS", "()", "SSKD.FOLDERS.CropFolder.TRAIN", "crops")
TEST = (
    "DATASETS.TESTS", "('CropFolder',)", "SSKD.FOLDERS.CropFolder.QUERY", "q", "SSKD.FOLDERS.CropFolder.GALLERY", "g",
    "SSKD.FOLDERS.CropFolder.IDENTITY", r"^(\d+)_",
)  # fmt: skip


def test_no_folder_named(crops):
    cfg = load_config("", ["DATASETS.NAMES", "('CropFolder',)"])
    with pytest.raises(ValueError, match="no training images: set SSKD.FOLDERS.CropFolder.TRAIN"):
        training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS)
    with pytest.raises(ValueError, match="0 query"):
        query_and_gallery("CropFolder", cfg.SSKD.FOLDERS)


def test_further_folders_by_name(crops, tmp_path):
    config = tmp_path / "two.yml"
    config.write_text(
        "DATASETS: {NAMES: ['one', 'two']}\nSSKD:\n  FOLDERS:\n    one: {TRAIN: crops/cam1, CAMERA: '^(.)'}\n"
        "    two: {TRAIN: crops/cam1, CAMERA: '^(.)', IDENTITY: '^(..)'}\n"
    )
    cfg = load_config(str(config), ["SSKD.FOLDERS.two.TRAIN", "crops/cam2"])
    items = training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS)
    one, two = items[:24], items[24:]
    assert {item[1] for item in one} == {None} and all(item[1].startswith("two:two_") for item in two)
    assert not {item[2] for item in one} & {item[2] for item in two}
    assert "/cam1/" in one[0][0] and "/cam2/" in two[0][0]


def test_folders_survive_the_written_config(crops, tmp_path):
    cfg = tiny_adaptation(tmp_path, *FOLDER, "SSKD.FOLDERS.CropFolder.CAMERA", r"(\d+)\.")
    (tmp_path / "again.yml").write_text(cfg.dump())
    assert load_config(str(tmp_path / "again.yml")).SSKD.FOLDERS == cfg.SSKD.FOLDERS


def test_source_and_target_may_both_be_folders(crops, tmp_path):
    """The source stage gets the target's folders beside its own; one name for two folders is refused."""
    source = tmp_path / "source.yml"
    node = "{TRAIN: labelled, IDENTITY: '^(..)'}"
    source.write_text(
        "MODEL: {META_ARCHITECTURE: SSKDSource}\nDATASETS: {NAMES: ['shop'], TESTS: []}\n"
        f"SSKD:\n  FOLDERS: {{shop: {node}}}\n  SOURCE: {{BN_DATASETS: ['CropFolder']}}\n"
    )
    cfg = load_config(str(CONFIGS / "sskd_crops.yml"), ["SSKD.SOURCE.CONFIG", str(source)])
    folders = source_config(cfg, 0).SSKD.FOLDERS
    assert folders.shop.TRAIN == "labelled" and folders.CropFolder.TRAIN == "crops"
    source.write_text(source.read_text().replace("shop", "CropFolder"))
    with pytest.raises(ValueError, match="SSKD.FOLDERS.CropFolder is one folder in .*source.yml and another"):
        source_config(cfg, 0)


def test_a_source_needs_identities(crops, tmp_path):
    cfg = tiny_adaptation(tmp_path, *FOLDER)
    with pytest.raises(ValueError, match="a source needs identities.*crops.*IDENTITY"):
        SourceLoader(cfg, seed=0)


def test_one_registered_in_five_lines(crops, monkeypatch):
    monkeypatch.setattr(DATASET_REGISTRY, "_obj_map", dict(DATASET_REGISTRY._obj_map))

    @DATASET_REGISTRY.register()
    class MySite(CropFolder):
        train_folder, query_folder, gallery_folder = f"{MARKET}/bounding_box_train", "q", "g"
        identity, camera = r"^(\d+)_", r"_c(\d+)"
        dataset_name = "my_site"

    ours, hosts = training_items(["MySite"]), training_items(["Market1501"])
    assert [item[0] for item in ours] == [item[0] for item in hosts]
    for place in (1, 2):  # the same partition under other names
        pairs = {(mine[place], theirs[place]) for mine, theirs in zip(ours, hosts)}
        assert len(pairs) == len({mine for mine, _ in pairs}) == len({theirs for _, theirs in pairs})
    ours, hosts = query_and_gallery("MySite"), query_and_gallery("Market1501")
    assert [len(part) for part in ours] == [len(part) for part in hosts]


def test_adapts_without_cameras_labels_and_test_set(crops, tmp_path, caplog):
    """Both stages by the config that ships, then again from the source models: no evaluation, no diagnostics."""
    caplog.set_level(logging.INFO, logger="fastreid.sskd")
    source = [*TINY_SOURCE[len(TINY):], "SOLVER.MAX_EPOCH", "1"]
    opts = [*TINY_TARGET, "SSKD.SOURCE.OPTS", str(source), "TEST.EVAL_PERIOD", "1"]
    assert run(load_config(str(CONFIGS / "sskd_crops.yml"), [*opts, "OUTPUT_DIR", str(tmp_path / "both")])) == {}
    weights = [str(tmp_path / "both" / "source" / f"peer{k}" / "model_best.pth") for k in range(2)]
    again = [*opts, "SSKD.SOURCE.WEIGHTS", str(weights), "OUTPUT_DIR", str(tmp_path / "second")]
    assert run(load_config(str(CONFIGS / "sskd_crops.yml"), again)) == {}

    for output in (tmp_path / "both", tmp_path / "second"):
        assert os.path.exists(output / "model_final.pth") and not os.path.exists(output / "model_best.pth")
        metrics = (output / "metrics.json").read_text()
        assert "refresh/clusters" in metrics and "diagnostics" not in metrics
    assert "nothing is evaluated" in caplog.text
    first, second = (load_checkpoint(at / "model_final.pth")["model"] for at in (tmp_path / "both", tmp_path / "second"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_evaluates_on_its_own_query_and_gallery(crops, tmp_path):
    """The same images as Market-1501's give the same figures, and training does not see the identities."""
    cfg = tiny_adaptation(tmp_path / "out", *FOLDER, *TEST, "SSKD.FOLDERS.CropFolder.CAMERA", r"_c(\d)|cam(\d)")
    model = AdaptationTrainer.build_model(cfg)
    mine = evaluate_peers(cfg, model)["CropFolder"]
    theirs = evaluate_peers(tiny_adaptation(tmp_path / "out"), model)["Market1501"]
    assert mine == theirs
