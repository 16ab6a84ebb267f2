"""Says why the first clustering on a machine takes so long: numba compiles the kernels, once."""

import logging

from numba.core import event

__all__ = ["say_when_compiling"]

logger = logging.getLogger("fastreid.sskd.clustering")

_PACKAGE = __name__.partition(".")[0]


class _Notice(event.Listener):
    """Logs one line at the first kernel of this package that is not in numba's cache."""

    said = False

    def on_start(self, event: event.Event) -> None:
        function = event.data["dispatcher"].py_func
        module = function.__module__ or ""  # None for a function that exec made, and anyone's are heard here
        if not self.said and module.partition(".")[0] == _PACKAGE:
            self.said = True
            logger.info("compiling the kernels, once on this machine: a minute or two for all of them")

    def on_end(self, event: event.Event) -> None:
        pass


def say_when_compiling() -> None:
    """From now on the first compilation in this process is logged; kernels that numba has in its cache are none."""
    event.register("numba:compile", _Notice())
