"""Figures of other people's papers and repositories, from a file that says where each was read."""

import re
from collections.abc import Collection
from typing import Any

import yaml

from .results import Result

_METRICS = ("mAP", "Rank-1", "Rank-5", "Rank-10")
_NEEDED = {"method", "where", "verified", "results"}
_FIELDS = _NEEDED | {"backbone", "selection"}
_PAIR = re.compile(r"(\S+) -> (\S+)")


def load_published(path: str) -> list[dict[str, Any]]:
    """Read and check a file of published figures, a YAML list.

    An entry has ``method``, ``where`` (the document and the place in it), ``verified`` (whether somebody has
    read the figures there), ``results`` ({"Source -> Target": [mAP, Rank-1, Rank-5, Rank-10]}, null for what
    is not given), and may have ``backbone`` and ``selection``.

    Raises:
        ValueError: naming the entry, if one is not of this form, or is verified and names no place.
    """
    with open(path, encoding="utf-8") as file:
        entries = yaml.safe_load(file)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path!r} has to be a list of entries with {', '.join(sorted(_FIELDS))}")
    for number, entry in enumerate(entries, start=1):
        problem = _problem(entry)
        if problem:
            raise ValueError(
                f"entry {number} of {path!r} ({entry.get('method', 'without a method')}): {problem}"
            )
    return entries


def _problem(entry: dict) -> str:
    if not _NEEDED <= set(entry) <= _FIELDS:
        return (
            f"needs method, where, verified and results, and knows besides only {', '.join(sorted(_FIELDS))}"
        )
    if not isinstance(entry["verified"], bool):
        return "verified is true (somebody read the figures at that place) or false"
    if entry["verified"] and not entry["where"]:
        return "is verified, so `where` has to name the document and the place in it"
    if not isinstance(entry["results"], dict):
        return "results is {'Source -> Target': [mAP, Rank-1, Rank-5, Rank-10]}"
    for pair, figures in entry["results"].items():
        if not _PAIR.fullmatch(str(pair)):
            return f"{pair!r} is no 'Source -> Target'"
        if (
            not isinstance(figures, list)
            or len(figures) != len(_METRICS)
            or not all(map(_is_figure, figures))
        ):
            return f"{pair} needs [{', '.join(_METRICS)}] in percent, null for what is not given"
    return ""


def _is_figure(figure: Any) -> bool:
    return figure is None or isinstance(figure, (int, float)) and 0 <= figure <= 100


def published_results(entries: list[dict], pairs: Collection[str]) -> tuple[list[Result], list[str]]:
    """Rows of the verified figures for some pairs, and the methods left out as unverified."""
    found = [(pair, entry) for pair in dict.fromkeys(pairs) for entry in entries if pair in entry["results"]]
    results = []
    for pair, entry in found:
        if entry["verified"]:
            source, target = _PAIR.fullmatch(pair).groups()
            results.append(Result(
                method=entry["method"], source=source, target=target, backbone=entry.get("backbone", ""),
                selection=entry.get("selection", ""), published=entry["where"],
                metrics={m: f for m, f in zip(_METRICS, entry["results"][pair]) if f is not None},
            ))  # fmt: skip
    return results, list(dict.fromkeys(entry["method"] for _, entry in found if not entry["verified"]))
