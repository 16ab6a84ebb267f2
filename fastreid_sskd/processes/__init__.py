"""Several processes of one run: starting them, and what they tell each other. With one process nothing here does anything."""
from .agreement import DisagreementError, check_agreement
from .control import agree, all_rows, alone, control_group, gather_rows, in_all, on_every, on_main, share_of
from .group import join
from .launcher import launch
from .stop import Stopped, StopRequest, listen, stop_if_asked
from .tensors import average_gradients, broadcast_buffers, broadcast_model

__all__ = [
    "DisagreementError", "StopRequest", "Stopped", "agree", "all_rows", "alone", "average_gradients", "broadcast_buffers",
    "broadcast_model", "check_agreement", "control_group", "gather_rows", "in_all", "join", "launch", "listen", "on_every", "on_main",
    "share_of", "stop_if_asked",
]
