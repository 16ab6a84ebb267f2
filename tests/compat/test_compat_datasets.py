"""The host's data sets read names and lists only, and say what they cannot read."""

import logging
import os
import random

import pytest

from fastreid_sskd.compat.datasets import LISTS, NAMES

MARKET = "Market-1501-v15.09.15/"
DUKE = "DukeMTMC-reID/"

#: by class: folder of the training images, {image: (identity, camera)}, folders that have to be there
TRAINING = {
    "Market1501": (
        f"{MARKET}bounding_box_train",
        {
            "0002_c1s1_000451_03.jpg": ("2", "0"),
            "1600_c12s1_0_0.JPG": ("1600", "11"),
            "0000_c7_0.png": ("0", "6"),
        },
    ),
    "DukeMTMC": (
        f"{DUKE}bounding_box_train",
        {"0001_c2_f0.jpg": ("1", "1"), "99999_c120_f0.Jpeg": ("99999", "119")},
    ),
    "VeRi": (
        "veri/image_train",
        {"0001_c001_00016450_0.jpg": ("1", "0"), "0777_c121_0_0.JPG": ("777", "120")},
    ),
    "cuhkSYSU": ("cuhk_sysu/cropped_images", {"p12_s1_1.jpg": ("12", "0"), "p7_s10_1.JPG": ("7", "0")}),
    "CAVIARa": ("CAVIARa", {"0001001.jpg": ("0001", "cam0"), "0072003.bmp": ("0072", "cam0")}),
    "GRID": (
        "underground_reid/images",
        {"0001_1_25004_107.jpeg": ("0001", "1"), "0250_12_3.JPG": ("0250", "12")},
    ),
    "iLIDS": (
        "iLIDS",
        {"person001/cam1_001.png": ("person001", "cam1"), "person002/cam12_001.PNG": ("person002", "cam12")},
    ),
    "LPW": (
        "pep_256x128/data_slim",
        {
            "scen1/view1/7/1.jpg": ("scen1-7", "view1"),
            "scen2/view1/7/1.JPG": ("scen2-7", "view1"),
            "scen3/view10/12/1.jpg": ("scen3-12", "view10"),
        },
    ),
    "PeS3D": ("3DPeS", {"12/12_3.bmp": ("12", "cam0"), "7/7_3.BMP": ("7", "cam0")}),
    "PKU": ("PKUv1a_128x48", {"001_01_1.png": ("001", "01"), "002_12.PNG": ("002", "12")}),
    "PRAI": (
        "PRAI-1581/images",
        {"00000001_0001_00000001.jpg": ("00000001", "0001"), "2_12_3.JPG": ("2", "12")},
    ),
    "PRID": (
        "prid_2011/slim_train",
        {"person_0001/a_0001.png": ("0001", "a"), "x/person_12/cam10_1.PNG": ("12", "cam10")},
    ),
    "SAIVT": (
        "SAIVT-SoftBio",
        {
            "cropped_images/0001/0001-1-c3-0010.jpeg": ("0001", "c3"),
            "cropped_images/2/2-1-c12.JPG": ("2", "c12"),
        },
    ),
    "SenseReID": (
        "SenseReID",
        {"test_gallery/00001_0.jpg": ("00001", "0"), "test_prob/00001_12.JPG": ("00001", "12")},
    ),
    "Shinpuhkan": ("shinpuhkan", {"1/001_02_03_04.jpg": ("001", "03"), "2_02_16_04.JPG": ("2", "16")}),
    "SYSU_mm": (
        "SYSU-MM01",
        {
            f"cam{k}/000{k}/0001.{ending}": (f"000{k}", f"cam{k}")
            for k, ending in zip((1, 2, 4, 5), ("jpg", "JPG") * 2)
        },
    ),
    "Thermalworld": ("thermalworld_rgb", {"1/0001.jpg": ("1", "cam0"), "12/0001.JPG": ("12", "cam0")}),
    "VIPeR": ("VIPeR", {"cam_a/000_45.bmp": ("000", "cam_a"), "cam_b/0123_90.BMP": ("0123", "cam_b")}),
    "WildTrackCrop": ("Wildtrack_crop_dataset/crop", {"1/0_1.png": ("1", "0"), "12/12_1.PNG": ("12", "12")}),
}
BESIDE = {
    "Market1501": (f"{MARKET}query", f"{MARKET}bounding_box_test"),
    "DukeMTMC": (f"{DUKE}query", f"{DUKE}bounding_box_test"),
    "VeRi": ("veri/image_query", "veri/image_test"),
}


@pytest.fixture
def root(tmp_path):
    """A folder of data sets whose own name has all that once went wrong."""
    return tmp_path / "p9_s9 run7_c3-1[ab] \u00e9"


def make(root, name, images):
    """The files of a data set, empty; returns the folder of its training images."""
    folder = root / TRAINING[name][0]
    for at in (folder, *(root / beside for beside in BESIDE.get(name, ()))):
        at.mkdir(parents=True, exist_ok=True)
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()
    return folder


def host_class(name):
    from fastreid.data.datasets import DATASET_REGISTRY

    return DATASET_REGISTRY.get(name)


def train(root, name):
    """{image: (identity, camera)} of the training images, without the prefix of the data set."""
    data = host_class(name)(root=str(root))
    prefix = f"{data.dataset_name}_"
    assert all(label.startswith(prefix) for item in data.train for label in item[1:])
    found = {item[0]: tuple(label.removeprefix(prefix) for label in item[1:]) for item in data.train}
    assert len(found) == len(data.train)
    return {os.path.relpath(path, root / TRAINING[name][0]): labels for path, labels in found.items()}


def test_all_of_the_hosts_classes_are_mended():
    from fastreid.data.datasets import DATASET_REGISTRY

    own = {
        name
        for name, cls in DATASET_REGISTRY._obj_map.items()
        if cls.__module__.startswith("fastreid.data.datasets.")
    }
    # other lists for the same class
    below = {name for name in own if name.startswith(("Small", "Medium", "Large"))}
    writes_its_own_names = {"CUHK03"}
    assert own - below - writes_its_own_names == {*NAMES, *(path.split(".")[0] for path in LISTS)}
    assert set(NAMES) == set(TRAINING)


@pytest.mark.filterwarnings("ignore:The current data structure is deprecated")
@pytest.mark.parametrize("name", NAMES)
def test_names_below_the_folder_in_any_letter_case(root, name, caplog):
    expected = TRAINING[name][1]
    folder = make(root, name, expected)
    for image in expected:  # what macOS and Windows leave beside
        at = (folder / image).parent
        (at / f"._{os.path.basename(image)}").touch()
        (at / "Thumbs.db").touch()
    assert train(root, name) == expected
    assert not caplog.records


@pytest.mark.parametrize("name", NAMES)
def test_the_example_is_one(root, name):
    others = [] if len(NAMES[name].folders) == 1 else TRAINING[name][1]
    make(root, name, {*others, NAMES[name].example})
    assert NAMES[name].example in train(root, name)


@pytest.mark.parametrize("name", NAMES)
def test_linked_folders_are_followed(root, name, tmp_path):
    expected = TRAINING[name][1]
    folder = make(root, name, expected)
    for at in [path for path in folder.iterdir() if path.is_dir()] or [folder]:
        moved = tmp_path / "disk_c9" / at.name
        moved.parent.mkdir(exist_ok=True)
        at.rename(moved)
        at.symlink_to(moved)
    assert train(root, name) == expected


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        *(
            (name, "copy.jpg")
            for name in (
                "Market1501", "DukeMTMC", "VeRi", "cuhkSYSU", "CAVIARa", "GRID", "PKU", "PRAI", "PRID",
            )
        ),
        ("Market1501", "0001_cx.jpg"), ("DukeMTMC", "-2_c1_f0.jpg"), ("VeRi", "-15_c1_0.jpg"),
        ("SAIVT", "cropped_images/1/1-2.jpeg"), ("SenseReID", "test_prob/copy.jpg"),
        ("Shinpuhkan", "deep/001_02.jpg"),
    ],
)  # fmt: skip
def test_another_name_is_named_with_the_way_out(root, name, odd):
    folder = make(root, name, [*TRAINING[name][1], odd])
    count = len(TRAINING[name][1]) + 1
    with pytest.raises(ValueError) as raised:
        train(root, name)
    message = str(raised.value)
    assert message.startswith(f"{name}: 1 of {count} images in {str(folder)!r}") and repr(odd) in message
    assert NAMES[name].example in message and "SSKD.FOLDERS" in message


@pytest.mark.parametrize("name", ["Market1501", "DukeMTMC", "VeRi"])
def test_query_and_gallery_have_numbers_and_no_junk(root, name):
    make(root, name, [])
    query, gallery = (root / at for at in BESIDE[name])
    (query / "0002_c012_1.JPG").touch()
    for image in ("0002_c003_1.jpg", "-1_c004_1.jpg", "0000_c005_1.jpg"):
        (gallery / image).touch()
    data = host_class(name)(root=str(root))
    assert data.query == [(str(query / "0002_c012_1.JPG"), 2, 11)]
    assert [item[1:] for item in data.gallery] == [(0, 4), (2, 2)]
    assert data.train == []


@pytest.mark.parametrize("name", ["LPW", "SYSU_mm", "SenseReID", "VIPeR"])
def test_a_part_that_is_not_there(root, name):
    images = list(TRAINING[name][1])
    make(root, name, images[:-1])
    with pytest.raises(FileNotFoundError, match=f"{name}: .* none in '{images[-1].split('/')[0]}"):
        train(root, name)


def test_images_where_the_class_does_not_look(root, caplog):
    make(root, "SYSU_mm", [*TRAINING["SYSU_mm"][1], "cam3/0001/1.jpg", "cam6/0001/1.jpg"])
    assert train(root, "SYSU_mm") == TRAINING["SYSU_mm"][1]
    assert "SYSU_mm: 2 images in other folders" in caplog.text


# ---- lists ---------------------------------------------------------------------------------------


def write_msmt17(root, text, version="MSMT17_V1", folders=("train", "test")):
    for folder in folders:
        (root / version / folder).mkdir(parents=True)
    for part in ("train", "val", "query", "gallery"):
        (root / version / f"list_{part}.txt").write_bytes(text.encode("utf-8-sig"))
    return root / version


@pytest.mark.parametrize(
    "version, folders", [("MSMT17_V1", ("train", "test")), ("MSMT17_V2", ("mask_train_v2", "mask_test_v2"))]
)
def test_msmt17(root, version, folders):
    """Blank lines, the ends of lines of Windows, a mark of byte order, folders with underscores and
    spaces.
    """
    lines = [
        "0000/0000_000_01_a_1.jpg 0",
        "",
        "my own_set/0001_000_15_b_2.JPG 1 ",
        "0002\\0002_001_120_c_3.jpg\t12",
        " ",
    ]
    base = write_msmt17(root, "\r\n".join(lines), version, folders)
    data = host_class("MSMT17")(root=str(root))
    assert data.train == [
        (str(base / folders[0] / path), f"msmt17_{who}", f"msmt17_{camera}")
        for path, who, camera in (
            ("0000/0000_000_01_a_1.jpg", 0, 0),
            ("my own_set/0001_000_15_b_2.JPG", 1, 14),
            ("0002/0002_001_120_c_3.jpg", 12, 119),
        )
    ]
    # after the 3 of training, as in the host
    assert [item[1:] for item in data.query] == [(3, 0), (4, 14), (15, 119)]


@pytest.mark.parametrize(
    "line", ["0000/0000_000_01_a_1.jpg", "0000/0000_000_x_a_1.jpg 0", "0000/01.jpg 0", "a_b_1.jpg zero"]
)
def test_a_line_of_msmt17_that_cannot_be_read(root, line):
    write_msmt17(root, f"0000/0000_000_01_a_1.jpg 0\n\n{line}\n")
    with pytest.raises(ValueError, match=r"list_train.txt', line 3: .*0000_000_01_0303morning"):
        host_class("MSMT17")(root=str(root))


def test_airport(root):
    (root / "AirportALERT").mkdir(parents=True)
    (root / "AirportALERT" / "filepath.txt").write_text(
        "cam1\\11001\\a.jpg\r\n\r\ncam2\\7\\b.jpg\r\ncam12\\11002\\c.jpg\r\n"
    )
    data = host_class("AirportALERT")(root=str(root))
    assert [item[1:] for item in data.train] == [
        ("airport_11001", "airport_cam1"),
        ("airport_11002", "airport_cam12"),
    ]
    assert data.train[1][0] == str(root / "AirportALERT/cam12/11002/c.jpg")


def test_vehicle_id_has_one_gallery(root):
    lists = root / "vehicleid" / "train_test_split"
    lists.mkdir(parents=True)
    (root / "vehicleid" / "image").mkdir()
    lines = "\n\n".join(f"{100 + k:07d} {k % 3}" for k in range(30))
    for name in ("train_list", "test_list_800", "test_list_13164"):
        (lists / f"{name}.txt").write_text(lines)
    state = random.getstate()
    first, again = (host_class("SmallVehicleID")(root=str(root)) for _ in range(2))
    assert random.getstate() == state
    assert (first.query, first.gallery) == (again.query, again.gallery)
    assert sorted(item[1] for item in first.gallery) == [0, 1, 2] and len(first.query) == 27
    assert not set(first.query) & set(first.gallery)
    assert first.train[1] == (str(root / "vehicleid/image/0000101.jpg"), "vehicleid_1", "vehicleid_101")


def test_veri_wild(root):
    lists = root / "VERI-Wild" / "train_test_split"
    lists.mkdir(parents=True)
    (root / "VERI-Wild" / "images").mkdir()
    (lists / "vehicle_info.txt").write_text(
        "id/image;Camera ID;Time\r\n00001/000001;4;a\r\n\r\n00002/000002;174;b\r\n"
    )
    for name in ("train_list", "test_10000_query", "test_10000"):
        (lists / f"{name}.txt").write_text("00001/000001.jpg\r\n\r\n00002/000002.jpg\r\n")
    data = host_class("VeRiWild")(root=str(root))
    assert data.train[1] == (str(root / "VERI-Wild/images/00002/000002.jpg"), "veriwild_2", "veriwild_174")
    assert [item[1:] for item in data.gallery] == [(1, 4), (2, 174)]
    (lists / "test_10000.txt").write_text("00003/000003.jpg")
    with pytest.raises(ValueError, match=r"test_10000.txt': '00003/000003.jpg' is not in .*vehicle_info.txt"):
        host_class("VeRiWild")(root=str(root))


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.INFO, logger="fastreid.sskd")
