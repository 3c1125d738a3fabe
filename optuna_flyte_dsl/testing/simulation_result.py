"""`Simulation`: what a simulated search has done."""

from __future__ import annotations

import dataclasses
import datetime

import optuna
from optuna.trial import TrialState

from optuna_flyte_dsl._text import counted
from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.study.feasibility import is_feasible
from optuna_flyte_dsl.testing.faults import Fault

EPOCH = datetime.datetime(2000, 1, 1)
"""When a simulated search begins, in the study that it returns."""


@dataclasses.dataclass(frozen=True)
class SimulatedRun:
    """One attempt of a trial, in virtual time.

    Attributes:
        trial: The number of the trial.
        attempt: The number of the attempt, from 0.
        slot: Which of the `concurrency` slots ran it, from 0.
        start: When it began, in seconds from the search's beginning.
        end: When it ended.
        fault: What went wrong.
        state: How the trial has ended.
    """

    trial: int
    attempt: int
    slot: int
    start: float
    end: float
    fault: Fault | None
    state: TrialState

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclasses.dataclass(frozen=True, repr=False)
class Simulation:
    """What a simulated search has done. `print(simulation)` shows a summary.

    Attributes:
        study: The study. Its trials have virtual times, which begin on 1 January 2000, so that
            `optuna.visualization.plot_timeline(study)` shows the schedule.
        schedule: Each attempt of a trial, in the order of their beginnings.
        concurrency: The number of slots.
        makespan: The seconds from the search's beginning to its end.
    """

    study: optuna.Study
    schedule: tuple[SimulatedRun, ...]
    concurrency: int
    makespan: float

    @property
    def use_of_slots(self) -> float:
        """The part of the slots' time in which a trial ran, from 0 to 1."""
        offered = self.concurrency * self.makespan
        return sum(run.seconds for run in self.schedule) / offered if offered else 0.0

    @property
    def faults(self) -> dict[str, dict[str, float]]:
        """What each kind of fault did: `attempts`, the `seconds` that they took, and the trials that `failed`."""
        found: dict[str, dict[str, float]] = {}
        last = {run.trial: run for run in self.schedule}
        for run in self.schedule:
            if run.fault is not None:
                effect = found.setdefault(run.fault, {"attempts": 0, "seconds": 0.0, "failed": 0})
                effect["attempts"] += 1
                effect["seconds"] += run.seconds
                effect["failed"] += run is last[run.trial] and run.state is TrialState.FAIL
        return found

    def best_after(self, seconds: float | datetime.timedelta) -> float | None:
        """Return the best feasible value that the search had after some seconds; `None` if it had none.

        The values of earlier trials, with which it began, are known from the first second.

        Raises:
            InvalidOptionError: If the study has several objectives.
        """
        if len(self.study.directions) > 1:
            raise InvalidOptionError("`best_after` needs a single objective. Compare the fronts, `study.best_trials`.")
        until = EPOCH + (seconds if isinstance(seconds, datetime.timedelta) else datetime.timedelta(seconds=seconds))
        ended = [
            trial.value
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if trial.value is not None and trial.datetime_complete is not None and trial.datetime_complete <= until
            if is_feasible(trial)
        ]
        pick = max if self.study.direction is optuna.study.StudyDirection.MAXIMIZE else min
        return pick(ended, default=None)

    def __str__(self) -> str:
        """Return a summary."""
        states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
        counts = [f"{states.count(state)} {state.name}" for state in TrialState if state in states]
        duration = datetime.timedelta(seconds=round(self.makespan))
        lines = [
            f"{counted(len(states), 'trial')} ({', '.join(counts)}) in {duration}, "
            f"with {self.use_of_slots:.0%} of {counted(self.concurrency, 'slot')} in use",
        ]
        for fault, effect in self.faults.items():
            took = datetime.timedelta(seconds=round(effect["seconds"]))
            lines.append(
                f"{fault}: {counted(int(effect['attempts']), 'attempt')}, which took {took}; "
                f"{counted(int(effect['failed']), 'trial')} failed"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<simulation of {counted(len(self.schedule), 'run')}: {self.makespan:g} s>"
