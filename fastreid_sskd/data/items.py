"""What a run trains on and is tested on: images of data sets by their names, in a fixed order."""

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from fastreid.config import CfgNode
from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.data.datasets.bases import ImageDataset

from ..compat import dataset_root
from ..refusals import UnknownNameError, nearest
from .datasets import Item, folder_class

logger = logging.getLogger("fastreid.sskd.data")

_SPLITS = "with bounding_box_train/, query/ and bounding_box_test/, images named like 0002_c1s1_000451_03.jpg"
_LAYOUTS = {
    "Market1501": f"Market-1501-v15.09.15/ {_SPLITS}",
    "DukeMTMC": f"DukeMTMC-reID/ {_SPLITS}",
    "MSMT17": "MSMT17_V1/ with train/, test/ and list_train.txt, list_val.txt, list_query.txt, "
    "list_gallery.txt (or MSMT17_V2/ with mask_train_v2/, mask_test_v2/ and the same lists)",
}


def training_items(
    names: Sequence[str], folders: Mapping = MappingProxyType({}), combine_all: bool = False
) -> list[Item]:
    """List the training images of data sets, sorted by path within each.

    With several data sets, identities and cameras are prefixed with the set's name, which keeps them apart.

    Args:
        names: ``DATASETS.NAMES``: of registered data sets or of ``folders``.
        folders: ``SSKD.FOLDERS``, see :func:`folder_class`.
        combine_all: ``DATASETS.COMBINEALL``: the query and gallery images too, as people of their own.

    Raises:
        UnknownNameError: if a name is not registered.
        FileNotFoundError: if the images are not where they should be.
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
            train = [
                (path, who if who is None else f"{name}:{who}", f"{name}:{camera}", *track)
                for path, who, camera, *track in train
            ]
        items.extend(train)
    return items


def test_items(name: str, folders: Mapping = MappingProxyType({})) -> tuple[list[Item], list[Item]]:
    """List the query and gallery images of a data set, each sorted by path.

    A warning counts the queries that no evaluation looks at; if there is no other, that is an error.
    Arguments and errors are those of :func:`training_items`.
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
            f"none of the {len(query)} queries of {name} has its identity among the {len(gallery)} gallery "
            "images under another camera, so nothing can be ranked: check identities and cameras, or set "
            "TEST.EVAL_PERIOD to 0"
        )
    if counted < len(query):
        logger.warning(
            "%s: %d of %d queries have no match in the gallery under another camera and are left out: mAP "
            "and ranks are over %d queries", name, len(query) - counted, len(query), counted,
        )  # fmt: skip
    return query, gallery


test_items.__test__ = False  # not a test, whatever pytest thinks of its name


def unseen_items(cfg: CfgNode) -> list[Item]:
    """List the images that say most about a model on new people: query and gallery of its first test set.

    Without ``DATASETS.TESTS`` its training images, with a warning. Errors are those of the other functions.
    """
    if cfg.DATASETS.TESTS:
        query, gallery = test_items(cfg.DATASETS.TESTS[0], cfg.SSKD.FOLDERS)
        return query + gallery
    logger.warning(
        "there is no test set (DATASETS.TESTS): the images that the model was trained on stand for new ones, "
        "whose similarities are higher"
    )
    return training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS)


def source_items(cfg: CfgNode) -> tuple[list[Item], list[int]]:
    """List the labelled images of a source, and the number 0..C-1 of each one's identity.

    Args:
        cfg: a stage 1 config; ``DATASETS.COMBINEALL`` adds query and gallery.
    """
    items = training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS, cfg.DATASETS.COMBINEALL)
    nobody = next((item[0] for item in items if item[1] is None), None)
    if nobody is not None:
        raise ValueError(
            f"a source needs identities, and {nobody!r} has none: set the IDENTITY of its node in "
            "SSKD.FOLDERS, move such images away, or train on this data set as a target"
        )
    number = {name: i for i, name in enumerate(sorted({item[1] for item in items}))}
    check_identities(len(number), cfg.DATASETS.NAMES)
    if len(number) == len(items):
        raise ValueError(
            f"each of the {len(items)} identities of {', '.join(cfg.DATASETS.NAMES)} has one image, so "
            "nothing shows what two images of a person share: train on a source with several images of each"
        )
    return items, [number[item[1]] for item in items]


def check_identities(num_classes: int, names: Sequence[str]) -> None:
    """Check that a classifier has something to tell apart."""
    if num_classes < 2:
        raise ValueError(
            f"a classifier needs two identities or more, and {', '.join(names)} has {num_classes}: train on "
            "another data set, or correct what the identities are read from"
        )


def matched_queries(query: Iterable[Sequence], gallery: Iterable[Sequence]) -> int:
    """The number of queries that count: their identity is in the gallery under another camera."""
    seen_by = defaultdict(set)
    for identity, camera in gallery:
        seen_by[identity].add(camera)
    return sum(bool(seen_by.get(identity, set()) - {camera}) for identity, camera in query)


def _read(name: str, folders: Mapping, *parts: str, combine_all: bool = False) -> list[list[Item]]:
    """Read parts of a data set ("train", "query", "gallery"), each sorted by path."""
    root = dataset_root()
    if name in folders:
        return _parts(folder_class(name, folders[name])(root=root), parts, combine_all)
    if name not in DATASET_REGISTRY._obj_map:  # the host's registry has no other way to ask
        known = sorted({*DATASET_REGISTRY._obj_map, *folders})
        raise UnknownNameError(
            f"no data set is named {name!r}{nearest(name, known)}. There are {', '.join(known)}; folders of "
            "your own images get a name by SSKD.FOLDERS, classes of your own by fast-reid's DATASET_REGISTRY"
        )
    data_set = DATASET_REGISTRY.get(name)
    try:
        found = _parts(data_set(root=root), parts, combine_all)
        if data_set.__module__.startswith("fastreid."):
            _check_on_disk([item for part in found for item in part])
        return found
    # the host's Dataset.check_before_run, its MSMT17's assertion, a folder or list that is not there
    except (RuntimeError, AssertionError, FileNotFoundError) as error:
        layout = _LAYOUTS.get(name, "as its class in fast-reid expects")
        raise FileNotFoundError(
            f"data set {name}: {error}; data sets are looked for below {os.path.abspath(root)!r}: set "
            f"FASTREID_DATASETS to the folder that holds them, laid out as {layout}"
        ) from error


def _parts(data: ImageDataset, parts: Sequence[str], combine_all: bool) -> list[list[Item]]:
    if combine_all:
        data.combine_all()
    # the host's Market1501 looks into its folders only now
    return [sorted(map(tuple, getattr(data, part)), key=lambda item: item[0]) for part in parts]


def _check_on_disk(items: Sequence[Item]) -> None:
    """Check that all images are there: some of the host's classes believe a list."""
    files: dict[str, set[str]] = {}
    missing = []
    for path, _, _ in items:
        folder, file = os.path.split(path)
        if folder not in files:
            here = os.scandir(folder) if os.path.isdir(folder) else ()
            files[folder] = {entry.name for entry in here if entry.is_file()}
        if file not in files[folder]:
            missing.append(path)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(items)} images that its lists name are not on disk (first: "
            f"{missing[0]!r}): unpack or copy it again, or take these lines out of the lists"
        )
