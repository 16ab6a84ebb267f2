"""Sections of ``tools/benchmark_step.py``: each module but :mod:`.row` has ``rows(args) -> list[Row]``."""
