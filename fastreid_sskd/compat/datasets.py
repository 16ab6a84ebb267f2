"""Patches of the host's data sets: what they read off the names of files and the lines of lists."""

import logging
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .patch import Patch, put, target

logger = logging.getLogger("fastreid.sskd.compat")

_WAY_OUT = "or describe these images by a node of SSKD.FOLDERS (docs/data.md)"


@dataclass(frozen=True)
class Names:
    """How a data set of the host names its images.

    Attributes:
        example: path below the folder of the data set's images.
        rule: regular expression, searched for in the path without its ending. Its group ``camera`` is the
            camera, the others, joined by "-", are the identity.
        folders: regular expressions of the sub-folders that hold images; "" is the folder itself.
        camera: of all images, where names say none.
        numbers: identities and cameras are numbers, with a prefix in training images only; -1 is no identity.
    """

    example: str
    rule: str
    folders: tuple[str, ...] = ("",)
    camera: str = ""
    numbers: bool = False


_MARKET = Names("0002_c1s1_000451_03.jpg", r"(?<![-\d])(?P<who>-1|\d+)_c(?P<camera>\d+)", numbers=True)
_FOLDER_A_PERSON = r"^(?P<who>[^/]+)/"
_ID_CAMERA = r"^(?P<who>[^_]+)_(?P<camera>[^_]+)"

#: by class, for the method ``process_dir`` or ``process_train`` that lists a folder
NAMES = {
    "Market1501": _MARKET,
    "DukeMTMC": _MARKET,
    "VeRi": Names("0001_c001_00016450_0.jpg", _MARKET.rule, numbers=True),
    "cuhkSYSU": Names("p1_s1_1.jpg", r"p(?P<who>-1|\d+)_s\d", camera="1", numbers=True),
    "CAVIARa": Names("0001001.jpg", r"^(?P<who>\d{4})", camera="cam0"),
    "GRID": Names("0001_1_25004_107_32_106_221.jpeg", _ID_CAMERA),
    "iLIDS": Names("person001/cam1_00001.png", _FOLDER_A_PERSON + "(?P<camera>[^_]+)", ("[^/]+",)),
    "LPW": Names(
        "scen1/view1/1/0001.jpg",
        "^(?P<scene>[^/]+)/(?P<camera>[^/]+)/(?P<who>[^/]+)/",
        tuple(f"scen{k}/[^/]+/[^/]+" for k in (1, 2, 3)),
    ),
    "PeS3D": Names("1/1_1.bmp", _FOLDER_A_PERSON, ("[^/]+",), camera="cam0"),
    "PKU": Names("001_01_1.png", _ID_CAMERA),
    "PRAI": Names("00000001_0001_00000001.jpg", _ID_CAMERA),
    "PRID": Names(
        "person_0001/a_0001.png", r"(^|/)[^/_]*_(?P<who>[^/_]+)[^/]*/(?P<camera>[^/_]+)[^/]*$", (".*",)
    ),
    "SAIVT": Names(
        "cropped_images/0001/0001-1-c3-0010.jpeg",
        "/(?P<who>[^/]+)/[^/-]*-[^/-]*-(?P<camera>[^/-]+)",
        ("cropped_images/[^/]+",),
    ),
    "SenseReID": Names(
        "test_prob/00001_0.jpg", "/(?P<who>[^_]+)_(?P<camera>[^_.]+)", ("test_gallery", "test_prob")
    ),
    "Shinpuhkan": Names(
        "1/001_02_03_04.jpg", "(^|/)(?P<who>[^/_]+)_[^/_]*_(?P<camera>[^/_]+)[^/]*$", (".*",)
    ),
    "SYSU_mm": Names(
        "cam1/0001/0001.jpg",
        "^(?P<camera>[^/]+)/(?P<who>[^/]+)/",
        tuple(f"cam{k}/[^/]+" for k in (1, 2, 4, 5)),
    ),
    "Thermalworld": Names("1/0001.jpg", _FOLDER_A_PERSON, ("[^/]+",), camera="cam0"),
    "VIPeR": Names("cam_a/000_45.bmp", "^(?P<camera>[^/]+)/(?P<who>[^_]+)", ("cam_a", "cam_b")),
    "WildTrackCrop": Names("1/0_1.png", _FOLDER_A_PERSON + "(?P<camera>[^_]+)", ("[^/]+",)),
}


def list_folder(names: Names) -> Callable[..., list[tuple]]:
    """Return the method of a host's data set that lists the images of a folder."""

    def process(self: Any, folder: str, is_train: bool = True) -> list[tuple]:
        """(path, identity, camera) of the images of a folder, sorted by path."""
        from ..data.datasets import find_images

        items, odd, parts = [], [], dict.fromkeys(names.folders, 0)
        paths = find_images(folder)
        for path in paths:
            below = os.path.relpath(path, folder).replace(os.sep, "/")
            part = next((part for part in parts if re.fullmatch(part, os.path.dirname(below))), None)
            if part is None:
                continue
            parts[part] += 1
            match = re.search(names.rule, os.path.splitext(below)[0])
            if not match:
                odd.append(below)
                continue
            groups = match.groupdict(default="")
            camera, identity = groups.pop("camera", names.camera), "-".join(groups.values())
            if names.numbers:
                identity, camera = int(identity), int(camera) - 1
            if identity != -1:
                items.append(_item(self, path, identity, camera, is_train))
        name, count = type(self).__name__, sum(parts.values())
        if odd:
            raise ValueError(
                f"{name}: {len(odd)} of {count} images in {folder!r} are not named like {names.example!r} "
                f"(first: {odd[0]!r}; rule: {names.rule!r}): rename them, move them away, {_WAY_OUT}"
            )
        missing = [part for part, found in parts.items() if not found]
        if missing and count:
            raise FileNotFoundError(
                f"{name}: {folder!r} has images, but none in {missing[0]!r}: add this part, {_WAY_OUT}"
            )
        if count < len(paths):
            text = "%s: %d images in other folders of %s are left out"
            logger.warning(text, name, len(paths) - count, folder)
        return items

    return process


def read_list(path: str, rule: str, example: str, first: int = 0) -> list[re.Match]:
    """Match the lines of a host's list of images from number ``first`` on; blank lines are left out."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = [
            (number, line.strip()) for number, line in enumerate(file, 1) if number > first and line.strip()
        ]
    matches = []
    for number, line in lines:
        match = re.fullmatch(rule, line)
        if not match:
            raise ValueError(
                f"{path!r}, line {number}: {line!r} is not like {example!r} ({rule!r}): correct or remove it"
            )
        matches.append(match)
    return matches


def _item(data_set: Any, path: str, identity: Any, camera: Any, is_train: bool) -> tuple:
    """As the host has it: labels of training images are text with the name of the data set."""
    name = data_set.dataset_name
    return (path, f"{name}_{identity}", f"{name}_{camera}") if is_train else (path, identity, camera)


def _msmt17(self: Any, folder: str, path: str, is_train: bool = True) -> list[tuple]:
    rule = r"(?P<path>(.*[/\\])?[^/\\_]*_[^/\\_]*_(?P<camera>\d+)[^/\\]*?)\s+(?P<who>\d+)"
    lines = read_list(path, rule, "0000/0000_000_01_0303morning_0008_0.jpg 0")
    return [
        _item(self, _below(folder, line["path"]), int(line["who"]), int(line["camera"]) - 1, is_train)
        for line in lines
    ]


def _airport(self: Any, folder: str, path: str) -> list[tuple]:
    lines = read_list(path, r"(?P<camera>[^/\\]+)[/\\](?P<who>\d+)[/\\].+", r"camera1\11001\0001.jpg")
    # the host's choice of identities
    chosen = [line for line in lines if int(line["who"]) >= 11001]
    return [_item(self, _below(folder, line[0]), line["who"], line["camera"], True) for line in chosen]


def _vehicle_id(self: Any, path: str, is_train: bool = True) -> Any:
    """Every image counts as a camera of its own; one image a vehicle is the gallery, always the same."""
    items = []
    for line in read_list(path, r"(?P<image>\d+)\s+(?P<who>\d+)", "0012345 678"):
        image = os.path.join(self.image_dir, f"{line['image']}.jpg")
        items.append(_item(self, image, int(line["who"]), int(line["image"]), is_train))
    if is_train:
        return items
    random.Random(0).shuffle(items)
    gallery = {item[1]: item for item in reversed(items)}  # the first of each
    chosen = set(gallery.values())
    return [item for item in items if item not in chosen], list(gallery.values())


def _veri_wild_cameras(self: Any, path: str) -> tuple[dict, dict, dict]:
    """Vehicle, camera and path of each image by its number, from a list with a line of headings."""
    rule = r"(?P<who>\d+)/(?P<image>[^/;.]+)[^/;]*;\s*(?P<camera>\d+).*"
    vehicles, cameras, paths = {}, {}, {}
    for line in read_list(path, rule, "00001/000001;1;2018-03-11;Audi;SUV;black", first=1):
        image, who = line["image"], line["who"]
        vehicles[image], cameras[image] = who, line["camera"]
        paths[image] = os.path.join(self.image_dir, who, f"{image}.jpg")
    return vehicles, cameras, paths


def _veri_wild(self: Any, path: str, is_train: bool = True) -> list[tuple]:
    lines = read_list(path, r"(?P<who>\d+)/(?P<image>[^/.]+).*", "00001/000001.jpg")
    unknown = [line[0] for line in lines if line["image"] not in self.imgid2camid]
    if unknown:
        raise ValueError(
            f"{path!r}: {unknown[0]!r} is not in {self.vehicle_info!r}: complete that list, or remove the "
            "line"
        )
    return [
        _item(self, self.imgid2imgpath[image], int(line["who"]), int(self.imgid2camid[image]), is_train)
        for line in lines
        for image in [line["image"]]
    ]


def _below(folder: str, path: str) -> str:
    """A path of a list, whichever system wrote it."""
    return os.path.join(folder, path.replace("\\", "/"))


#: methods that read a list
LISTS = {
    "MSMT17.process_dir": _msmt17,
    "AirportALERT.process_train": _airport,
    "VehicleID.process_dir": _vehicle_id,
    "VeRiWild.process_dir": _veri_wild,
    "VeRiWild.process_vehicle": _veri_wild_cameras,
}


def _patch_names() -> None:
    for name, names in NAMES.items():
        has = hasattr(target("fastreid.data.datasets", name), "process_dir")
        method = f"{name}.{'process_dir' if has else 'process_train'}"
        put("fastreid.data.datasets", method, list_folder(names))


def _patch_lists() -> None:
    for path, method in LISTS.items():
        put("fastreid.data.datasets", path, method)


PATCHES = (
    Patch(
        "image-names",
        "data/datasets/*.py: process_dir, process_train",
        "identities and cameras are found in the path of the root too, with one digit and below asserted "
        "limits; other endings, links and roots with brackets are left out silently; the order is the disk's",
        _patch_names,
    ),
    Patch(
        "image-lists",
        "data/datasets/msmt17.py:98, AirportALERT.py:35, vehicleid.py:53, veriwild.py:59",
        "a blank or odd line ends in a traceback that names neither; VehicleID draws another gallery at "
        "each evaluation",
        _patch_lists,
    ),
)
