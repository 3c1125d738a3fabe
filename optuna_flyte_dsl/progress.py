"""Shows how a search goes on: a bar on a terminal, quiet log lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import Protocol, Self

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.errors import LiveError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from optuna_flyte_dsl.log import logger
from optuna_flyte_dsl.share import ERROR_ATTRIBUTE

_LINE_SECONDS = 10.0
"""The least time between two log lines of one search."""


class Display(Protocol):
    """Shows the state of a search."""

    def show(self, tally: Tally) -> None:
        """Show the state after a trial."""

    def close(self, tally: Tally) -> None:
        """Show the last state and free the terminal."""


class Tally:
    """Counts what a search has finished, and keeps its best value.

    Args:
        name: The objective's name.
        n_trials: How many trials were asked for.
        directions: The study's.
    """

    def __init__(self, name: str, n_trials: int, directions: list[StudyDirection]) -> None:
        self.name = name
        self.n_trials = n_trials
        self.finished = 0
        self.failed = 0
        self.pruned = 0
        self.best: float | None = None
        self.last_reason: str | None = None
        self._maximize = directions[0] is StudyDirection.MAXIMIZE
        self._single = len(directions) == 1

    def add(self, trial: FrozenTrial) -> None:
        """Count a finished trial."""
        self.finished += 1
        self.last_reason = trial.user_attrs.get(ERROR_ATTRIBUTE)
        if trial.state is TrialState.FAIL:
            self.failed += 1
        elif trial.state is TrialState.PRUNED:
            self.pruned += 1
        elif self._single:
            (value,) = trial.values
            if self.best is None or (value > self.best if self._maximize else value < self.best):
                self.best = value

    def describe(self) -> str:
        """Return what is known besides the count."""
        parts = [f"best {self.best:.6g}"] if self.best is not None else []
        parts += [f"{count} {word}" for count, word in ((self.failed, "failed"), (self.pruned, "pruned")) if count]
        return ", ".join(parts)


class Reporter:
    """Hears of each finished trial, and shows it.

    Args:
        tally: Where it is counted.
        enabled: Whether anything is shown.
    """

    def __init__(self, tally: Tally, *, enabled: bool) -> None:
        self._tally = tally
        self._display = _choose(tally) if enabled else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        tally = self._tally
        if tally.finished and kind is not None and not issubclass(kind, Exception):
            logger.warning(
                "`%s` was interrupted when %d of %d trials had finished. They are in its study.",
                tally.name,
                tally.finished,
                tally.n_trials,
            )
        elif tally.failed == tally.finished > 1:
            logger.warning("All %d trials of `%s` failed; the last: %s", tally.failed, tally.name, tally.last_reason)
        if self._display is not None:
            self._display.close(self._tally)

    def __call__(self, _study: optuna.Study, trial: FrozenTrial) -> None:
        """Count a finished trial and show the state; the form of an Optuna callback."""
        self._tally.add(trial)
        if self._display is not None:
            self._display.show(self._tally)


class Bar:
    """A bar with what is finished of the total, the failures, the best value, and the time left."""

    _taken = threading.Lock()  # a terminal has room for one

    def __init__(self, console: Console, tally: Tally) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            redirect_stdout=sys.stdout.isatty(),  # what is piped elsewhere is not for the terminal
        )
        self._task = self._progress.add_task(tally.name, total=tally.n_trials, state="")
        self._progress.start()

    def show(self, tally: Tally) -> None:
        """Show the state after a trial."""
        self._progress.update(self._task, completed=tally.finished, state=tally.describe())

    def close(self, tally: Tally) -> None:
        """Show the last state and free the terminal."""
        self.show(tally)
        self._progress.stop()
        Bar._taken.release()


class Lines:
    """A line in the log now and then, at the level INFO."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _LINE_SECONDS

    def show(self, tally: Tally) -> None:
        """Log the state, if the last line is long ago."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LINE_SECONDS
            self._log("", tally)

    def close(self, tally: Tally) -> None:
        """Log the last state."""
        self._log("search over, ", tally)

    def _log(self, event: str, tally: Tally) -> None:
        state = tally.describe()
        logger.info(
            "%s: %s%d of %d trials finished%s",
            tally.name,
            event,
            tally.finished,
            tally.n_trials,
            f", {state}" if state else "",
        )


def _on_terminal() -> bool:
    """Tell whether a person sees the standard error; rich also says so where FORCE_COLOR is set."""
    return sys.stderr.isatty()


def _choose(tally: Tally) -> Display:
    console = Console(stderr=True)
    if _on_terminal() and console.is_terminal and not console.is_dumb_terminal and Bar._taken.acquire(blocking=False):
        try:
            return Bar(console, tally)
        except LiveError:  # something else of rich's has the terminal
            Bar._taken.release()
    return Lines()
