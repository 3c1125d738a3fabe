"""The trials that run one after the other in one place of a search, and where a thread goes on with the next one."""

import contextvars
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from optuna_flyte_dsl.search.ask_tell import AskedTrial, AskTell
from optuna_flyte_dsl.search.outcome import Judge
from optuna_flyte_dsl.search.runner import TrialRun


@dataclass(eq=False)
class TrialSeries:
    """Trials of a simple search that run one after the other.

    The thread that has run a trial tells it and asks for the next one, because a change of threads takes longer than
    both. The thread does so only after a trial that has returned a number. Everything else is left to the event loop,
    for which the other threads then wait: otherwise they could run hundreds of short trials after an error.

    Args:
        asked: The trial that was asked for and not told. It is `None` when no other trial is wanted.
        ask: Asks for the next trial; returns `None` if no other one is wanted.
        context: The context of the search: each trial after the first one runs in a copy of it.
        waiting: The series of the search that wait for the event loop.
    """

    trials: AskTell
    judge: Judge
    asked: AskedTrial | None
    ask: Callable[[], AskedTrial | None]
    context: contextvars.Context
    waiting: set["TrialSeries"]
    error: BaseException | None = None  # an error of an ask or a tell, which ends the search
    pid: int = field(default_factory=os.getpid)  # an objective may fork: its child goes on with no trial

    def left(self) -> AskedTrial | None:
        """Return the trial that the event loop is to tell; `None` without one. Raise the error of an ask or a tell."""
        if self.error is not None:
            raise self.error
        return self.asked

    def hand_over(self) -> None:
        """Note that the event loop is to judge how the latest run has ended; see `Series`."""
        self.waiting.add(self)

    def advance(self, returned: Any) -> TrialRun | None:
        """Tell a trial that has returned a number, and ask for the next one; see `Series`."""
        assert self.asked is not None
        if os.getpid() != self.pid:
            return None
        outcome = self.judge.returned(returned) if type(returned) is float else None
        if outcome is None or not outcome.is_plain:
            self.hand_over()
            return None
        context = self.context.copy()
        try:
            self.trials.tell(self.asked, outcome)
            self.asked = None
            self.asked = context.run(self.ask)
        except BaseException as error:  # noqa: BLE001 - the event loop ends the search with it
            self.error = error
            return None
        if self.asked is None or self.asked.outcome is not None:
            return None
        return TrialRun(self.asked.trial, self.asked.arguments, series=self, context=context)
