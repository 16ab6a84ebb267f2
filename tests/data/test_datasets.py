"""What is trained on: images below a folder, folders of crops, registered data sets in a fixed order."""

import logging
import os
import random
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
from fastreid_sskd.data.datasets import find_images, folder_class, image_paths
from fastreid_sskd.data.items import matched_queries
from fastreid_sskd.data.items import test_items as query_and_gallery
from fastreid_sskd.engine import AdaptationTrainer, load_config, run, source_config
from fastreid_sskd.evaluation.evaluator import evaluate_peers

# ---- images below a folder -----------------------------------------------------------------------


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(folder):
    return [os.path.relpath(path, folder) for path in find_images(str(folder))]


def test_links_to_folders_are_followed(tmp_path):
    touch(tmp_path, "disk/a/1.jpg", "disk/b/2.jpg", "crops/own/3.jpg")
    (tmp_path / "crops" / "cam2").symlink_to(tmp_path / "disk" / "a")
    (tmp_path / "crops" / "own" / "deep").symlink_to("../../disk/b")
    (tmp_path / "link").symlink_to("crops")
    for root in ("crops", "link"):
        assert found(tmp_path / root) == ["cam2/1.jpg", "own/3.jpg", "own/deep/2.jpg"]


def test_loops_end_and_a_folder_is_listed_once(tmp_path, caplog):
    """Real folders keep their own path, whatever the names of links to them."""
    touch(tmp_path, "crops/z/1.jpg", "elsewhere/2.jpg", "disk/3.jpg")
    for link, at in (("z/up", "../.."), ("z/self", "."), ("a", "z"), ("y", "../disk"), ("x", "../disk")):
        (tmp_path / "crops" / link).symlink_to(at)
    (tmp_path / "disk" / "back").symlink_to("../crops")
    assert found(tmp_path / "crops") == ["x/3.jpg", "z/1.jpg"]
    assert "5 links to folders that are listed already are left out" in caplog.text


@pytest.mark.parametrize("name", ["cam2", "1.jpg"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, name):
    touch(tmp_path, "0.jpg")
    (tmp_path / name).symlink_to("/not mounted/here")
    with pytest.raises(FileNotFoundError, match=f"link '.*{name}' leads to '/not mounted/here'"):
        find_images(str(tmp_path))


def test_what_is_left_out_is_counted(tmp_path, caplog):
    caplog.set_level("INFO", logger="fastreid.sskd")
    touch(tmp_path, "a.JPG", "b.gif", "c.gif", "d.txt", "e", ".hidden.gif", "Thumbs.db", "desktop.ini")
    assert found(tmp_path) == ["a.JPG"]
    assert "4 files without an image's ending are left out (2 .gif, 1" in caplog.text


def test_names_are_taken_literally(tmp_path):
    touch(tmp_path, "data[1] *?/\u00e9 b/\u4eba \u00fc.Png")
    assert found(tmp_path / "data[1] *?") == ["\u00e9 b/\u4eba \u00fc.Png"]


def test_no_folder_a_file_and_no_image(tmp_path):
    touch(tmp_path, "one.jpg", "empty/notes.txt")
    with pytest.raises(FileNotFoundError, match="'.*none' not found"):
        find_images(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="'.*one.jpg' is a file, not a folder"):
        find_images(str(tmp_path / "one.jpg"))
    assert found(tmp_path / "empty") == []
    with pytest.raises(ValueError, match="no image below"):
        image_paths(str(tmp_path / "empty"))


# ---- registered data sets ------------------------------------------------------------------------


@pytest.fixture
def register(monkeypatch):
    """Registers a data set for one test: name, and lists of (path, identity, camera)."""

    def add(name, train=(), query=(), gallery=()):
        class Listed:
            def __init__(self, root):
                self.train, self.query, self.gallery = list(train), list(query), list(gallery)

        monkeypatch.setitem(DATASET_REGISTRY._obj_map, name, Listed)

    return add


def test_training_images_of_the_hosts_classes(data_sets):
    items = training_items(["Market1501"])
    assert len(items) == 48
    path, identity, camera = items[0]
    assert path.endswith(f"{MARKET}/bounding_box_train/0001_c1s1_000000_00.jpg")
    assert identity == "market1501_1" and camera == "market1501_0"


def test_order_does_not_depend_on_the_disk(register):
    images = [(f"{k:02d}.jpg", k % 3, k % 2) for k in range(20)]
    mixed = images[:]
    random.Random(0).shuffle(mixed)
    register("Mixed", mixed, mixed[:5], mixed[5:])
    assert training_items(["Mixed"]) == images
    query, gallery = query_and_gallery("Mixed")
    assert query == sorted(mixed[:5]) and gallery == sorted(mixed[5:])


def test_identities_that_cannot_be_compared(register):
    register("Odd", [["b", "x", 0], ["a", 1, "y"], ["a", "x", 2]])
    assert training_items(["Odd"]) == [("a", 1, "y"), ("a", "x", 2), ("b", "x", 0)]


def test_people_and_cameras_of_several_data_sets_are_kept_apart(register):
    register("First", [("z", 0, 0), ("y", None, 1)])
    register("Second", [("a", 0, 0)])
    assert training_items(["First", "Second"]) == [
        ("y", None, "First:1"), ("z", "First:0", "First:0"), ("a", "Second:0", "Second:0"),
    ]  # fmt: skip


def test_named_twice(register):
    register("First", [("z", 0, 0)])
    with pytest.raises(ValueError, match="names a data set twice: First, First"):
        training_items(["First", "First"])


def test_query_and_gallery(data_sets):
    query, gallery = query_and_gallery("Market1501")
    assert len(query) == 6 and len(gallery) == 24
    assert query == sorted(query) and gallery == sorted(gallery)


@pytest.mark.parametrize(
    "name, folder",
    [("Market1501", "Market-1501-v15.09.15/"), ("DukeMTMC", "DukeMTMC-reID/"), ("MSMT17", "MSMT17_V1/")],
)
@pytest.mark.filterwarnings("ignore:The current data structure is deprecated")
def test_missing_folder(name, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path / "nothing here"))
    for read in (lambda: training_items([name]), lambda: query_and_gallery(name)):
        with pytest.raises(FileNotFoundError) as raised:
            read()
        message = str(raised.value)
        assert (
            name in message and str(tmp_path / "nothing here") in message and "FASTREID_DATASETS" in message
        )
        assert folder in message


def test_missing_list_of_images(tmp_path, monkeypatch):
    for folder in ("train", "test"):
        (tmp_path / "MSMT17_V1" / folder).mkdir(parents=True)
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="data set MSMT17: .*list_train.txt"):
        training_items(["MSMT17"])


def test_images_of_a_list_that_are_not_on_disk(tmp_path, monkeypatch):
    """Of the parts that are asked for, in folders that are there and not."""
    base = tmp_path / "MSMT17_V1"
    for folder in ("train/0000", "test/0000"):
        (base / folder).mkdir(parents=True)
    names = [f"0000/0000_000_{camera:02d}_a_{camera}.jpg" for camera in (1, 2)]
    for part in ("train", "val", "query", "gallery"):
        (base / f"list_{part}.txt").write_text("".join(f"{name} 0\n" for name in names))
    for name in names:
        (base / "test" / name).touch()
    (base / "train" / names[0]).touch()
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    assert [len(part) for part in query_and_gallery("MSMT17")] == [2, 2]
    with pytest.raises(
        FileNotFoundError,
        match=f"MSMT17: 1 of 2 images .* not on disk .first: '{base}/train/{names[1]}'.: unpack",
    ):
        training_items(["MSMT17"])
    (base / "train" / names[1]).symlink_to(tmp_path / "gone")
    (base / "list_train.txt").write_text(f"{names[1]} 0\n0001/0001_000_01_a_1.jpg 1\n")
    with pytest.raises(FileNotFoundError, match="2 of 2 images"):
        training_items(["MSMT17"])


def test_no_training_images(data_sets, tmp_path, monkeypatch):
    for split in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / MARKET / split).mkdir(parents=True)
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    with pytest.raises(ValueError, match="Market1501 .*has no training images"):
        training_items(["Market1501"])
    with pytest.raises(ValueError, match="0 query and 0 gallery images.*TEST.EVAL_PERIOD to 0"):
        query_and_gallery("Market1501")


def test_queries_without_a_match_are_counted(register, caplog):
    gallery = [("g0", 0, 1), ("g1", 1, 0), ("g2", 9, 1)]
    register("Some", query=[("q0", 0, 0), ("q1", 1, 0), ("q2", 2, 0)], gallery=gallery)
    query_and_gallery("Some")
    assert [record.getMessage() for record in caplog.records] == [
        ("Some: 2 of 3 queries have no match in the gallery under another camera and are left out: mAP and "
         "ranks are over 1 queries")
    ]  # fmt: skip
    caplog.clear()
    register("All", query=[("q0", 0, 0), ("q1", 1, 1)], gallery=gallery)
    query_and_gallery("All")
    assert not caplog.records


def test_no_query_counts(register):
    register("None", query=[("q0", 0, 0), ("q1", 1, 0)], gallery=[("g0", 0, 0), ("g1", 2, 1)])
    with pytest.raises(
        ValueError, match="none of the 2 queries of None .*2 gallery images under another camera.*EVAL_PERIOD"
    ):
        query_and_gallery("None")


def test_matched_queries():
    gallery = [(1, 0), (1, 1), (2, 0)]
    queries = ((1, 0), (1, 1), (2, 0), (2, 1), (3, 0))
    assert [matched_queries([one], gallery) for one in queries] == [1, 1, 0, 1, 0]
    assert matched_queries([], gallery) == matched_queries(gallery, []) == 0


def test_a_file_where_a_folder_should_be(tmp_path, monkeypatch):
    for split in ("query", "bounding_box_test"):
        (tmp_path / MARKET / split).mkdir(parents=True)
    (tmp_path / MARKET / "bounding_box_train").touch()
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="data set Market1501: .*bounding_box_train' is a file.*FASTREID_DATASETS"
    ):
        training_items(["Market1501"])


def test_nothing_named():
    with pytest.raises(ValueError, match="DATASETS.NAMES is empty"):
        training_items([])


def test_unknown_data_set(data_sets):
    with pytest.raises(KeyError, match="NoSuchSet.*DukeMTMC, .*Market1501, .*Mine.*SSKD.FOLDERS"):
        training_items(["NoSuchSet"], {"Mine": {}})


# ---- folders of crops ----------------------------------------------------------------------------


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


# ---- training images -----------------------------------------------------------------------------


def test_any_tree_without_identities_and_cameras(tree):
    files = ("b/x.jpg", "a.PNG", "b/deep/y.webp", "notes.txt", ".hidden.jpg", ".t/z.jpg")
    root = tree(*(f"crops/{name}" for name in files))
    train = open_folder(root, TRAIN="crops").train
    found = [os.path.relpath(item[0], root) for item in train]
    assert found == [f"crops/{name}" for name in ("a.PNG", "b/deep/y.webp", "b/x.jpg")]
    assert {item[1] for item in train} == {None} and len({item[2] for item in train}) == 1


def test_cameras_from_folders(tree):
    root = tree("crops/north gate/x.jpg", "crops/hall/day 1/y.jpg", "crops/hall/day 2/y.jpg")
    cameras = [item[2] for item in open_folder(root, TRAIN="crops", CAMERA=FIRST_FOLDER).train]
    assert cameras == ["site_hall", "site_hall", "site_north gate"]


def test_group_or_whole_match(tree):
    """Of several groups the one that takes part."""
    root = tree("crops/0002_c1s1.jpg", "crops/c3/0007.jpg")
    for rule, expected in ((r"_c(\d)|c(\d)/", ["site_1", "site_3"]), (r"c\d", ["site_c1", "site_c3"])):
        assert [item[2] for item in open_folder(root, TRAIN="crops", CAMERA=rule).train] == expected


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


@pytest.mark.parametrize("rule", [r"_c(\d)", r"_c(\d)?x", r"_c(\d*)x"])
def test_path_without_a_camera_is_named(tree, rule):
    root = tree("crops/a_c1x.jpg", "crops/b_cx.jpg", "crops/d_cx.jpg")
    with pytest.raises(ValueError, match=r"SSKD.FOLDERS.site.CAMERA .*2 of 3 paths \(first: 'b_cx.jpg'\)"):
        open_folder(root, TRAIN="crops", CAMERA=rule)


def test_missing_and_empty_folders(tree):
    root = tree("crops/notes.txt")
    with pytest.raises(FileNotFoundError, match="SSKD.FOLDERS.site.TRAIN: .*none.*FASTREID_DATASETS"):
        open_folder(root, TRAIN="none")
    with pytest.raises(ValueError, match="no image below"):
        open_folder(root, TRAIN="crops")


def test_unknown_settings():
    with pytest.raises(ValueError, match="SSKD.FOLDERS.site.TRIAN = 'x'.*TRAIN, QUERY"):
        folder_class("site", {"TRIAN": "x"})
    with pytest.raises(ValueError, match="SSKD.FOLDERS.site.CAMERA = 3"):
        folder_class("site", {"CAMERA": 3})
    with pytest.raises(TypeError, match="SSKD.FOLDERS.site must be a node"):
        folder_class("site", "crops")


# ---- query and gallery ---------------------------------------------------------------------------

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
    # with cameras the protocol leaves it out
    assert len(open_folder(root, **LABELLED, CAMERA="o|n").gallery) == 2


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
    assert [os.path.basename(item[0]) for item in data.gallery] == [
        "-10_c1s1.jpg",
        "0000_c2s1.jpg",
        "0002_c2s1.jpg",
    ]
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


# ---- through the config --------------------------------------------------------------------------


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


FOLDER = (
    "DATASETS.NAMES ('CropFolder',)",
    "DATASETS.TESTS ()",
    "SSKD.FOLDERS.CropFolder.TRAIN crops",
)
TEST = (
    "DATASETS.TESTS", "('CropFolder',)", "SSKD.FOLDERS.CropFolder.QUERY", "q",
    "SSKD.FOLDERS.CropFolder.GALLERY", "g", "SSKD.FOLDERS.CropFolder.IDENTITY", r"^(\d+)_",
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
    """Both stages by the config that ships, then again from the source models: no evaluation."""
    caplog.set_level(logging.INFO, logger="fastreid.sskd")
    source = [*TINY_SOURCE[len(TINY) :], "SOLVER.MAX_EPOCH", "1"]
    opts = [*TINY_TARGET, "SSKD.SOURCE.OPTS", str(source), "TEST.EVAL_PERIOD", "1"]
    assert (
        run(load_config(str(CONFIGS / "sskd_crops.yml"), [*opts, "OUTPUT_DIR", str(tmp_path / "both")])) == {}
    )
    weights = [str(tmp_path / "both" / "source" / f"peer{k}" / "model_best.pth") for k in range(2)]
    again = [*opts, "SSKD.SOURCE.WEIGHTS", str(weights), "OUTPUT_DIR", str(tmp_path / "second")]
    assert run(load_config(str(CONFIGS / "sskd_crops.yml"), again)) == {}

    for output in (tmp_path / "both", tmp_path / "second"):
        assert os.path.exists(output / "model_final.pth") and not os.path.exists(output / "model_best.pth")
        metrics = (output / "metrics.json").read_text()
        assert "refresh/clusters" in metrics and "diagnostics" not in metrics
    assert "nothing is evaluated" in caplog.text
    first, second = (
        load_checkpoint(at / "model_final.pth")["model"] for at in (tmp_path / "both", tmp_path / "second")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_evaluates_on_its_own_query_and_gallery(crops, tmp_path):
    """The same images as Market-1501's give the same figures, and training does not see the identities."""
    cfg = tiny_adaptation(
        tmp_path / "out", *FOLDER, *TEST, "SSKD.FOLDERS.CropFolder.CAMERA", r"_c(\d)|cam(\d)"
    )
    model = AdaptationTrainer.build_model(cfg)
    mine = evaluate_peers(cfg, model)["CropFolder"]
    theirs = evaluate_peers(tiny_adaptation(tmp_path / "out"), model)["Market1501"]
    assert mine == theirs
