"""Reads one annotation: its marker, the type beside the marker, and whether it accepts `None`."""

import contextlib
import functools
import inspect
import types
from collections.abc import Iterable
from numbers import Real
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from optuna.distributions import BaseDistribution

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidAnnotationError, InvalidMarkerError, InvalidMarkerTypeError
from optuna_flyte_dsl.space import conversion
from optuna_flyte_dsl.space.completion import completed
from optuna_flyte_dsl.space.conditions import Condition, both
from optuna_flyte_dsl.space.function_condition import WhenTrue
from optuna_flyte_dsl.space.markers import Category, Fixed, Number, Suggestion

NO_TYPE = inspect.Parameter.empty
"""Stands for the type of a parameter whose annotation names no type."""

_CONTAINERS = (list, tuple, set, frozenset, dict)
_PLAIN_TYPES = frozenset({bool, int, float, str, type(None)})


def positional_only(objective: str, name: str) -> str:
    """Return the message for a parameter that takes no keyword argument."""
    return (
        f"`{objective}`: the parameter `{name}` is positional-only, but a trial gets keyword arguments. Drop the `/` "
        "from the signature."
    )


class ReadAnnotation(NamedTuple):
    """The parts of an annotation."""

    marker: Suggestion | None  # the marker; `None` for a parameter that is not searched
    base: Any
    optional: bool  # whether `None` is accepted
    metadata: tuple[Any, ...] = ()  # what stands beside the type, but for the marker
    condition: Condition | None = None  # when the parameter is active; `None` if it always is


def place_of_annotation(objective: str, path: str) -> str:
    """Return which annotation is meant, as the beginning of an error's message."""
    return f"`{objective}`: the annotation of `{path}`"


def read_annotation(where: str, annotation: Any) -> ReadAnnotation:
    """Return the marker of an annotation, the type beside the marker, and whether `None` is accepted."""
    if isinstance(annotation, type) and issubclass(annotation, Suggestion):
        raise InvalidAnnotationError(
            f"{where} is the class {annotation.__name__}. Call it, with its bounds: `{_example(annotation)}`."
        )
    if isinstance(annotation, Suggestion):
        annotation = completed(where, annotation, NO_TYPE)
        base = conversion.value_types(annotation)[0] if isinstance(annotation, Number) else NO_TYPE
        return ReadAnnotation(annotation, base, optional=False)
    if isinstance(annotation, Fixed | bool | int | float):
        value = annotation.value if isinstance(annotation, Fixed) else annotation
        raise InvalidAnnotationError(
            f"{where} is {shown(annotation)}, which is a value and no type. Write the value as the default: "
            f"`{type(value).__name__} = {shown(value)}`."
        )
    if (meant := _marker_meant_by(annotation)) is not None:
        raise InvalidAnnotationError(
            f"{where} is {shown(annotation)}, which is neither a marker nor a type. Write `{meant}`."
        )
    origin = get_origin(annotation)
    if origin is Annotated:
        return _read_annotated(where, annotation)
    if origin in (Union, types.UnionType):
        read = [read_annotation(where, argument) for argument in get_args(annotation)]
        marker = _only_marker(where, [each.marker for each in read if each.marker is not None])
        bases = tuple(each.base for each in read)
        union: Any = Union[bases]  # noqa: UP007 - the members are known at run time only
        metadata = tuple(extra for each in read for extra in each.metadata)
        condition = functools.reduce(both, [each.condition for each in read])
        return ReadAnnotation(marker, union, type(None) in get_args(annotation), metadata, condition)
    for argument in get_args(annotation):
        if not isinstance(argument, list) and names_marker(argument):
            raise InvalidAnnotationError(
                f"{where} holds a marker inside {origin!r}, where it has no meaning. Give the suggestion at the call, "
                f"inside the container, as in `params={{'lr': suggest.float(0, 1)}}`. For a list of searched values, "
                "write `Float(0, 1) * 3` as the annotation."
            )
    return ReadAnnotation(None, annotation, annotation is None)


def check_default(where: str, parameter: inspect.Parameter) -> None:
    """Refuse a marker as the default of a parameter: only an annotation is searched."""
    if isinstance(parameter.default, Suggestion):
        marker = shown(parameter.default)
        raise InvalidAnnotationError(
            f"{where}: the default of `{parameter.name}` is the marker {marker}. Write the marker as the annotation: "
            f"`{parameter.name}: {marker}`."
        )


def _read_annotated(where: str, annotation: Any) -> ReadAnnotation:
    inner, *extras = get_args(annotation)
    incomplete = isinstance(inner, Suggestion) and not inner.is_complete
    read = ReadAnnotation(inner, NO_TYPE, optional=False) if incomplete else read_annotation(where, inner)
    marker, base, optional, metadata, condition = read
    for extra in extras:
        if isinstance(extra, type) and issubclass(extra, Condition):
            example = 'When("kernel", "rbf")' if extra is not WhenTrue else "WhenTrue(lambda depth: depth > 3)"
            raise InvalidAnnotationError(f"{where} holds the class {extra.__name__}. Call it, as in `{example}`.")
        if isinstance(extra, type) and issubclass(extra, Suggestion):
            raise InvalidAnnotationError(
                f"{where} holds the class {extra.__name__}. Call it, with its bounds: `{_example(extra)}`."
            )
        if isinstance(extra, BaseDistribution):
            raise InvalidAnnotationError(
                f"{where} holds {shown(extra)}, which is no marker. Write `{_marker_meant_by(extra)}`."
            )
    markers = [extra for extra in extras if isinstance(extra, Suggestion)]
    found = _only_marker(where, [*markers, marker] if marker is not None else markers)
    others = [extra for extra in extras if not isinstance(extra, Suggestion | Condition)]
    if found is not None:
        found = completed(where, found, base, others)
    if found is not None and (clash := type_clash(found, base)):
        kinds = conversion.value_types(found)
        meant = " | ".join(dict.fromkeys(kind.__name__ for kind in kinds))
        raise InvalidAnnotationError(
            f"{where} {clash}. Let the two agree: write `{meant}` as the type, or another marker."
        )
    condition = functools.reduce(both, [extra for extra in extras if isinstance(extra, Condition)], condition)
    return ReadAnnotation(found, base, optional, (*metadata, *others), condition)


def _only_marker(where: str, found: list[Suggestion]) -> Suggestion | None:
    if len(found) > 1:
        raise InvalidAnnotationError(f"{where} holds {len(found)} markers: {listed(map(repr, found))}. Keep one.")
    return found[0] if found else None


def type_clash(marker: Suggestion, base: Any) -> str | None:
    """Describe how a marker's values contradict the type beside it; `None` if they do not.

    Only plain types are compared. An int is accepted for a parameter of type float.
    """
    allowed = get_args(base) if get_origin(base) in (Union, types.UnionType) else (base,)
    containers = [(get_origin(each) or each) in _CONTAINERS for each in allowed if each is not type(None)]
    if isinstance(marker, Number) and containers and all(containers):
        return f"says {_type_name(base)}, but {shown(marker)} gives a number. For a list, write `{shown(marker)} * 3`"
    if not _PLAIN_TYPES.issuperset(allowed):
        return None
    if isinstance(marker, Category):
        wrong = [
            choice
            for choice in marker.choices
            if not any(kind in allowed for kind in _kinds(choice))
            and (type(choice) in _PLAIN_TYPES or marker.names is not None)
        ]
        if wrong and not (float in allowed and all(type(choice) is int for choice in wrong)):
            return f"says {_type_name(base)}, but {shown(marker)} holds {shown(wrong[0])}"
        return None
    (kind,) = conversion.value_types(marker)
    article = "a" if kind is float else "an"
    return None if kind in allowed else f"says {_type_name(base)}, but {shown(marker)} gives {article} {kind.__name__}"


def _kinds(choice: Any) -> tuple[type, ...]:
    """Return the types of the values that a choice stands for."""
    return conversion.value_types(choice) if isinstance(choice, Suggestion) else (type(choice),)


def is_of_type(base: Any, value: Any) -> bool:
    """Return whether flytekit accepts a value for a parameter of a type. Only plain types are compared."""
    if base is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if base in (int, str, bool):
        return type(value) is base or (base is str and isinstance(value, str))
    return True


def listed(names: Iterable[Any]) -> str:
    """Return names in backticks, separated by commas."""
    return ", ".join(f"`{name}`" for name in names)


def _marker_meant_by(annotation: Any) -> str | None:
    """Return the marker, as code, that stands for an annotation which is a value; `None` for any other annotation."""
    match annotation:
        case BaseDistribution():
            with contextlib.suppress(InvalidMarkerError, InvalidMarkerTypeError):
                return repr(Suggestion.from_distribution(annotation))
            return "Float(0, 1)"
        case range():
            step = f", step={annotation.step}" if annotation.step > 1 else ""
            return f"Integer({annotation[0]}, {annotation[-1]}{step})" if len(annotation) > 1 else "Integer(0, 10)"
        case (low, high) if all(isinstance(bound, Real) and not isinstance(bound, bool) for bound in annotation):
            is_integer = isinstance(low, int) and isinstance(high, int)
            return f"{'Integer' if is_integer else 'Float'}({low!r}, {high!r})"
        case tuple() | list() | set() | frozenset() if not any(isinstance(each, type) for each in annotation):
            return f"Category({shown(list(annotation))})"
    return None


def names_marker(annotation: Any) -> bool:
    """Return whether an annotation is a marker, or a type with a marker inside, such as `list[Float(0, 1)]`."""
    if isinstance(annotation, Suggestion) or (isinstance(annotation, type) and issubclass(annotation, Suggestion)):
        return True
    return any(names_marker(argument) for argument in get_args(annotation) if get_origin(annotation) is not None)


def _example(marker: type[Suggestion]) -> str:
    return f'{marker.__name__}(["a", "b"])' if issubclass(marker, Category) else f"{marker.__name__}(0, 1)"


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
