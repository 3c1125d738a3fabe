"""The domain of a marker: which values it contains, how many, and in which order."""

import contextlib
import math
import random
from collections.abc import Hashable
from numbers import Real
from typing import Any

from optuna_flyte_dsl.space.containers import items_of
from optuna_flyte_dsl.space.grid import Grid
from optuna_flyte_dsl.space.markers import Category, Float, Integer, Repeated, Suggestion, same
from optuna_flyte_dsl.space.priors import place_by_weights, place_of


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
    """Return the value at an index, from 0 to `count(marker) - 1`, of a marker with finitely many values."""
    if isinstance(marker, Category):
        return marker.choices[index]
    grid = grid_of(marker)
    assert grid is not None
    return grid.value(index)


def random_value(marker: Suggestion, generator: random.Random, *, by_prior: bool = True) -> Any:
    """Return a value of a marker, drawn from its prior; without one uniformly, or uniformly in the logarithm."""
    share = generator.random()
    share = place_by_prior(marker, share) if by_prior else share
    if isinstance(marker, Category):
        return marker.choices[part_of_range(share, len(marker.choices))]
    assert isinstance(marker, Float | Integer)
    if marker.log:
        start, end = _edges(marker)
        drawn = math.exp(start + share * (end - start))
        return min(max(round(drawn) if isinstance(marker, Integer) else drawn, marker.low), marker.high)
    grid = grid_of(marker)
    if grid is None:
        return min(marker.low + share * (marker.high - marker.low), marker.high)
    return grid.value(part_of_range(share, grid.whole_steps + 1))


def has_prior(marker: Suggestion) -> bool:
    """Return whether a marker says where good values are expected."""
    return getattr(marker, "prior", None) is not None or getattr(marker, "weights", None) is not None


def place_by_prior(marker: Suggestion, share: float) -> float:
    """Return the place in a marker's range, from 0 to 1, below which a share of its prior lies.

    With `log`, the range is that of the logarithm. Without a prior, the place is the share.

    >>> place_by_prior(Category(["a", "b"], weights=[1, 3]), 0.3)
    0.75
    """
    if isinstance(marker, Category):
        return share if marker.weights is None else place_by_weights(marker.weights, share)
    assert isinstance(marker, Float | Integer)
    if marker.prior is None:
        return share
    return place_of(marker.prior, share, *_edges(marker), log=marker.log)


def _edges(marker: Float | Integer) -> tuple[float, float]:
    """Return the ends of a marker's range, whose equal parts are its values; of its logarithm, if it has `log`.

    What is rounded to the first value, and to the last one, belongs to the range, as in Optuna.
    """
    half = (marker.step or 0) / 2
    low, high = marker.low - half, marker.high + half
    return (math.log(low), math.log(high)) if marker.log else (low, high)


def part_of_range(share: float, count: int) -> int:
    """Return in which of several equal parts of the range from 0 to 1 a share lies."""
    return min(int(share * count), count - 1)


def named(marker: Suggestion, value: Any) -> Any:
    """Return the choice that has a name, if the marker's choices have names; return any other value as it is.

    A class stands for its name, if that is a choice, as in a choice between classes.
    """
    if not isinstance(marker, Category):
        return value
    if isinstance(value, type) and value.__name__ in marker.choices and value not in marker.choices:
        return value.__name__
    return marker.named(value)


def carries(marker: Suggestion | None, value: Any) -> bool:
    """Return whether Flyte can carry a value for a parameter: of choices that have names, it carries no others."""
    return not isinstance(marker, Category) or marker.names is None or value is None or contains(marker, value)


def is_composite(marker: Suggestion) -> bool:
    """Return whether a marker stands for several parameters: it is repeated, or its choices hold markers."""
    return isinstance(marker, Repeated) or (isinstance(marker, Category) and marker.holds_markers)


def contains(marker: Suggestion, value: Any) -> bool:
    """Return whether a marker has a value: within its bounds, and on the grid of its step."""
    if isinstance(marker, Repeated):
        return type(value) is list and marker.has_length(value) and all(contains(marker.item, item) for item in value)
    if isinstance(marker, Category) and marker.holds_markers:
        return any(matches(choice, value) for choice in marker.choices)
    return key_of(marker, value) is not None


def matches(choice: Any, value: Any) -> bool:
    """Return whether a value is a choice, with each marker in it replaced by one of its values or another marker."""
    if isinstance(choice, Suggestion):
        return isinstance(value, Suggestion) or contains(choice, value)
    items, others = items_of(choice), items_of(value)
    if items is None or others is None:
        return same(choice, value)
    return (
        isinstance(value, type(choice))
        and items.keys() == others.keys()
        and all(matches(item, others[key]) for key, item in items.items())
    )


def key_of(marker: Suggestion, value: Any) -> Hashable:
    """Return a key that is equal for equal values of a marker; `None` for a value that the marker does not contain.

    The key is the value's index, or the value itself in a continuous range.
    """
    if isinstance(marker, Category):
        with contextlib.suppress(ValueError):
            return marker.index(value)
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    number: Any = value
    assert isinstance(marker, Float | Integer)
    if not marker.low <= number <= marker.high:
        return None
    grid = grid_of(marker)
    return float(number) if grid is None else grid.index(number)
