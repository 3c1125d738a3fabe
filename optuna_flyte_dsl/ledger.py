"""Asks, samples and tells the trials of one search. All of it blocks: it runs in the study's thread."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_flyte_dsl.duplicates import Points
from optuna_flyte_dsl.errors import StorageUnavailableError, TooManyFailuresError
from optuna_flyte_dsl.log import logger
from optuna_flyte_dsl.objective import Objective
from optuna_flyte_dsl.share import (
    ERROR_ATTRIBUTE,
    LOST_ATTRIBUTE,
    OUTCOME_ATTRIBUTE,
    RETRY_ATTRIBUTE,
    Later,
    Share,
    kept_outcome,
)
from optuna_flyte_dsl.space import SearchSpace
from optuna_flyte_dsl.storage import KeptStorage, is_outage
from optuna_flyte_dsl.views import snapshot_of, view_of

ATTEMPTS_ATTRIBUTE = "optuna_flyte_dsl:attempts"
"""The user attribute of a trial that holds why each of its attempts but the last one has failed."""

REASON_LIMIT = 2_000
_CLOSING_PAUSES = (0.0, 0.1, 0.5, 2.0)
"""Seconds before each attempt to tell a trial when the search ends in an error."""

Observer = Callable[[optuna.Study, FrozenTrial], Any]


@dataclass(slots=True)
class Outcome:
    """How one run ended: with `values`, or in a `state` that has none, for a `reason`.

    Args:
        state: The trial's last state.
        values: One for each objective.
        reason: Why it has failed.
        error: What was raised.
        fatal: What ends the search.
        lost: Whether it has not failed by itself: the search ended, or its process.
    """

    state: TrialState
    values: tuple[float, ...] | None = None
    reason: str | None = None
    error: BaseException | None = None
    fatal: BaseException | None = None
    lost: bool = False


@dataclass(slots=True)
class Asked:
    """A trial that is to be run.

    Args:
        number: The trial's.
        trial: The trial.
        arguments: The objective's keyword arguments.
        outcome: What it ends with, where that is known without running it.
    """

    number: int
    trial: Trial
    arguments: dict[str, Any]
    outcome: Outcome | None = None


class Ledger:
    """The trials of one search that are asked for and not told.

    Args:
        study: Where trials are asked and told.
        objective: What is searched.
        space: Makes a trial's arguments.
        observer: Called as a callback is, and before them; it must be quick.
        callbacks: Called with the study and each finished trial.
        resumed: Trials that an earlier process has asked for and not told: run first, with the parameters they have.
        storage: Stands before the study's own, where that outlives the process.
        total: How many trials the study is to have; `None` where this search counts its own only.
        lost: Whether trials that the search's end stops do not count.
        max_consecutive_failures: Failures in a row after which nothing works, before any success and after one.
        points: What is done with repeated points; `None` where they are run again.
        own_sampler: Makes the sampler of one trial that samples while it runs, by its number, where what it sees must
            not depend on the moment.
        deterministic: Whether nothing is pruned, for that depends on time.
    """

    def __init__(
        self,
        study: optuna.Study,
        objective: Objective,
        space: SearchSpace,
        *,
        observer: Observer | None = None,
        callbacks: Sequence[Observer] = (),
        resumed: Sequence[FrozenTrial] = (),
        storage: KeptStorage | None = None,
        total: int | None = None,
        lost: bool = False,
        max_consecutive_failures: tuple[int, int] | None = None,
        points: Points | None = None,
        own_sampler: Callable[[int], BaseSampler] | None = None,
        deterministic: bool = False,
    ) -> None:
        self.study = view_of(study, lambda: self.on_stop(), self._note_asked, storage)
        self.on_stop: Callable[[], None] = lambda: None  # what a callback's `study.stop()` calls
        if deterministic:
            vars(self.study)["pruner"] = NopPruner()
        self.stopped = False
        self.quick: bool | None = None  # whether the study may be used in the event loop; the first trial tells
        self.n_objectives = len(study.directions)
        self._original = study
        self._sampler = study.sampler
        self._objective = objective
        self._space = space
        self._observer = observer
        self._callbacks = tuple(callbacks)
        self._resumed = list(reversed(resumed))
        self._storage = storage
        self._name = ""
        self._share = Share(self.study, storage, total) if storage is not None and total is not None else None
        self._lost = lost
        self._points = points
        self._own_sampler = own_sampler
        self._limits = max_consecutive_failures
        self._failures = 0
        self._any_success = False
        self._asked: int | None = None  # the trial that an ask has stored and not returned yet
        self._open: dict[int, Trial] = {}  # asked and not told
        self._untold: dict[int, Outcome] = {}  # of those, what a storage has refused

    @property
    def open(self) -> bool:
        """Whether a trial is asked for and not told."""
        return bool(self._open)

    @property
    def totals(self) -> bool:
        """Whether the study is shared: how many trials are missing is known only when one is asked for."""
        return self._share is not None

    @property
    def silence(self) -> float:
        """Seconds for which the storage has neither answered nor refused."""
        return self._storage.silence if self._storage is not None else 0.0

    def hurry(self) -> None:
        """Wait for no outage of the storage any more; from any thread."""
        if self._storage is not None:
            self._storage.hurry()

    def mark_lost(self) -> None:
        """Note on the trials that the search's end stops that their process has ended, not they."""
        self._lost = True

    def enqueue(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Enqueue the parameters of the first trials. A point that the study has already is left out."""
        if self._storage is not None:
            self._name = self.study.study_name  # while the storage answers
        if not points:
            return
        # Others may begin with them too.
        with self._share.alone() if self._share is not None else contextlib.nullcontext():
            for point in points:
                self.study.enqueue_trial(dict(point), skip_if_exists=True)

    def _note_asked(self, number: int) -> None:
        self._asked = number

    def ask(self) -> Asked | Later | None:
        """Ask for the next trial.

        Returns:
            The trial; `None` if no more is wanted; `LATER` if that is not known yet.
        """
        if self.stopped:
            return None
        try:
            trial = self._next_trial()
            return self._sample(trial) if isinstance(trial, Trial) else trial
        except Exception:
            self.stopped = True  # no other trial is asked for while the error is on its way
            raise

    def _next_trial(self) -> Trial | Later | None:
        self._asked = None
        try:
            if self._resumed:
                return Trial(self.study, self._resumed.pop()._trial_id)
            if self._points is not None and self._points.ends and self._points.exhausted(self.study):
                return None
            return self.study.ask() if self._share is None else self._share.claim(self.study.ask)
        except Exception as error:
            if self._asked is not None:
                self._close_asked(self._asked, error)
            raise

    def _sample(self, trial: Trial) -> Asked:
        number = trial.number
        self._open[number] = trial
        if self.quick is None:
            # Nothing blocks, and a change of thread would cost as much as all else. Exact types: a subclass may do
            # anything.
            self.quick = (
                type(trial.storage) is InMemoryStorage and type(self._sampler) is RandomSampler and not self._callbacks
            )
        if self._own_sampler is not None:
            # What running trials have sampled so far depends on the moment.
            ended = [each for each in self.study.get_trials(deepcopy=False) if each.state.is_finished()]
            trial.study = snapshot_of(self.study, ended, self._own_sampler(number))
        if self._objective.samples and not self.quick:
            # Optuna samples when the objective first suggests; an async one would do that in the event loop.
            _ = trial.relative_params
        try:
            if self._points is None:
                return Asked(number, trial, self._space.suggest(trial))
            arguments, known = self._points.suggest(self.study, trial, self._space)
        except ValueError as error:
            if not trial._fixed_params:
                raise
            reason = f"Its parameters were enqueued, and do not fit the search space: {trial._fixed_params}: {error}"
            return Asked(number, trial, {}, Outcome(TrialState.FAIL, reason=reason, error=error))
        if known is None:
            return Asked(number, trial, arguments)
        return Asked(number, trial, arguments, Outcome(TrialState.COMPLETE, known))

    def _close_asked(self, number: int, error: Exception) -> None:
        """Tell a trial that an ask has stored, but could not return."""
        with contextlib.suppress(Exception):  # the reason is worth less than the state
            stored = next(trial for trial in self.study.get_trials(deepcopy=False) if trial.number == number)
            self.study._storage.set_trial_user_attr(stored._trial_id, ERROR_ATTRIBUTE, reason_of(error))
        self.study.tell(number, state=TrialState.FAIL)

    def keep(self, asked: Asked, outcome: Outcome) -> None:
        """Keep what a trial has returned while it waits for its turn to be told: its process may die meanwhile."""
        if self._storage is not None and not outcome.lost and outcome.fatal is None:
            asked.trial.set_user_attr(OUTCOME_ATTRIBUTE, kept_outcome(outcome.state, outcome.values))

    def note_attempts(self, trial: Trial, reasons: Sequence[str]) -> None:
        """Note on a trial why its attempts have failed so far."""
        trial.set_user_attr(ATTEMPTS_ATTRIBUTE, list(reasons))

    def tell(self, asked: Asked, outcome: Outcome) -> None:
        """Tell how a trial ended, and call the callbacks.

        Raises:
            TooManyFailuresError: If so many have failed in a row that nothing works.
            BaseException: What ends the search: a callback's error, or the trial's.
        """
        number, trial = asked.number, asked.trial
        self._untold[number] = outcome
        if outcome.reason is not None:
            with contextlib.suppress(UpdateFinishedTrialError):  # somebody else has closed it
                _note(trial, outcome)
        frozen = self._tell(trial, outcome)
        del self._open[number], self._untold[number]
        if outcome.fatal is not None:
            self.stopped = True
            if not isinstance(outcome.fatal, Exception):  # a SystemExit says nothing by itself
                logger.error("Trial %d of `%s` ends the search: %s", number, self._objective.name, outcome.reason)
            raise outcome.fatal
        if outcome.state is TrialState.FAIL:
            logger.warning("Trial %d of `%s` failed: %s", number, self._objective.name, _line(outcome.reason))
        if self._observer is not None:
            self._observer(self.study, frozen)
        for callback in self._callbacks:
            callback(self.study, frozen)
        if self._limits is not None and not outcome.lost:
            self._count(outcome)

    def _tell(self, trial: Trial, outcome: Outcome) -> FrozenTrial:
        if self._storage is None:
            return self.study.tell(trial, outcome.values, state=outcome.state)
        frozen = self.study.tell(trial, outcome.values, state=outcome.state, skip_if_finished=True)
        if LOST_ATTRIBUTE in frozen.user_attrs and not outcome.lost and outcome.values is not None:
            self._tell_late(frozen, outcome)
        return frozen

    def _tell_late(self, trial: FrozenTrial, outcome: Outcome) -> None:
        """Keep the values of a trial that another process took for dead: as those of its retry, or beside it."""
        assert self._storage is not None
        logger.warning(
            "Trial %d of `%s` was taken for dead, and has ended with %s: its values are kept.",
            trial.number,
            self._objective.name,
            outcome.values,
        )
        for retry in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            taken = retry.user_attrs.get(RETRY_ATTRIBUTE) == trial.number
            if taken and self._storage.set_trial_state_values(retry._trial_id, TrialState.RUNNING):
                for name, distribution in trial.distributions.items():
                    value = distribution.to_internal_repr(trial.params[name])
                    self._storage.set_trial_param(retry._trial_id, name, value, distribution)
                self.study.tell(retry.number, outcome.values)
                return
        late = optuna.trial.create_trial(
            values=outcome.values,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={LOST_ATTRIBUTE: True, RETRY_ATTRIBUTE: trial.number},
        )
        self.study.add_trial(late)

    def _count(self, outcome: Outcome) -> None:
        if outcome.state is not TrialState.FAIL:
            self._failures, self._any_success = 0, True
            return
        self._failures += 1
        assert self._limits is not None
        limit = self._limits[self._any_success]
        if self._failures >= limit and not self.stopped:
            self.stopped = True
            raise TooManyFailuresError(
                f"{self._failures} trials of `{self._objective.name}` have failed in a row, the last one with "
                f"{_line(outcome.reason).rstrip('.')}. Mend the objective; or raise `max_consecutive_failures`, or "
                "give None to go on whatever fails. What has finished is in the error's `study`.",
                self._original,
            ) from outcome.error

    def close_open(self, reason: str) -> None:
        """Tell what is asked and not told; an outcome that the storage has refused is offered again.

        Raises:
            StorageUnavailableError: If the storage still refuses one that has finished.
        """
        if self._storage is not None:
            self._storage.hurry()
        closing = Outcome(TrialState.FAIL, reason=reason, lost=self._lost)
        left = {number: (trial, self._untold.get(number, closing)) for number, trial in self._open.items()}
        for pause in _CLOSING_PAUSES:
            time.sleep(pause)
            left = {number: each for number, each in left.items() if not self._tell_at_last(*each)}
            if not left or self._storage is not None:  # that one has waited already
                break
        self._open.clear()
        for number, (_, outcome) in left.items():
            what = f"{outcome.state.name} {outcome.values or ''}".strip()
            logger.error("Trial %d of `%s` could not be told: %s", number, self._objective.name, what)
        finished = {number: each for number, each in left.items() if number in self._untold}
        self._untold.clear()
        if finished:
            raise self._untold_error(finished)

    def give_up(self) -> StorageUnavailableError:
        """Save what is untold, from another thread: the study's waits for a storage that is silent."""
        left = {number: (trial, self._untold[number]) for number, trial in self._open.items() if number in self._untold}
        self._open.clear()
        if not left:
            return StorageUnavailableError(f"The storage of `{self._objective.name}` does not answer.", (), None)
        return self._untold_error(left)

    def _untold_error(self, untold: Mapping[int, tuple[Trial, Outcome]]) -> StorageUnavailableError:
        """Save what could not be told, and return the error that says where."""
        lines = [
            {
                "study": self._name,
                "trial": number,
                "state": outcome.state.name,
                "values": outcome.values,
                "reason": outcome.reason,
                "params": trial._cached_frozen_trial.params,
            }
            for number, (trial, outcome) in untold.items()
        ]
        text = "".join(json.dumps(line, default=repr) + "\n" for line in lines)
        path = _save(text)
        numbers = ", ".join(str(number) for number in untold)
        where = f"They are saved in {path}." if path else f"They could not be saved either: {text}"
        return StorageUnavailableError(
            f"The storage of `{self._objective.name}` does not answer, and trials {numbers}, which have finished, "
            f"could not be told. {where} Tell them when it is back, with `study.tell(trial, values)`.",
            tuple(lines),
            path,
        )

    def _tell_at_last(self, trial: Trial, outcome: Outcome) -> bool:
        try:
            _note(trial, outcome)
        except Exception as error:  # noqa: BLE001 - the reason is worth less than the state
            if self._storage is not None and is_outage(error):
                return False
        try:
            self.study.tell(trial, outcome.values, state=outcome.state, skip_if_finished=True)
        except Exception:  # noqa: BLE001 - tried again
            logger.debug("Telling trial %d failed.", trial.number, exc_info=True)
            return False
        return True


def _note(trial: Trial, outcome: Outcome) -> None:
    """Note on a trial why it has failed, and whether it counts."""
    if outcome.reason is not None:
        trial.set_user_attr(ERROR_ATTRIBUTE, outcome.reason)
    if outcome.lost:
        trial.set_user_attr(LOST_ATTRIBUTE, True)


def _save(text: str) -> pathlib.Path | None:
    name = f"optuna-flyte-untold-{os.getpid()}-{time.time_ns()}.jsonl"
    for folder in (pathlib.Path.cwd(), pathlib.Path(tempfile.gettempdir())):
        with contextlib.suppress(OSError):
            (folder / name).write_text(text)
            return folder / name
    return None


def reason_of(error: BaseException) -> str:
    """Return what a failed trial keeps of an error."""
    told: str | None = getattr(error, "__told__", None)  # of an error that stands for another one
    if told is not None:
        return told[:REASON_LIMIT]
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a user's `__str__`
        text = "<its text could not be made>"
    return f"{type(error).__name__}: {text}"[:REASON_LIMIT]


def _line(text: str | None) -> str:
    """Put a text on one line."""
    return " ".join((text or "").split())
