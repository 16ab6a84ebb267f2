"""What the launchers of several machines tell each other: that they are there, and that a process of theirs has failed."""
import contextlib
import datetime
import time

import torch.distributed as dist

__all__ = ["Machines"]


class Machines:
    """The launchers of all machines, seen from one of them.

    A launcher has nothing else to do, so one that says nothing is gone, with its machine; processes that train or cluster
    may rightly be silent for long. Without this, devices that wait for one that is gone do so for minutes.

    Args:
        address, port: where the launcher of machine 0 listens; it is the first to start and the last to end.
        number: of machines.
        rank: of this one.
        patience: how long a machine that has been there may be silent [seconds].
        interval: how often they speak [seconds].
    """

    def __init__(self, address: str, port: int, number: int, rank: int, patience: float = 40.0, interval: float = 2.0):
        self.number = number
        self.rank = rank
        self.patience = patience
        self.interval = interval
        self._store = dist.TCPStore(
            address, port, is_master=rank == 0, wait_for_workers=False, timeout=datetime.timedelta(minutes=10)
        )
        self._store.set_timeout(datetime.timedelta(seconds=patience))
        self._spoke_at = float("-inf")
        self._heard = {other: (0, 0.0) for other in range(number) if other != rank}  # count, when it last changed

    def news(self) -> str | None:
        """What has happened elsewhere that ends the run; None if nothing has. Asks every ``interval`` seconds only."""
        now = time.monotonic()
        if now - self._spoke_at < self.interval:
            return None
        self._spoke_at = now
        try:
            self._store.add(f"beat{self.rank}", 1)
            if self._flagged("failed"):
                return self._store.get("what").decode()
            for other, (count, since) in self._heard.items():
                found = self._store.add(f"beat{other}", 0)
                if found != count:
                    self._heard[other] = (found, now)
                elif count and now - since > self.patience and not self._flagged(f"done{other}"):
                    return f"machine {other} no longer answers"
        except RuntimeError as error:  # torch's DistError is one
            return f"machine 0 no longer answers ({error})"
        return None

    def failed(self, what: str) -> None:
        """Tell the others that a process of this machine has failed."""
        with contextlib.suppress(RuntimeError):
            self._store.set("what", f"machine {self.rank}: {what}")
            self._store.add("failed", 1)

    def done(self) -> None:
        """Say that all processes of this machine have ended; machine 0 waits until the others have heard what they need."""
        with contextlib.suppress(RuntimeError):
            self._store.add(f"done{self.rank}", 1)
            end = time.monotonic() + self.patience
            waiting = set(self._heard) if self.rank == 0 else set()
            while waiting and time.monotonic() < end:
                waiting = {other for other in waiting if not self._flagged(f"done{other}")}
                time.sleep(0.1)

    def _flagged(self, key: str) -> bool:
        # a counter asked for without counting: torch before 2.3 cannot ask whether a key is there
        return self._store.add(key, 0) > 0
