"""One parameter of an objective, as its signature declares it."""

import dataclasses
import inspect
from typing import Any

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidMarkerError
from optuna_flyte_dsl.space import domain
from optuna_flyte_dsl.space.annotations import NO_TYPE, check_default, read_annotation
from optuna_flyte_dsl.space.markers import Suggestion

_EMPTY = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class DeclaredParameter:
    """One parameter of the objective, as its signature declares it."""

    marker: Suggestion | None
    base: Any  # the type beside the marker; NO_TYPE if the annotation names no type
    optional: bool  # whether None is accepted
    default: Any  # the parameter's default; `inspect.Parameter.empty` without a default


UNDECLARED = DeclaredParameter(None, NO_TYPE, False, _EMPTY)
"""A parameter that `**kwargs` takes."""


def declare(objective: str, parameter: inspect.Parameter) -> DeclaredParameter:
    """Read a parameter of an objective's signature.

    Args:
        objective: The objective's name, for errors.

    Raises:
        InvalidAnnotationError: If a marker is used in a way that has no meaning.
        InvalidMarkerError: If the default lies outside the marker.
    """
    where = f"`{objective}`: the annotation of `{parameter.name}`"
    marker, base, optional = read_annotation(where, parameter.annotation)
    check_default(f"`{objective}`", parameter)
    accepted = parameter.default is _EMPTY or (parameter.default is None and optional)
    if marker is not None and not accepted and not domain.contains(marker, parameter.default):
        raise InvalidMarkerError(
            f"`{objective}`: the default of `{parameter.name}` must lie within its marker {shown(marker)}, "
            f"but got {shown(parameter.default)}. Change the default, or widen the marker."
        )
    return DeclaredParameter(marker, base, optional, parameter.default)
