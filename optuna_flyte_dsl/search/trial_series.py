"""The trials that run one after the other in one place of a search, and where a thread goes on with the next one."""

import contextvars
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from optuna_flyte_dsl.search.ask_tell import AskedTrial, AskTell
from optuna_flyte_dsl.search.outcome import Judge
from optuna_flyte_dsl.search.runner import TrialRun


class SeriesGate:
    """Tells the threads of one search whether they may go on, and lets one of them do so at a time.

    Attributes:
        lock: Held while a thread tells a trial and asks for the next one.
        waiting: The series that wait for the event loop. No thread goes on while there is one.
        is_closed: Whether the search has begun to tell the trials that are open at its end.
    """

    def __init__(self) -> None:
        self.lock: AbstractContextManager[object] = threading.RLock()
        self.waiting: set[TrialSeries] = set()
        self.is_closed: bool = False

    def close(self) -> None:
        """Let no thread go on, and wait for one that tells or asks now."""
        with self.lock:
            self.is_closed = True


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
    """

    trials: AskTell
    judge: Judge
    asked: AskedTrial | None
    ask: Callable[[], AskedTrial | None]
    context: contextvars.Context
    gate: SeriesGate
    error: BaseException | None = None  # an error of an ask or a tell, which ends the search
    is_over: bool = False  # whether the event loop has taken the trial that is not told
    pid: int = field(default_factory=os.getpid)  # an objective may fork: its child goes on with no trial

    def take(self) -> AskedTrial | None:
        """Return the trial that the event loop is to tell; `None` without one. The thread tells no other trial.

        The thread may still run the trial, if its task was cancelled.

        Raises:
            BaseException: The error of an ask or a tell in the thread.
        """
        with self.gate.lock:
            self.is_over = True
        if self.error is not None:
            raise self.error
        return self.asked

    def hand_over(self) -> None:
        """Note that the event loop is to judge how the latest run has ended; see `Series`."""
        if os.getpid() != self.pid:  # another thread may have held the lock when the objective forked
            return
        with self.gate.lock:
            if not self.is_over:
                self.gate.waiting.add(self)

    def advance(self, returned: Any) -> TrialRun | None:
        """Tell a trial that has returned a number, and ask for the next one; see `Series`."""
        if os.getpid() != self.pid:
            return None
        outcome = self.judge.returned(returned) if type(returned) is float else None
        if outcome is None or not outcome.is_plain:
            self.hand_over()
            return None
        context = self.context.copy()
        with self.gate.lock:
            if self.is_over or self.gate.is_closed:
                return None
            assert self.asked is not None
            try:
                self.trials.tell(self.asked, outcome)
                self.asked = None
                self.asked = context.run(self.ask)
            except BaseException as error:  # noqa: BLE001 - the event loop ends the search with it
                self.trials.stopped = True  # before another thread goes on
                self.error = error
                return None
        if self.asked is None or self.asked.outcome is not None:
            return None
        return TrialRun(self.asked.trial, self.asked.arguments, series=self, context=context)
