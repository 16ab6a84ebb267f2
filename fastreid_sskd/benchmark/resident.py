"""Memory that a piece of work takes, as the system counts it: numpy's, torch's and everybody else's."""
import sys

__all__ = ["ResidentMemory"]


class ResidentMemory:
    """Highest resident size from now on, above what is resident now.

    On Linux the high-water mark is set back by /proc/self/clear_refs. Where that is not allowed, or there is no /proc, it is
    what the process's maximum grew by, which is too low if something before reached higher.

    Attributes:
        method: "VmHWM" or "ru_maxrss", accordingly.
        before: bytes resident at the start.
    """

    def __init__(self) -> None:
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
            self.method, self.before = "VmHWM", _status("VmRSS")
        except OSError:
            self.method, self.before = "ru_maxrss", _maxrss()

    def peak(self) -> int:
        """Bytes."""
        return (_status("VmHWM") if self.method == "VmHWM" else _maxrss()) - self.before


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def _maxrss() -> int:
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
