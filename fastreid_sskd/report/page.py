"""The report of a run: one HTML file without scripts, references or anything else outside itself."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import jinja2
from markupsafe import Markup

from .. import __version__
from ..benchmark.table import write_table
from ..clustering import sweep_table
from ..data import training_items
from ..data.datasets import test_items
from ..engine.atomic import check_output, write_atomically
from . import curves
from .embeddings import embed, model_after, model_before, run_config
from .run_files import RunFiles, read_run_files
from .sections import Before, Row, cluster_rows, map_figures, ranked_rows
from .thumbnails import Thumbnails

__all__ = ["Options", "write_report"]

logger = logging.getLogger("fastreid.sskd.report")


@dataclass(frozen=True)
class Options:
    """What a report shows.

    Attributes:
        images: pictures of people; without, ranked lists and clusters are shown in words.
        features: run the models: without, there are no ranked lists and no map.
        queries, length: ranked lists, and gallery images in each.
        clusters, members: example clusters, and images of each.
        seed: of the random samples.
    """

    images: bool = True
    features: bool = True
    queries: int = 8
    length: int = 10
    clusters: int = 8
    members: int = 10
    seed: int = 0


@dataclass
class Section:
    """A part of the page; with nothing to show, ``note`` says why."""

    title: str
    note: str = ""
    figures: Sequence[Markup] = field(default_factory=list)
    rows: Sequence[Row] = field(default_factory=list)
    text: str = ""

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-")


def write_report(folder: str, path: str = "", options: Options | None = None) -> str:
    """Write the report of a run folder; returns the file's path.

    Args:
        folder: a run of any of the package's trainings, finished or not.
        path: of the HTML file; "": ``report.html`` in the folder.
        options: what to show.

    Raises:
        FileNotFoundError: if the folder is no run folder.
        ValueError: if nothing has been trained there, or the file cannot be written or does not end in .html.
    """
    options = options or Options()
    path = path or os.path.join(folder, "report.html")
    run = read_run_files(folder)
    check_output(path, (".html", ".htm"))
    text = _template().render(
        folder=folder,
        architecture=run.config["MODEL"]["META_ARCHITECTURE"],
        sections=_sections(run, options),
        version=__version__,
        images=options.images,
    )
    write_atomically(path, lambda file: file.write(text.encode()))
    return path


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(os.path.dirname(os.path.abspath(__file__)))
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("template.html")


def _sections(run: RunFiles, options: Options) -> list[Section]:
    sections = [
        Section(
            "Results",
            text=write_table(run.results),
            note="" if run.results else "The last epoch has not been evaluated.",
        ),
        Section(
            "Losses and speed",
            figures=curves.loss_figures(run),
            note="Medians of the last steps, as in metrics.json.",
        ),
        _or_reason(
            Section("Evaluation", figures=curves.evaluation_figures(run)), "The run was not evaluated."
        ),
        _or_reason(
            Section("Pseudo-labels", figures=curves.refresh_figures(run)),
            "This training has no pseudo-labels.",
        ),
        *([Section("Radius", text=sweep_table(run.sweep), note="What eps was last chosen from.")] if run.sweep else []),
        _or_reason(Section("Time", figures=curves.time_figures(run)), "No step was timed."),
        _or_reason(
            Section("Cluster sizes", figures=curves.cluster_size_figures(run), note="At the last refresh."),
            "No checkpoint with pseudo-labels is there.",
        ),
    ]
    sections += _with_models(run, options)
    sections += [
        _clusters(run, options),
        Section("Config", text=run.config_text),
        Section("Environment", text=run.environment, note=f"Of {run.environment_of}."),
    ]
    return sections


def _or_reason(section: Section, reason: str) -> Section:
    if not section.figures:
        section.note = reason
    return section


def _with_models(run: RunFiles, options: Options) -> list[Section]:
    """Ranked lists and the map, which need the test images' features before and after."""
    lists, feature_map = Section("Ranked lists"), Section("Map of the features")
    reason = "Features were not asked for." if not options.features else ""
    if options.features and not run.config["DATASETS"]["TESTS"]:
        reason = "The run has no test set."
    if not reason:
        try:
            _fill(run, options, lists, feature_map)
        # a run folder may have come alone: without its data, its weights, or this version's config keys
        except (FileNotFoundError, FloatingPointError, ValueError, KeyError) as error:
            reason = f"Features could not be computed: {error}"
            logger.warning("%s", reason)
    for section in (lists, feature_map):
        section.note = reason or section.note
    return [lists, feature_map]


def _fill(run: RunFiles, options: Options, lists: Section, feature_map: Section) -> None:
    cfg = run_config(run)
    test = cfg.DATASETS.TESTS[0]
    queries, gallery = test_items(test, cfg.SSKD.FOLDERS)
    items = [*queries, *gallery]
    after = embed(cfg, model_after(cfg, run), items)
    try:
        before = Before(embed(cfg, model_before(cfg, run), items))
    except (FileNotFoundError, FloatingPointError, ValueError) as error:
        before = Before(None, f" Before the run: not known, {error}.")
    lists.rows = ranked_rows(
        before,
        after,
        queries,
        gallery,
        Thumbnails(options.images),
        metric=cfg.TEST.METRIC,
        count=options.queries,
        length=options.length,
        seed=options.seed,
    )
    by = "the ensemble of the teachers" if cfg.MODEL.META_ARCHITECTURE == "SSKD" else "the model"
    lists.note = (
        f"Query, then the nearest gallery images of {test} by {by}; green: the same identity, red: another one; "
        f"images of the query's identity under its own camera are left out, as in the evaluation.{before.reason}"
    )
    feature_map.figures = map_figures(before, after, items, seed=options.seed)
    feature_map.note = (
        f"Features of {test} by {by}; a few identities in colours. A map keeps neighbourhoods only roughly."
    )


def _clusters(run: RunFiles, options: Options) -> Section:
    section = Section("Example clusters and noise")
    if run.labels is None:
        section.note = "No checkpoint with pseudo-labels is there."
        return section
    try:
        cfg = run_config(run)
        items = training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS)
    except (FileNotFoundError, ValueError, KeyError) as error:
        section.note = f"The training images could not be listed: {error}"
        return section
    if len(items) != len(run.labels):
        section.note = (
            f"The last refresh labelled {len(run.labels)} images, and the data set has {len(items)} now: it is not "
            "the one of the run."
        )
        return section
    section.note = "Of the last refresh."
    section.rows = cluster_rows(
        run.labels,
        items,
        Thumbnails(options.images),
        count=options.clusters,
        length=options.members,
        seed=options.seed,
    )
    return section
