"""SIGTERM and SIGINT as a request: finish the step, save, exit with status 4."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator

logger = logging.getLogger("fastreid.sskd.stop")

#: exit status of a run that a signal has stopped and that can be resumed
EXIT_STOPPED = 4

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SystemExit):
    """A signal has asked the run to end, which is saved. Ends the process with ``EXIT_STOPPED``."""

    def __init__(self, status: int = EXIT_STOPPED) -> None:
        super().__init__(status)  # an argument, as another process may be told of it by pickle


class StopRequest:
    """Remember the first signal; another one later ends the process at once, as if nobody listened.

    Attributes:
        signal: the first signal's number; None before one.
        echo: seconds in which further signals are taken for the same one: Ctrl-C reaches a process from the
            terminal and, as SIGTERM, from torchrun as well; schedulers signal a launcher and its processes.
    """

    echo = 3.0

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0

    def __call__(self, number: int, frame: object) -> None:
        """Take a signal, as its handler."""
        if self.signal is not None:
            if time.monotonic() - self._since < self.echo:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.signal, self._since = number, time.monotonic()
        name = signal.Signals(number).name
        logger.warning(
            "%s: the run is saved after this step or batch and ends; a second signal, later, ends it at once",
            name,
        )


_listening: list[StopRequest] = []


@contextlib.contextmanager
def listen() -> Iterator[StopRequest]:
    """Take SIGTERM and SIGINT as a request while the body runs; nested, the outermost one's request is given.

    Outside the main thread, where Python allows no signal handlers, nothing is listened to.
    """
    if _listening:
        yield _listening[0]
        return
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in _SIGNALS}
    _listening.append(request)
    try:
        yield request
    finally:
        _listening.clear()
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def stop_if_asked() -> None:
    """Leave long work that has changed nothing yet, if a signal has come: call it often, as between batches.

    With several processes only inside ``in_all`` and ``on_main``, which raise the same in all of them.

    Raises:
        Stopped: if a signal has come while somebody listens.
    """
    if _listening and _listening[0].signal is not None:
        raise Stopped
