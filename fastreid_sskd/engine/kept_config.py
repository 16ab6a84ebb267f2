"""``config.yaml`` of a finished run, which the host writes anew whenever it sets a log up."""
import os
from collections.abc import Callable

from fastreid.utils import comm

from .atomic import write_atomically

__all__ = ["keep_config"]


def keep_config(folder: str) -> Callable[[], None]:
    """Remember ``config.yaml`` in ``OUTPUT_DIR``; the function returned puts it back, if there was one."""
    path, before = os.path.join(folder, "config.yaml"), None
    if folder and os.path.isfile(path):
        with open(path, "rb") as file:
            before = file.read()

    def put_back() -> None:
        if before is not None and comm.is_main_process():
            write_atomically(path, lambda file: file.write(before))

    return put_back
