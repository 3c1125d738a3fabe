"""Constraints on the parameters of a search: functions of a trial's arguments that say which points are not run."""

from __future__ import annotations

import inspect
import math
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real
from typing import Any, TypeAlias

from optuna_flyte_dsl._text import did_you_mean, shown, text_of
from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.space.annotations import listed

ConstraintFunction: TypeAlias = Callable[..., float]


class ParameterConstraint:
    """One constraint of an objective.

    Args:
        number: The index of the constraint in the option.
        objective: The objective's name, for errors.
        known: The parameters of the objective; `None` if it takes any name.

    Raises:
        InvalidOptionError: If the function takes an argument that the objective does not have.
    """

    def __init__(
        self, function: ConstraintFunction, number: int, objective: str, known: Collection[str] | None
    ) -> None:
        self._function = function
        self._objective = objective
        code = getattr(function, "__code__", None)
        name = getattr(function, "__name__", "<lambda>")
        place = f"{pathlib.Path(code.co_filename).name}:{code.co_firstlineno}" if code is not None else ""
        detail = ", ".join(each for each in ("" if name == "<lambda>" else f"`{name}`", place) if each)
        self.name: str = f"`constraints[{number}]`{detail and f' ({detail})'}"
        self._takes_all = False
        self._names: list[str] = []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                self._takes_all = True
            elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
                raise InvalidOptionError(
                    f"`{objective}`: {self.name} must take the arguments of `{objective}` by their names, but "
                    f"`{parameter.name}` is positional. Write `lambda depth, width: depth * width - 4096`."
                )
            elif known is None or parameter.name in known:
                self._names.append(parameter.name)
            elif parameter.default is parameter.empty:
                raise InvalidOptionError(
                    f"`{objective}`: {self.name} takes `{parameter.name}`, which is no parameter of `{objective}`; it "
                    f"has {listed(known)}.{did_you_mean(parameter.name, known)} Correct the name."
                )

    def value(self, arguments: Mapping[str, Any]) -> float:
        """Return the value of the constraint for a trial's arguments. It is feasible if the value is at most 0.

        Raises:
            InvalidOptionError: If the function raises an error, or returns no number.
        """
        given = arguments if self._takes_all else {name: arguments[name] for name in self._names if name in arguments}
        try:
            value = self._function(**given)
        except Exception as error:
            raise InvalidOptionError(
                f"`{self._objective}`: {self.name} raised {type(error).__name__}: {text_of(error)}, for "
                f"{shown(dict(given))}. It must return a number for each point of the space."
            ) from error
        try:
            number = float(value) if isinstance(value, Real) or hasattr(value, "__float__") else math.nan
        except Exception:  # noqa: BLE001 - an object's `__float__` may raise anything
            number = math.nan
        if math.isnan(number):
            raise InvalidOptionError(
                f"`{self._objective}`: {self.name} must return a number, of which at most 0 is feasible, or a bool, of "
                f"which True is forbidden, but got {shown(value)} for {shown(dict(given))}."
            )
        return number


def read_constraints(
    functions: Sequence[ConstraintFunction], objective: str, known: Collection[str] | None
) -> tuple[ParameterConstraint, ...]:
    """Return the constraints of the option `constraints`; see `ParameterConstraint`."""
    return tuple(ParameterConstraint(each, number, objective, known) for number, each in enumerate(functions))
