"""`TimeBudget`: whether a search has time to wait for the points of a slow sampler."""

import collections
import contextlib
import time
from collections.abc import Iterator

LARGEST_LOAD = 0.33
"""The largest share of the time of the thread that asks. With more, trials that have ended queue for their next ask."""


class TimeBudget:
    """The time for which slots were idle because a point was waited for, beside the time for which they may be.

    Args:
        share: The share of the slots' time for which they may be idle; `None` for no limit.
    """

    def __init__(self, share: float | None) -> None:
        self.share: float | None = share
        self.elapsed: float = 0.0  # seconds in which trials were running
        self._n_asks = 0
        self._n_running: collections.deque[int] = collections.deque([1], maxlen=100)  # at the last asks
        self._slots = 0.0  # the slots' seconds: those of all running trials together
        self._taken = 0.0  # seconds in which a point was waited for
        self._idle = 0.0  # slots' seconds that it has taken
        self._now: float | None = None  # the time of the last call

    def pass_time(self, n_running: int) -> None:
        """Note the time since the last call.

        Args:
            n_running: How many trials were running meanwhile.
        """
        now = time.perf_counter()
        if n_running and self._now is not None:
            self.elapsed += now - self._now
            self._slots += (now - self._now) * n_running
        self._now = now

    def begin_ask(self, n_running: int) -> None:
        """Note that a trial is asked for.

        Args:
            n_running: How many other trials are running.
        """
        self.pass_time(n_running)
        self._n_asks += 1
        self._n_running.append(n_running + 1)

    def allows(self, cost: float) -> bool:
        """Return whether there is time to wait for a point that takes `cost` seconds."""
        if self.share is None:
            return True
        return (
            self._idle + self._idle_during(cost) <= self.share * self._slots
            and self._taken + cost <= max(self.share, LARGEST_LOAD) * self.elapsed
        )

    def affordable(self, cost: float) -> float:
        """Return for which share of the points there is time to wait, if each takes `cost` seconds; above 1 for all."""
        if self.share is None or not self._n_asks:
            return 1.0
        return self.share * self._slots / self._n_asks / self._idle_during(cost)

    @property
    def seconds_per_ask(self) -> float:
        """How many seconds there are for a point, if points are sampled one by one while trials run."""
        return self.elapsed / self._n_asks if self._n_asks else 0.0

    def _idle_during(self, seconds: float) -> float:
        """Return for how many seconds slots are idle during an ask, summed over the slots.

        The slot of the trial is idle; so are those that wait for their ask already, and those of the trials that end
        meanwhile, at any moment of it.
        """
        n_slots, n_running = max(self._n_running), self._n_running[-1]
        n_ends = seconds * self._n_asks / self.elapsed * (n_running - 1) / n_running if self.elapsed else 0.0
        return seconds * (1 + n_slots - n_running + n_ends / 2)

    @contextlib.contextmanager
    def spent(self) -> Iterator[None]:
        """Note how long a point is waited for."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begun
            self._taken += seconds
            self._idle += self._idle_during(seconds)
