"""Conditions under which a parameter is active: `When`, and the combinations of conditions by `&`, `|` and `~`."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidMarkerError, InvalidMarkerTypeError
from optuna_flyte_dsl.space.choice_markers import same
from optuna_flyte_dsl.space.marker_calls import CheckedCall
from optuna_flyte_dsl.space.suggestion import Suggestion

if TYPE_CHECKING:
    from optuna_flyte_dsl.space.function_condition import WhenTrue

_BOUNDS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "gt": (">", lambda value, bound: value > bound),
    "ge": (">=", lambda value, bound: value >= bound),
    "lt": ("<", lambda value, bound: value < bound),
    "le": ("<=", lambda value, bound: value <= bound),
}


class Condition(metaclass=CheckedCall):
    """Base of the conditions. Conditions are combined by `&` (and), `|` (or) and `~` (not).

    A comparison with an inactive parameter is neither true nor false. A parameter is active only if its whole condition
    is true.
    """

    __slots__ = ()

    def __and__(self, other: Condition) -> Condition:
        return AllOf((self, _condition("&", other)))

    def __or__(self, other: Condition) -> Condition:
        return AnyOf((self, _condition("|", other)))

    def __invert__(self) -> Condition:
        return NotThat(self)

    def __bool__(self) -> bool:
        raise InvalidMarkerTypeError(
            f"The condition {self!r} is neither true nor false before a trial has values. Combine conditions by `&`, "
            "`|` and `~` in place of `and`, `or` and `not`."
        )

    @property
    def names(self) -> frozenset[str]:
        """The names of the parameters that the condition compares."""
        raise NotImplementedError

    def holds(self, values: Mapping[str, Any]) -> bool | None:
        """Return whether the condition is true; `None` if that depends on a parameter without a value.

        Args:
            values: The values of the active parameters, by name.
        """
        raise NotImplementedError

    def replaced(self, replace: Callable[[When | WhenTrue], Condition]) -> Condition:
        """Return the same combination of other comparisons.

        Args:
            replace: Returns the condition that stands for a comparison, or a function, of this condition.
        """
        raise NotImplementedError

    def in_words(self) -> str:
        """Return the condition as it is read: "kernel is 'rbf' and depth > 3"."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False, init=False, eq=False)
class When(Condition):
    """The condition that another parameter has one of certain values, or lies within bounds.

    A parameter whose annotation holds a `When` is active only if the condition is true. While it is inactive, the
    parameter is not suggested, and the objective gets the parameter's default; `None` without a default.

    Args:
        parameter: The name of the other parameter. Inside a class, it is looked for among the fields of the class
            first, and then further out. A path, such as `config.kernel`, is looked for in the same way.
        *values: The values for which the condition is true.
        gt: The condition is true for values greater than this bound.
        ge: The condition is true for values greater than this bound, or equal to it.
        lt: The condition is true for values less than this bound.
        le: The condition is true for values less than this bound, or equal to it.

    Raises:
        InvalidMarkerError: If there are neither values nor bounds, or both.
        InvalidMarkerTypeError: If the name is not a str, or a bound is not a number.

    >>> from typing import Annotated
    >>> from optuna_flyte_dsl import Category, Float, SearchSpace
    >>> def fit(
    ...     kernel: Category(["linear", "rbf"]),
    ...     gamma: Annotated[float, Float(1e-3, 1, log=True), When("kernel", "rbf")] = 0.0,
    ... ) -> float: ...
    >>> SearchSpace.of(fit).contains({"kernel": "linear", "gamma": 0.0})
    True
    """

    parameter: str
    values: tuple[Any, ...]
    _: KW_ONLY
    gt: float | None
    ge: float | None
    lt: float | None
    le: float | None

    def __init__(
        self,
        parameter: str,
        *values: Any,
        gt: float | None = None,
        ge: float | None = None,
        lt: float | None = None,
        le: float | None = None,
    ) -> None:
        given = {"parameter": parameter, "values": values, "gt": gt, "ge": ge, "lt": lt, "le": le}
        for name, value in given.items():
            object.__setattr__(self, name, value)
        if not isinstance(parameter, str) or not parameter:
            raise InvalidMarkerTypeError(
                f"When: `parameter` must be the name of a parameter, but got {shown(parameter)}. Write "
                '`When("kernel", "rbf")`.'
            )
        bounds = self.bounds
        for name, bound in bounds.items():
            if isinstance(bound, bool) or not isinstance(bound, Real) or bound != bound:
                raise InvalidMarkerTypeError(f"When: `{name}` must be a number, but got {shown(bound)}.")
        for value in values:
            if isinstance(value, Suggestion | Condition):
                raise InvalidMarkerTypeError(
                    f"When: a value must be one that `{parameter}` can have, but got {shown(value)}. For a range, "
                    f'write bounds, as in `When("{parameter}", ge=1, lt=10)`.'
                )
        if bool(values) == bool(bounds):
            raise InvalidMarkerError(
                f'When: `{parameter}` is compared with values, as in `When("{parameter}", "a", "b")`, or with bounds, '
                f'as in `When("{parameter}", ge=1)`, but got {"both" if values else "neither"}. Combine conditions by '
                "`&`."
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, When) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self.parameter, tuple(map(type, self.values))))

    def _key(self) -> tuple[Any, ...]:
        """Return what two equal conditions have in common. 1 and True are different values."""
        return self.parameter, self.bounds, [(type(each), each) for each in self.values]

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that the condition has, by name."""
        return {name: bound for name in _BOUNDS if (bound := getattr(self, name)) is not None}

    @property
    def constants(self) -> tuple[Any, ...]:
        """The values and the bounds with which the parameter is compared."""
        return (*self.values, *self.bounds.values())

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.parameter})

    def holds(self, values: Mapping[str, Any]) -> bool | None:
        if self.parameter not in values:
            return None
        value = values[self.parameter]
        if self.values:
            return any(isinstance(value, bool) == isinstance(each, bool) and same(value, each) for each in self.values)
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        return is_number and all(_BOUNDS[name][1](value, bound) for name, bound in self.bounds.items())

    def replaced(self, replace: Callable[[When | WhenTrue], Condition]) -> Condition:
        return replace(self)

    def comparing(self, parameter: str, values: tuple[Any, ...]) -> When:
        """Return a condition with the same bounds, on another parameter and with other values."""
        return When(parameter, *values, **self.bounds)

    def in_words(self) -> str:
        if not self.values:
            bounds = [f"{_BOUNDS[name][0]} {float(bound):g}" for name, bound in self.bounds.items()]
            return f"{self.parameter} {' and '.join(bounds)}"
        return f"{self.parameter} is {' or '.join(map(_value_text, self.values))}"

    def __repr__(self) -> str:
        bounds = [f"{name}={bound!r}" for name, bound in self.bounds.items()]
        return f"When({', '.join([repr(self.parameter), *map(_value_text, self.values), *bounds])})"


@dataclass(frozen=True, repr=False)
class Combined(Condition):
    """Base of the conditions that have several parts."""

    parts: tuple[Condition, ...]

    @property
    def names(self) -> frozenset[str]:
        return frozenset().union(*(part.names for part in self.parts))

    def replaced(self, replace: Callable[[When | WhenTrue], Condition]) -> Condition:
        return dataclasses.replace(self, parts=tuple(part.replaced(replace) for part in self.parts))


class AllOf(Combined):
    """The condition that all of its parts are true: `a & b`."""

    def holds(self, values: Mapping[str, Any]) -> bool | None:
        is_unknown = False
        for part in self.parts:  # a part behind one that is false may not be defined for the values
            found = part.holds(values)
            if found is False:
                return False
            is_unknown = is_unknown or found is None
        return None if is_unknown else True

    def in_words(self) -> str:
        return " and ".join(_inner_words(part) for part in self.parts)

    def __repr__(self) -> str:
        return " & ".join(f"({part!r})" if isinstance(part, AnyOf) else repr(part) for part in self.parts)


class AnyOf(Combined):
    """The condition that one of its parts is true: `a | b`."""

    def holds(self, values: Mapping[str, Any]) -> bool | None:
        is_unknown = False
        for part in self.parts:
            found = part.holds(values)
            if found:
                return True
            is_unknown = is_unknown or found is None
        return None if is_unknown else False

    def in_words(self) -> str:
        return " or ".join(_inner_words(part) for part in self.parts)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))


@dataclass(frozen=True, repr=False)
class NotThat(Condition):
    """The condition that another condition is false: `~a`."""

    part: Condition

    @property
    def names(self) -> frozenset[str]:
        return self.part.names

    def holds(self, values: Mapping[str, Any]) -> bool | None:
        found = self.part.holds(values)
        return None if found is None else not found

    def replaced(self, replace: Callable[[When | WhenTrue], Condition]) -> Condition:
        return NotThat(self.part.replaced(replace))

    def in_words(self) -> str:
        return f"not ({self.part.in_words()})"

    def __repr__(self) -> str:
        return f"~{self.part!r}" if not isinstance(self.part, Combined) else f"~({self.part!r})"


def both(one: Condition | None, other: Condition | None) -> Condition | None:
    """Return the condition that both conditions are true, where `None` is always true."""
    return other if one is None else one if other is None else one & other


def _condition(sign: str, other: Any) -> Condition:
    if not isinstance(other, Condition):
        raise InvalidMarkerTypeError(f"`{sign}` combines two conditions, but got {shown(other)}.")
    return other


def _inner_words(condition: Condition) -> str:
    words = condition.in_words()
    return f"({words})" if isinstance(condition, Combined) else words


def _value_text(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value)
    return value.__name__ if isinstance(value, type) else shown(value)
