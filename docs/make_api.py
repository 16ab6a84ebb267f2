"""Write docs/api.md: every exported name with its arguments and the first line of its docstring.

python docs/make_api.py            # after a change of an exported name, its arguments or that line
"""

import dataclasses
import importlib
import inspect
import pkgutil
import re
import types
from pathlib import Path

import fastreid_sskd

HEAD = """\
# Public functions and classes

<!-- Written by `python docs/make_api.py`; a test compares this page with the package. -->

These names are public: what they do changes only with a line in the CHANGELOG. Everything else may move.
`import fastreid_sskd` comes first: it prepares fast-reid for the installed versions of Python and torch.
"""


def public_packages() -> list:
    """The package and its subpackages but that of the commands, in alphabetical order."""
    names = [
        f"fastreid_sskd.{module.name}"
        for module in pkgutil.iter_modules(fastreid_sskd.__path__)
        if module.ispkg and module.name != "tools"
    ]
    return [fastreid_sskd, *(importlib.import_module(name) for name in sorted(names))]


def exported(package: types.ModuleType) -> list[str]:
    """The names that a package exports: what its ``__init__.py`` imports or defines, modules apart."""
    if package is fastreid_sskd:
        return package.__all__  # some are imported when they are asked for
    names = [name for name, thing in vars(package).items() if name[0] != "_" and not inspect.ismodule(thing)]
    return sorted(names, key=lambda name: (not name.isupper(), name.lower() == name, name))


def first_line(thing: object) -> str:
    """The first line of a docstring as Markdown, or nothing."""
    line = (inspect.getdoc(thing) or "").split("\n")[0].strip()
    return re.sub(r"(?::\w+:)?(`+)[~.]?([^`]+)\1", r"`\2`", line)


def arguments(function: object) -> str:
    """The arguments of a function or dataclass; defaults other than short literals are not shown."""

    def shown(parameter: inspect.Parameter) -> inspect.Parameter:
        default, empty = parameter.default, inspect.Parameter.empty
        if default is not empty and not isinstance(default, (bool, int, float, str, tuple, type(None))):
            default = ...
        return parameter.replace(annotation=empty, default=default)

    signature = inspect.signature(function)
    return str(
        signature.replace(
            parameters=[shown(parameter) for parameter in signature.parameters.values()],
            return_annotation=inspect.Signature.empty,
        )
    ).replace("Ellipsis", "...")


def entry(name: str, thing: object) -> str:
    """One line of the page for an exported name."""
    if inspect.ismodule(thing):
        return f"* [`{thing.__name__}`](#{thing.__name__.replace('.', '')})"
    if isinstance(thing, types.GenericAlias):
        return f"* type `{name} = {thing}`"
    if inspect.isclass(thing):
        title = name + (arguments(thing) if dataclasses.is_dataclass(thing) else "")
        return f"* class `{title}`: {first_line(thing)}"
    if inspect.isroutine(thing):
        return f"* `{name}{arguments(thing)}`: {first_line(thing)}"
    if isinstance(thing, (int, str)) or (
        isinstance(thing, tuple) and all(isinstance(item, str) for item in thing)
    ):
        return f"* `{name} = {thing!r}`"
    return f"* `{name}`: a {type(thing).__name__}"  # its contents may grow: a registry


def page() -> str:
    """The text of docs/api.md."""
    parts = [HEAD]
    for package in public_packages():
        entries = "\n".join(entry(name, getattr(package, name)) for name in exported(package))
        if entries:
            parts.append(f"## {package.__name__}\n\n{first_line(package)}\n\n{entries}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (Path(__file__).parent / "api.md").write_text(page(), encoding="utf-8")
