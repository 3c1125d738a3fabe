"""Asks for trials until a study has its total, while other processes may ask for trials of the same study."""

import contextlib
import enum
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_flyte_dsl._compat.optuna import enqueued_params_of, stored_trial, trial_id
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl.study.attributes import ERROR, GIVEN_BACK, LOST, RETRY_OF
from optuna_flyte_dsl.study.durable_storage import DurableStorage
from optuna_flyte_dsl.study.liveness import Life, describe_owner, owner_keys
from optuna_flyte_dsl.study.resuming import counts, is_adoptable, left_running, release
from optuna_flyte_dsl.study.trial_history import TrialHistory


class AskLater(enum.Enum):
    """Returned instead of a trial while other processes run all trials that are missing."""

    ASK_LATER = enum.auto()


ASK_LATER = AskLater.ASK_LATER


@dataclass(eq=False)
class Quota:
    """Asks for trials until a study has its total."""

    study: optuna.Study
    storage: DurableStorage
    total: int  # the number of finished trials that the study is to have
    # Tells whether a running trial of a dead process can be continued.
    adopts: Callable[[FrozenTrial], bool] = lambda _: False
    # Trials of dead processes that this search has adopted, and not returned yet.
    adopted: list[FrozenTrial] = field(default_factory=list, init=False)
    _warned: bool = False
    _name: str = ""
    _n_seen: int = field(default=0, init=False)  # the trials at the last look
    _history: TrialHistory = field(default_factory=TrialHistory, init=False)
    _n_ended: int = field(default=0, init=False)  # the trials that have ended and count

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold a lock that excludes other searches on the study, if its storage has such a lock."""
        self._name = self._name or self.study.study_name
        with self.storage.exclusive(self._name):
            yield

    def ask(self, ask: Callable[[], Trial], *, is_exhausted: bool = False) -> Trial | AskLater | None:
        """Ask for a trial if the study lacks trials. `ask` blocks.

        Args:
            ask: Asks for a new trial.
            is_exhausted: Whether all points of the space are taken, so that no new trial is wanted.

        Returns:
            The trial, which is a dead process's trial if that can be continued; `ASK_LATER` if live processes run all
            missing trials; `None` if no trial is missing, or if it cannot be known whether the processes that run the
            missing trials are alive.
        """
        if self.adopted:
            return stored_trial(self.study, trial_id(self.adopted.pop()))
        with self.exclusive():
            missing, changing = self._look()
            if missing > 0 and not is_exhausted:
                return self._ask(ask, changing)
        others = [t for t in changing if t.state is TrialState.RUNNING and not self.storage.owner.owns(t)]
        if not others:
            self._close_given_back(changing)
            return None
        if self._adopt(others):
            return self.ask(ask)
        _, lives = release(self.study, self.storage, others)
        if lives[Life.DEAD]:  # their retries are enqueued
            return ASK_LATER if is_exhausted else self.ask(ask)
        if lives[Life.ALIVE]:
            alive = lives[Life.ALIVE]
            what = "a trial" if len(alive) == 1 else f"{len(alive)} trials"
            self._warn(f"Waiting for {what} of {describe_owner(alive[0])}.")
            return ASK_LATER
        self._warn(left_running(lives[Life.UNKNOWN]))
        return None

    def _adopt(self, others: Sequence[FrozenTrial]) -> bool:
        """Adopt the trials of dead processes that can be continued; return whether there were such trials.

        Only under a lock, two searches cannot adopt the same trial.
        """
        if not self.storage.owner.excludes:
            return False
        dead = [t for t in others if is_adoptable(t, self.adopts) and self.storage.life(t) is Life.DEAD]
        if dead:
            with self.exclusive():
                now = {trial.number: trial for trial in self._trials()}
                for before in dead:
                    trial = now[before.number]
                    if trial.state is TrialState.RUNNING and owner_keys(trial) == owner_keys(before):
                        self.storage.adopt(trial)
                        self.adopted.append(trial)
        return bool(dead)

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s", message)

    def _ask(self, ask: Callable[[], Trial], before: Sequence[FrozenTrial]) -> Trial | AskLater:
        trial = self._next_retry(before) or ask()
        retried = trial.user_attrs.get(RETRY_OF)
        if retried is not None and self._close_second_retry(trial, retried):
            return ASK_LATER
        # A new trial with the next number was asked for before those of other searches, which will see it. But another
        # search may have taken a waiting trial meanwhile.
        is_first = trial.number == self._n_seen and all(each.state is not TrialState.WAITING for each in before)
        if not self.storage.owner.excludes and not is_first and self._look()[0] < 0:
            # Another search has asked for a trial at the same time, and the study has one too many. The searches that
            # were not the first give their trials back.
            self.storage.set_trial_system_attr(trial_id(trial), GIVEN_BACK, True)
            self.storage.set_trial_state_values(trial_id(trial), TrialState.WAITING)
            with contextlib.suppress(UpdateFinishedTrialError):  # another search has closed the trial
                self.storage.set_trial_system_attr(trial_id(trial), self.storage.owner.key, None)
            time.sleep(random.uniform(0.0, 0.1))  # noqa: S311 - not a secret
            return ASK_LATER
        return trial

    def _close_given_back(self, trials: Sequence[FrozenTrial]) -> None:
        """Close the trials that were given back and are not needed.

        A trial that was given back, but came from `study.enqueue_trial`, is not closed: it stays WAITING.
        """
        for trial in trials:
            is_given_back = trial.state is TrialState.WAITING and GIVEN_BACK in trial.system_attrs
            if not is_given_back or enqueued_params_of(trial) is not None:
                continue
            if self.storage.get_trial(trial_id(trial)).state is TrialState.WAITING:  # no search has acquired it
                with contextlib.suppress(UpdateFinishedTrialError):  # another search has closed the trial
                    self.storage.set_trial_user_attr(trial_id(trial), LOST, True)
                    self.storage.set_trial_user_attr(trial_id(trial), ERROR, "Other searches have run enough trials.")
                    self.storage.set_trial_state_values(trial_id(trial), TrialState.FAIL)

    def _close_second_retry(self, trial: Trial, retried: int) -> bool:
        """Close a trial that retries the same lost trial as an earlier trial: two processes enqueued a retry."""
        for earlier in self._trials()[: trial.number]:
            if earlier.user_attrs.get(RETRY_OF) == retried:
                trial.set_user_attr(LOST, True)
                trial.set_user_attr(ERROR, f"Trial {earlier.number} tries these parameters again already.")
                self.study.tell(trial.number, state=TrialState.FAIL)
                return True
        return False

    def _next_retry(self, trials: Sequence[FrozenTrial]) -> Trial | None:
        """Acquire a waiting retry of a lost trial. Retries come before other trials."""
        for trial in trials:
            if trial.state is TrialState.WAITING and RETRY_OF in trial.user_attrs:
                try:
                    if self.storage.set_trial_state_values(trial_id(trial), TrialState.RUNNING):
                        return stored_trial(self.study, trial_id(trial))
                except UpdateFinishedTrialError:
                    continue
        return None

    def _trials(self) -> list[FrozenTrial]:
        """Return the trials of the study as they are now: other searches may have changed them."""
        self.storage.forget_trials()
        return self.study.get_trials(deepcopy=False)

    def _look(self) -> tuple[int, list[FrozenTrial]]:
        """Return how many trials the study lacks, and its trials that may still change."""
        trials = self._trials()
        self._n_seen = len(trials)
        ended, changing = self._history.look(trials)
        self._n_ended += sum(map(counts, ended))
        there = self._n_ended + sum(counts(trial) or trial.state is TrialState.RUNNING for trial in changing)
        return self.total - there + len(self.storage.spares), changing
