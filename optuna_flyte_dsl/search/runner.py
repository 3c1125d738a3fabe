"""`Runner`: the protocol between the search loop and the engine that runs trials."""

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

    def begin(self) -> None:
        """Call `on_begin`, if there is one: the objective begins to run now."""
        if self.on_begin is not None:
            self.on_begin()


class Runner(Protocol):
    """Runs the objective of each trial of one search.

    A runner translates its SDK's errors into errors of the search loop: `optuna.TrialPruned`; a `ClusterError`,
    which ends the search; an error for which `retries_are_used` holds; and any other error, which fails the trial.

    By default, each trial is run in an asyncio task of its own. A runner may have an attribute `runs_in_threads`. While
    it is true, no code of the user has run in a trial's task, and the task may run other trials after that one.
    """

    async def run(self, run: TrialRun) -> Any:
        """Return what the objective returned, or raise what it raised. Cancelling `run` gives up the trial."""

    async def close(self) -> None:
        """Free what the runner holds. `close` is called once, after the last trial."""
