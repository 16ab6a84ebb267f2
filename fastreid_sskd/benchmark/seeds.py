"""Seeds as they are given on a command line."""

import argparse

__all__ = ["seeds"]


def seeds(text: str) -> tuple[int, ...]:
    """Of "1,2,3"; for argparse's ``type``.

    Raises:
        argparse.ArgumentTypeError: if one is no whole number from 0 on, or is given twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"seeds are whole numbers from 0 on, joined by commas, as in 1,2,3; got {text!r}")
    found = tuple(map(int, parts))
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"a seed given twice is no second run: got {text!r}")
    return found
