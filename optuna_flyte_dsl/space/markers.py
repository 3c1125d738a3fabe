"""The annotations of an objective's signature: markers of searched parameters, and directions of objectives."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

from optuna.study import StudyDirection

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidMarkerTypeError
from optuna_flyte_dsl.space.choice_markers import Category, Ordinal, same
from optuna_flyte_dsl.space.marker_calls import MarkerNames
from optuna_flyte_dsl.space.number_markers import Float, Integer, Number
from optuna_flyte_dsl.space.repeated import Repeated
from optuna_flyte_dsl.space.suggestion import Suggestion

__all__ = [
    "Category",
    "Constraint",
    "Fixed",
    "Float",
    "Integer",
    "Maximize",
    "Minimize",
    "Number",
    "Ordinal",
    "Repeated",
    "Role",
    "Suggestion",
    "same",
    "suggest",
]

Minimize: TypeAlias = Annotated[float, StudyDirection.MINIMIZE]
"""A return type, alone or in a tuple: a `float` that the search minimizes."""

Maximize: TypeAlias = Annotated[float, StudyDirection.MAXIMIZE]
"""A return type, alone or in a tuple: a `float` that the search maximizes."""


class Role(enum.Enum):
    """What a value that the objective returns is for, if it is no objective."""

    CONSTRAINT = "a constraint"


Constraint: TypeAlias = Annotated[float, Role.CONSTRAINT]
"""A return type in a tuple, beside objectives: a `float` of which at most 0 is feasible."""


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
    ordinal = Ordinal
