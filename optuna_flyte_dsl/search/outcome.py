"""Judges how a run of an objective ended: its values, NaN, pruning, or the error and whether it ends the search."""

import asyncio
import contextlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from optuna_flyte_dsl._foreign_errors import is_interpreter_shutdown, is_report_of_several_objectives
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._text import printable, shown, text_of
from optuna_flyte_dsl.errors import (
    ClusterError,
    FixedArgumentError,
    InvalidObjectiveError,
    ObjectiveValueError,
    PythonExitError,
    TrialTimeoutError,
    WorkerDiedError,
)
from optuna_flyte_dsl.search.error_origin import attribute_of, is_from_signal, traceback_of
from optuna_flyte_dsl.space.objective import read_values
from optuna_flyte_dsl.study.attributes import ERROR, LOST, TRACEBACK

REASON_LIMIT = 2_000
"""The largest number of characters of a stored reason."""

_RETRIES_USED = "__optuna_flyte_dsl_retries_used__"


@dataclass(slots=True)
class Outcome:
    """How a trial ended."""

    state: TrialState
    values: tuple[float, ...] | None = None  # one value for each objective, if the trial is complete
    constraints: tuple[float, ...] = ()  # the values of the constraints that the objective returned
    reason: str | None = None
    error: BaseException | None = None
    fatal: BaseException | None = None
    lost: bool = False  # whether the trial has no result only because the search, or its process, has ended

    @property
    def is_plain(self) -> bool:
        """Whether the trial has nothing to store beside its values. A complete trial has no reason and no error."""
        return self.state is TrialState.COMPLETE and not self.constraints

    @property
    def may_be_retried(self) -> bool:
        """Whether the objective has raised an error, and another attempt may succeed."""
        error = self.error
        if error is None or self.fatal is not None or self.lost or retries_are_used(error):
            return False
        return not isinstance(error, TrialTimeoutError | asyncio.CancelledError)


@dataclass(frozen=True)
class Judge:
    """Judges the runs of one objective."""

    name: str
    n_objectives: int  # the number of the study's directions
    caught: tuple[type[BaseException], ...]
    constraints: Collection[int] = ()  # the indices of the constraints in what the objective returns
    fields: Sequence[str] | None = None  # of the NamedTuple that the objective's return annotation names

    def returned(self, returned: Any) -> Outcome:
        """Judge what a run returned: return the state and the values of its trial."""
        try:
            values = read_values(self.name, returned, self.n_objectives, len(self.constraints), self.fields)
        except ObjectiveValueError as wrong:
            return Outcome(TrialState.FAIL, reason=reason_of(wrong), fatal=wrong, lost=True)
        if any(map(math.isnan, values)):
            nan = next(index for index, value in enumerate(values) if math.isnan(value))
            where = f" as value {nan + 1} of {len(values)}" if len(values) > 1 else ""
            said = shown(returned if len(values) == 1 else values)
            return Outcome(TrialState.FAIL, reason=f"The objective returned NaN{where}: {said}")
        if not self.constraints:
            return Outcome(TrialState.COMPLETE, values)
        objectives = tuple(value for index, value in enumerate(values) if index not in self.constraints)
        constraints = tuple(values[index] for index in self.constraints)
        return Outcome(TrialState.COMPLETE, objectives, constraints)

    def raised(self, error: BaseException) -> Outcome:
        """Return the outcome of a run that raised an exception."""
        if isinstance(error, optuna.TrialPruned):
            return Outcome(TrialState.PRUNED)
        if is_interpreter_shutdown(error):
            error, cause = PythonExitError("Python exits while this trial runs."), error
            error.__cause__ = cause
        if isinstance(error, PythonExitError):
            return Outcome(TrialState.FAIL, reason=reason_of(error), fatal=error, lost=True)
        if is_from_signal(error) and not isinstance(error, self.caught):
            reason = f"The search was interrupted: {reason_of(error)}"
            return Outcome(TrialState.FAIL, reason=reason, fatal=error, lost=True)
        if self.n_objectives > 1 and is_report_of_several_objectives(error):
            error = self._report_of_several_objectives(error)
        if isinstance(error, ClusterError | ObjectiveValueError | FixedArgumentError | InvalidObjectiveError):
            # The next trial would meet the error too, so it ends the search. No objective has failed: with `resume`,
            # the trial does not count.
            return Outcome(TrialState.FAIL, reason=reason_of(error), fatal=error, lost=True)
        if self._is_caught(error):
            logger.debug("A trial of `%s` failed.", self.name, exc_info=error)
            return Outcome(TrialState.FAIL, reason=reason_of(error), error=error)
        return Outcome(TrialState.FAIL, reason=reason_of(error), fatal=error)

    def _report_of_several_objectives(self, cause: BaseException) -> BaseException:
        refused = InvalidObjectiveError(
            f"`{self.name}` has {self.n_objectives} objectives, and Optuna takes `trial.report` and "
            "`trial.should_prune` for one only. Stop a bad trial by a rule of your own, with `raise "
            "optuna.TrialPruned`; keep values on the way with `trial.set_user_attr`."
        )
        refused.__cause__ = cause
        return refused

    def _is_caught(self, error: BaseException) -> bool:
        # The last three classes need no `catch`: they are not errors of the objective's code.
        if isinstance(error, (*self.caught, asyncio.CancelledError, WorkerDiedError, TrialTimeoutError)):
            return True
        stands_for = attribute_of(error, "stands_for")  # a method of errors that stand for another process's error
        return callable(stands_for) and bool(stands_for(self.caught))


def reason_of(error: BaseException) -> str:
    """Return an error's class and text, as a failed trial stores them."""
    reason: str | None = attribute_of(error, "reason_of_trial")  # a substitute for another process's error has it
    if reason is None:
        reason = f"{type(error).__name__}: {text_of(error)}"
    return reason[:REASON_LIMIT]


def one_line(text: str | None) -> str:
    """Return a text with each run of white space replaced by one blank, and with control characters escaped."""
    return printable(" ".join((text or "").split()))


def mark_retries_used(error: BaseException, *, used: bool = True) -> None:
    """Mark an error as the error of the last attempt that a task's own `retries` allow, or remove the mark."""
    if used or retries_are_used(error):
        with contextlib.suppress(Exception):  # a user's `__setattr__` may raise anything
            setattr(error, _RETRIES_USED, used)


def retries_are_used(error: BaseException) -> bool:
    """Return whether a task has used up its own `retries`. The search then does not retry the trial."""
    return bool(attribute_of(error, _RETRIES_USED))


def store_details(storage: BaseStorage, trial_id: int, outcome: Outcome, constraints: Mapping[str, Any]) -> None:
    """Store, in a trial's attributes, what its outcome has beside its state and its values.

    Args:
        constraints: The system attributes that hold the values of the constraints.
    """
    for name, value in constraints.items():
        storage.set_trial_system_attr(trial_id, name, value)
    if outcome.reason is not None:
        storage.set_trial_user_attr(trial_id, ERROR, outcome.reason)
    if outcome.error is not None and (text := traceback_of(outcome.error)):
        storage.set_trial_user_attr(trial_id, TRACEBACK, text)
    if outcome.lost:
        storage.set_trial_user_attr(trial_id, LOST, True)
