"""Results of runs as records, grids of runs, and tables that say how their rows were chosen."""

from .evaluate import evaluate_folder, evaluate_pair
from .published import load_published, published_results
from .results import Result, collect, read_results, write_results
from .runner import Cell, Grid, Outcome, load_grid, parse_seeds, repeat, run_grid
from .selection import selection_table
from .table import FORMATS, summarise, write_table
from .zoo import render_zoo
