"""What a search does with the trials that earlier or other processes have left in its study. The one resumption.

A trial left RUNNING by a dead process is adopted if it can be continued. Otherwise it is closed as lost. A lost trial
does not count, and its parameters are tried again once. A `Quota` asks for trials until the study has its total.
"""

import contextlib
import enum
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study import attributes
from optuna_flyte_dsl.study.attributes import ERROR, LOST, RETRY_OF
from optuna_flyte_dsl.study.durable import DurableStorage
from optuna_flyte_dsl.study.liveness import Life, describe_owner, owner_keys


@dataclass(frozen=True)
class Resumption:
    """What is left to do of a search."""

    n_trials: int  # the number of trials that are still to end, including the adopted ones
    adopted: tuple[FrozenTrial, ...] = ()
    finished: tuple[FrozenTrial, ...] = ()


def resume(
    study: optuna.Study,
    storage: DurableStorage,
    n_trials: int,
    *,
    takeover: bool = False,
    adopts: Callable[[FrozenTrial], bool] = lambda _: False,
    call: int | None = None,
) -> Resumption:
    """Look at what dead processes have left in a study, and return what is left to do. It blocks.

    Args:
        n_trials: The number of finished trials that is asked for.
        takeover: Whether a process about which nothing is known counts as dead.
        adopts: Tells whether a running trial can be continued.
        call: The number of this call of the search in its process, from 0, if each call has a goal of its own, as in
            Flyte's checkpoint. `None` if `n_trials` is the total of the study.
    """
    with storage.exclusive(study.study_name):
        running = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        adopted, lives = release(study, storage, running, takeover=takeover, adopts=adopts)
        retry_lost(study)  # a trial may have been closed by a search that did not continue
    if lives[Life.UNKNOWN]:
        logger.warning("%s", left_running(lives[Life.UNKNOWN]))
    finished = finished_in(study)
    if call is not None:
        goals = list(study.user_attrs.get(attributes.GOALS, []))
        if call == len(goals):
            goals.append((goals[-1] if goals else len(finished)) + n_trials)
            study.set_user_attr(attributes.GOALS, goals)
        # What is missing to the goal of the call before is that call's to do.
        done = max(len(finished), goals[call - 1]) if call else len(finished)
        return Resumption(max(goals[call] - done, len(adopted)), tuple(adopted), finished)
    if len(finished) >= n_trials and not adopted and all(trial.state is TrialState.FAIL for trial in finished):
        logger.warning(
            "The study %r has its %d trials already, and all have failed: nothing is run. To try more, raise "
            "`n_trials`, or give another `study_name`.",
            study.study_name,
            len(finished),
        )
    return Resumption(n_trials, tuple(adopted), finished)


def settle(study: optuna.Study, call: int) -> None:
    """Lower the goal of a call that has ended with fewer trials, so that no other process continues it. It blocks."""
    goals = list(study.user_attrs.get(attributes.GOALS, []))
    n_finished = len(finished_in(study))
    if call == len(goals) - 1 and n_finished < goals[call]:
        goals[call] = n_finished
        study.set_user_attr(attributes.GOALS, goals)


def release(
    study: optuna.Study,
    storage: DurableStorage,
    trials: Sequence[FrozenTrial],
    *,
    takeover: bool = False,
    adopts: Callable[[FrozenTrial], bool] = lambda _: False,
) -> tuple[list[FrozenTrial], dict[Life, list[FrozenTrial]]]:
    """Adopt or close those of some running trials whose process is dead. It blocks.

    Args:
        takeover: Whether a process about which nothing is known counts as dead.
        adopts: Tells whether a running trial can be continued.

    Returns:
        The adopted trials, which this search owns now; and the other trials, by whether their process lives.
    """
    adopted: list[FrozenTrial] = []
    lives: dict[Life, list[FrozenTrial]] = {life: [] for life in Life}
    known: dict[tuple[str, ...], Life] = {}  # a process may have many trials
    for trial in trials:
        owners = owner_keys(trial)
        life = known[owners] = known.get(owners) or storage.life(trial)
        if life is Life.UNKNOWN and takeover:
            life = Life.DEAD
        if life is Life.DEAD and attributes.OUTCOME not in trial.user_attrs and adopts(trial):
            storage.set_trial_system_attr(trial_id(trial), storage.owner.key, storage.owner.evidence)
            adopted.append(trial)
            continue
        lives[life].append(trial)
        if life is Life.DEAD:
            logger.warning("Trial %d is closed: %s, which ran it, has died.", trial.number, describe_owner(trial))
            close_lost(study, trial)
    if lives[Life.DEAD]:
        retry_lost(study)
    return adopted, lives


def close_lost(study: optuna.Study, trial: FrozenTrial) -> None:
    """Tell a running trial whose process is dead: with its outcome if that is stored, else as lost. It blocks."""
    outcome = trial.user_attrs.get(attributes.OUTCOME)
    if outcome is not None:
        study.tell(trial.number, outcome["values"], state=TrialState[outcome["state"]], skip_if_finished=True)
        return
    with contextlib.suppress(UpdateFinishedTrialError):  # another process has just closed it
        lost = Trial(study, trial_id(trial))
        lost.set_user_attr(attributes.LOST, True)
        lost.set_user_attr(attributes.ERROR, "The process that ran this trial has died.")
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def retry_lost(study: optuna.Study) -> None:
    """Enqueue the parameters of each lost trial once. It blocks."""
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(attributes.RETRY_OF) for trial in trials}
    for trial in trials:
        is_first = attributes.LOST in trial.user_attrs and attributes.RETRY_OF not in trial.user_attrs
        parameters = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if is_first and parameters and trial.number not in retried:
            kept = {key: value for key, value in trial.user_attrs.items() if not key.startswith(attributes.PREFIX)}
            study.enqueue_trial(parameters, user_attrs={**kept, attributes.RETRY_OF: trial.number})


def counts(trial: FrozenTrial) -> bool:
    """Tell whether a trial counts as finished: it is complete, pruned, or has failed by itself."""
    return trial.state.is_finished() and attributes.LOST not in trial.user_attrs


def finished_in(study: optuna.Study) -> tuple[FrozenTrial, ...]:
    """Return the trials of a study that count as finished. It blocks."""
    return tuple(trial for trial in study.get_trials(deepcopy=False) if counts(trial))


def left_running(trials: Sequence[FrozenTrial]) -> str:
    """Return the message about running trials whose process can neither be reached nor be declared dead."""
    numbers = ", ".join(str(trial.number) for trial in trials[:5]) + (", ..." if len(trials) > 5 else "")
    return (
        f"{len(trials)} trials ({numbers}) are RUNNING, of {describe_owner(trials[0])}, and it cannot be known from "
        "here whether that process lives. They count as running. If it is dead, give `takeover=True`: they are closed, "
        "and tried again."
    )


def identity_of(study: optuna.Study) -> str:
    """Return an id of a study that is unique, even among studies of the same name in other storages. It blocks."""
    identity = study.user_attrs.get(attributes.IDENTITY)
    if identity is None:
        study.set_user_attr(attributes.IDENTITY, uuid.uuid4().hex)
        identity = study.user_attrs[attributes.IDENTITY]  # another process may have been faster
    return str(identity)


def check_space(study: optuna.Study, space: SearchSpace) -> None:
    """Check that the parameters of a space fit the trials that a study already has. It blocks."""
    known: dict[str, BaseDistribution] = {}
    for trial in study.get_trials(deepcopy=False):
        known.update(trial.distributions)
    for name, distribution in space.distributions().items():
        if name in known:
            try:
                check_distribution_compatibility(known[name], distribution)
            except ValueError as error:
                raise InvalidOptionError(
                    f"`{name}` is {distribution} now, but the trials of the study {study.study_name!r} have "
                    f"{known[name]}: {error} Give another `study_name`, or the space that it had."
                ) from error


def note_fixed_arguments(study: optuna.Study, space: SearchSpace, name: str) -> None:
    """Store the fixed arguments of a study's first search, and warn if they are others now. It blocks."""
    fixed = {key: value for key, value in space.arguments.items() if isinstance(value, bool | int | float | str)}
    before = study.user_attrs.get(attributes.ARGUMENTS)
    if before is None:
        study.set_user_attr(attributes.ARGUMENTS, fixed)
    for key, value in fixed.items():
        if before is not None and key in before and before[key] != value:
            logger.warning(
                "`%s` goes on with the study %r with %s=%r, but its trials so far had %r. If their values cannot be "
                "compared, give another `study_name`.",
                name,
                study.study_name,
                key,
                value,
                before[key],
            )


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
    _warned: bool = False
    _name: str = ""

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep out the other searches on the study, if its storage has a lock for that."""
        self._name = self._name or self.study.study_name
        with self.storage.exclusive(self._name):
            yield

    def ask(self, ask: Callable[[], Trial]) -> Trial | AskLater | None:
        """Ask for a trial if one is missing. It blocks.

        Returns:
            The trial; `ASK_LATER` if live processes run all missing trials; `None` if no trial is missing, or if it
            cannot be known whether the processes that run the missing ones live.
        """
        with self.exclusive():
            trials = self._trials()
            if self._missing(trials) > 0:
                return self._ask(ask, trials)
        others = [t for t in trials if t.state is TrialState.RUNNING and not self.storage.owner.owns(t)]
        if not others:
            return None
        _, lives = release(self.study, self.storage, others)
        if lives[Life.DEAD]:
            return self.ask(ask)
        if lives[Life.ALIVE]:
            self._warn(f"Waiting for {len(lives[Life.ALIVE])} trials of {describe_owner(lives[Life.ALIVE][0])}.")
            return ASK_LATER
        self._warn(left_running(lives[Life.UNKNOWN]))
        return None

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s", message)

    def _ask(self, ask: Callable[[], Trial], before: Sequence[FrozenTrial]) -> Trial | AskLater:
        trial = self._next_retry(before) or ask()
        retried = trial.user_attrs.get(RETRY_OF)
        if retried is not None and self._close_second_retry(trial, retried):
            return ASK_LATER
        if not self.storage.owner.excludes and self._missing(self._trials()) < 0:
            # Another search asked at the same time. Both see the surplus and give back; the first to ask again wins.
            self.storage.set_trial_state_values(trial_id(trial), TrialState.WAITING)
            self.storage.set_trial_system_attr(trial_id(trial), self.storage.owner.key, None)
            time.sleep(random.uniform(0.0, 0.1))  # noqa: S311 - not a secret
            return ASK_LATER
        return trial

    def _close_second_retry(self, trial: Trial, retried: int) -> bool:
        """Close a trial that retries the same lost trial as an earlier one: two processes enqueued it at once."""
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
                        return Trial(self.study, trial_id(trial))
                except UpdateFinishedTrialError:
                    continue
        return None

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _missing(self, trials: Sequence[FrozenTrial]) -> int:
        return self.total - sum(counts(trial) or trial.state is TrialState.RUNNING for trial in trials)
