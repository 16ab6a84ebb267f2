"""Results of runs as records, and tables of them that say how they came about."""

from .comparison import check_comparison, compare, comparison_table
from .evaluated import evaluate_folder, evaluate_pair
from .folders import collect
from .grid import Grid, load_grid, parse_seeds, repeat, run_grid
from .published import load_published, published_results
from .result import Result, read_results, write_results
from .run_folder import run_jobs
from .summary import FORMATS, summarise, write_table
from .zoo import render_zoo

__all__ = [
    "FORMATS",
    "Grid",
    "Result",
    "check_comparison",
    "collect",
    "compare",
    "comparison_table",
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
    "run_jobs",
    "summarise",
    "write_results",
    "write_table",
]
