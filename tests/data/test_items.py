"""Lists of images: in a fixed order, and errors that say where images are looked for."""

import random

import pytest
from fastreid.data.datasets import DATASET_REGISTRY
from tiny_reid import MARKET

from fastreid_sskd.data.datasets import matched_queries, training_items
from fastreid_sskd.data.datasets import test_items as query_and_gallery


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
    register("Odd", [("b", "x", 0), ("a", 1, "y"), ("a", "x", 2)])
    assert [item[0] for item in training_items(["Odd"])] == ["a", "a", "b"]


def test_several_data_sets_in_the_order_named(register):
    register("First", [("z", 0, 0)])
    register("Second", [("a", 0, 0)])
    assert [item[0] for item in training_items(["First", "Second"])] == ["z", "a"]


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


def test_items_are_tuples_of_their_own(register):
    register("Lists", [["a", 0, 0]])
    assert training_items(["Lists"]) == [("a", 0, 0)]


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
        assert name in message and str(tmp_path / "nothing here") in message and "FASTREID_DATASETS" in message
        assert folder in message


def test_missing_list_of_images(tmp_path, monkeypatch):
    for folder in ("train", "test"):
        (tmp_path / "MSMT17_V1" / folder).mkdir(parents=True)
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="data set MSMT17: .*list_train.txt"):
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
        "Some: 2 of 3 queries have no match in the gallery under another camera and are left out: mAP and ranks are over 1 queries"
    ]
    caplog.clear()
    register("All", query=[("q0", 0, 0), ("q1", 1, 1)], gallery=gallery)
    query_and_gallery("All")
    assert not caplog.records


def test_no_query_counts(register):
    register("None", query=[("q0", 0, 0), ("q1", 1, 0)], gallery=[("g0", 0, 0), ("g1", 2, 1)])
    with pytest.raises(ValueError, match="none of the 2 queries of None .*2 gallery images under another camera.*EVAL_PERIOD"):
        query_and_gallery("None")


def test_matched_queries():
    gallery = [(1, 0), (1, 1), (2, 0)]
    assert [matched_queries([one], gallery) for one in ((1, 0), (1, 1), (2, 0), (2, 1), (3, 0))] == [1, 1, 0, 1, 0]
    assert matched_queries([], gallery) == matched_queries(gallery, []) == 0


def test_a_file_where_a_folder_should_be(tmp_path, monkeypatch):
    for split in ("query", "bounding_box_test"):
        (tmp_path / MARKET / split).mkdir(parents=True)
    (tmp_path / MARKET / "bounding_box_train").touch()
    monkeypatch.setenv("FASTREID_DATASETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="data set Market1501: .*bounding_box_train' is a file.*FASTREID_DATASETS"):
        training_items(["Market1501"])


def test_nothing_named():
    with pytest.raises(ValueError, match="DATASETS.NAMES is empty"):
        training_items([])


def test_unknown_data_set(data_sets):
    with pytest.raises(KeyError, match="NoSuchSet.*DukeMTMC, .*Market1501, .*Mine.*SSKD.FOLDERS"):
        training_items(["NoSuchSet"], {"Mine": {}})
