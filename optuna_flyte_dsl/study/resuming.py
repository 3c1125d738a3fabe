"""What a search does with the trials that earlier or other processes have left in its study.

A trial left RUNNING by a dead process is adopted if it can be continued. A RUNNING trial of a dead process that cannot
be continued is closed as lost. A lost trial does not count, and its parameters are tried again once.
"""

import contextlib
import uuid
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, check_distribution_compatibility
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_flyte_dsl._compat.optuna import enqueued_params, enqueued_params_of, set_enqueued_params, trial_id
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.space.domain import contains
from optuna_flyte_dsl.space.markers import Ordinal, same
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study import attributes
from optuna_flyte_dsl.study.durable_storage import DurableStorage
from optuna_flyte_dsl.study.liveness import Life, describe_owner, owner_keys


@dataclass(frozen=True)
class Resumption:
    """How many trials a search has to run, and which trials it found in its study."""

    n_trials: int  # with goals for each call, the trials still to run, adopted ones included; else the study's total
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
    """Adopt or close the trials of dead processes, enqueue lost trials again, and return what is left to do.

    `resume` blocks.

    Args:
        n_trials: The number of finished trials that is asked for.
        takeover: Whether a process about which nothing is known counts as dead.
        adopts: Tells whether a running trial can be continued.
        call: The number of this call of the search in its process, from 0, if each call has a goal of its own, as in
            Flyte's checkpoint. `None` if `n_trials` is the total of the study over all calls.
    """
    with storage.exclusive(study.study_name):
        running = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        # When a pod first opens the study in its checkpoint, each running trial was left by the pod's earlier attempts.
        adopted, lives = release(study, storage, running, takeover=takeover or call == 0, adopts=adopts)
        if not call:  # a trial that an earlier call in this process has stopped, as at its timeout, is not retried
            retry_lost(study)  # an earlier search may have closed a lost trial, but ended before it enqueued the retry
    if lives[Life.UNKNOWN]:
        logger.warning("%s", left_running(lives[Life.UNKNOWN]))
    finished = finished_in(study)
    if call is not None:
        goals = list(study.user_attrs.get(attributes.GOALS, []))
        if call == len(goals):
            goals.append((goals[-1] if goals else len(finished)) + n_trials)
            study.set_user_attr(attributes.GOALS, goals)
        # Trials that the previous call has not finished belong to the goal of the previous call, not of this call.
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
    """Lower the goal of a call that has ended with fewer trials, so that no process continues it. `settle` blocks."""
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
    """Adopt or close those of some running trials whose process is dead. `release` blocks.

    Args:
        takeover: Whether a process about which nothing is known counts as dead.
        adopts: Tells whether a running trial can be continued.

    Returns:
        The adopted trials, which this search owns now; and the trials that are not adopted, by whether their process is
        alive.
    """
    adopted: list[FrozenTrial] = []
    lives: dict[Life, list[FrozenTrial]] = {life: [] for life in Life}
    known: dict[tuple[str, ...], Life] = {}  # a process may have many trials
    for trial in trials:
        owners = owner_keys(trial)
        life = known[owners] = known.get(owners) or storage.life(trial)
        if life is Life.UNKNOWN and takeover:
            life = Life.DEAD
        if life is Life.DEAD and is_adoptable(trial, adopts):
            storage.adopt(trial)
            adopted.append(trial)
            continue
        lives[life].append(trial)
        if life is Life.DEAD:
            logger.warning("Trial %d is closed: %s, which ran it, has died.", trial.number, describe_owner(trial))
            close_lost(study, trial)
    if lives[Life.DEAD]:
        storage.forget_trials()  # meanwhile, another search may have enqueued the retries
        retry_lost(study)
    return adopted, lives


def is_adoptable(trial: FrozenTrial, adopts: Callable[[FrozenTrial], bool]) -> bool:
    """Return whether a running trial of a dead process can be continued: it has no outcome yet, and `adopts` agrees."""
    return attributes.OUTCOME not in trial.user_attrs and adopts(trial)


def close_lost(study: optuna.Study, trial: FrozenTrial) -> None:
    """Tell the study how a trial of a dead process has ended: with its stored outcome, or as lost. The call blocks."""
    outcome = trial.user_attrs.get(attributes.OUTCOME)
    if outcome is not None:
        study.tell(trial.number, outcome["values"], state=TrialState[outcome["state"]], skip_if_finished=True)
        return
    with contextlib.suppress(UpdateFinishedTrialError):  # another process has just closed the trial
        lost = Trial(study, trial_id(trial))
        lost.set_user_attr(attributes.LOST, True)
        lost.set_user_attr(attributes.ERROR, "The process that ran this trial has died.")
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def retry_lost(study: optuna.Study) -> None:
    """Enqueue again the parameters of each lost trial that is not a retry itself. `retry_lost` blocks."""
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get(attributes.RETRY_OF) for trial in trials}
    for trial in trials:
        is_first = attributes.LOST in trial.user_attrs and attributes.RETRY_OF not in trial.user_attrs
        parameters = {**(enqueued_params_of(trial) or {}), **trial.params}
        if is_first and parameters and trial.number not in retried:
            kept = {key: value for key, value in trial.user_attrs.items() if not key.startswith(attributes.PREFIX)}
            study.enqueue_trial(parameters, user_attrs={**kept, attributes.RETRY_OF: trial.number})


def counts(trial: FrozenTrial) -> bool:
    """Return whether a trial counts as finished: it is complete, pruned, or has failed by itself.

    A trial that `warm_start` has inserted does not count.
    """
    return trial.state.is_finished() and not {attributes.LOST, attributes.WARM_START} & trial.user_attrs.keys()


def finished_in(study: optuna.Study) -> tuple[FrozenTrial, ...]:
    """Return the trials of a study that count as finished. `finished_in` blocks."""
    return tuple(trial for trial in study.get_trials(deepcopy=False) if counts(trial))


def left_running(trials: Sequence[FrozenTrial]) -> str:
    """Return the message about running trials whose process can neither be reached nor be declared dead."""
    numbers = ", ".join(str(trial.number) for trial in trials[:5]) + (", ..." if len(trials) > 5 else "")
    return (
        f"{len(trials)} trials ({numbers}) are RUNNING, of {describe_owner(trials[0])}, and it cannot be known from "
        "here whether that process is alive. They count as running. If it is dead, give `takeover=True`: they are "
        "closed, and tried again."
    )


def identity_of(study: optuna.Study, storage: DurableStorage) -> str:
    """Return an id of a study that all searches of the study have in common. `identity_of` blocks.

    The id is unique among all studies in all storages, except for copies of the study.
    """
    with storage.exclusive(study.study_name):
        return identify(study)


def identify(study: optuna.Study) -> str:
    """Return an id of a study that it has in common with its copies only. The caller excludes other searches."""
    if attributes.IDENTITY not in study.user_attrs:
        study.set_user_attr(attributes.IDENTITY, uuid.uuid4().hex)
    return str(study.user_attrs[attributes.IDENTITY])


def check_space(study: optuna.Study, space: SearchSpace, *, resumes: bool = False) -> None:
    """Check that the parameters of a space fit the trials that a study already has. `check_space` blocks.

    Args:
        resumes: Whether the study's trials count towards `n_trials`.
    """
    known: dict[str, BaseDistribution] = {}
    for trial in study.get_trials(deepcopy=False):
        known.update(trial.distributions)
    wanted = space.distributions()
    if resumes and known and wanted and not known.keys() & wanted.keys():
        raise InvalidOptionError(
            f"`resume=True`: the study {study.study_name!r} has trials of another search: their parameters are "
            f"{_names(known)}, and this search has {_names(wanted)}. Give another `study_name`: by default, it is the "
            "name of the objective."
        )
    for name, distribution in wanted.items():
        if name in known:
            try:
                check_distribution_compatibility(known[name], distribution)
            except ValueError as error:
                raise InvalidOptionError(
                    f"`{name}` is {distribution} now, but the trials of the study {study.study_name!r} have "
                    f"{known[name]}: {error} Give another `study_name`, or the space that it had."
                ) from error

    _check_ordinals(study, space, known)


def _check_ordinals(study: optuna.Study, space: SearchSpace, known: Container[str]) -> None:
    """Check that the indices that a study's trials have stored mean the same choices now; note new choices.

    Args:
        known: The parameters that the trials have.
    """
    now = {name: marker.labels for name, marker in space.items() if isinstance(marker, Ordinal)}
    before: Mapping[str, Any] = study.user_attrs.get(attributes.ORDINALS, {})
    for name in space:
        if name in known and (name in now) != (name in before):
            kind = "indices of the choices of an Ordinal" if name in before else "values"
            raise InvalidOptionError(
                f"`{name}` is {space[name]!r} now, but the trials of the study {study.study_name!r} have stored "
                f"{kind}. Give another `study_name`, or the marker that it had."
            )
        if name in now and name in before and before[name] != now[name]:
            raise InvalidOptionError(
                f"`{name}` is {space[name]!r} now, but the trials of the study {study.study_name!r} have stored "
                f"indices of the choices {before[name]}. Give another `study_name`, or the choices that it had."
            )
    if not now.keys() <= before.keys():
        study.set_user_attr(attributes.ORDINALS, {**before, **now})


def _names(parameters: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(parameters))


def note_fixed_arguments(study: optuna.Study, space: SearchSpace, name: str) -> None:
    """Store the fixed arguments of a study's searches, and warn if this search has others. The function blocks.

    For each argument, the value of the first search that has the argument is stored.
    """
    fixed = {key: value for key, value in space.arguments.items() if isinstance(value, bool | int | float | str)}
    before = study.user_attrs.get(attributes.ARGUMENTS)
    if before is None or not fixed.keys() <= before.keys():
        study.set_user_attr(attributes.ARGUMENTS, {**fixed, **(before or {})})
    for key, value in fixed.items():
        if before is not None and not (key in before and same(before[key], value)):
            had = repr(before[key]) if key in before else "no such argument"
            logger.warning(
                "`%s` goes on with the study %r with %s=%r, but its trials so far had %s. If their values cannot be "
                "compared, give another `study_name`.",
                name,
                study.study_name,
                key,
                value,
                had,
            )


def drop_what_does_not_fit(trial: Trial, space: SearchSpace) -> None:
    """Drop enqueued parameters of a retry outside of the space, which may have changed. They are sampled anew."""
    markers, params = dict(space), enqueued_params(trial)
    fitting = {
        name: each for name, each in params.items() if name not in markers or contains(markers[name].stored, each)
    }
    if len(fitting) < len(params):
        set_enqueued_params(trial, fitting)
