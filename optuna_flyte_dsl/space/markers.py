"""The annotations of an objective's signature: markers of searched parameters, and directions of objectives."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Annotated, Any, TypeAlias, Union

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidMarkerError, InvalidMarkerTypeError
from optuna_flyte_dsl.space.grid import Grid
from optuna_flyte_dsl.space.marker_calls import CheckedCall, MarkerNames

__all__ = ["Category", "Fixed", "Float", "Integer", "Maximize", "Minimize", "Number", "Suggestion", "suggest"]

Minimize: TypeAlias = Annotated[float, StudyDirection.MINIMIZE]
"""A return type, alone or in a tuple: a `float` that the search minimizes."""

Maximize: TypeAlias = Annotated[float, StudyDirection.MAXIMIZE]
"""A return type, alone or in a tuple: a `float` that the search maximizes."""


class Suggestion(metaclass=CheckedCall):
    """Base of the markers. A marker is a frozen value that describes the values that a parameter may take.

    In a signature, a marker is the annotation itself, `x: Float(0, 1)`, or its metadata,
    `x: Annotated[float, Float(0, 1)]`. At a call of the objective, a marker is given instead of a value:
    `x=suggest.float(0, 1)`. In a call, a marker may also be an item of a dict, a list or a tuple.
    """

    __slots__ = ()

    @property
    def __origin__(self) -> type[Suggestion]:
        """The marker's class. Flytekit looks up the type transformer of an annotation by this attribute."""
        return type(self)

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007 - `|` is what is defined here

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007

    def to_distribution(self) -> BaseDistribution:
        """Return the Optuna distribution with the same values."""
        raise NotImplementedError

    @staticmethod
    def from_distribution(distribution: BaseDistribution) -> Suggestion:
        """Return the marker with the same values as an Optuna distribution.

        Raises:
            InvalidMarkerTypeError: If the distribution is of another class than Optuna's three.
            InvalidMarkerError: If the distribution has a single value, which leaves nothing to search.

        >>> Suggestion.from_distribution(IntDistribution(1, 9, step=2))
        Integer(1, 9, step=2)
        """
        match distribution:
            case FloatDistribution():
                return Float(distribution.low, distribution.high, step=distribution.step, log=distribution.log)
            case IntDistribution():
                return Integer(distribution.low, distribution.high, step=distribution.step, log=distribution.log)
            case CategoricalDistribution():
                return Category(distribution.choices)
        raise InvalidMarkerTypeError(
            f"`distribution` must be a FloatDistribution, an IntDistribution or a CategoricalDistribution, "
            f"but got {shown(distribution)}."
        )


class Number(Suggestion):
    """Base of the markers of a number. Numeric markers have `low` and `high`, both inclusive, `step` and `log`."""

    __slots__ = ()

    def __repr__(self) -> str:
        assert isinstance(self, Float | Integer)
        parts = [_plain(self.low), _plain(self.high)]
        if self.step is not None and not (isinstance(self, Integer) and self.step == 1):
            parts.append(f"step={_plain(self.step)}")
        if self.log:
            parts.append("log=True")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, slots=True, repr=False)
class Float(Number):
    """A searched `float` from `low` to `high`, both inclusive.

    Args:
        low: The smallest value.
        high: The largest value.
        step: The distance between two values; `None` for a continuous range. A whole number of steps must lead from
            `low` to `high`.
        log: Whether to sample uniformly in the logarithm of the value. Needs `low > 0` and no `step`.

    Raises:
        InvalidMarkerError: If a rule is broken, such as `low < high`.
        InvalidMarkerTypeError: If a bound or the step is not a number, or `log` is not a bool.

    >>> Float(1e-5, 1e-1, log=True)
    Float(1e-05, 0.1, log=True)
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            if name != "step" or self.step is not None:
                object.__setattr__(self, name, _float("Float", name, getattr(self, name)))
        _check_bool("Float", "log", self.log)
        _check_range("Float", self.low, self.high, self.step)
        _check_log("Float", self)

    def to_distribution(self) -> FloatDistribution:
        """Return the Optuna distribution with the same values."""
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True, slots=True, repr=False)
class Integer(Number):
    """A searched `int` from `low` to `high`, both inclusive.

    Args:
        low: The smallest value.
        high: The largest value.
        step: The distance between two values, 1 or more. A whole number of steps must lead from `low` to `high`.
        log: Whether to sample uniformly in the logarithm of the value. Needs `low >= 1` and a `step` of 1.

    Optuna stores an integer as a float, so values beyond 2**53 are rounded.

    Raises:
        InvalidMarkerError: If a rule is broken, such as `low < high`.
        InvalidMarkerTypeError: If a bound or the step is not an integer, or `log` is not a bool.

    >>> Integer(2, 12)
    Integer(2, 12)
    """

    low: int
    high: int
    step: int = 1
    log: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            object.__setattr__(self, name, _integer("Integer", name, getattr(self, name)))
            _check_fits_float(name, getattr(self, name))
        _check_bool("Integer", "log", self.log)
        _check_range("Integer", self.low, self.high, self.step)
        _check_log("Integer", self)
        if float(self.low) == float(self.high):
            raise InvalidMarkerError(
                f"Integer: `low` and `high` must differ as floats, which is how Optuna stores integers, but got "
                f"(low={self.low}, high={self.high}). Search the distance from `low`, and add `low` in the objective."
            )

    def to_distribution(self) -> IntDistribution:
        """Return the Optuna distribution with the same values."""
        return IntDistribution(self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True, slots=True, repr=False, eq=False, init=False)
class Category(Suggestion):
    """A searched value that is one of several choices.

    Args:
        choices: The choices: any ordered iterable except a string. The choices are kept as a tuple. Optuna can store
            `None`, `bool`, `int`, `float` and `str` in every storage. Optuna warns of choices of other types.

    Raises:
        InvalidMarkerError: If there is no choice, or two choices are equal (as `1`, `1.0` and `True` are).
        InvalidMarkerTypeError: If `choices` is not an iterable of values, or is unordered, as a set is.

    >>> Category(["gbtree", "dart"]).choices
    ('gbtree', 'dart')
    """

    choices: tuple[Any, ...]

    def __init__(self, choices: Iterable[Any]) -> None:
        if isinstance(choices, str | bytes | Mapping) or not isinstance(choices, Iterable):
            raise InvalidMarkerTypeError(
                f'Category: `choices` must be a list of values, but got {shown(choices)}. Write `Category(["a", "b"])`.'
            )
        if isinstance(choices, AbstractSet):
            raise InvalidMarkerTypeError(
                f"Category: `choices` must stand in an order, which a {type(choices).__name__} has anew in each "
                f"process, but got {shown(choices)}. Write a list."
            )
        object.__setattr__(self, "choices", tuple(choices))
        if not self.choices:
            raise InvalidMarkerError("Category: `choices` must hold at least one value, but got none.")
        for choice in self.choices:
            if isinstance(choice, Suggestion):
                raise InvalidMarkerTypeError(
                    f"Category: a choice must be a value, but got the marker {shown(choice)}. For a space that depends "
                    "on a choice, write a function that takes `trial: optuna.Trial`."
                )
        if repeated := _repetition(self.choices):
            raise InvalidMarkerError(
                f"Category: each of the `choices` must stand once, but got both {shown(repeated[0])} and "
                f"{shown(repeated[1])}, which are equal in Python. Drop one, or write them as strings."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Category):
            return NotImplemented
        return len(self.choices) == len(other.choices) and all(
            type(mine) is type(its) and same(mine, its) for mine, its in zip(self.choices, other.choices, strict=True)
        )

    def __hash__(self) -> int:
        # Hashed by `repr`, because a choice such as a list is not hashable.
        return hash((Category, tuple(map(repr, self.choices))))

    def __repr__(self) -> str:
        return f"Category({list(self.choices)!r})"

    def to_distribution(self) -> CategoricalDistribution:
        """Return the Optuna distribution with the same values."""
        return CategoricalDistribution(self.choices)


@dataclass(frozen=True, slots=True)
class Fixed:
    """A value that is given at a call and need not lie within its parameter's marker.

    If the signature says `depth: Integer(2, 12)`, the call `train(depth=30)` is refused and `train(depth=Fixed(30))` is
    accepted.

    Args:
        value: The value. Every trial gets the fixed value unchanged.
    """

    value: Any

    def __post_init__(self) -> None:
        if isinstance(self.value, Suggestion):
            raise InvalidMarkerTypeError(
                f"Fixed: `value` must be a value, but got the marker {shown(self.value)}. Give the marker itself."
            )


class suggest(metaclass=MarkerNames):  # noqa: N801 - a namespace; flytekitplugins.optuna gives it this name
    """The markers under the names for use at a call: `suggest.float(0, 1)`."""

    float = Float
    integer = Integer
    category = Category


def same(left: Any, right: Any) -> bool:
    """Return whether Optuna regards two choices as the same one: they are equal, or both NaN."""
    if left is right:
        return True
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left) and math.isnan(right):
        return True
    try:
        return bool(left == right)
    except Exception:  # noqa: BLE001 - comparing arrays gives an array, and a user's `__eq__` may raise anything
        return False


def _repetition(choices: Sequence[Any]) -> tuple[Any, Any] | None:
    """Return the first two choices that are the same one, if any. The time is linear if all choices have a hash."""
    hashed: dict[Any, Any] = {}
    unhashed: list[Any] = []
    for index, choice in enumerate(choices):
        key = "NaN" if isinstance(choice, float) and math.isnan(choice) else (choice,)
        rivals: Sequence[Any] = unhashed
        try:
            if key in hashed:
                return hashed[key], choice
            hashed[key] = choice
        except Exception:  # noqa: BLE001 - the choice has no hash, or a user's `__hash__` or `__eq__` raises
            rivals = choices[:index]
        for earlier in rivals:
            if same(choice, earlier):
                return earlier, choice
        if rivals is not unhashed:
            unhashed.append(choice)
    return None


def _plain(number: float | None) -> str:
    """Format a number without the `.0` of a whole float."""
    return f"{number:.0f}" if isinstance(number, float) and number.is_integer() and abs(number) < 1e15 else repr(number)


def _float(marker: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        cure = " The third argument is `step`: write `log=True`." if name == "step" and value is True else ""
        raise InvalidMarkerTypeError(
            f"{marker}: `{name}` must be a number, but got {shown(value)}, of type {type(value).__name__}.{cure}"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidMarkerError(f"{marker}: `{name}` must be finite, but got {shown(number)}.")
    return number


def _integer(marker: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        cure = "Write it without a fraction, or use Float." if isinstance(value, Real) else "Write an int."
        raise InvalidMarkerTypeError(
            f"{marker}: `{name}` must be an integer, but got {shown(value)}, of type {type(value).__name__}. {cure}"
        )
    return operator.index(value)


def _check_fits_float(name: str, value: int) -> None:
    try:
        float(value)
    except OverflowError:
        raise InvalidMarkerError(
            f"Integer: `{name}` must lie within the range of a float, about ±1.8e308, because Optuna stores integers "
            f"as floats, but got {shown(value)}. Narrow the range."
        ) from None


def _check_bool(marker: str, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidMarkerTypeError(
            f"{marker}: `{name}` must be True or False, but got {shown(value)}, of type {type(value).__name__}."
        )


def _check_log(marker: str, self: Float | Integer) -> None:
    if self.log and self.step not in (None, 1 if isinstance(self, Integer) else None):
        raise InvalidMarkerError(
            f"{marker}: `log=True` goes with no `step`, but got step={_plain(self.step)}. "
            "Drop `step`, or drop `log=True`."
        )
    if self.log and not self.low > 0:
        raise InvalidMarkerError(
            f"{marker}: `low > 0` must hold with `log=True`, but got low={_plain(self.low)}. "
            "Raise `low`, or drop `log=True`."
        )


def _check_range(marker: str, low: float, high: float, step: float | None) -> None:
    if not low < high:
        raise InvalidMarkerError(
            f"{marker}: `low < high` must hold, but got (low={_plain(low)}, high={_plain(high)}). "
            + ("Swap them." if low > high else "Raise `high`, or give the value itself: it needs no search.")
        )
    if isinstance(high, float) and math.isinf(high - low):
        raise InvalidMarkerError(
            f"{marker}: `high - low` must be finite, but got (low={_plain(low)}, high={_plain(high)}). "
            "Narrow the range."
        )
    if step is None:
        return
    if not step > 0:
        raise InvalidMarkerError(f"{marker}: `step > 0` must hold, but got step={_plain(step)}.")
    grid = Grid(low, high, step)
    if grid.whole_steps < 1:
        raise InvalidMarkerError(
            f"{marker}: `step <= high - low` must hold, but got step={_plain(step)} "
            f"over (low={_plain(low)}, high={_plain(high)})."
        )
    if not grid.reaches_high:
        below, above = (_plain(grid.value(count)) for count in (grid.whole_steps, grid.whole_steps + 1))
        raise InvalidMarkerError(
            f"{marker}: `high` must be reached from `low` by whole steps, but got (low={_plain(low)}, "
            f"high={_plain(high)}, step={_plain(step)}). Write high={below}, the last value reached, "
            f"or high={above}, one step more."
        )
