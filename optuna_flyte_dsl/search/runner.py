"""`Runner`: the protocol between the search loop and the engine that runs trials."""

import contextvars
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from optuna.trial import Trial

from optuna_flyte_dsl._record import record


@record
class TrialRun:
    """One run of a trial's objective."""

    trial: Trial
    arguments: Mapping[str, Any]
    attempt: int = 0  # the number of this attempt of the trial
    # Called in the event loop when the objective begins to run, after all waiting in queues. `None` if the trial has no
    # time limit: an engine then need not ask when the trial's pod begins to run.
    on_begin: Callable[[], None] | None = None
    series: "Series | None" = None  # by which the trial's thread may go on with the next trial; see `run_series`
    context: contextvars.Context | None = None  # in which the thread runs the trial; `None` for the thread's own

    def begin(self) -> None:
        """Call `on_begin`, if there is one: the objective begins to run now."""
        if self.on_begin is not None:
            self.on_begin()


class Series(Protocol):
    """The trials that one thread runs one after the other."""

    def advance(self, returned: Any) -> TrialRun | None:
        """Return the next run; `None` if the runner is to return what the objective has returned.

        A thread calls this when it has run a trial.
        """

    def hand_over(self) -> None:
        """Note that the event loop is to judge how the latest run has ended. No other thread goes on until then."""


def run_series(run: TrialRun, call: Callable[[TrialRun], Any]) -> Any:
    """Run a trial in this thread, and the next ones, until the search loop is to judge what one has returned.

    Args:
        call: Calls the objective. What it raises is the error of the latest trial.

    Returns:
        What the latest trial has returned.
    """
    series = run.series
    while True:
        try:
            returned = call(run) if run.context is None else run.context.run(call, run)
        except BaseException:
            if series is not None:
                series.hand_over()
            raise
        following = series.advance(returned) if series is not None else None
        if following is None:
            return returned
        run = following


class Runner(Protocol):
    """Runs the objective of each trial of one search.

    A runner translates its SDK's errors into errors of the search loop: `optuna.TrialPruned`; a `ClusterError`,
    which ends the search; an error for which `retries_are_used` holds; and any other error, which fails the trial.

    A runner that runs a trial in a thread may go on there with the next one: see `run_series`.
    """

    async def run(self, run: TrialRun) -> Any:
        """Return what the objective returned, or raise what it raised. Cancelling `run` gives up the trial."""

    async def close(self) -> None:
        """Free what the runner holds. `close` is called once, after the last trial."""
