"""Shows the progress of a search: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._text import counted, shown
from optuna_flyte_dsl.sampling.auto_sampler import AutoSampler
from optuna_flyte_dsl.search.outcome import one_line
from optuna_flyte_dsl.study.attributes import ERROR
from optuna_flyte_dsl.study.feasibility import is_feasible

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class Tally:
    """Counts the finished trials of a search, and keeps the best value."""

    name: str
    n_trials: int  # the number of trials that the search is to have
    directions: list[StudyDirection]
    resumes: bool = False  # whether the next run continues the search
    is_kept: bool = True  # whether the study may outlive this process
    finished: int = 0
    failed: int = 0
    pruned: int = 0
    infeasible: int = 0  # complete trials with a constraint above 0
    best: float | None = None
    front: list[tuple[float, ...]] = field(default_factory=list)  # of several objectives: the values to be minimized
    sampler: str = ""  # the sampler that has chosen the latest point, if the search's sampler chooses one
    # By the name of a sampler, if the search's sampler chooses one: for how many trials of this run it was chosen.
    samplers: Mapping[str, int] = field(default_factory=dict)
    first_reason: str | None = None  # why the first trial that failed did so

    @property
    def what_is_left(self) -> str:
        """What becomes of the study of an interrupted search: the end of a sentence."""
        if not self.is_kept:
            return ", which is in memory, and ends with this process. To keep a study, give `storage`."
        if self.resumes:
            return ". Run it again to continue."
        return ". To be able to continue a search, give `resume=True`."

    def add(self, trial: FrozenTrial) -> None:
        """Count a finished trial."""
        self.finished += 1
        state = trial.state
        if state is TrialState.FAIL:
            self.failed += 1
            self.first_reason = self.first_reason or trial.user_attrs.get(ERROR)
        elif state is TrialState.PRUNED:
            self.pruned += 1
        elif not is_feasible(trial):
            self.infeasible += 1
        elif len(self.directions) == 1:
            better = max if self.directions[0] is StudyDirection.MAXIMIZE else min
            (value,) = trial.values
            self.best = value if self.best is None else better(self.best, value)
        else:
            signs = [-1 if direction is StudyDirection.MAXIMIZE else 1 for direction in self.directions]
            point = tuple(sign * value for sign, value in zip(signs, trial.values, strict=True))
            if not any(_dominates(other, point) for other in self.front):
                self.front = [*(other for other in self.front if not _dominates(point, other)), point]

    def describe(self) -> str:
        """Return the best value, the failures and the pruned trials as text."""
        parts = [f"best {self.best:.6g}"] if self.best is not None else []
        parts += [f"{counted(len(self.front), 'trial')} on the Pareto front"] if self.front else []
        counts = ((self.failed, "failed"), (self.pruned, "pruned"), (self.infeasible, "infeasible"))
        parts += [f"{count} {word}" for count, word in counts if count]
        return ", ".join(parts)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Return whether one point is at least as good as another in each objective, and better in one; smaller is better.

    >>> _dominates((1, 2), (1, 3)), _dominates((1, 2), (1, 2)), _dominates((1, 3), (2, 2))
    (True, False, False)
    """
    return one != other and all(mine <= its for mine, its in zip(one, other, strict=True))


class Reporter:
    """A callback that counts each finished trial and shows the tally.

    Args:
        enabled: Whether anything is shown.
    """

    def __init__(self, tally: Tally, *, enabled: bool) -> None:
        self._tally = tally
        self._before = tally.finished  # the trials of earlier runs
        self._display: Bar | Lines | None = None
        if enabled:
            self._try(lambda: self._begin(tally))

    def _begin(self, tally: Tally) -> None:
        self._display = _choose(tally)
        self._display.begin(tally)

    def _try(self, show: Callable[[], None]) -> None:
        """Show something. If that fails, show no more: the terminal, or the reader of a pipe, may be gone."""
        try:
            show()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - rich raises SystemExit if no one reads its output
            self._display = None
            logger.debug("The progress is not shown any longer: %s", shown(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        tally = self._tally
        is_interrupted = kind is not None and not issubclass(kind, Exception)
        if is_interrupted and not tally.finished and tally.resumes:
            logger.warning(
                "`%s` was interrupted before one of its trials had finished. Run it again to continue.", tally.name
            )
        elif is_interrupted and tally.finished:
            logger.warning(
                "`%s` was interrupted when %d of %d trials had finished. They are in its study%s",
                tally.name,
                tally.finished,
                tally.n_trials,
                tally.what_is_left,
            )
        elif tally.failed == tally.finished > 1:
            reason = one_line(tally.first_reason)
            logger.warning("All %d trials of `%s` failed; the first: %s", tally.failed, tally.name, reason)
        if (display := self._display) is not None:
            event = "interrupted" if is_interrupted else "search over"
            if tally.finished == self._before:
                event = "no trial was run" if tally.finished >= tally.n_trials else "no trial has ended"
            self._try(lambda: display.close(tally, event))

    def count_again(self, finished: Iterable[FrozenTrial]) -> None:
        """Count all finished trials of the study anew: other processes may have run some of them."""
        tally = self._tally
        tally.finished = tally.failed = tally.pruned = 0
        tally.best, tally.front = None, []
        for trial in finished:
            tally.add(trial)

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Count a finished trial and show the tally. The arguments are those of a callback of Optuna."""
        self._tally.add(trial)
        if isinstance(study.sampler, AutoSampler):
            self._tally.sampler, self._tally.samplers = study.sampler.latest, study.sampler.counts
        if (display := self._display) is not None:
            self._try(lambda: display.show(self._tally))


class Bar:
    """A progress bar with the finished trials, the failures, the best value, and the time that is left."""

    _taken = threading.Lock()  # a terminal shows one bar at a time

    def __init__(self, console: Console, tally: Tally) -> None:
        # Loaded late: only a terminal shows a bar.
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            redirect_stdout=sys.stdout.isatty(),  # redirected output must not reach the terminal
        )
        self._task = self._progress.add_task(tally.name, total=tally.n_trials, state="")
        self._progress.start()

    def begin(self, tally: Tally) -> None:
        """Show the trials that the study has already."""
        self.show(tally)

    def show(self, tally: Tally) -> None:
        """Show the tally after a trial."""
        self._progress.update(self._task, completed=tally.finished, state=tally.describe())

    def close(self, tally: Tally, event: str) -> None:  # noqa: ARG002 - the bar shows how far the search has come
        """Show the last tally and free the terminal."""
        try:
            self.show(tally)
            self._progress.stop()
        finally:
            Bar._taken.release()


class Lines:
    """A line every few seconds: in the log, if it shows level INFO, or else on standard error."""

    def __init__(self) -> None:
        self._next = time.monotonic() + pauses.progress_line

    def begin(self, tally: Tally) -> None:
        """Log what is left to do, if the study has trials already."""
        if 0 < tally.finished < tally.n_trials:
            self._log(f"{tally.n_trials - tally.finished} to do, ", tally)

    def show(self, tally: Tally) -> None:
        """Log the tally, unless the last line is recent."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + pauses.progress_line
            self._log("", tally)

    def close(self, tally: Tally, event: str) -> None:
        """Log the last tally, and with what event the search has ended."""
        chosen = [f"{name} {count}" for name, count in tally.samplers.items()]
        samplers = f"samplers: {', '.join(chosen)}" if len(chosen) > 1 else ""
        self._log(f"{event}, ", tally, samplers)

    def _log(self, event: str, tally: Tally, samplers: str = "") -> None:
        state = tally.describe()
        line = f"{tally.name}: {event}{tally.finished} of {tally.n_trials} trials finished"
        line = f"{line}, {state}" if state else line
        samplers = samplers or (f"sampler {tally.sampler}" if tally.sampler else "")
        line = f"{line}, {samplers}" if samplers else line
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s", line)
        elif optuna.logging.get_verbosity() <= optuna.logging.INFO:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - replaces the progress bar


def _on_terminal() -> bool:
    """Return whether standard error is a terminal. Rich's own test is also true if FORCE_COLOR is set."""
    return sys.stderr.isatty()


def _choose(tally: Tally) -> Bar | Lines:
    if not _on_terminal():
        return Lines()
    from rich.console import Console  # loaded late: only a terminal shows a bar
    from rich.errors import LiveError

    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal and Bar._taken.acquire(blocking=False):
        try:
            return Bar(console, tally)
        except BaseException as error:
            Bar._taken.release()
            if not isinstance(error, LiveError):  # another display of rich's uses the terminal
                raise
    return Lines()
