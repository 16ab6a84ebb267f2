"""What one patch of the host is, and the three ways to make one: find a target, swap it, proxy a module."""

import importlib
import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

HOST_VERSION = "1.4.0"
INSTALL_HOST = f"pip install --no-deps fastreid=={HOST_VERSION}"


class CompatError(RuntimeError):
    """The host is not the one that the patches were written for."""


@dataclass(frozen=True)
class Patch:
    """One change to the host.

    Attributes:
        name: short and unique.
        where: the host's ``file:line`` (below ``fastreid/``) that breaks.
        reason: what breaks, and from which version on.
        action: makes the change; for ``at_import`` it returns a context manager that is held only while the
            host is imported. Raises CompatError if its target is gone.
        needed: whether this environment needs it.
        at_import: True for a patch that lasts only as long as the host's import.
    """

    name: str
    where: str
    reason: str
    action: Callable[[], AbstractContextManager | None]
    needed: Callable[[], bool] = lambda: True  # of every supported version
    at_import: bool = False


def target(module: str, path: str) -> Any:
    """Return the host's object ``path`` (dots allowed) of ``module``."""
    try:
        found = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        host = sys.modules.get("fastreid")
        at = getattr(host, "__file__", None) or "an unknown place"
        raise CompatError(
            f"{module}.{path} is not in the fast-reid found at {at}: fastreid_sskd patches fast-reid "
            f"{HOST_VERSION}, install that one with `{INSTALL_HOST}`"
        ) from error
    return found


def put(module: str, path: str, value: Any) -> None:
    """Replace the host's object ``path`` (dots allowed) of ``module``, which has to be there."""
    target(module, path)
    owner, _, name = path.rpartition(".")
    setattr(target(module, owner) if owner else importlib.import_module(module), name, value)


def swap(module: str, name: str, make: Callable[[Any], Any]) -> None:
    """Replace ``module.name`` by ``make(old)`` in every imported module of the host that holds the old one.

    ``from .build import f`` copies a name, so changing the defining module alone would leave the old function
    in use elsewhere. Modules outside the host that copied the name earlier keep the old object.
    """
    old = target(module, name)
    new = make(old)
    for key, host_module in list(sys.modules.items()):
        if key.split(".")[0] != "fastreid" or host_module is None:
            continue
        for attribute, value in list(vars(host_module).items()):
            if value is old:
                setattr(host_module, attribute, new)


class ModuleProxy(types.ModuleType):
    """A module seen through overrides: lets one host file see a changed ``numpy`` without changing numpy."""

    def __init__(self, module: types.ModuleType, **overrides: Any) -> None:
        super().__init__(module.__name__, module.__doc__)
        self.__dict__.update(overrides)
        self.__dict__["_proxied"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_proxied"], name)
