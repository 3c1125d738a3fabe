"""The types of values: an int becomes a float where the signature declares a float, and markers have value types."""

import itertools
from numbers import Real
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial, Trial

from optuna_flyte_dsl._compat.optuna import suggest as suggest_directly
from optuna_flyte_dsl._compat.optuna import suggests_as_optuna
from optuna_flyte_dsl.space import domain
from optuna_flyte_dsl.space.containers import copy_containers
from optuna_flyte_dsl.space.markers import Category, Float, Repeated, Suggestion


def value_types(marker: Suggestion) -> tuple[type, ...]:
    """Return the types of a marker's values, each once, in the order of the choices."""
    if isinstance(marker, Repeated):
        return (list,)
    if isinstance(marker, Category):
        kinds = (value_types(each) if isinstance(each, Suggestion) else (type(each),) for each in marker.choices)
        return tuple(dict.fromkeys(itertools.chain.from_iterable(kinds)))
    return (float,) if isinstance(marker, Float) else (int,)


def is_numpy_scalar(value: Any) -> bool:
    """Return whether a value is a scalar of numpy, whose `item` is a value of Python. Numpy need not be installed."""
    return hasattr(value, "dtype") and hasattr(value, "item") and not getattr(value, "ndim", 0)


def to_float(base: Any, value: Any) -> Any:
    """Return a real number as a float if its declared type is float, because flytekit does not convert an int.

    Other values are returned unchanged.
    """
    if base is float and type(value) is not float and isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    return value


def convert(marker: Suggestion, value: Any) -> Any:
    """Return a value that a marker contains in the type that a trial would get: 1 becomes 1.0 for a `Float`."""
    if isinstance(marker, Repeated):
        return [convert(marker.item, item) for item in value]
    if domain.is_composite(marker):
        return copy_containers(value)
    if isinstance(marker, Category):
        return marker.choices[marker.index(marker.named(value))]
    return to_float(float, value) if isinstance(marker, Float) else int(value)


def suggest(trial: BaseTrial, name: str, distribution: BaseDistribution) -> Any:
    """Return a trial's suggestion from a distribution of Optuna's three classes."""
    is_float = isinstance(distribution, FloatDistribution)
    if suggests_as_optuna(trial):
        assert isinstance(trial, Trial)
        value = suggest_directly(trial, name, distribution)
        if is_float:
            return to_float(float, value)  # Optuna returns an enqueued int as it is
        return int(value) if isinstance(distribution, IntDistribution) else value
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high, log = distribution.low, distribution.high, distribution.log
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, int(low), int(high), step=distribution.step, log=log)
    # Optuna returns an enqueued int as it is.
    return to_float(float, trial.suggest_float(name, low, high, step=distribution.step, log=log))
