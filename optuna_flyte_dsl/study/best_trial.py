"""Chooses the best trial of a study, of one objective or of several."""

import collections
import contextlib
import math
from collections.abc import Mapping

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from optuna_flyte_dsl._text import did_you_mean, shown
from optuna_flyte_dsl.errors import InvalidOptionError, NoBestTrialError
from optuna_flyte_dsl.study.attributes import ERROR


def best_trial_of(
    study: optuna.Study, weights: Mapping[str, float] | None = None, within: Mapping[str, float] | None = None
) -> FrozenTrial:
    """Return the best trial of a study.

    Args:
        weights: How much each objective counts, by its name, for a study with several objectives. The trial with the
            best weighted sum of values is chosen. An objective that is left out does not count.
        within: Bounds of objectives, by name. A trial is chosen only if each of these values is as good as its bound.

    Raises:
        NoBestTrialError: If no trial has finished, or none is within the bounds.
        InvalidOptionError: If the study has several objectives and none has a weight, or a name or a number is wrong.
    """
    if not isinstance(study, optuna.Study):
        raise InvalidOptionError(
            f"`best` takes a study, as `train.run_sync()` returns one, but got {shown(study)}. For the arguments of a "
            "single trial, write `train.space.fill(trial.params)`."
        )
    names = objective_names(study)
    for option, given in (("weights", weights), ("within", within)):
        if given is not None and not isinstance(given, Mapping):
            raise InvalidOptionError(
                f"`{option}` must be a dict by objective, as in `{option}={{{names[0]!r}: 1}}`, but got {shown(given)}."
            )
        for name, number in (given or {}).items():
            if name not in names:
                raise InvalidOptionError(
                    f"`{option}` names the objective {name!r}, but the study has "
                    f"{', '.join(map(repr, names))}.{did_you_mean(str(name), names)}"
                )
            if isinstance(number, bool) or not isinstance(number, int | float) or math.isnan(number):
                raise InvalidOptionError(f"`{option}[{name!r}]` must be a number, but got {shown(number)}.")
    for name, weight in (weights or {}).items():
        if weight < 0:
            raise InvalidOptionError(
                f"`weights[{name!r}]` must be 0 or more, but got {weight}. The study's directions say already whether "
                "a value is good if it is small or large."
            )
    if len(names) > 1 and not any((weights or {}).values()):
        raise InvalidOptionError(
            f"The study has {len(names)} objectives, so `weights` must say how much each counts, as in "
            f"`weights={{{names[0]!r}: 1}}`. Add bounds of others by `within={{{names[1]!r}: ...}}`."
        )
    front = _front(study)
    if not front:
        trials = study.get_trials(deepcopy=False)
        reason = next((text for trial in trials if (text := trial.user_attrs.get(ERROR))), None)
        said = f"; the first that failed: {reason.rstrip('.')}" if reason else ". Run a search first"
        if trials and not reason:
            states = collections.Counter(trial.state.name for trial in trials)
            said = f": {', '.join(f'{number} are {name}' for name, number in states.items())}"
        raise NoBestTrialError(f"No trial of the study {study.study_name!r} is complete and feasible{said}.")
    signs = {name: _sign(direction) for name, direction in zip(names, study.directions, strict=True)}
    allowed = [trial for trial in front if _is_within(trial, names, signs, within or {})]
    if not allowed:
        raise NoBestTrialError(
            f"No trial of the study {study.study_name!r} is within {shown(dict(within or {}))}: the best values are "
            f"{', '.join(f'{name} {_best(front, index, signs[name]):.6g}' for index, name in enumerate(names))}."
        )
    return min(allowed, key=lambda trial: _score(trial, names, signs, weights or {names[0]: 1.0}))


def objective_names(study: optuna.Study) -> list[str]:
    """Return the names of a study's objectives: those that it has, or "0", "1" and so on."""
    return list(study.metric_names or map(str, range(len(study.directions))))


def _front(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that no other trial is better than; for a single objective, the best trial."""
    if len(study.directions) > 1:
        return study.best_trials
    with contextlib.suppress(ValueError):  # no trial is complete, or none is feasible
        return [study.best_trial]
    return []


def _sign(direction: StudyDirection) -> int:
    return -1 if direction is StudyDirection.MAXIMIZE else 1


def _is_within(trial: FrozenTrial, names: list[str], signs: Mapping[str, int], within: Mapping[str, float]) -> bool:
    values = dict(zip(names, trial.values, strict=True))
    return all(signs[name] * values[name] <= signs[name] * bound for name, bound in within.items())


def _score(trial: FrozenTrial, names: list[str], signs: Mapping[str, int], weights: Mapping[str, float]) -> float:
    values = dict(zip(names, trial.values, strict=True))
    return float(sum(weight * signs[name] * values[name] for name, weight in weights.items() if weight))


def _best(front: list[FrozenTrial], index: int, sign: int) -> float:
    return float(sign * min(sign * trial.values[index] for trial in front))
