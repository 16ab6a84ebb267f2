r"""One table of any models and runs, with what their figures depend on.

    tools/benchmark.py table runs/demo runs/run_a                       # finished runs: no model is evaluated
    tools/benchmark.py table "stock=baseline.yml:b.pth" configs/demo_source.yml:s.pth --tests SyntheticTarget
    tools/benchmark.py table runs/sskd_m2d --published --format latex
    tools/benchmark.py run --config-file configs/demo.yml --runs 3 --output runs/demo3
    tools/benchmark.py grid configs/ablation/grid.yml --output runs/ablation
    tools/benchmark.py grid configs/rivals/grid.yml --config-file configs/sskd_cuhk2m_mobilenet.yml \
        --output runs/rivals --against "SSKD as released"
    tools/benchmark.py selection runs/rivals                 # which SSKD.SELECT_BY chooses best
    tools/benchmark.py zoo                                   # in a clone: writes MODEL_ZOO.md

What is given to `table` is [NAME=]FOLDER (a run, or a folder of runs) or [NAME=]CONFIG:WEIGHTS. With --tests
the model_final.pth of each run is evaluated on those sets. `run` and `grid` resume when they are given again,
and end with status 3 if a run stopped because its pseudo-labels cannot be trained on, or because it has
diverged. Results are of the last epoch; --selection last,best adds the rows that a run chose, and the table
says on what.
"""

import argparse
import os
import sys
from dataclasses import replace

from fastreid.utils.logger import setup_logger

from fastreid_sskd import benchmark
from fastreid_sskd.engine.files import check_output, make_folder, write_atomically
from fastreid_sskd.refusals import checking, exit_status, nearest

PUBLISHED = os.path.join(os.path.dirname(benchmark.__file__), "published.yml")


def check_table_file(path: str, reads=()) -> None:
    """Refuse, before anything is trained or evaluated, a file that no table may be written to."""
    ending = check_output(path, (".csv", ".json", ".md", ".tex", ".txt"), reads)
    if os.path.exists(path) and (ending == ".json" or os.path.basename(path) == "log.txt"):
        raise ValueError(
            f"{path!r} is there and may hold a run's results: give the table another name, or remove that "
            "file"
        )


def results_of(given: str, args) -> list:
    """Results of one argument of `table`."""
    name, _, what = given.rpartition("=")
    config, _, weights = what.rpartition(":")
    tests = args.tests.split(",") if args.tests else ()
    options = {"name": name, "opts": args.opts, "records": args.records}
    if config:
        return benchmark.evaluate_pair(config, weights, tests, **options)
    if tests:
        return benchmark.evaluate_folder(what, tests, **options)
    return benchmark.collect(what, args.selection.split(","), name)


@checking()
def check_published(pairs: list) -> None:
    """Refuse a pair of data sets that nobody has published figures of."""
    known = {pair for entry in benchmark.load_published(PUBLISHED) for pair in entry["results"]}
    for pair in pairs:
        if pair not in known:
            raise ValueError(
                f"--published {pair!r} is none of {', '.join(sorted(known))}{nearest(pair, known)}"
            )


def show(results: list, args) -> None:
    """Print the table, with published rows if they are asked for."""
    pairs = dict.fromkeys(f"{result.source} -> {result.target}" for result in results)
    unverified: list = []
    if args.published is not None:
        entries = benchmark.load_published(PUBLISHED)
        published, unverified = benchmark.published_results(entries, args.published or pairs)
        results = results + published
    text = benchmark.write_table(results, args.format, all_columns=args.all_columns, against=args.against)
    if args.output_file:
        write_atomically(args.output_file, lambda file: file.write((text.rstrip("\n") + "\n").encode()))
    print(text)
    if unverified:
        print(
            f"Left out, because nobody could check the published figures: {', '.join(unverified)}.",
            file=sys.stderr,
        )


@exit_status
def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    shown = argparse.ArgumentParser(add_help=False)
    shown.add_argument("--format", choices=benchmark.FORMATS, default="terminal")
    shown.add_argument("--output-file", help="write the table there too")
    shown.add_argument("--all-columns", action="store_true", help="also those in which all rows agree")
    shown.add_argument(
        "--against",
        default="",
        metavar="METHOD",
        help="a column of every row's gain in mAP over this one, seed by seed",
    )
    shown.add_argument(
        "--published",
        nargs="*",
        metavar="PAIR",
        help="join published rows: for the table's pairs, or those named ('Market1501 -> DukeMTMC')",
    )

    table = commands.add_parser("table", parents=[shown], help="a table of models and finished runs")
    table.add_argument("models", nargs="*", metavar="[NAME=]FOLDER | [NAME=]CONFIG:WEIGHTS")
    table.add_argument("--tests", default="", help="data sets to evaluate on, comma-separated")
    table.add_argument("--selection", default="last", help="last, best or last,best")
    table.add_argument(
        "--records", default="runs/records", help="folder of the records of evaluations ('': none)"
    )
    table.add_argument("--opts", nargs="+", default=[], help="overrides of the configs: KEY value ...")

    repeated = commands.add_parser("run", parents=[shown], help="train a config over seeds")
    repeated.add_argument("--config-file", required=True)
    repeated.add_argument("--runs", type=int, default=3, help="seeds 1 to N")
    repeated.add_argument("--name", default="", help="in the table; else the config's file name")
    grid = commands.add_parser(
        "grid", parents=[shown], help="train the variants of a grid file over its seeds"
    )
    grid.add_argument("grid")
    grid.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a cell; may be given again"
    )
    grid.add_argument("--config-file", help="in place of the grid's config")
    grid.add_argument(
        "--seeds", type=benchmark.parse_seeds, default=(), help="in place of the grid's, comma-separated"
    )
    for training in (repeated, grid):
        training.add_argument("--output", required=True, help="folder of the runs")
        training.add_argument("--opts", nargs="+", default=[], help="overrides of the config: KEY value ...")

    selection = commands.add_parser(
        "selection", help="how well the signals without labels choose an epoch, over finished runs"
    )
    selection.add_argument("runs", nargs="+", metavar="FOLDER", help="of a run, or of runs")
    selection.set_defaults(output_file=None)
    zoo = commands.add_parser(
        "zoo", help="write MODEL_ZOO.md from its notes, the records and the run folders there are"
    )
    zoo.add_argument("--notes", default="benchmarks/model_zoo.md")
    zoo.add_argument("--records", default="benchmarks/records")
    zoo.add_argument("--runs", default="runs")
    zoo.add_argument("--output-file", default="MODEL_ZOO.md")
    args = parser.parse_args()
    if args.command == "table" and not args.models and not args.published:
        table.error("name run folders or CONFIG:WEIGHTS, or pairs of data sets behind --published")
    if args.command in ("run", "grid"):
        given_elsewhere = {"SEED", "OUTPUT_DIR"} & set(args.opts[::2])
        if given_elsewhere:
            parser.error(
                f"--opts {' and '.join(sorted(given_elsewhere))}: give --runs or --seeds, and --output, "
                "instead"
            )
    if args.output_file:
        try:
            check_table_file(args.output_file, [args.notes] if args.command == "zoo" else [])
        except ValueError as error:
            parser.error(f"--output-file: {error}")

    if args.command == "selection":
        with checking():
            print(benchmark.selection_table(args.runs))
        return 0
    if args.command != "zoo":
        check_published(args.published or [])
    if args.command == "zoo":
        with checking():
            text = benchmark.render_zoo(args.notes, args.records, args.runs)
            write_atomically(args.output_file, lambda file: file.write(text.encode()))
        print(f"wrote {args.output_file}")
        return 0
    if args.command == "table":
        with checking():
            show([result for given in args.models for result in results_of(given, args)], args)
        return 0
    with checking():
        make_folder(args.output, "--output")
        setup_logger(args.output)
        if args.command == "run":
            grid, only = benchmark.repeat(args.config_file, args.runs, args.name), ()
        else:
            grid, only = benchmark.load_grid(args.grid), args.only
            grid = replace(grid, config=args.config_file or grid.config, seeds=args.seeds or grid.seeds)
    outcome = benchmark.run_grid(grid, args.output, only, args.opts)
    with checking():
        show(outcome.results, args)
    for note in outcome.notes():
        print(note, file=sys.stderr)
    return 3 if outcome.stopped else 0
