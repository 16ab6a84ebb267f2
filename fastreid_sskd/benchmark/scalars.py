"""The scalars that a run has written to metrics.json, as series over iterations."""

import json
import os

__all__ = ["read_scalars", "training_hours"]

Series = list[tuple[int, float]]


def read_scalars(folder: str) -> dict[str, Series]:
    """{name: [(iteration, value), ...]} of a run folder, ascending; {} without metrics.json.

    A resumed run has written some iterations twice: the later line counts. A last line that a killed run left
    unfinished is skipped.

    Raises:
        ValueError: if a line before the last is not JSON.
    """
    path = os.path.join(folder, "metrics.json")
    if not os.path.isfile(path):
        return {}
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line for line in file.read().split("\n") if line.strip()]
    found: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            scalars = json.loads(line)
            iteration = scalars.pop("iteration")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise ValueError(f"line {number} of {path!r} is not what a run writes, a JSON object with an iteration: {error}") from error
        for name, value in scalars.items():
            found.setdefault(name, {})[iteration] = value
    return {name: sorted(values.items()) for name, values in found.items()}


def training_hours(scalars: dict[str, Series]) -> float | None:
    """Hours of training steps and pseudo-label refreshes; None where no step was timed.

    Each line gives the median seconds of a step up to it, counted for the steps since the line before.
    """
    steps = scalars.get("time", [])
    if not steps:
        return None
    seconds, done = 0.0, 0
    for iteration, per_step in steps:
        seconds += per_step * (iteration + 1 - done)
        done = iteration + 1
    for name, series in scalars.items():
        if name.startswith("refresh/seconds_"):
            seconds += sum(value for _, value in series)
    return seconds / 3600
