"""Compiled kernels on several threads, their progress, and a notice while they are compiled."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from numba.core import event

from ..processes import stop_if_asked

logger = logging.getLogger("fastreid.sskd.clustering")

Result = TypeVar("Result")


def in_threads(tasks: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """Results of the tasks in their order, on torch's number of threads; at most two per thread are ahead.

    A thread pool rather than numba's parallel loops: those abort the process when two Python threads enter
    them at once under numba's default threading layer.
    """
    threads = torch.get_num_threads()
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


class LogProgress:
    """Log how much of a stage is done, at most once every `every` seconds; a signal may end the run there."""

    def __init__(self, stage: str, every: float = 20.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.stage, self.every, self.clock = stage, every, clock
        self._start = self._last = clock()

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` units of work are done."""
        stop_if_asked()
        now = self.clock()
        if now - self._last < self.every or not done:
            return
        self._last = now
        left = (now - self._start) * (total - done) / done
        logger.info("%s: %d%%, about %.0f s left", self.stage, 100 * done // total, left)


class _CompilationNotice(event.Listener):
    """Log one line at the first kernel of this package that is not in numba's cache."""

    said = False

    def on_start(self, event: event.Event) -> None:
        # of any library; None for a function that exec made
        module = event.data["dispatcher"].py_func.__module__ or ""
        if not self.said and module.partition(".")[0] == __name__.partition(".")[0]:
            self.said = True
            logger.info("compiling the kernels, once on this machine: a minute or two for all of them")

    def on_end(self, event: event.Event) -> None:
        pass


def say_when_compiling() -> None:
    """Log the first compilation of this process; kernels in numba's cache need none."""
    event.register("numba:compile", _CompilationNotice())
