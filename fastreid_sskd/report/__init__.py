"""A run as one HTML page that needs nothing else."""

from .page import Options, write_report
