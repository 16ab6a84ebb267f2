"""Results of runs as records, and tables of them that say how they came about."""

from .evaluated import evaluate_folder, evaluate_pair
from .folders import collect
from .grid import Grid, load_grid, repeat, run_grid
from .published import load_published, published_results
from .result import Result, read_results, write_results
from .summary import FORMATS, summarise, write_table
from .zoo import render_zoo

__all__ = [
    "FORMATS",
    "Grid",
    "Result",
    "collect",
    "evaluate_folder",
    "evaluate_pair",
    "load_grid",
    "load_published",
    "published_results",
    "read_results",
    "render_zoo",
    "repeat",
    "run_grid",
    "summarise",
    "write_results",
    "write_table",
]
