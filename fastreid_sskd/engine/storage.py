"""The host's event storage as plain values, so that scalars go on in a resumed run as if nothing had happened."""
import torch
from fastreid.utils.events import EventStorage

__all__ = ["restore_storage", "storage_state"]

# values of each scalar that are kept: the widest window that anything but the remaining time is smoothed over
_WINDOW = 200


def storage_state(storage: EventStorage) -> dict:
    """{name: its last values with their iterations (n, 2), how many there were, their mean, whether it is smoothed}."""
    return {
        name: {
            "values": torch.tensor(history.values()[-_WINDOW:], dtype=torch.float64).reshape(-1, 2),
            "count": history._count,
            "mean": float(history._global_avg),
            "smoothed": storage.smoothing_hints()[name],
        }
        for name, history in storage.histories().items()
        if history.values()
    }


def restore_storage(storage: EventStorage, state: dict) -> None:
    """Put the scalars of :func:`storage_state` into a new storage."""
    for name, saved in state.items():
        history = storage._history[name]
        history._data = [(value, int(iteration)) for value, iteration in saved["values"].tolist()]
        history._count, history._global_avg = saved["count"], saved["mean"]
        storage._smoothing_hints[name] = saved["smoothed"]
        storage._latest_scalars[name] = history._data[-1]
