"""MODEL_ZOO.md: hand-written notes with tables of recorded runs."""

import os
from dataclasses import replace

import jinja2

from .results import Result, collect, read_results, write_results
from .table import write_table


def render_zoo(template: str, records: str, runs: str = "") -> str:
    """Render a template in which ``{{ table("run_a") }}`` stands for the results of ``runs/run_a``.

    ``table`` also takes ``source`` and ``target``, to call a data set by a better name than its class,
    ``best`` (also the rows chosen on the test set), and ``against`` and ``fmt`` of :func:`write_table`.

    Args:
        template: a file of Markdown.
        records: folder of the records, a JSON file of each run's name.
        runs: folder of run folders; where it has one of that name, its record is written first. "": records
            only.
    """

    def table(
        name: str, *, source: str = "", target: str = "", best: bool = False, against: str = "",
        fmt: str = "markdown",
    ) -> str:  # fmt: skip
        shown = [
            replace(result, source=source or result.source, target=target or result.target)
            for result in _recorded(name, records, runs)
            if best or not result.selection.startswith("best")
        ]
        return write_table(shown, fmt, against=against)

    if not os.path.isfile(template):
        raise FileNotFoundError(f"no file of notes {template!r}: give the Markdown that the tables go into")
    with open(template, encoding="utf-8") as file:
        text = file.read()
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(text).render(table=table)


def _recorded(name: str, records: str, runs: str) -> list[Result]:
    path, folder = os.path.join(records, f"{name}.json"), os.path.join(runs, name)
    if runs and os.path.isdir(folder):
        write_results(collect(folder, ("last", "best")), path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no record {path!r} and no run folder {folder!r}: run it first")
    return read_results(path)
