"""The markers of numbers: `Float` and `Integer`."""

from __future__ import annotations

import contextlib
import math
import operator
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidMarkerError, InvalidMarkerTypeError
from optuna_flyte_dsl.space.finite_number import finite_number
from optuna_flyte_dsl.space.grid import Grid
from optuna_flyte_dsl.space.priors import Beta, Normal, check_prior
from optuna_flyte_dsl.space.suggestion import Suggestion


class Number(Suggestion):
    """Base of the markers of a number. Numeric markers have `low` and `high`, both inclusive, `step` and `log`."""

    __slots__ = ()

    @property
    def is_complete(self) -> bool:
        """Whether the marker has both bounds."""
        assert isinstance(self, Float | Integer)
        return self.low is not None and self.high is not None

    def __repr__(self) -> str:
        assert isinstance(self, Float | Integer)
        parts = [_plain(self.low), _plain(self.high)] if self.is_complete else []
        if not self.is_complete:
            parts = [f"{name}={_plain(each)}" for name in ("low", "high") if (each := getattr(self, name)) is not None]
        if self.step is not None and not (isinstance(self, Integer) and self.step == 1):
            parts.append(f"step={_plain(self.step)}")
        if self.log:
            parts.append("log=True")
        if self.prior is not None:
            parts.append(f"prior={self.prior!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True, slots=True, repr=False)
class Float(Number):
    """A searched `float` from `low` to `high`, both inclusive.

    Args:
        low: The smallest value. Without `low` or `high`, the type beside the marker has the bound.
        high: The largest value.
        step: The distance between two values; `None` for a continuous range. A whole number of steps must lead from
            `low` to `high`.
        log: Whether to sample uniformly in the logarithm of the value. Needs `low > 0` and no `step`.
        prior: Where good values are expected, a `Normal` or a `Beta`. The first points of an `AutoSampler`, and points
            that a search draws at random, are drawn from it; by default uniformly.

    Raises:
        InvalidMarkerError: If a rule is broken, such as `low < high`.
        InvalidMarkerTypeError: If a bound or the step is not a number, or `log` is not a bool.

    >>> Float(1e-5, 1e-1, log=True)
    Float(1e-05, 0.1, log=True)
    """

    low: float = None  # type: ignore[assignment]  # without a bound, the marker is not complete
    high: float = None  # type: ignore[assignment]
    step: float | None = None
    log: bool = False
    prior: Normal | Beta | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, _float("Float", name, given))
        _check_bool("Float", "log", self.log)
        if self.is_complete:
            _check_log("Float", self)
            _check_range("Float", self.low, self.high, self.step)
        check_prior("Float", self.prior, self.low, self.high, log=self.log)

    def to_distribution(self) -> FloatDistribution:
        """Return the Optuna distribution with the same values."""
        self.check_complete()
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True, slots=True, repr=False)
class Integer(Number):
    """A searched `int` from `low` to `high`, both inclusive.

    Args:
        low: The smallest value. Without `low` or `high`, the type beside the marker has the bound.
        high: The largest value.
        step: The distance between two values, 1 or more. A whole number of steps must lead from `low` to `high`.
        log: Whether to sample uniformly in the logarithm of the value. Needs `low >= 1` and a `step` of 1.
        prior: Where good values are expected, a `Normal` or a `Beta`. The first points of an `AutoSampler`, and points
            that a search draws at random, are drawn from it; by default uniformly.

    Optuna stores an integer as a float, so values beyond 2**53 are rounded.

    Raises:
        InvalidMarkerError: If a rule is broken, such as `low < high`.
        InvalidMarkerTypeError: If a bound or the step is not an integer, or `log` is not a bool.

    >>> Integer(2, 12)
    Integer(2, 12)
    """

    low: int = None  # type: ignore[assignment]  # without a bound, the marker is not complete
    high: int = None  # type: ignore[assignment]
    step: int = 1
    log: bool = False
    prior: Normal | Beta | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("low", "high", "step"):
            if (given := getattr(self, name)) is not None or name == "step":
                object.__setattr__(self, name, _integer("Integer", name, given))
                _check_fits_float(name, getattr(self, name))
        _check_bool("Integer", "log", self.log)
        if self.is_complete:
            _check_log("Integer", self)
            _check_range("Integer", self.low, self.high, self.step)
        check_prior("Integer", self.prior, self.low, self.high, log=self.log)
        if self.is_complete and float(self.low) == float(self.high):
            raise InvalidMarkerError(
                f"Integer: `low` and `high` must differ as floats, which is how Optuna stores integers, but got "
                f"(low={self.low}, high={self.high}). Search the distance from `low`, and add `low` in the objective."
            )

    def to_distribution(self) -> IntDistribution:
        """Return the Optuna distribution with the same values."""
        self.check_complete()
        return IntDistribution(self.low, self.high, log=self.log, step=self.step)


def _plain(number: float | None) -> str:
    """Format a number without the `.0` of a whole float."""
    return f"{number:.0f}" if isinstance(number, float) and number.is_integer() and abs(number) < 1e15 else repr(number)


def _float(marker: str, name: str, value: Any) -> float:
    cure = ""
    if name == "step" and value is True:
        cure = " The third argument is `step`: write `log=True`."
    elif isinstance(value, str):
        cure = _cure_for_text(name, value)
    return finite_number(marker, name, value, cure)


def _cure_for_text(name: str, text: str) -> str:
    """Return a sentence for a text where a number is needed, after a blank."""
    with contextlib.suppress(ValueError):
        float(text)
        return " Write it without quotes."
    if name == "low":
        return " The name of the parameter is not given: the first argument is `low`."
    return " Write a number."


def _integer(marker: str, name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        cure = "Write it without a fraction, or use Float." if isinstance(value, Real) else "Write an int."
        if isinstance(value, str):
            cure = _cure_for_text(name, value).strip()
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
