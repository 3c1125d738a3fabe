"""`TrialClock`: the time that one trial may take."""

import asyncio
import contextlib
import math
from dataclasses import dataclass


@dataclass(eq=False)
class TrialClock:
    """The time of one trial, over all its attempts."""

    seconds: float | None  # the time that the trial may run, from when its objective first begins to run
    _until: float
    _has_begun: bool = False

    @property
    def until(self) -> float | None:
        """The time at which the trial is stopped, in the event loop's time; `None` while it is not known."""
        return None if math.isinf(self._until) else self._until

    def begin(self, scope: asyncio.Timeout) -> None:
        """Start the clock, and set the timeout of the running attempt. Only the first call starts the clock."""
        if not self._has_begun and self.seconds is not None:
            self._has_begun = True
            self._until = min(self._until, asyncio.get_running_loop().time() + self.seconds)
            with contextlib.suppress(RuntimeError):  # the attempt is over already
                scope.reschedule(self._until)


NO_TIME_LIMIT = TrialClock(None, math.inf)
