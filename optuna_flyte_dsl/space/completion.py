"""Completes a marker that leaves its bounds or its choices to the type beside it."""

import dataclasses
import enum
import inspect
import math
import types
from collections.abc import Iterable, Iterator
from typing import Any, Literal, Union, get_args, get_origin

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidAnnotationError
from optuna_flyte_dsl.space.markers import Category, Float, Integer, Suggestion


def completed(where: str, marker: Suggestion, base: Any, metadata: Iterable[Any] = ()) -> Suggestion:
    """Return a marker with the bounds or the choices that the type beside it has.

    Args:
        where: What the marker belongs to, for errors.
        base: The type beside the marker.
        metadata: The metadata beside the marker: constraints of the packages annotated_types and pydantic.

    Raises:
        InvalidAnnotationError: If the type has no bounds or no choices.
    """
    if marker.is_complete:
        return marker
    if isinstance(marker, Category):
        return type(marker)(_choices_of(where, marker, base))
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
    found: dict[str, Any] = {name: _attribute(constraints, name) for name in ("ge", "gt", "le", "lt", "multiple_of")}
    low: Any = marker.low
    high: Any = marker.high
    step = found["multiple_of"]
    if low is None:
        low = found["ge"] if found["ge"] is not None else _beyond(where, marker, found["gt"], math.inf)
    if high is None:
        high = found["le"] if found["le"] is not None else _beyond(where, marker, found["lt"], -math.inf)
    kind = type(marker).__name__
    missing = [name for name, bound in (("low", low), ("high", high)) if bound is None]
    if missing:
        raise InvalidAnnotationError(
            f"{where}: `{marker!r}` lacks {' and '.join(f'`{name}`' for name in missing)}, and no constraint beside it "
            f"has {'it' if len(missing) == 1 else 'them'}. Write `{kind}(0, 1)`, or "
            f"`Annotated[{'float' if kind == 'Float' else 'int'}, Ge(0), Le(1), {kind}()]`."
        )
    if step is not None and marker.step in (None, 1) and not marker.log:
        low, high = math.ceil(low / step) * step, math.floor(high / step) * step
        return dataclasses.replace(marker, low=low, high=high, step=step)
    return dataclasses.replace(marker, low=low, high=high)


def _attribute(constraints: list[Any], name: str) -> Any:
    """Return the constraint of a name, such as `ge`, if one of the objects has it."""
    return next((bound for each in constraints if (bound := getattr(each, name, None)) is not None), None)


def _beyond(where: str, marker: Float | Integer, bound: Any, towards: float) -> Any:
    """Return the first number beyond an exclusive bound."""
    if bound is None:
        return None
    if isinstance(marker, Integer):
        return math.floor(bound) + 1 if towards > 0 else math.ceil(bound) - 1
    if marker.log and towards > 0 and bound == 0:
        raise InvalidAnnotationError(
            f"{where}: with `log=True`, `low` cannot be taken from an exclusive bound of 0. Write `low`, as in "
            "`Float(low=1e-5, log=True)`."
        )
    return math.nextafter(bound, towards)
