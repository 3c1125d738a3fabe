"""`WhenTrue`: the condition that a function decides."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidMarkerError, InvalidMarkerTypeError
from optuna_flyte_dsl.space.conditions import Condition, When


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
        if any(kind(function) for kind in (inspect.iscoroutinefunction, inspect.isgeneratorfunction)):
            raise InvalidMarkerTypeError(f"WhenTrue: the function must return its value, but got {shown(function)}.")
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
            isinstance(other, WhenTrue)
            and self.parameters == other.parameters
            and (self.function is other.function or _is_copy(self.function, other.function))
        )

    def __hash__(self) -> int:
        return hash(tuple(self.parameters.items()))

    @property
    def names(self) -> frozenset[str]:
        """The paths of the parameters that the function takes."""
        return frozenset(self.parameters.values())

    def holds(self, values: Mapping[str, Any]) -> bool | None:
        """Return what the function returns; `None` if a parameter of it has no value.

        Raises:
            InvalidMarkerError: If the function raises an exception.
        """
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
        """Return the condition that stands for this one."""
        return replace(self)

    def naming(self, find: Callable[[str], str]) -> WhenTrue:
        """Return a condition with the same function, of which each parameter has the path that `find` returns."""
        return WhenTrue(self.function, **{name: find(path) for name, path in self.parameters.items()})

    def in_words(self) -> str:
        """Return the condition as it is read: "is_big(depth, width)"."""
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


def _is_copy(one: Any, other: Any) -> bool:
    """Return whether a function is a copy of another one: a worker process has copies of a script's functions.

    A function that was defined again, as in a notebook, has other code.
    """
    if not isinstance(one, types.FunctionType) or not isinstance(other, types.FunctionType):
        return False
    return (
        one.__module__ == other.__module__ == "__main__"
        and one.__qualname__ == other.__qualname__
        and one.__code__ == other.__code__
        and one.__defaults__ == other.__defaults__
        and one.__kwdefaults__ == other.__kwdefaults__
        and not one.__closure__
        and not other.__closure__
    )
