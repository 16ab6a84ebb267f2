"""Results of runs as records, grids of runs, and tables that say how their rows were chosen."""

from .evaluate import evaluate_folder, evaluate_pair
from .published import load_published, published_results
from .results import Result, collect, read_results, write_results
from .runner import Cell, Grid, Outcome, load_grid, parse_seeds, repeat, run_grid
from .selection import selection_table
from .table import FORMATS, summarise, write_table
from .zoo import render_zoo

__all__ = [
    "FORMATS",
    "Cell",
    "Grid",
    "Outcome",
    "Result",
    "collect",
    "evaluate_folder",
    "evaluate_pair",
    "load_grid",
    "load_published",
    "parse_seeds",
    "published_results",
    "read_results",
    "render_zoo",
    "repeat",
    "run_grid",
    "selection_table",
    "summarise",
    "write_results",
    "write_table",
]
