"""Asks for the trials of one search, samples their parameters, and tells them, by blocking calls."""

import contextlib
import copy
import functools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import chain
from typing import Any, TypeVar

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_flyte_dsl._compat.optuna import enqueued_params, storage_of, stored_trial, tell, trial_id, trials_to_read
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl.errors import RefusedPointError, SearchRunningError, StorageUnavailableError
from optuna_flyte_dsl.options import Callback, Options
from optuna_flyte_dsl.sampling.auto_sampler import AutoSampler
from optuna_flyte_dsl.search.failure_limit import FailureLimit
from optuna_flyte_dsl.search.failure_log import FailureLog
from optuna_flyte_dsl.search.late_values import keep_late_values
from optuna_flyte_dsl.search.open_trials import OpenTrials
from optuna_flyte_dsl.search.outcome import Outcome, reason_of, store_details
from optuna_flyte_dsl.space.objective import Objective
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study import resuming
from optuna_flyte_dsl.study.attributes import ATTEMPTS, ERROR, LOST, OUTCOME, RETRY_OF
from optuna_flyte_dsl.study.durable_storage import DurableStorage
from optuna_flyte_dsl.study.feasibility import constraint_attributes
from optuna_flyte_dsl.study.liveness import Life, owner_keys
from optuna_flyte_dsl.study.study_view import snapshot_of, view_of
from optuna_flyte_dsl.study.taken_points import TakenPoints
from optuna_flyte_dsl.study.trial_history import TrialHistory
from optuna_flyte_dsl.study.trial_quota import ASK_LATER, AskLater, Quota

T = TypeVar("T")


@dataclass(slots=True)
class AskedTrial:
    """A trial that is to be run."""

    number: int
    trial: Trial
    arguments: dict[str, Any]
    outcome: Outcome | None = None  # the trial's outcome, if it is known without a run
    attempts: Sequence[str] = ()  # for an adopted trial: why each of its earlier attempts has failed


@dataclass(eq=False)
class AskTell:
    """Asks for and tells the trials of one search, and keeps the trials that are asked for and not told."""

    study: optuna.Study
    objective: Objective
    space: SearchSpace
    options: Options
    _: KW_ONLY
    observer: Callback | None = None  # called like a callback, before the callbacks; it must be quick
    adopted: Sequence[FrozenTrial] = ()  # trials of an earlier process: run first, with the parameters that they have
    # Whether a running trial of a process that dies during the search can be continued.
    adopts: Callable[[FrozenTrial], bool] = lambda _: False
    storage: DurableStorage | None = None  # the durable proxy of the study's storage, if that outlives the process
    total: int | None = None  # the number of finished trials that the study is to have; `None` without a total
    points: TakenPoints | None = None  # the points that are taken; `None` if points may be repeated
    # Makes a sampler from a trial's number: for `deterministic=True`, if the objective calls `trial.suggest_*`.
    sampler_of_trial: Callable[[int], BaseSampler] | None = None
    # Whether `store` is called after `ask`. Several threads may call `store` and `tell`, and one thread `ask`.
    stores_apart: bool = False
    on_stop: Callable[[], None] = lambda: None  # called by a callback's `study.stop()`
    stopped: bool = False
    is_quick: bool | None = None  # whether asking and telling never blocks; None before the first trial

    def __post_init__(self) -> None:
        study, options, storage = self.study, self.options, self.storage
        self.study = view_of(
            study,
            stop=lambda: self.on_stop(),
            announce=functools.partial(setattr, self, "_stored"),
            patience=lambda: max(0.0, self._sampler_until - time.monotonic()),
            storage=storage,
            pruner=NopPruner() if options.deterministic else None,  # pruning depends on time
        )
        self._sampler = study.sampler
        self._adopted = list(reversed(self.adopted))
        self._quota: Quota | None = None
        if storage is not None and self.total is not None:
            self._quota = Quota(self.study, storage, self.total, self.adopts)
        self.has_quota: bool = self._quota is not None  # whether only an ask tells if trials are missing
        self.interrupted_are_lost: bool = storage is not None  # whether trials that the search's end stops are lost
        self.failure_log: FailureLog = FailureLog(self.objective.name)
        self._failures = FailureLimit(self.objective.name, study, options.failure_limits)
        self._history = TrialHistory()
        self._before: int | None = None  # the number of the study's trials before the first ask
        self._known: Sequence[FrozenTrial] = ()  # if `is_quick`: Optuna's own list of all trials, which grows
        self._stored: int | None = None  # number of a trial that an ask has stored and not yet returned
        self._open = OpenTrials(self.study, self.objective.name, storage, self._store_details)
        self.not_continued: list[FrozenTrial] = []  # the adopted trials that the search's end has told
        self._after_tell = threading.Lock()
        self._sampler_until = math.inf  # when a sampler that does not return is waited for no longer

    @property
    def silence(self) -> float:
        """For how many seconds the oldest running call of the storage has had neither an answer nor an error."""
        return self.storage.silence if self.storage is not None else 0.0

    def hurry(self) -> None:
        """From now on, wait only for a moment for the sampler and the storage. Any thread may call this."""
        self._limit_sampler()
        if isinstance(self._sampler, AutoSampler):
            self._sampler.hurry()
        if self.storage is not None:
            self.storage.hurry()

    def _limit_sampler(self) -> None:
        self._sampler_until = min(self._sampler_until, time.monotonic() + pauses.code_at_end)

    def close(self) -> None:
        """End: the sampler may serve another search."""
        if isinstance(self._sampler, AutoSampler):
            self._sampler.end_search()

    def enqueue(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Enqueue the parameters of the first trials. A point that the study already has is left out."""
        if self.storage is not None:
            self._open.study_name = self.study.study_name  # read now, while the storage answers
        if not points:
            return
        # The study is locked, because another search may enqueue the same points at the same time.
        with self._quota.exclusive() if self._quota is not None else contextlib.nullcontext():
            for point in points:
                self.study.enqueue_trial(dict(point), skip_if_exists=True)

    def ask(self) -> AskedTrial | AskLater | None:
        """Ask for the next trial.

        Returns:
            The trial; `None` if no more trials are wanted; `ASK_LATER` if other processes run all missing trials.
        """
        if self.stopped:
            return None
        n_before = len(self._known) if self.is_quick else None
        try:
            if self.storage is None or self.options.deterministic:  # which looks for other searches again and again
                return self._ask()
            with self.storage.reads_once():
                return self._ask()
        except BaseException:
            self.stopped = True  # no other trial is asked for while the error travels to the loop
            if n_before is not None:  # an interrupt may have come between any two steps
                self._open.add_running(n_before)
            raise

    def _ask(self) -> AskedTrial | AskLater | None:
        self._check_alone()
        trial = self._next_trial()
        if isinstance(trial, Trial):
            self._open.add(trial)
            self._stored = None
            self._check_alone()
            try:
                return self._sample_and_write(trial)
            except UpdateFinishedTrialError:
                if self.storage is None:
                    raise
                logger.warning("Trial %d was ended by another process before it was run.", trial.number)
                self._open.remove(trial.number)
                return self.ask()
        if trial is ASK_LATER and self.options.deterministic:
            raise self._another_search()
        return trial

    def _sample_and_write(self, trial: Trial) -> AskedTrial:
        if self.storage is None:
            return self._sample(trial)
        self.storage.gather(trial_id(trial))
        asked = self._sample(trial)
        asked.attempts = trial.user_attrs.get(ATTEMPTS, ())  # of an adopted trial
        if not self.stores_apart:
            self.storage.write(trial_id(trial))
        return asked

    def store(self, asked: AskedTrial) -> None:
        """Store the parameters of a trial that was asked for, if `stores_apart`."""
        assert self.storage is not None
        try:
            with contextlib.suppress(UpdateFinishedTrialError):  # the trial is left as another process has ended it
                self.storage.write(trial_id(asked.trial))
        except Exception:
            self.stopped = True
            raise

    def _next_trial(self) -> Trial | AskLater | None:
        self._stored = None
        try:
            if self._adopted:
                return stored_trial(self.study, trial_id(self._adopted.pop()))
            is_exhausted = self.points is not None and self.points.ends and self.points.exhausted(self.study)
            if self._quota is not None:  # another process may die while it runs one of the last points
                return self._quota.ask(self.study.ask, is_exhausted=is_exhausted)
            return None if is_exhausted else self.study.ask()
        except BaseException as error:  # a sampler may raise anything
            if self._stored is not None:
                with contextlib.suppress(Exception):  # the state is worth more than the reason
                    stored = next(each for each in self.study.trials if each.number == self._stored)
                    storage_of(self.study).set_trial_user_attr(trial_id(stored), ERROR, reason_of(error))
                self.study.tell(self._stored, state=TrialState.FAIL)
            raise

    def _check_alone(self) -> None:
        """Raise an error if the owners of the study's trials show another search beside this deterministic search."""
        if self.storage is None or not self.options.deterministic:
            return
        trials = self.study.get_trials(deepcopy=False)
        self._before = len(trials) if self._before is None else self._before
        for trial in chain(*self._history.look(trials)):
            if owner_keys(trial) and not self.storage.owner.owns(trial):
                runs = trial.state is TrialState.RUNNING and self.storage.life(trial) is Life.ALIVE
                if runs or trial.number >= self._before:
                    raise self._another_search()

    def _another_search(self) -> SearchRunningError:
        return SearchRunningError(
            f"`deterministic=True`: another search works on the study of `{self.objective.name}` at the same time, and "
            "what it finds depends on time. Wait for its end, or drop `deterministic`."
        )

    def _sample(self, trial: Trial) -> AskedTrial:
        number = trial.number
        if self.is_quick is None:
            # In memory, a change of thread takes as long as an ask or a tell. Exact types are compared, because a
            # subclass may block.
            in_memory = type(trial.storage) is InMemoryStorage
            is_free = type(self._sampler) is RandomSampler and self.points is None and not self.options.callbacks
            self.is_quick = in_memory and is_free and not self.space.has_functions
            self._known = trials_to_read(self.study) if self.is_quick else ()
        if self.sampler_of_trial is not None:
            # What running trials have suggested so far depends on time, so the sampler does not see them.
            ended = [each for each in self.study.get_trials(deepcopy=False) if each.state.is_finished()]
            trial.study = snapshot_of(self.study, ended, self.sampler_of_trial(number))
        if self.storage is not None and RETRY_OF in trial.user_attrs:
            resuming.drop_what_does_not_fit(trial, self.space)
        if self.objective.suggests_itself and not self.is_quick:
            # Sample now: otherwise Optuna would sample at the first suggestion, which an async objective makes in the
            # event loop.
            _ = trial.relative_params
        try:
            if self.points is None:
                return AskedTrial(number, trial, self.space.suggest(trial))
            arguments, same = self.points.suggest(self.study, trial)
        except (ValueError, OverflowError) as error:
            enqueued = enqueued_params(trial)
            if isinstance(error, RefusedPointError):
                return AskedTrial(number, trial, {}, Outcome(TrialState.FAIL, reason=reason_of(error), error=error))
            if not enqueued:
                raise
            reason = f"Its parameters were enqueued, and do not fit the search space: {enqueued}: {error}"
            return AskedTrial(number, trial, {}, Outcome(TrialState.FAIL, reason=reason, error=error))
        known = Outcome(TrialState.COMPLETE, same.values, same.constraints) if same is not None else None
        return AskedTrial(number, trial, arguments, known)

    def keep(self, asked: AskedTrial, outcome: Outcome) -> None:
        """Keep the outcome of a trial that waits for its turn to be told.

        The search may end before that turn. In a storage that outlives the process, the outcome is stored too.
        """
        if outcome.fatal is None:
            self._open.keep(asked.number, outcome)
        if self.storage is not None and not outcome.lost and outcome.fatal is None:
            self._store_details(asked.trial, outcome)
            asked.trial.set_user_attr(OUTCOME, {"state": outcome.state.name, "values": outcome.values})

    def tell(self, asked: AskedTrial, outcome: Outcome) -> None:
        """Tell the study how a trial ended, and call the callbacks."""
        told = self._tell(asked.trial, outcome)
        if told is not None:
            with self._after_tell:
                self._note_told(told, outcome)

    def promise(
        self, run: Callable[..., T], call: Callable[..., None], asked: AskedTrial, outcome: Outcome | None = None
    ) -> T:
        """Have `store` or `tell` called in another thread. The search's end waits until the call was made.

        Args:
            run: Starts a function in a thread.
            outcome: For `tell`: how the trial ended. It is kept from now on.

        Returns:
            What `run` has returned.
        """
        if outcome is None:
            return self._open.promise(run, lambda: call(asked))
        self._open.keep(asked.number, outcome)
        return self._open.promise(run, lambda: call(asked, outcome))

    def _tell(self, trial: Trial, outcome: Outcome) -> FrozenTrial | None:
        """Tell the study how a trial ended. Return the trial; `None` if another search runs it."""
        number = trial.number
        if self.storage is not None and self.objective.takes_trial:
            self.storage.share(trial_id(trial))  # the objective may have reported from another process
        self._open.keep(number, outcome)  # before the storage is asked for anything: it may be silent
        if outcome.state is TrialState.FAIL and outcome.fatal is None and self.is_taken_over(trial):
            logger.warning("Trial %d of `%s` is left to another search, which runs it.", number, self.objective.name)
            self._open.remove(number)
            return None
        if not outcome.is_plain:
            with contextlib.suppress(UpdateFinishedTrialError):  # another process has closed the trial
                self._store_details(trial, outcome)
        try:
            frozen = tell(self.study, trial, outcome.values, outcome.state, skip_if_finished=self.storage is not None)
        except UpdateFinishedTrialError:  # another process has just ended the trial, which is seen now
            if self.storage is None:
                raise
            frozen = tell(self.study, trial, outcome.values, outcome.state, skip_if_finished=True)
        if outcome.values is not None and self.storage is not None and not outcome.lost:
            # Another search that has taken this process for dead sets LOST, and then ends the trial.
            is_lost = LOST in frozen.user_attrs
            if is_lost or (self.has_quota and self.storage.has_unseen_attr(trial_id(trial), LOST)):
                keep_late_values(self.study, self.objective.name, frozen, outcome, self._constraint_attributes(outcome))
        self._open.remove(number)
        return frozen

    def _note_told(self, frozen: FrozenTrial, outcome: Outcome) -> None:
        """Count a trial that was told, and call the callbacks."""
        number = frozen.number
        if outcome.fatal is not None:
            self.stopped = True
            if self.observer is not None:
                self.observer(self.study, frozen)
            if not isinstance(outcome.fatal, Exception):  # a SystemExit may end the program without a message
                logger.error("Trial %d of `%s` ends the search: %s", number, self.objective.name, outcome.reason)
            raise outcome.fatal
        if outcome.state is TrialState.FAIL:
            self.failure_log.add(number, outcome)
        if self.observer is not None:
            self.observer(self.study, frozen)
        if self.options.callbacks:
            frozen = copy.deepcopy(frozen)  # callbacks may change it
        for callback in self.options.callbacks or ():
            try:
                callback(self.study, frozen)
            except Exception as raised:
                with contextlib.suppress(Exception):  # a user's `__setattr__` may raise anything
                    raised.add_note(f"A callback of `{self.objective.name}` raised this, after trial {number}.")
                raise
        error = self._failures.count(outcome)
        if error is not None and not self.stopped:
            self.stopped = True
            raise error

    def close_open(self, reason: str, *, waits: bool = True) -> None:
        """Tell the study, at the end of a search, how all trials that are still open have ended.

        They include adopted trials that were not asked for. An outcome that the storage has refused is told again.

        Args:
            waits: Whether to wait for the calls of other threads. If not, they include a trial whose ask has not ended.
        """
        if not waits:
            self._limit_sampler()
        adopted = [*self._adopted, *(self._quota.adopted if self._quota is not None else ())]
        self.not_continued += adopted
        self._adopted.clear()
        if self._quota is not None:
            self._quota.adopted.clear()
        interrupted = Outcome(TrialState.FAIL, reason=reason, lost=self.interrupted_are_lost)
        asking = None if waits or self.silence else self._stored
        self._open.close(interrupted, adopted, waits=waits, asking=asking)

    @property
    def is_closing(self) -> bool:
        """Whether `close_open` waits for no other call any longer."""
        return self._open.is_closing

    def give_up(self) -> StorageUnavailableError:
        """Save the outcomes that the storage has not accepted, and return the error that names the file.

        `give_up` is called in another thread, because the study's thread waits for the storage.
        """
        self._stored = None
        return self._open.give_up()

    def is_taken_over(self, trial: Trial) -> bool:
        """Return whether another search owns a trial now, because it has taken this process for dead."""
        return self._open.is_taken_over(trial)

    def _store_details(self, trial: Trial | FrozenTrial, outcome: Outcome) -> None:
        store_details(storage_of(self.study), trial_id(trial), outcome, self._constraint_attributes(outcome))

    def _constraint_attributes(self, outcome: Outcome) -> dict[str, Any]:
        return constraint_attributes(list(self.objective.returns.constraints.values()), outcome.constraints)
