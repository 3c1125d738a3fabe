"""What one search may still ask for, where a study totals its trials over all processes that have worked on it."""

from __future__ import annotations

import contextlib
import enum
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_flyte_dsl.log import logger
from optuna_flyte_dsl.owners import Life, describe, owners_of
from optuna_flyte_dsl.storage import KeptStorage

ERROR_ATTRIBUTE = "optuna_flyte_dsl:error"
"""The user attribute of a failed trial that holds the reason, in at most 2,000 characters."""

LOST_ATTRIBUTE = "optuna_flyte_dsl:lost"
"""The user attribute of a trial that has failed because its process ended; where another goes on, it does not count."""

RETRY_ATTRIBUTE = "optuna_flyte_dsl:retry_of"
"""The user attribute of a trial that tries the parameters of a lost one again, and holds that one's number."""

OUTCOME_ATTRIBUTE = "optuna_flyte_dsl:outcome"
"""The user attribute of a trial that holds what it has returned, while it waits for its turn to be told."""

_OURS = "optuna_flyte_dsl:"


class Later(enum.Enum):
    """Stands for a trial that cannot be asked for yet: other processes run all that is missing."""

    LATER = enum.auto()


LATER = Later.LATER


def counts(trial: FrozenTrial) -> bool:
    """Tell whether a trial counts as finished: complete, pruned, or failed by itself."""
    return trial.state.is_finished() and LOST_ATTRIBUTE not in trial.user_attrs


def close_lost(study: optuna.Study, trial: FrozenTrial) -> None:
    """Tell a trial that nobody runs any more: with what it had returned, if that is known, or as failed.

    Args:
        study: The study. It may block.
        trial: The trial, which is running.
    """
    handle = Trial(study, trial._trial_id)
    outcome = trial.user_attrs.get(OUTCOME_ATTRIBUTE)
    if outcome is not None:
        study.tell(trial.number, outcome["values"], state=TrialState[outcome["state"]], skip_if_finished=True)
        return
    with contextlib.suppress(UpdateFinishedTrialError):  # another process has closed it just now
        handle.set_user_attr(LOST_ATTRIBUTE, True)
        handle.set_user_attr(ERROR_ATTRIBUTE, "The process that ran this trial has died.")
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def try_again(study: optuna.Study) -> None:
    """Enqueue the parameters of each lost trial, once. It may block."""
    trials = study.get_trials(deepcopy=False)
    tried = {trial.user_attrs.get(RETRY_ATTRIBUTE) for trial in trials}
    for trial in trials:
        first = LOST_ATTRIBUTE in trial.user_attrs and RETRY_ATTRIBUTE not in trial.user_attrs
        parameters = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if first and parameters and trial.number not in tried:
            kept = {key: value for key, value in trial.user_attrs.items() if not key.startswith(_OURS)}
            study.enqueue_trial(parameters, user_attrs={**kept, RETRY_ATTRIBUTE: trial.number})


def release(
    study: optuna.Study,
    storage: KeptStorage,
    trials: Sequence[FrozenTrial],
    *,
    takeover: bool = False,
    adopts: Callable[[FrozenTrial], bool] = lambda _: False,
) -> tuple[list[FrozenTrial], dict[Life, list[FrozenTrial]]]:
    """Look who runs these trials, and close those whose process is dead.

    Args:
        study: The study. It may block.
        storage: Where it is.
        trials: Running ones, of other searches.
        takeover: Whether those count as dead of which nothing is known.
        adopts: Whether a trial can be gone on with.

    Returns:
        The trials that can be gone on with, which are this search's now; and the others by what is known of them.
    """
    adopted: list[FrozenTrial] = []
    lives: dict[Life, list[FrozenTrial]] = {life: [] for life in Life}
    known: dict[tuple[str, ...], Life] = {}  # of one process there may be many
    for trial in trials:
        owners = owners_of(trial)
        life = known[owners] = known.get(owners) or storage.life(trial)
        if life is Life.UNKNOWN and takeover:
            life = Life.DEAD
        if life is Life.DEAD and OUTCOME_ATTRIBUTE not in trial.user_attrs and adopts(trial):
            storage.set_trial_system_attr(trial._trial_id, storage.owner.key, storage.owner.record)
            adopted.append(trial)
            continue
        lives[life].append(trial)
        if life is Life.DEAD:
            logger.warning("Trial %d is closed: %s, which ran it, has died.", trial.number, describe(trial))
            close_lost(study, trial)
    if lives[Life.DEAD]:
        try_again(study)
    return adopted, lives


def lock_name(study: optuna.Study) -> str:
    """Return the name of the lock by which the searches on a study keep each other out. It may block."""
    return f"optuna_flyte_dsl:{study.study_name}"


class Share:
    """Asks for trials until a study has as many as it is to have.

    Args:
        study: The study, as the search sees it.
        storage: Where it is.
        total: How many trials it is to have.
    """

    def __init__(self, study: optuna.Study, storage: KeptStorage, total: int) -> None:
        self._study = study
        self._storage = storage
        self._total = total
        self._warned = False
        self._lock = ""

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep out the other searches on the study, where its storage has a way to do it."""
        self._lock = self._lock or lock_name(self._study)
        with self._storage.exclusive(self._lock):
            yield

    def claim(self, ask: Callable[[], Trial]) -> Trial | Later | None:
        """Ask for a trial, if one is missing.

        Returns:
            The trial; `LATER` if others run all that is missing; `None` if none is, or nobody knows.
        """
        with self.alone():
            trials = self._trials()
            if self._free(trials) > 0:
                return self._ask(ask, trials)
        others = [t for t in trials if t.state is TrialState.RUNNING and not self._storage.owner.owns(t)]
        if not others:
            return None
        _, lives = release(self._study, self._storage, others)
        if lives[Life.DEAD]:
            return self.claim(ask)
        if lives[Life.ALIVE]:
            self._warn(f"Waiting for {len(lives[Life.ALIVE])} trials of {describe(lives[Life.ALIVE][0])}.")
            return LATER
        self._warn(left_running(lives[Life.UNKNOWN]))
        return None

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s", message)

    def _ask(self, ask: Callable[[], Trial], before: Sequence[FrozenTrial]) -> Trial | Later:
        trial = self._next_retry(before) or ask()
        retried = trial.user_attrs.get(RETRY_ATTRIBUTE)
        if retried is not None and self._is_retried_twice(trial, retried):
            return LATER
        if not self._storage.owner.excludes and self._free(self._trials()) < 0:
            # Another search has asked at the same time. Both see it, and give back; who comes first then gets it.
            self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            self._storage.set_trial_system_attr(trial._trial_id, self._storage.owner.key, None)
            time.sleep(random.uniform(0.0, 0.1))  # noqa: S311 - no secret
            return LATER
        return trial

    def _is_retried_twice(self, trial: Trial, retried: int) -> bool:
        """Close a trial that tries again what an earlier one does: two processes have enqueued it at the same time."""
        for earlier in self._trials()[: trial.number]:
            if earlier.user_attrs.get(RETRY_ATTRIBUTE) == retried:
                trial.set_user_attr(LOST_ATTRIBUTE, True)
                trial.set_user_attr(ERROR_ATTRIBUTE, f"Trial {earlier.number} tries these parameters again already.")
                self._study.tell(trial.number, state=TrialState.FAIL)
                return True
        return False

    def _next_retry(self, trials: Sequence[FrozenTrial]) -> Trial | None:
        """Return a trial that tries the parameters of a lost one again: those come first."""
        for trial in trials:
            if trial.state is TrialState.WAITING and RETRY_ATTRIBUTE in trial.user_attrs:
                try:
                    if self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                        return Trial(self._study, trial._trial_id)
                except UpdateFinishedTrialError:
                    continue
        return None

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _free(self, trials: Sequence[FrozenTrial]) -> int:
        return self._total - sum(counts(trial) or trial.state is TrialState.RUNNING for trial in trials)


def left_running(trials: Sequence[FrozenTrial]) -> str:
    """Return what a user can do about trials of which nobody knows whether they run."""
    numbers = ", ".join(str(trial.number) for trial in trials[:5]) + (", ..." if len(trials) > 5 else "")
    return (
        f"{len(trials)} trials ({numbers}) are RUNNING, of {describe(trials[0])}, and it cannot be known from here "
        "whether that process lives. They count as running. If it is dead, give `takeover=True`: they are closed, and "
        "tried again."
    )


def kept_outcome(state: TrialState, values: Any) -> dict[str, Any]:
    """Return what a trial keeps as its outcome until it is told."""
    return {"state": state.name, "values": None if values is None else list(values)}
