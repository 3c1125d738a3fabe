"""Conditions under which a parameter is active: `When`, `WhenTrue`, and their combinations by `&`, `|` and `~`."""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidMarkerError, InvalidMarkerTypeError
from optuna_flyte_dsl.space.choice_markers import same
from optuna_flyte_dsl.space.marker_calls import CheckedCall
from optuna_flyte_dsl.space.suggestion import Suggestion

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


@dataclass(frozen=True, repr=False, init=False, eq=False)
class WhenTrue(Condition):
    """The condition that a function of other parameters returns true: `WhenTrue(lambda depth: depth % 2 == 0)`.

    A parameter whose annotation holds a `WhenTrue` is active only if all parameters of the function are active, and the
    function returns something true. `When` says more to readers and to other programs, so use it where it suffices.

    Args:
        function: The function. The names of its parameters are those of the objective's parameters; inside a class,
            they are looked for as those of a `When`. A parameter with a default keeps it. The function must return the
            same for the same values, and change nothing. A choice between classes is given as the name of the class.
        **parameters: The path of a parameter, for a parameter of the function that has another name:
            `WhenTrue(is_deep, depth="config.depth")`.

    Raises:
        InvalidMarkerError: If the function has no parameter, or lacks one that is named.
        InvalidMarkerTypeError: If it is no function, or a path is not a str.

    >>> from typing import Annotated
    >>> from optuna_flyte_dsl import Float, Integer, SearchSpace
    >>> def fit(
    ...     depth: Integer(1, 8),
    ...     width: Integer(1, 64),
    ...     dropout: Annotated[float, Float(0, 0.5), WhenTrue(lambda depth, width: depth * width > 64)] = 0.0,
    ... ) -> float: ...
    >>> SearchSpace.of(fit).contains({"depth": 1, "width": 64, "dropout": 0.0})
    True
    """

    function: Callable[..., Any]
    parameters: Mapping[str, str]  # for each parameter of the function, the path of the parameter of the objective

    def __init__(self, function: Callable[..., Any], /, **parameters: str) -> None:
        if not callable(function) or isinstance(function, type):
            raise InvalidMarkerTypeError(
                f"WhenTrue: it takes a function, but got {shown(function)}. Write "
                "`WhenTrue(lambda depth, width: depth * width > 64)`."
            )
        try:
            taken = inspect.signature(function).parameters.values()
        except ValueError:  # a function of C code that has no signature
            taken = ()  # type: ignore[assignment]
        named = [each for each in taken if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
        names = [each.name for each in named]
        is_open = any(each.kind is each.VAR_KEYWORD for each in taken)
        for name, path in parameters.items():
            if not isinstance(path, str) or not path:
                raise InvalidMarkerTypeError(
                    f"WhenTrue: `{name}` must be the name of a parameter, but got {shown(path)}."
                )
            if name not in names and not is_open:
                raise InvalidMarkerError(
                    f"WhenTrue: the function has no parameter `{name}`; it has {', '.join(names) or 'none'}."
                )
        given = {each.name: each.name for each in named if each.default is each.empty} | parameters
        if not given:
            raise InvalidMarkerError("WhenTrue: the function must take the parameters that decide, but it takes none.")
        if positional := [each.name for each in taken if each.kind is each.POSITIONAL_ONLY]:
            raise InvalidMarkerError(
                f"WhenTrue: the function is called with names, but `{positional[0]}` has none. Drop the `/`."
            )
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "parameters", given)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, WhenTrue) and same(self.function, other.function) and self.parameters == other.parameters
        )

    def __hash__(self) -> int:
        return hash(tuple(self.parameters.items()))

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self.parameters.values())

    def holds(self, values: Mapping[str, Any]) -> bool | None:
        if not self.names <= values.keys():
            return None
        given = {name: values[path] for name, path in self.parameters.items()}
        try:
            return bool(self.function(**given))
        except Exception as error:
            raise InvalidMarkerError(
                f"The function of {self!r} raised {type(error).__name__} for {shown(given)}: {error}. It must return "
                "True or False for all values that its parameters can have."
            ) from error

    def replaced(self, replace: Callable[[When | WhenTrue], Condition]) -> Condition:
        return replace(self)

    def naming(self, find: Callable[[str], str]) -> WhenTrue:
        """Return a condition with the same function, of which each parameter has the path that `find` returns."""
        return WhenTrue(self.function, **{name: find(path) for name, path in self.parameters.items()})

    def in_words(self) -> str:
        return f"{self._function_name}({', '.join(self.parameters.values())})"

    @property
    def _function_name(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return "a function" if name == "<lambda>" else name

    def __repr__(self) -> str:
        others = [f"{name}={path!r}" for name, path in self.parameters.items() if path != name]
        name = self._function_name
        shown_name = f"lambda {', '.join(self.parameters)}: ..." if name == "a function" else name
        return f"WhenTrue({', '.join([shown_name, *others])})"


@dataclass(frozen=True, repr=False)
class Combined(Condition):
    """Base of the conditions that have several parts."""

    parts: tuple[Condition, ...]

    @property
    def names(self) -> frozenset[str]:
        return frozenset().union(*(part.names for part in self.parts))

    def replaced(self, replace: Callable[[When | WhenTrue], Condition]) -> Condition:
        return dataclasses.replace(self, parts=tuple(part.replaced(replace) for part in self.parts))


@dataclass(frozen=True, repr=False)
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


@dataclass(frozen=True, repr=False)
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
        return f"~{self.part!r}" if isinstance(self.part, When | WhenTrue | NotThat) else f"~({self.part!r})"


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
