"""The report of a run: one HTML file without scripts, references or anything else outside itself."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from .. import __version__
from ..benchmark.table import write_table
from ..clustering import sweep_table
from ..data import training_items
from ..data.items import test_items
from ..engine.files import check_output, write_atomically
from . import plots
from .images import Row, cluster_rows, embed, model_after, model_before, ranked_rows, run_config
from .run_files import RunFiles, read_run_files

logger = logging.getLogger("fastreid.sskd.report")


@dataclass(frozen=True)
class Options:
    """Choose what a report shows.

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
    figures: Sequence[Markup] = ()
    rows: Sequence[Row] = ()
    text: str = ""

    @property
    def anchor(self) -> str:
        """The section's place in the page's address."""
        return self.title.lower().replace(" ", "-")


def write_report(folder: str, path: str = "", options: Options | None = None) -> str:
    """Write the report of a run folder, finished or not; returns the file's path.

    Args:
        path: of the HTML file; "": ``report.html`` in the folder.

    Raises:
        FileNotFoundError: if the folder is no run folder.
        ImportError: if matplotlib is not installed.
        ValueError: if nothing has been trained there, or the file cannot be written or does not end in .html.
    """
    options = options or Options()
    path = path or os.path.join(folder, "report.html")
    plots.import_matplotlib()
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
    no_results = "" if run.results else "The last epoch has not been evaluated."
    return [
        Section("Results", no_results, text=write_table(run.results)),
        Section("Losses and speed", "Medians of the last steps, see metrics.json.", plots.loss_figures(run)),
        _plotted("Evaluation", plots.evaluation_figures(run), "The run was not evaluated."),
        _plotted("Pseudo-labels", plots.refresh_figures(run), "This training has no pseudo-labels."),
        *_radius(run),
        _plotted("Time", plots.time_figures(run), "No step was timed."),
        _plotted("Cluster sizes", plots.cluster_size_figures(run), _NO_LABELS, "At the last refresh."),
        *_features(run, options),
        _clusters(run, options),
        Section("Config", text=run.config_text),
        Section("Environment", f"Of {run.environment_of}.", text=run.environment),
    ]


_NO_LABELS = "No checkpoint with pseudo-labels is there."


def _plotted(title: str, figures: Sequence[Markup], empty: str, note: str = "") -> Section:
    return Section(title, note if figures else empty, figures)


def _radius(run: RunFiles) -> list[Section]:
    if not run.sweep:
        return []
    return [Section("Radius", "What eps was last chosen from.", text=sweep_table(run.sweep))]


def _features(run: RunFiles, options: Options) -> list[Section]:
    """Ranked lists and the map, which need the test images' features before and after."""
    reason = "Features were not asked for." if not options.features else ""
    if options.features and not run.config["DATASETS"]["TESTS"]:
        reason = "The run has no test set."
    if not reason:
        try:
            return _before_and_after(run, options)
        # a run folder may have come alone: without its data, its weights, or this version's config keys
        except (FileNotFoundError, FloatingPointError, ValueError, KeyError) as error:
            reason = f"Features could not be computed: {error}"
            logger.warning("%s", reason)
    return [Section("Ranked lists", reason), Section("Map of the features", reason)]


def _before_and_after(run: RunFiles, options: Options) -> list[Section]:
    cfg = run_config(run)
    test = cfg.DATASETS.TESTS[0]
    queries, gallery = test_items(test, cfg.SSKD.FOLDERS)
    items = [*queries, *gallery]
    after = embed(cfg, model_after(cfg, run), items)
    features, unknown = {"after": after}, ""
    try:
        features = {"before": embed(cfg, model_before(cfg, run), items), "after": after}
    except (FileNotFoundError, FloatingPointError, ValueError) as error:
        unknown = f" Before the run: not known, {error}."
    by = "the ensemble of the teachers" if cfg.MODEL.META_ARCHITECTURE == "SSKD" else "the model"
    lists = Section(
        "Ranked lists",
        f"Query, then the nearest gallery images of {test} by {by}; green: the same identity, red and "
        "dashed: another one; images of the query's identity under its own camera are left out, as in the "
        f"evaluation.{unknown}",
        rows=ranked_rows(
            features, queries, gallery, metric=cfg.TEST.METRIC, count=options.queries, length=options.length,
            seed=options.seed, images=options.images,
        ),
    )  # fmt: skip
    feature_map = Section(
        "Map of the features",
        f"Features of {test} by {by}; a few identities in colours. A map keeps neighbourhoods only roughly.",
        plots.map_figures(features, items, seed=options.seed),
    )
    return [lists, feature_map]


def _clusters(run: RunFiles, options: Options) -> Section:
    title = "Example clusters and noise"
    if run.labels is None:
        return Section(title, _NO_LABELS)
    try:
        cfg = run_config(run)
        items = training_items(cfg.DATASETS.NAMES, cfg.SSKD.FOLDERS)
    except (FileNotFoundError, ValueError, KeyError) as error:
        return Section(title, f"The training images could not be listed: {error}")
    if len(items) != len(run.labels):
        counts = f"The last refresh labelled {len(run.labels)} images, and the data set has {len(items)} now"
        return Section(title, f"{counts}: it is not the one of the run.")
    shown = {"count": options.clusters, "length": options.members, "seed": options.seed}
    rows = cluster_rows(run.labels, items, **shown, images=options.images)
    return Section(title, "Of the last refresh.", rows=rows)
