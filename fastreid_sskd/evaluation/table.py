"""Results as a table."""
from collections.abc import Iterable, Sequence

from tabulate import tabulate

__all__ = ["METRICS", "results_table"]

METRICS = ("mAP", "Rank-1", "Rank-5", "Rank-10", "mINP")


def results_table(rows: Iterable[tuple[Sequence[str], dict[str, float]]], headers: Sequence[str],
                  tablefmt: str = "pipe") -> str:
    """A table of (labels, metrics) rows, metrics in percent.

    Args:
        rows: labels, as many as ``headers``, and a dict with the keys of ``METRICS`` (a missing one prints as "-").
        headers: names of the label columns.
        tablefmt: one of tabulate's formats.
    """
    body = [[*labels, *(metrics.get(name) for name in METRICS)] for labels, metrics in rows]
    return tabulate(body, headers=[*headers, *METRICS], tablefmt=tablefmt, floatfmt=".1f", missingval="-")
