"""Importing fast-reid on a current stack, and leaving no trace of how in other libraries.

The host asks for names that Python and torch dropped. They exist only while its modules are imported, all of
them at once, inside the context managers below; afterwards `collections` and `sys.modules` are as they were.
"""

import collections
import collections.abc
import contextlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Iterator

from .patch import INSTALL_HOST, Patch, put

# Everything that needs the vanished names, and the modules whose names the patches replace.
HOST_MODULES = (
    "fastreid.config",
    "fastreid.data.build",
    "fastreid.modeling",
    "fastreid.solver",
    "fastreid.evaluation",
    "fastreid.evaluation.rank",
    "fastreid.evaluation.roc",
    "fastreid.engine",
)
# Import name -> distribution, where the two differ (only these of the host's needs do).
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}


@contextlib.contextmanager
def collections_abcs() -> Iterator[None]:
    """Give `collections` back its `Mapping` (moved to `collections.abc`, removed in Python 3.10)."""
    collections.Mapping = collections.abc.Mapping
    try:
        yield
    finally:
        del collections.Mapping


@contextlib.contextmanager
def _module(stand_in: types.ModuleType) -> Iterator[None]:
    """Keep a stand-in module in `sys.modules`."""
    previous = sys.modules.get(stand_in.__name__)
    sys.modules[stand_in.__name__] = stand_in
    try:
        yield
    finally:
        if previous is None:
            sys.modules.pop(stand_in.__name__, None)
        else:
            sys.modules[stand_in.__name__] = previous


def torch_six() -> contextlib.AbstractContextManager:
    """Give torch back `torch._six.string_classes` (removed in torch 2.0)."""
    stand_in = types.ModuleType("torch._six", "string_classes as of torch 1.13")
    stand_in.string_classes = (str, bytes)
    return _module(stand_in)


class MissingFaiss(types.ModuleType):
    """Stands for faiss where it is not installed: importable, but any use says what to install."""

    METRIC_L2 = 1  # a default argument in the host (utils/faiss_utils.py:49), evaluated at import

    def __init__(self, cause: str) -> None:
        super().__init__("faiss", "stand-in: faiss is not installed")
        self.__dict__["_cause"] = cause

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(
            f"faiss.{name} is needed here but faiss cannot be imported ({self._cause}): "
            "run `pip install faiss-cpu` (or faiss-gpu)"
        )


def _faiss_error() -> ImportError | None:
    try:
        importlib.import_module("faiss")
    except ImportError as error:
        return error
    return None


def missing_faiss() -> contextlib.AbstractContextManager:
    """Let the host import without faiss."""
    return _module(MissingFaiss(str(_faiss_error())))


@contextlib.contextmanager
def no_cython_warning() -> Iterator[None]:
    """Silence the host's advice to compile its Cython ranking, which the ranking patch makes pointless."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Cython (rank|roc) evaluation")
        yield


def import_host() -> None:
    """Import every module of HOST_MODULES.

    Raises:
        ImportError: one sentence: what to install if the host or one of its needs is missing, or why the
            host's own import failed.
    """
    for name in HOST_MODULES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = (error.name or "").split(".")[0]
            if error.name == "fastreid":
                raise ImportError(f"fast-reid is not installed: run `{INSTALL_HOST}` (or `make`)") from None
            if missing and missing != "fastreid":
                raise ImportError(
                    f"fast-reid is installed without its need {missing!r}: run `pip install "
                    f"{DISTRIBUTIONS.get(missing, missing)}`"
                ) from error
            raise _broken(name, error) from error
        except Exception as error:  # whatever a broken installation raises at import becomes the one sentence
            raise _broken(name, error) from error


def _broken(name: str, error: BaseException) -> ImportError:
    cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return ImportError(
        f"fast-reid is installed but {name} cannot be imported ({cause}): run `{INSTALL_HOST}`"
    )


def host_version() -> str:
    """Return the imported host's version, of its distribution if that is where it was imported from.

    `fastreid.__version__` says 1.3 in 1.4.0; that of a source checkout is marked: ``"1.3+source"``.
    """
    host = importlib.import_module("fastreid")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        distribution = importlib.metadata.distribution("fastreid")
        installed = os.path.realpath(distribution.locate_file("fastreid/__init__.py"))
        if installed == os.path.realpath(host.__file__):
            return distribution.version
    own = host.__version__
    return own if own.endswith("+source") else f"{own}+source"


PATCHES = (
    Patch(
        "collections-mapping",
        "data/build.py:12 (git :19), evaluation/testing.py:5",
        "`from collections import Mapping` fails from Python 3.10 on",
        collections_abcs,
        needed=lambda: not hasattr(collections, "Mapping"),
        at_import=True,
    ),
    Patch(
        "torch-six",
        "data/build.py:11 (PyPI only)",
        "`torch._six` is gone from torch 2.0 on",
        torch_six,
        needed=lambda: importlib.util.find_spec("torch._six") is None,
        at_import=True,
    ),
    Patch(
        "missing-faiss",
        "evaluation/roc.py:9, utils/compute_dist.py:10, utils/faiss_utils.py:4",
        "faiss is imported at the top although only re-ranking uses it",
        missing_faiss,
        needed=lambda: _faiss_error() is not None,
        at_import=True,
    ),
    Patch(
        "cython-warning",
        "evaluation/rank.py:14, evaluation/roc.py:18",
        "two warnings at every import about a Cython build that is not used any more",
        no_cython_warning,
        at_import=True,
    ),
    Patch(
        "host-version",
        "__init__.py:8",
        "`fastreid.__version__` says 1.3 in 1.4.0",
        lambda: put("fastreid", "__version__", host_version()),
    ),
)
