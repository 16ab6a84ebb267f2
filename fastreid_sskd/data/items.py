"""What a run trains on and is tested on: registered data sets, in an order that does not depend on the disk."""
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from ..compat import dataset_root
from ..refusals import UnknownNameError, nearest
from .crop_folder import folder_class

__all__ = ["Item", "matched_queries", "test_items", "training_items"]

logger = logging.getLogger("fastreid.sskd.data")

Item = tuple[str, object, object]  # path, identity (None: unknown), camera

_SPLITS = "with bounding_box_train/, query/ and bounding_box_test/, images named like 0002_c1s1_000451_03.jpg"
_LAYOUTS = {
    "Market1501": f"Market-1501-v15.09.15/ {_SPLITS}",
    "DukeMTMC": f"DukeMTMC-reID/ {_SPLITS}",
    "MSMT17": "MSMT17_V1/ with train/, test/ and list_train.txt, list_val.txt, list_query.txt, list_gallery.txt "
              "(or MSMT17_V2/ with mask_train_v2/, mask_test_v2/ and the same lists)",
}


def _read(name: str, folders: Mapping, *parts: str, combine_all: bool = False) -> list[list[Item]]:
    """The parts of a data set ("train", "query", "gallery"), each sorted by path: a class need not keep an order."""
    root = dataset_root()
    if name in folders:
        return _parts(folder_class(name, folders[name])(root=root), parts, combine_all)
    if name not in DATASET_REGISTRY._obj_map:  # the host's registry has no other way to ask
        known = sorted({*DATASET_REGISTRY._obj_map, *folders})
        raise UnknownNameError(
            f"no data set is named {name!r}{nearest(name, known)}. There are {', '.join(known)}; folders of your own images get a name by "
            "SSKD.FOLDERS, classes of your own by fast-reid's DATASET_REGISTRY"
        )
    data_set = DATASET_REGISTRY.get(name)
    try:
        found = _parts(data_set(root=root), parts, combine_all)
        if data_set.__module__.startswith("fastreid."):
            _check_on_disk([item for part in found for item in part])
        return found
    # the host's Dataset.check_before_run, the assertion of its MSMT17, a folder or a list of images that is not there
    except (RuntimeError, AssertionError, FileNotFoundError) as error:
        layout = _LAYOUTS.get(name, "as its class in fast-reid expects")
        raise FileNotFoundError(
            f"data set {name}: {error}; data sets are looked for below {os.path.abspath(root)!r}: set "
            f"FASTREID_DATASETS to the folder that holds them, laid out as {layout}"
        ) from error


def _parts(data: ImageDataset, parts: Sequence[str], combine_all: bool) -> list[list[Item]]:
    if combine_all:
        data.combine_all()
    return [_sorted(getattr(data, part)) for part in parts]  # the host's Market1501 looks into its folders only here


def _check_on_disk(items: Sequence[Item]) -> None:
    """Whether there are all images: some of the host's classes believe a list. Raises FileNotFoundError."""
    files: dict[str, set[str]] = {}
    missing = []
    for path, _, _ in items:
        folder, file = os.path.split(path)
        if folder not in files:
            files[folder] = {entry.name for entry in os.scandir(folder) if entry.is_file()} if os.path.isdir(folder) else set()
        if file not in files[folder]:
            missing.append(path)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(items)} images that its lists name are not on disk (first: {missing[0]!r}): unpack or copy it "
            "again, or take these lines out of the lists"
        )


def _sorted(items: Sequence[Sequence]) -> list[Item]:
    return sorted((tuple(item) for item in items), key=lambda item: item[0])


def training_items(
    names: Sequence[str], folders: Mapping = MappingProxyType({}), combine_all: bool = False
) -> list[Item]:
    """The training images of data sets, sorted by path within each.

    Identities and cameras of several data sets are kept apart: with more than one, they are prefixed with its name.

    Args:
        names: ``DATASETS.NAMES``: of registered data sets or of ``folders``.
        folders: ``SSKD.FOLDERS``, see :func:`.crop_folder.folder_class`.
        combine_all: ``DATASETS.COMBINEALL``: the query and gallery images too, as people of their own.

    Raises:
        UnknownNameError: if a name is not registered.
        FileNotFoundError: if the images are not where they should be, naming the folder and the variable that sets it.
        ValueError: if there are no images, or a data set is named twice.
    """
    if not names:
        raise ValueError("no data set is named to train on: DATASETS.NAMES is empty")
    if len(set(names)) < len(names):
        raise ValueError(f"DATASETS.NAMES names a data set twice: {', '.join(names)}")
    items: list[Item] = []
    for name in names:
        (train,) = _read(name, folders, "train", combine_all=combine_all)
        if not train:
            raise ValueError(
                f"data set {name} below {os.path.abspath(dataset_root())!r} has no training images"
                + (f": set SSKD.FOLDERS.{name}.TRAIN to their folder" if name in folders else "")
            )
        if len(names) > 1:
            train = [(path, who if who is None else f"{name}:{who}", f"{name}:{camera}") for path, who, camera in train]
        items.extend(train)
    return items


def test_items(name: str, folders: Mapping = MappingProxyType({})) -> tuple[list[Item], list[Item]]:
    """The query and gallery images of a data set, each sorted by path. Arguments, Raises as :func:`training_items`.

    A warning counts the queries that no evaluation looks at; without any other, it is an error.
    """
    query, gallery = _read(name, folders, "query", "gallery")
    if not query or not gallery:
        raise ValueError(
            f"data set {name} has {len(query)} query and {len(gallery)} gallery images, so nothing can be "
            "ranked: name another set in DATASETS.TESTS, or set TEST.EVAL_PERIOD to 0"
        )
    counted = matched_queries(*([item[1:] for item in part] for part in (query, gallery)))
    if not counted:
        raise ValueError(
            f"none of the {len(query)} queries of {name} has its identity among the {len(gallery)} gallery images under "
            "another camera, so nothing can be ranked: check identities and cameras, or set TEST.EVAL_PERIOD to 0"
        )
    if counted < len(query):
        logger.warning(
            "%s: %d of %d queries have no match in the gallery under another camera and are left out: mAP and ranks are "
            "over %d queries", name, len(query) - counted, len(query), counted,
        )  # fmt: skip
    return query, gallery


test_items.__test__ = False  # not a test, whatever pytest thinks of its name


def matched_queries(query: Iterable[Sequence], gallery: Iterable[Sequence]) -> int:
    """The number of queries that count: their identity is in the gallery under another camera.

    Args:
        query, gallery: (identity, camera) of each image.
    """
    seen_by = defaultdict(set)
    for identity, camera in gallery:
        seen_by[identity].add(camera)
    return sum(bool(seen_by.get(identity, set()) - {camera}) for identity, camera in query)
