"""What a run trains on and is tested on: registered data sets, in an order that does not depend on the disk."""
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from fastreid.data.datasets import DATASET_REGISTRY

from ..compat import dataset_root
from ..refusals import UnknownNameError, nearest
from .crop_folder import folder_class

__all__ = ["Item", "test_items", "training_items"]

Item = tuple[str, object, object]  # path, identity (None: unknown), camera

_SPLITS = "with bounding_box_train/, query/ and bounding_box_test/, images *.jpg"
_LAYOUTS = {
    "Market1501": f"Market-1501-v15.09.15/ {_SPLITS}",
    "DukeMTMC": f"DukeMTMC-reID/ {_SPLITS}",
    "MSMT17": "MSMT17_V1/ with train/, test/ and list_train.txt, list_val.txt, list_query.txt, list_gallery.txt "
              "(or MSMT17_V2/ with mask_train_v2/, mask_test_v2/ and the same lists)",
}


def _data_set(name: str, folders: Mapping):
    root = dataset_root()
    if name in folders:
        return folder_class(name, folders[name])(root=root)
    if name not in DATASET_REGISTRY._obj_map:  # the host's registry has no other way to ask
        known = sorted({*DATASET_REGISTRY._obj_map, *folders})
        raise UnknownNameError(
            f"no data set is named {name!r}{nearest(name, known)}. There are {', '.join(known)}; folders of your own images get a name by "
            "SSKD.FOLDERS, classes of your own by fast-reid's DATASET_REGISTRY"
        )
    try:
        return DATASET_REGISTRY.get(name)(root=root)
    # the host's Dataset.check_before_run, the assertion of its MSMT17, a list of images that is not there
    except (RuntimeError, AssertionError, FileNotFoundError) as error:
        layout = _LAYOUTS.get(name, "as its class in fast-reid expects")
        raise FileNotFoundError(
            f"data set {name}: {error}; data sets are looked for below {os.path.abspath(root)!r}: set "
            f"FASTREID_DATASETS to the folder that holds them, laid out as {layout}"
        ) from error


def _sorted(items: Sequence[Sequence]) -> list[Item]:
    return sorted((tuple(item) for item in items), key=lambda item: item[0])


def training_items(
    names: Sequence[str], folders: Mapping = MappingProxyType({}), combine_all: bool = False
) -> list[Item]:
    """The training images of data sets, sorted by path within each (the host's glob has no order).

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
        data = _data_set(name, folders)
        if combine_all:
            data.combine_all()
        train = _sorted(data.train)
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
    """The query and gallery images of a data set, each sorted by path. Arguments, Raises as :func:`training_items`."""
    data = _data_set(name, folders)
    if not data.query or not data.gallery:
        raise ValueError(
            f"data set {name} has {len(data.query)} query and {len(data.gallery)} gallery images, so nothing can be "
            "ranked: name another set in DATASETS.TESTS, or set TEST.EVAL_PERIOD to 0"
        )
    return _sorted(data.query), _sorted(data.gallery)


test_items.__test__ = False  # not a test, whatever pytest thinks of its name
