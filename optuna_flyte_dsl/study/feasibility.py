"""The values of a trial's constraints: stored where Optuna's samplers and `study.best_trial` look for them."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

IS_OPTUNA_4 = int(optuna.__version__.split(".", 1)[0]) < 5
_KEY = "constraints"  # Optuna's system attribute: of Optuna 4 a list, of Optuna 5 one attribute for each constraint


def constraint_attributes(names: Sequence[str], values: Sequence[float]) -> dict[str, Any]:
    """Return the system attributes of a trial that has constraints. The trial is feasible if each is at most 0.

    Args:
        names: The name of each constraint.
        values: The value of each constraint; none if the trial has not returned any.
    """
    if not values:
        return {}
    if IS_OPTUNA_4:
        return {_KEY: list(values)}
    return {f"{_KEY}:{name}": value for name, value in zip(names, values, strict=True)}


def stored_constraints(trial: FrozenTrial) -> dict[str, Any]:
    """Return the system attributes of a trial's constraints."""
    attributes = trial.system_attrs.items()
    return {name: value for name, value in attributes if name == _KEY or name.startswith(f"{_KEY}:")}


def constraints_of(trial: FrozenTrial) -> tuple[float, ...] | None:
    """Return the values of a trial's constraints; `None` if it has none."""
    if not trial.system_attrs:
        return None
    listed = trial.system_attrs.get(_KEY)
    single = [value for key, value in trial.system_attrs.items() if key.startswith(f"{_KEY}:")]
    return (*(listed or ()), *single) if listed is not None or single else None


def is_feasible(trial: FrozenTrial) -> bool:
    """Return whether each constraint of a trial is at most 0."""
    values = constraints_of(trial)
    return values is None or all(value <= 0 for value in values)


def constraints_for_sampler(trial: FrozenTrial) -> tuple[float, ...]:
    """Return the values of a trial's constraints, as `constraints_func` of a sampler of Optuna 4."""
    return constraints_of(trial) or (1.0,)  # a pruned trial has none, and is not known to be feasible
