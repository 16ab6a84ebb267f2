"""Compiled kernels that release the GIL, spread over threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")


def num_threads() -> int:
    """Threads to use: as many as torch uses on the CPU."""
    return torch.get_num_threads()


def split(total: int, parts: int) -> list[tuple[int, int]]:
    """Up to `parts` ranges (start, stop) of nearly equal length that cover `total`."""
    bounds = [total * part // parts for part in range(parts + 1)]
    return [(start, stop) for start, stop in itertools.pairwise(bounds) if stop > start]


def in_threads(tasks: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """Results of the tasks in their order; at most two a thread are ahead of the consumer.

    A thread pool rather than numba's own parallel loops: those abort the process when two Python threads enter
    them at once under numba's default threading layer.
    """
    threads = num_threads()
    if threads == 1:
        for task in tasks:
            yield task()
        return
    with ThreadPoolExecutor(threads) as pool:
        ahead = []
        for task in tasks:
            ahead.append(pool.submit(task))
            if len(ahead) > 2 * threads:
                yield ahead.pop(0).result()
        for future in ahead:
            yield future.result()


def over_rows(kernel: Callable[[int, int], None], num_rows: int, rows_per_call: int) -> None:
    """Call `kernel(start, stop)` on consecutive ranges of rows, on all threads."""
    starts = range(0, num_rows, rows_per_call)
    for _ in in_threads(lambda s=start: kernel(s, min(s + rows_per_call, num_rows)) for start in starts):
        pass
