"""Start and join the processes of one run, and let them talk. With one process nothing here does anything."""

from .distributed import (
    DisagreementError,
    agree,
    all_rows,
    alone,
    average_gradients,
    broadcast_buffers,
    broadcast_model,
    check_agreement,
    control_group,
    gather_rows,
    in_all,
    join,
    on_every,
    on_main,
    share_of,
)
from .launcher import launch
from .stop import Stopped, StopRequest, listen, stop_if_asked
