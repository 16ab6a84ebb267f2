"""A run as one HTML page that needs nothing else."""

from .page import Options, write_report

__all__ = ["Options", "write_report"]
