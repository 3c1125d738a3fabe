"""The domain of a marker: which values it contains, how many, in which order, and how a trial suggests one."""

import math
from collections.abc import Hashable
from numbers import Real
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from optuna_flyte_dsl.space.grid import Grid
from optuna_flyte_dsl.space.markers import Category, Float, Integer, Suggestion, same


def value_types(marker: Suggestion) -> tuple[type, ...]:
    """Return the types of a marker's values, each once, in the order of the choices."""
    if isinstance(marker, Category):
        return tuple(dict.fromkeys(type(choice) for choice in marker.choices))
    return (float,) if isinstance(marker, Float) else (int,)


def to_float(base: Any, value: Any) -> Any:
    """Return a real number as a float if its declared type is float: flytekit converts no int. Return others as is."""
    if base is float and isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    return value


def grid_of(marker: Suggestion) -> Grid | None:
    """Return the grid of a marker; `None` for a category and for a continuous range."""
    if isinstance(marker, Float | Integer) and marker.step is not None:
        return Grid(marker.low, marker.high, marker.step)
    return None


def count(marker: Suggestion) -> float:
    """Return the number of a marker's values: an int, or infinity."""
    if isinstance(marker, Category):
        return len(marker.choices)
    grid = grid_of(marker)
    return math.inf if grid is None else grid.whole_steps + 1


def value_at(marker: Suggestion, index: int) -> Any:
    """Return the value of a finite marker that has an index, from 0 to `count(marker) - 1`."""
    if isinstance(marker, Category):
        return marker.choices[index]
    grid = grid_of(marker)
    assert grid is not None
    return grid.value(index)


def contains(marker: Suggestion, value: Any) -> bool:
    """Tell whether a marker has a value: within its bounds, and on the grid of its step."""
    return key_of(marker, value) is not None


def key_of(marker: Suggestion, value: Any) -> Hashable:
    """Return a key that is equal for equal values of a marker; `None` for a value that the marker does not contain.

    The key is the value's index, or the value itself in a continuous range.
    """
    if isinstance(marker, Category):
        found = (index for index, choice in enumerate(marker.choices) if _is_choice(value, choice))
        return next(found, None)
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    number: Any = value
    assert isinstance(marker, Float | Integer)
    if not marker.low <= number <= marker.high:
        return None
    grid = grid_of(marker)
    return float(number) if grid is None else grid.index(number)


def convert(marker: Suggestion, value: Any) -> Any:
    """Return a value that a marker contains in the type that a trial would get: 1 becomes 1.0 for a `Float`."""
    if isinstance(marker, Category):
        return next(choice for choice in marker.choices if _is_choice(value, choice))
    return to_float(float, value) if isinstance(marker, Float) else int(value)


def suggest(trial: BaseTrial, name: str, distribution: BaseDistribution) -> Any:
    """Return a trial's suggestion from a distribution of Optuna's three classes."""
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, log = distribution.low, distribution.high, distribution.log
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, int(low), int(high), step=distribution.step, log=log)
    # Optuna returns an enqueued int as it is.
    return to_float(float, trial.suggest_float(name, low, high, step=distribution.step, log=log))


def _is_choice(value: Any, choice: Any) -> bool:
    return isinstance(value, bool) == isinstance(choice, bool) and same(value, choice)
