"""One parameter of an objective, as its signature declares it."""

import dataclasses
import inspect
from typing import Any

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import ArgumentError, InvalidMarkerError
from optuna_flyte_dsl.space import domain
from optuna_flyte_dsl.space.annotations import NO_TYPE, check_default, read_annotation, type_clash
from optuna_flyte_dsl.space.argument_errors import not_carried
from optuna_flyte_dsl.space.completion import completed
from optuna_flyte_dsl.space.markers import Category, Integer, Suggestion

_EMPTY = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class DeclaredParameter:
    """One parameter of the objective, as its signature declares it."""

    marker: Suggestion | None
    base: Any  # the type beside the marker; NO_TYPE if the annotation names no type
    optional: bool  # whether None is accepted
    default: Any  # the parameter's default; `inspect.Parameter.empty` without a default
    metadata: tuple[Any, ...] = ()  # what stands beside the type: constraints of a number, and others

    def accept(self, objective: str, name: str, suggestion: Suggestion, *, is_task: bool) -> Suggestion:
        """Return a call's suggestion for this parameter, with what the suggestion leaves to the signature.

        Raises:
            ArgumentError: If the suggestion's values are not of the parameter's type.
            InvalidAnnotationError: If the signature does not have what the suggestion leaves out.
            OutOfRangeError: If a task's parameter cannot get one of the values.
        """
        where = f"`{objective}`: `{name}`"
        suggestion = completed(where, suggestion, self.base, self.metadata, self.marker)
        for choice in suggestion.choices if is_task and isinstance(suggestion, Category) else ():
            if not domain.carries(self.marker, choice):
                raise not_carried(objective, name, self.marker, choice)
        if (clash := type_clash(suggestion, self.base)) and not (
            self.base is float and isinstance(suggestion, Integer)
        ):
            raise ArgumentError(f"{where} {clash}. Let the two agree.")
        return suggestion


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
    marker, base, optional, metadata = read_annotation(where, parameter.annotation)
    check_default(f"`{objective}`", parameter)
    accepted = parameter.default is _EMPTY or (parameter.default is None and optional)
    if marker is not None and not accepted and not domain.contains(marker, parameter.default):
        raise InvalidMarkerError(
            f"`{objective}`: the default of `{parameter.name}` must lie within its marker {shown(marker)}, "
            f"but got {shown(parameter.default)}. Change the default, or widen the marker."
        )
    return DeclaredParameter(marker, base, optional, parameter.default, metadata)
