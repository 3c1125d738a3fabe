"""Checks that an argument of a marker is a finite number."""

import math
from numbers import Real
from typing import Any

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidMarkerError, InvalidMarkerTypeError


def finite_number(marker: str, name: str, value: Any, cure: str = "") -> float:
    """Return a number as a float.

    Args:
        marker: What has the argument, for errors.
        name: The name of the argument, for errors.
        cure: What is written behind the error for something that is no number.

    Raises:
        InvalidMarkerError: If the number is not finite.
        InvalidMarkerTypeError: If the value is not a number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
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


def plain_number(marker: str, name: str, value: Any) -> float:
    """Return a finite number as an int or a float: numpy's numbers cannot be written to every file."""
    number = finite_number(marker, name, value)
    return int(value) if isinstance(value, int) else number
