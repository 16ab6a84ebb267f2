"""Values of a config, from files and from overrides: what is written becomes what the key's default is."""

import ast
import functools
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from fastreid.config import get_cfg
from yacs.config import CfgNode

from .config import REMOVED, add_sskd_config
from .refusals import UnknownNameError, nearest, said_of

logger = logging.getLogger("fastreid.sskd.config")

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
#: the configs of this project: a wheel has them inside the package, a clone beside it
CONFIGS = next(
    filter(os.path.isdir, (os.path.join(at, "configs") for at in (_PACKAGE, os.path.dirname(_PACKAGE)))), ""
)

#: files that are relative to the file that names them
_BESIDE = ("SSKD.SOURCE.CONFIG", "SSKD.PEERS")
_NOTHING = (None, "", "~", "null", "None")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class _AsWritten(yaml.SafeLoader):
    """YAML whose values stay text: the key, not YAML, says what 1e-3 or 2024-05-01 is. Merging (<<) works."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012 - as yaml has it

    def compose_mapping_node(self, anchor):
        """YAML itself would drop the first of two keys, with all that is below it, without a word."""
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.composer.ComposerError(
                        problem=f"the key {key.value} is there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node


def config_path(given: str, folder: str = "") -> str:
    """The path of a config or grid: a file relative to ``folder``, else one that the package ships.

    The latter go by names such as "sskd_m2d.yml" and "peers/r50.yml".
    """
    path, shipped = os.path.join(folder, os.path.expanduser(given)), os.path.join(CONFIGS, given)
    return shipped if os.path.isfile(shipped) and not os.path.exists(path) else path


def _shipped() -> list[str]:
    found = [os.path.join(folder, name) for folder, _, names in os.walk(CONFIGS) for name in names]
    return [os.path.relpath(path, CONFIGS) for path in found if path.endswith(".yml")]


def merge_file(cfg: CfgNode, path: str, loaded_by: Sequence[str] = ()) -> None:
    """Change a config to what a YAML file says, after the file that its ``_BASE_`` names.

    ``path``: the file, see :func:`config_path`. ``SSKD.SOURCE.CONFIG`` and ``SSKD.PEERS`` in it are relative
    to its folder, and become absolute. ``loaded_by``: the files that have led here by ``_BASE_``.
    """
    path = config_path(path)
    given = _read(path, loaded_by)
    base = given.pop("_BASE_", None)
    if base is not None:
        if base in _NOTHING or not isinstance(base, str):
            raise ValueError(
                f"config file {path!r}: _BASE_ takes the path of one file; got {base!r}: name it, or leave "
                "_BASE_ out"
            )
        here = [*loaded_by, os.path.realpath(path)]
        base = config_path(base, os.path.dirname(path))
        if os.path.realpath(base) in here:
            raise ValueError(f"config file {path!r} has {base!r} as its _BASE_, which leads back to it")
        merge_file(cfg, base, here)
    with said_of(f"config file {path!r}"):
        _merge(cfg, given, os.path.dirname(path))


def _read(path: str, loaded_by: Sequence[str]) -> dict[str, Any]:
    if not os.path.isfile(path):
        what = "is a folder: name a file in it"
        if not os.path.exists(path):
            what = f"not found{nearest(path, _shipped())}"
        raise FileNotFoundError(
            f"config file {path!r} {what}" + (f" (the _BASE_ of {loaded_by[-1]!r})" if loaded_by else "")
        )
    try:
        with open(path, encoding="utf-8-sig") as file:
            given = yaml.load(file, _AsWritten)
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise ValueError(
            f"config file {path!r} is no text: a config is YAML, and weights are given by MODEL.WEIGHTS FILE"
        ) from None
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark.line + 1
        raise ValueError(
            f"config file {path!r} is no YAML, line {at}: {error.problem}; correct that line or the one "
            "before"
        ) from None
    if given in _NOTHING:
        raise ValueError(
            f"config file {path!r} is empty: write the keys that differ from the defaults, or at least a "
            "_BASE_"
        )
    if not isinstance(given, dict):
        raise ValueError(f"config file {path!r} has no keys: write SECTION: {{KEY: value}}, as in configs/")  # noqa: TRY004
    return given


def merge_overrides(cfg: CfgNode, opts: Sequence) -> None:
    """Apply overrides, KEY, value, KEY, value, ...; values are text or of the key's own type.

    Files in them are relative to the working directory.
    """
    opts = list(opts)
    for item in map(str, opts[::2]):
        if item.startswith("--"):
            raise ValueError(f"{item} stands among the KEY value pairs: options go before them")
        if "=" in item:
            raise ValueError(f"{item!r} is no key of the config: write KEY value, not KEY=value")
        if os.sep in item or os.path.isfile(item):
            raise ValueError(
                f"{item!r} stands where a key of the config belongs: --resume takes no file, it continues "
                "from the last checkpoint in OUTPUT_DIR; weights are given by MODEL.WEIGHTS FILE"
            )
    if len(opts) % 2:
        raise ValueError(
            f"overrides are pairs, KEY value, and these are of odd length: {' '.join(map(str, opts))}"
        )
    for key, value in zip(opts[::2], opts[1::2]):
        _merge(cfg, {str(key): value}, "")


def _merge(
    cfg: CfgNode, given: Mapping[str, Any], folder: str, node: CfgNode | None = None, above: str = ""
) -> None:
    """Change ``node``, a section of ``cfg`` that is called ``above``; at first all of it."""
    node = cfg if node is None else node
    for name, value in given.items():
        name, _, below = name.partition(".")
        key, value = above + name, {below: value} if below else value
        is_section = isinstance(value, Mapping)
        if node.is_new_allowed() and is_section:
            # SSKD.FOLDERS: a user's section has the keys of the one that is always there
            before, own = node.get(name, {}), next(iter(node.values())).clone()
            own.update(before)
            _merge(cfg, value, folder, own, f"{key}.")
            node[name] = type(node)({kept: own[kept] for kept in own if kept in before or kept in value})
        elif key in REMOVED:
            logger.warning("%s has no effect any more: %s", key, REMOVED[key])
        elif name not in node:
            meant = f"{key}.{below}" if below else key
            known = [*dict(_keys(cfg)), *(above + other for other in node)]
            raise UnknownNameError(f"there is no key {meant}{nearest(meant, known)}")
        elif not isinstance(node[name], CfgNode):
            if is_section:
                raise ValueError(f"{key} is a value, not a section: there is nothing below it")
            value = _as_type_of(_defaults().get(key, node[name]), value, key)
            node[name] = _absolute(value, folder) if key in _BESIDE else value
        elif is_section:
            _merge(cfg, value, folder, node[name], f"{key}.")
        elif value not in _NOTHING:
            raise ValueError(f"{key} is a section, not a value: it has {', '.join(node[name])}")


def _keys(node: CfgNode, above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        yield above + name, value
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{above}{name}.")


@functools.cache
def _defaults() -> dict[str, Any]:
    """Every key's default: a list that is empty by now says nothing of its elements."""
    cfg = get_cfg()
    add_sskd_config(cfg)
    return dict(_keys(cfg))


def _absolute(value: str | list, folder: str) -> str | list:
    if isinstance(value, list):
        return [_absolute(path, folder) for path in value]
    return value and os.path.abspath(config_path(value, folder))


# ---- one value -----------------------------------------------------------------------------------


def _as_type_of(default: Any, given: Any, key: str) -> Any:
    """What is given, text or a value, as the type of the key's default."""
    rule, read = _TYPES[type(default)]
    element = _element_type(default, key) if read is _list else None
    try:
        value = read(given.strip() if isinstance(given, str) else given)
        if element:
            value = [_TYPES[element][1](part) for part in value]
    except (OverflowError, TypeError, ValueError, yaml.YAMLError):
        rule = f"a list, each {_TYPES[element][0]}" if element else rule
        raise ValueError(f"{key} takes {rule}, and its default is {default!r}; got {given!r}") from None
    return type(default)(value)


def _element_type(default: Sequence, key: str) -> type | None:
    """Of a list's elements: that of the default's; those of an empty default are text, but for two keys."""
    unusual = {"SSKD.SOURCE.OPTS": None, "DATALOADER.SET_WEIGHT": float}  # None: values of any key
    types = {type(element) for element in default} or {str}
    return unusual[key] if key in unusual else float if float in types else types.pop()


def _boolean(given: Any) -> bool:
    if isinstance(given, bool):
        return given
    if str(given).lower() not in _BOOLEANS:
        raise ValueError
    return _BOOLEANS[str(given).lower()]


def _real(given: Any) -> float:
    number = float(given)
    if isinstance(given, bool) or not math.isfinite(number):
        raise ValueError
    return number


def _whole(given: Any) -> int:
    try:
        return int(given if isinstance(given, str) else "")  # exact, however large
    except ValueError:
        number = _real(given)  # 1e3, 3.0, or a value
    if not number.is_integer():
        raise ValueError
    return int(number)


def _text(given: Any) -> str:
    if given in _NOTHING:
        return ""
    if isinstance(given, str) and given[0] in "'\"([":
        try:
            literal = ast.literal_eval(given)
        except (SyntaxError, ValueError):
            return given
        given = given if isinstance(literal, (int, float)) else literal
    if isinstance(given, (list, tuple, dict)):
        raise TypeError
    return str(given)


def _list(given: Any) -> list:
    """Elements, those of text as written: a list in Python's or YAML's way, with commas, or one alone."""
    if given in _NOTHING:
        return []
    if isinstance(given, Mapping):
        raise TypeError
    if not isinstance(given, str):
        return list(given) if isinstance(given, (list, tuple)) else [given]
    try:
        tree = ast.parse(given, mode="eval").body
    except (SyntaxError, ValueError):
        tree = None
    if isinstance(tree, (ast.List, ast.Tuple)):
        return _as_written(given, tree)
    if given[0] + given[-1] == "[]":
        return _list(yaml.load(given, _AsWritten))
    return [part.strip() for part in given.split(",") if part.strip()]


def _as_written(text: str, tree: ast.expr) -> Any:
    if isinstance(tree, (ast.List, ast.Tuple)):
        return [_as_written(text, element) for element in tree.elts]
    if isinstance(tree, ast.Constant) and isinstance(tree.value, str):
        return tree.value
    return ast.get_source_segment(text, tree)


_TYPES = {
    bool: ("True or False", _boolean),
    int: ("a whole number", _whole),
    float: ("a number", _real),
    str: ("text", _text),
    list: ("a list", _list),
    tuple: ("a list", _list),
}
