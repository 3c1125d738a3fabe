"""`Suggestion`: the base of the markers."""

from __future__ import annotations

import collections
import dataclasses
import types
from typing import TYPE_CHECKING, Any, Union

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidMarkerError, InvalidMarkerTypeError
from optuna_flyte_dsl.space.marker_calls import CheckedCall
from optuna_flyte_dsl.space.records import is_pydantic_model

if TYPE_CHECKING:
    from optuna_flyte_dsl.space.repeated import Repeated


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

    def __mul__(self, length: int | str) -> Repeated:
        """Return the marker of a list of this marker's values: see `Repeated`."""
        from optuna_flyte_dsl.space.repeated import Repeated  # it is a subclass of this class

        return Repeated(self, length)

    @property
    def is_complete(self) -> bool:
        """Whether the marker says all by itself: its bounds, or its choices."""
        return True

    def check_complete(self) -> None:
        """Check that the marker is complete.

        Raises:
            InvalidMarkerError: If the marker leaves its bounds or its choices to a type.
        """
        if not self.is_complete:
            raise InvalidMarkerError(
                f"`{self!r}` has no values by itself: only a parameter's annotation completes it, by the type beside "
                "it. Write its bounds, or its choices."
            )

    def to_distribution(self) -> BaseDistribution:
        """Return the Optuna distribution of what Optuna stores for this marker's values."""
        raise NotImplementedError

    @property
    def stored(self) -> Suggestion:
        """The marker of what Optuna stores for this marker's values: the marker itself, if it stores the values."""
        return self

    def to_stored(self, value: Any) -> Any:
        """Return what Optuna stores for a value."""
        return value

    def from_stored(self, stored: Any) -> Any:
        """Return the value for which Optuna stores something, such as a parameter of a trial."""
        return stored

    @staticmethod
    def from_distribution(distribution: BaseDistribution) -> Suggestion:
        """Return the marker with the same values as an Optuna distribution.

        Raises:
            InvalidMarkerTypeError: If the distribution is of another class than Optuna's three.
            InvalidMarkerError: If the distribution has a single value, which leaves nothing to search.

        >>> Suggestion.from_distribution(IntDistribution(1, 9, step=2))
        Integer(1, 9, step=2)
        """
        from optuna_flyte_dsl.space.markers import Category, Float, Integer  # they are subclasses of this class

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


def holds_marker(value: Any) -> bool:
    """Return whether a value is a marker, or holds one at any depth, in whatever kind of container."""
    if type(value) in (bool, int, float, str, bytes, type(None)):  # most values
        return False
    if isinstance(value, Suggestion):
        return True
    if isinstance(value, collections.UserDict | types.MappingProxyType | dict):
        return any(map(holds_marker, value.values()))
    if isinstance(value, set | frozenset | collections.deque | collections.UserList | list | tuple):
        return any(map(holds_marker, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(holds_marker(getattr(value, field.name, None)) for field in dataclasses.fields(value))
    return is_pydantic_model(type(value)) and any(map(holds_marker, vars(value).values()))
