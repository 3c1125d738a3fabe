"""Completes a marker that leaves its bounds or its choices to the type beside it."""

import dataclasses
import enum
import inspect
import math
import types
from collections.abc import Iterable, Iterator
from fractions import Fraction
from numbers import Real
from typing import Any, Literal, Union, get_args, get_origin

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidAnnotationError, InvalidMarkerError, InvalidMarkerTypeError
from optuna_flyte_dsl.space.markers import Category, Float, Integer, Suggestion


def completed(
    where: str, marker: Suggestion, base: Any, metadata: Iterable[Any] = (), declared: Suggestion | None = None
) -> Suggestion:
    """Return a marker with the bounds or the choices that the type beside it has.

    Args:
        where: What the marker belongs to, for errors.
        base: The type beside the marker.
        metadata: The metadata beside the marker: constraints of the packages annotated_types and pydantic.
        declared: The marker that the signature declares, if the marker is one of a call: it has choices too.

    Raises:
        InvalidAnnotationError: If the type has no bounds or no choices.
    """
    if marker.is_complete:
        check_constraints(where, marker, metadata)
        return marker
    if isinstance(marker, Category) and isinstance(declared, Category):
        weights = marker.weights if marker.weights is not None else declared.weights
        if declared.names is None:
            return type(marker)(declared.choices, weights=weights)
        return type(marker)(dict(zip(declared.names, declared.choices, strict=True)), weights=weights)
    if isinstance(marker, Category):
        return type(marker)(_choices_of(where, marker, base), weights=marker.weights)
    assert isinstance(marker, Float | Integer)
    return _with_bounds(where, marker, list(_constraints(metadata)))


def _choices_of(where: str, marker: Category, base: Any) -> Any:
    members = [each for each in get_args(base) if each is not type(None)]
    if get_origin(base) in (Union, types.UnionType) and len(members) == 1:
        base = members[0]
    if get_origin(base) is Literal:
        return get_args(base)
    if base is bool:
        return (False, True)
    if isinstance(base, type) and issubclass(base, enum.Enum):
        return base
    name = type(marker).__name__
    raise InvalidAnnotationError(
        f"{where}: `{name}()` takes its choices from the type beside it: a `Literal`, a `bool` or an Enum. There is "
        f'{"no type" if base is inspect.Parameter.empty else shown(base)}. Write the choices: `{name}(["a", "b"])`.'
    )


def _constraints(metadata: Iterable[Any]) -> Iterator[Any]:
    """Yield the constraints in metadata: those in an `Interval` of annotated_types, and in a `Field` of pydantic."""
    for each in metadata:
        inner = getattr(each, "metadata", None)  # of pydantic's `Field`
        if isinstance(inner, list):
            yield from _constraints(inner)
        else:
            yield each  # an `Interval` has the attributes of the constraints that it groups


def _with_bounds(where: str, marker: Float | Integer, constraints: list[Any]) -> Suggestion:
    low, high, step = _limits(where, marker, constraints)
    low = marker.low if marker.low is not None else low
    high = marker.high if marker.high is not None else high
    kind = type(marker).__name__
    missing = [name for name, bound in (("low", low), ("high", high)) if bound is None]
    if missing:
        first, last = (low, low + 1) if low is not None else (0, 1) if high is None else (high - 1, high)
        raise InvalidAnnotationError(
            f"{where}: `{marker!r}` lacks {' and '.join(f'`{name}`' for name in missing)}, and no constraint beside it "
            f"has {'it' if len(missing) == 1 else 'them'}. Write `{kind}({first}, {last})`, or "
            f"`Annotated[{'float' if kind == 'Float' else 'int'}, Ge({first}), Le({last}), {kind}()]`."
        )
    if step is not None and not marker.log and marker.step in (None, 1):
        exact = [Fraction(str(number)) for number in (low, high, step)]
        first, last = math.ceil(exact[0] / exact[2]), math.floor(exact[1] / exact[2])
        low, high, step = (_number(marker, each) for each in (first * exact[2], last * exact[2], exact[2]))
    else:
        step = marker.step
    try:
        made = dataclasses.replace(marker, low=low, high=high, step=step)
    except (InvalidMarkerError, InvalidMarkerTypeError) as error:
        raise InvalidAnnotationError(f"{where}: the constraints beside the marker give no range. {error}") from error
    check_constraints(where, made, constraints)
    return made


def check_constraints(where: str, marker: Suggestion, metadata: Iterable[Any]) -> None:
    """Check that a marker with its own bounds keeps the constraints beside it.

    Raises:
        InvalidAnnotationError: If the marker has a value that a constraint excludes.
    """
    if not isinstance(marker, Float | Integer):
        return
    low, high, step = _limits(where, marker, list(_constraints(metadata)))
    on_step = step is None or all(
        (Fraction(str(number)) / Fraction(str(step))).denominator == 1
        for number in (marker.low, marker.step if marker.step is not None else math.pi)
    )
    if (low is not None and marker.low < low) or (high is not None and marker.high > high) or not on_step:
        raise InvalidAnnotationError(
            f"{where}: {shown(marker)} has values that a constraint beside it excludes. Let the two agree, or leave "
            f"the bounds to the constraint: `{type(marker).__name__}()`."
        )


def _limits(where: str, marker: Float | Integer, constraints: list[Any]) -> tuple[Any, Any, Any]:
    """Return the largest lower bound, the smallest upper bound and the step of constraints; `None` for each without."""
    found: dict[str, list[Any]] = {"ge": [], "gt": [], "le": [], "lt": [], "multiple_of": []}
    for each in constraints:
        for name, bounds in found.items():
            bound = getattr(each, name, None)
            if bound is not None:
                if isinstance(bound, bool) or not isinstance(bound, Real) or not math.isfinite(bound):
                    raise InvalidAnnotationError(f"{where}: `{name}` must be a finite number, but got {shown(bound)}.")
                bounds.append(bound)
    is_integer = isinstance(marker, Integer)
    lows = [math.ceil(bound) if is_integer else bound for bound in found["ge"]]
    highs = [math.floor(bound) if is_integer else bound for bound in found["le"]]
    if found["gt"] and not is_integer and marker.log and marker.low is None and max(found["gt"]) == 0 and not lows:
        raise InvalidAnnotationError(
            f"{where}: with `log=True`, `low` cannot be taken from an exclusive bound of 0. Write `low`, as in "
            "`Float(low=1e-5, log=True)`."
        )
    lows += [math.floor(bound) + 1 if is_integer else math.nextafter(bound, math.inf) for bound in found["gt"]]
    highs += [math.ceil(bound) - 1 if is_integer else math.nextafter(bound, -math.inf) for bound in found["lt"]]
    steps = found["multiple_of"]
    if len(steps) > 1 or any(step <= 0 or (is_integer and step != int(step)) for step in steps):
        raise InvalidAnnotationError(
            f"{where}: there must be at most one `multiple_of`, greater than 0{' and whole' if is_integer else ''}, "
            f"but got {', '.join(map(shown, steps))}."
        )
    return max(lows, default=None), min(highs, default=None), steps[0] if steps else None


def _number(marker: Float | Integer, number: Fraction) -> Any:
    return int(number) if isinstance(marker, Integer) else float(number)
