"""The limits of a search that change while it runs: the time of a trial, and failures in a row."""

import asyncio
import contextlib
import math
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from optuna_flyte_dsl.errors import TooManyFailuresError
from optuna_flyte_dsl.search.outcome import Outcome, one_line


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


@dataclass
class FailureLimit:
    """Counts the trials that fail in a row."""

    name: str
    study: optuna.Study
    limits: tuple[int, int] | None  # the failures that end the search, before the first success and after it
    failures: int = 0
    any_success: bool = False

    def count(self, outcome: Outcome) -> TooManyFailuresError | None:
        """Count a finished trial, and return the error if the limit is reached."""
        if outcome.state is not TrialState.FAIL:
            self.failures, self.any_success = 0, True
        elif not outcome.lost:
            self.failures += 1
        if self.limits is None or self.failures < self.limits[self.any_success]:
            return None
        error = TooManyFailuresError(
            f"{self.failures} trials of `{self.name}` have failed in a row, the last one with "
            f"{one_line(outcome.reason).rstrip('.')}. Mend the objective; or raise `max_consecutive_failures`, or "
            "give None to go on whatever fails. What has finished is in the error's `study`.",
            self.study,
        )
        error.__cause__ = outcome.error
        return error
