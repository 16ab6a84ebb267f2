"""Make fast-reid 1.4.0 (the PyPI wheel or a git checkout) import and run on a current stack.

    from fastreid_sskd import compat
    compat.apply()          # before, or instead of, the first import of fastreid

The host pins torch 1.13. `apply` imports it once, with the names it misses present only meanwhile, and then
replaces the parts that break or mislead on Python 3.10-3.13, torch >= 2.1 and numpy 1.26 and 2. `PATCHES`
lists every change with its place in the host and its reason; nothing outside the host's own modules stays
changed.
"""

import contextlib

from . import data, datasets, evaluation, host_import, modeling, samplers, training
from .data import HostDataLoader, SteadyLoader, dataset_root
from .host_import import host_version
from .patch import CompatError, Patch

PATCHES: tuple[Patch, ...] = (
    *host_import.PATCHES,
    *data.PATCHES,
    *datasets.PATCHES,
    *samplers.PATCHES,
    *evaluation.PATCHES,
    *modeling.PATCHES,
    *training.PATCHES,
)
_applied: list[str] = []
_done = False


def apply() -> list[str]:
    """Import the host and patch it; the second and later calls change nothing.

    Returns:
        Names of the patches that this environment needed, in order.

    Raises:
        ImportError: if the host or one of its needs is not installed, or the host cannot be imported.
        CompatError: if the host is not the version that a patch was written for.
    """
    global _done
    if _done:
        return list(_applied)
    with contextlib.ExitStack() as while_importing:
        for patch in PATCHES:
            if patch.at_import and patch.needed():
                while_importing.enter_context(patch.action())
                _note(patch)
        host_import.import_host()
    for patch in PATCHES:
        if not patch.at_import and patch.name not in _applied and patch.needed():
            patch.action()
            _note(patch)
    _done = True
    return list(_applied)


def _note(patch: Patch) -> None:
    if patch.name not in _applied:
        _applied.append(patch.name)


def table() -> str:
    """Return PATCHES as a Markdown table."""
    rows = [f"| {patch.name} | {patch.where} | {patch.reason} |" for patch in PATCHES]
    return "\n".join(["| patch | where in fast-reid | why |", "|---|---|---|", *rows])
