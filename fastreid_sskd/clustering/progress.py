"""Progress of long stages: a callback (done, total), and one that logs with the time left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from ..processes import stop_if_asked

logger = logging.getLogger("fastreid.sskd.clustering")

Progress = Callable[[int, int], None]


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


class LogProgress:
    """Logs a stage's share done and the time left, at most once every `every` seconds; a signal may end the run there.

    Args:
        stage: what is running, as a reader would call it.
        every: seconds; a stage that ends sooner logs nothing.
        clock: for tests.
    """

    def __init__(self, stage: str, every: float = 20.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.stage = stage
        self.every = every
        self.clock = clock
        self._start = self._last = clock()

    def __call__(self, done: int, total: int) -> None:
        """Tell that `done` of `total` units of work are done."""
        stop_if_asked()
        now = self.clock()
        if now - self._last < self.every or not done:
            return
        self._last = now
        left = (now - self._start) * (total - done) / done
        logger.info("%s: %d%%, about %.0f s left", self.stage, 100 * done // total, left)
