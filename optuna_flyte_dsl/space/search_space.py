"""The search space: the searched parameters of an objective, and its fixed arguments.

`SearchSpace.from_signature` makes a space, `bind` adds the arguments of a call, and `suggest` returns the keyword
arguments of one trial.
"""

from __future__ import annotations

import dataclasses
import html
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from optuna_flyte_dsl._text import is_storable_name, shown
from optuna_flyte_dsl.errors import ArgumentError, InvalidAnnotationError
from optuna_flyte_dsl.space import conversion, domain
from optuna_flyte_dsl.space.annotations import NO_TYPE, is_of_type, listed, positional_only
from optuna_flyte_dsl.space.argument_errors import (
    missing_values,
    not_carried,
    nothing_to_search,
    out_of_range,
    out_of_range_in_point,
    unknown_in_point,
    unknown_parameter,
)
from optuna_flyte_dsl.space.completion import completed
from optuna_flyte_dsl.space.containers import copy_containers, matches, replace_markers, searched_values
from optuna_flyte_dsl.space.declared_parameter import UNDECLARED, DeclaredParameter, declare
from optuna_flyte_dsl.space.domain import carries
from optuna_flyte_dsl.space.markers import Fixed, Suggestion
from optuna_flyte_dsl.space.signatures import read_signature
from optuna_flyte_dsl.space.space_text import Branch, parameter_branch, size_text


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SearchSpace(Mapping[str, Suggestion]):
    """A mapping from the name of each searched parameter to its marker, in the order of the signature.

    The name of a parameter inside a container is its path: `params.lr`, `params.layers.0`. A space also holds the fixed
    arguments. A search space is immutable: `bind` returns a new space.

    >>> from optuna_flyte_dsl import Float, Integer
    >>> def train(lr: Float(1e-5, 1e-1, log=True), depth: Integer(2, 12), dataset: str = "wine") -> float: ...
    >>> space = SearchSpace.of(train)
    >>> dict(space)
    {'lr': Float(1e-05, 0.1, log=True), 'depth': Integer(2, 12)}
    >>> space.bind(depth=3, dataset="digits").contains({"lr": 0.01, "depth": 3, "dataset": "digits"})
    True
    """

    name: str
    _declared: Mapping[str, DeclaredParameter]
    _open: bool  # whether the objective takes `**kwargs`
    _strict: bool  # whether a value must be of its parameter's type: tasks require it
    _bound: Mapping[str, Any]  # the arguments of calls, by parameter

    @classmethod
    def of(cls, objective: Callable[..., Any] | SearchSpace) -> SearchSpace:
        """Return the space of a function, of a decorated objective, or of another object with an attribute `space`.

        Raises:
            InvalidAnnotationError: If a marker is used in a way that has no meaning.
            InvalidMarkerError: If a default lies outside its marker.
        """
        if isinstance(objective, SearchSpace):
            return objective
        space = getattr(objective, "space", None)
        if isinstance(space, SearchSpace):
            return space
        return cls.from_signature(read_signature(objective), name=getattr(objective, "__name__", "objective"))

    @classmethod
    def from_signature(
        cls,
        signature: inspect.Signature,
        arguments: Mapping[str, Any] | None = None,
        *,
        name: str = "objective",
        ignore: frozenset[str] = frozenset(),
        strict: bool = False,
    ) -> SearchSpace:
        """Return the space of a signature whose annotations are objects, not strings.

        Args:
            signature: The signature of the objective.
            arguments: Keyword arguments of a call, which are bound to the space.
            name: The objective's name in error messages.
            ignore: Parameters that a call does not give, such as `trial`.
            strict: Whether a value must have its parameter's type, if that is bool, int, float or str.
        """
        declared: dict[str, DeclaredParameter] = {}
        takes_kwargs = False
        for parameter in signature.parameters.values():
            if parameter.name in ignore or parameter.kind is parameter.VAR_POSITIONAL:
                continue
            if parameter.kind is parameter.VAR_KEYWORD:
                takes_kwargs = True
                continue
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise InvalidAnnotationError(positional_only(name, parameter.name))
            declared[parameter.name] = declare(name, parameter)
        space = cls(name, declared, takes_kwargs, strict, {})
        return space.bind(**arguments) if arguments else space

    def bind(self, /, *args: Any, **kwargs: Any) -> SearchSpace:
        """Return a space in which the arguments of a call fix parameters or replace their markers.

        A value fixes its parameter. A suggestion replaces the parameter's marker. A dict, list or tuple may hold
        suggestions at any depth. `Fixed(value)` is accepted even if the parameter's marker does not contain the value.

        Args:
            *args: Values of the first parameters.
            **kwargs: Values by parameter name.

        Raises:
            ArgumentError: If the objective has no such parameter, or a parameter is given twice.
            OutOfRangeError: If a fixed value lies outside its marker.
        """
        if len(args) > len(self._declared):
            raise ArgumentError(
                f"`{self.name}` takes {len(self._declared)} arguments ({listed(self._declared)}), "
                f"but {len(args)} were given by position."
            )
        bound = dict(self._bound)
        for name, value in zip(self._declared, args, strict=False):
            if name in kwargs:
                raise ArgumentError(f"`{self.name}`: `{name}` was given twice, by position and by name. Give it once.")
            bound[name] = self._accept(name, value)
        for name, value in kwargs.items():
            bound[name] = self._accept(name, value)
        return dataclasses.replace(self, _bound=bound)

    def _accept(self, name: str, value: Any) -> Any:
        declared = self._declared.get(name)
        if declared is None:
            if not self._open:
                raise unknown_parameter(self.name, name, self._declared)
            declared = UNDECLARED
        if isinstance(value, type) and issubclass(value, Suggestion):
            raise ArgumentError(f"`{self.name}`: `{name}` got the class {value.__name__}. Call it, with its bounds.")
        if isinstance(value, Fixed):
            if self._strict and not carries(declared.marker, value.value):
                raise not_carried(self.name, name, declared.marker, value.value)
            return conversion.to_float(declared.base, value.value)
        if isinstance(value, Suggestion):
            return declared.accept(self.name, name, value, is_task=self._strict)
        if declared.marker is None:
            if self._strict and not is_of_type(declared.base, value):
                raise ArgumentError(
                    f"`{self.name}`: `{name}` must be of type {declared.base.__name__}, as the signature says, but got "
                    f"{shown(value)}, of type {type(value).__name__}. Give another value, or change the annotation."
                )
            # The containers are copied, so that the caller cannot change them during the search.
            return conversion.to_float(declared.base, replace_markers(name, value, lambda _, marker: marker))
        if value is None and declared.optional:
            return value
        value = domain.named(declared.marker, value)
        if not domain.contains(declared.marker, value):
            raise out_of_range(self.name, name, declared.marker, declared.base, value)
        return conversion.convert(declared.marker, value)

    def takes(self, name: str) -> bool:
        """Return whether the objective has a parameter with this name, or takes any name."""
        return self._open or name in self._declared

    def unknown_parameter(self, name: str, *, cure: str = "") -> ArgumentError:
        """Return the error for an argument that the objective does not take.

        Args:
            name: The argument's name.
            cure: What else the user may have meant, as a clause.
        """
        return unknown_parameter(self.name, name, self._declared, cure)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of a trial, by parameter, with a marker in place of each searched value."""
        return types.MappingProxyType(self._template)

    @cached_property
    def _template(self) -> dict[str, Any]:
        template: dict[str, Any] = {}
        for name, declared in self._declared.items():
            if name in self._bound:
                template[name] = self._bound[name]
            elif declared.marker is not None:
                template[name] = declared.marker
            elif declared.default is not inspect.Parameter.empty:
                template[name] = declared.default
        template.update((name, value) for name, value in self._bound.items() if name not in self._declared)
        return template

    @property
    def missing(self) -> tuple[str, ...]:
        """The parameters without a marker, without a default, and without a value from the call."""
        template = self._template
        return tuple(name for name in self._declared if name not in template)

    def check_ready(self) -> None:
        """Check that this space is ready for a search.

        Raises:
            ArgumentError: If an argument is missing.
            EmptySpaceError: If nothing is left to search.
        """
        self.check_complete()
        if not self:
            raise nothing_to_search(self.name, [name for name, each in self._declared.items() if each.marker])

    def check_complete(self) -> None:
        """Check that every argument has a value or a marker.

        Raises:
            ArgumentError: If a parameter has neither a value nor a marker.
        """
        if self.missing:
            raise missing_values(self.name, {name: self._declared[name].base for name in self.missing})

    @cached_property
    def _markers(self) -> dict[str, Suggestion]:
        markers: dict[str, Suggestion] = {}

        def note(name: str, marker: Suggestion) -> None:
            if name in markers:
                raise ArgumentError(
                    f"`{self.name}`: two suggestions have the name `{name}`. The names inside a container are joined "
                    "by `.`; rename a key."
                )
            if not is_storable_name(name):
                raise ArgumentError(
                    f"`{self.name}`: the name of a parameter must have at most 512 characters, without NUL and lone "
                    f"surrogates, but got {shown(name)}. Rename a key of the container."
                )
            markers[name] = completed(f"`{self.name}`: `{name}`", marker, NO_TYPE)

        for name, value in self._template.items():
            replace_markers(name, value, note)
        return markers

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the Optuna distribution of each searched parameter, by name."""
        return {name: marker.to_distribution() for name, marker in self.items()}

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Return the keyword arguments of one trial: the fixed arguments, and those that the trial suggests.

        Each trial gets its own copies of dicts, lists, tuples and sets. Other objects, such as arrays, are shared.
        """

        def choose(name: str, marker: Suggestion) -> Any:
            stored = conversion.suggest(trial, name, marker.to_distribution())
            return copy_containers(marker.from_stored(stored))

        return self.fill(choose)

    def fill(self, choose: Callable[[str, Suggestion], Any] | Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of one trial, with a value in place of each marker.

        Args:
            choose: The values by name, such as a study's `best_params`; or a function of a name and its marker.

        Raises:
            ArgumentError: If a value is missing.
        """
        if not callable(choose):
            values = choose
            if missing := [name for name in self if name not in values]:
                raise ArgumentError(f"`{self.name}`: the values lack {listed(missing)}. Give a value for each marker.")
            drawn = self.values_of(values)
            choose = lambda name, _: drawn[name]  # noqa: E731
        return {
            name: conversion.to_float(self._declared.get(name, UNDECLARED).base, replace_markers(name, value, choose))
            for name, value in self._template.items()
        }

    def values_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the searched values, by name, of a trial's parameters, such as `trial.params`.

        What Optuna stores differs from the values for choices that have names, and for an `Ordinal`. The result can be
        an initial point.

        Raises:
            ArgumentError: If Optuna stores no such thing for a parameter.
        """
        values = {}
        for name, stored in params.items():
            try:
                values[name] = self[name].from_stored(stored) if name in self else stored
            except ValueError as error:
                raise ArgumentError(
                    f"`{self.name}`: `{name}` of a trial: {error} Give what a trial has stored."
                ) from error
        return values

    def contains(self, kwargs: Mapping[str, Any]) -> bool:
        """Return whether keyword arguments are a point of this space.

        Keyword arguments are a point if each searched parameter lies within its marker (and on the grid of its step),
        each fixed argument has its value, and no further argument is given.

        Args:
            kwargs: The keyword arguments of one trial.
        """
        template = self._template
        return template.keys() == kwargs.keys() and all(
            matches(value, kwargs[name]) for name, value in template.items()
        )

    def check_point(self, point: Mapping[str, Any]) -> None:
        """Check the names in an initial point.

        The point's values are checked later, at the call, because the call's arguments may replace markers.

        Args:
            point: The values, such as `{"lr": 0.1}`.

        Raises:
            ArgumentError: If the objective has no such parameter.
        """
        for name in point:
            if not self.takes(name.split(".", 1)[0]):
                raise unknown_in_point(self.name, name, self._declared)

    def point(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the searched values, by name, of a trial's keyword arguments: the inverse of `suggest`.

        Args:
            kwargs: All keyword arguments of a trial, or some of them.

        >>> from optuna_flyte_dsl import Float, Integer
        >>> SearchSpace.of(lambda x, y: x).bind(x=Float(0, 1), y=[Integer(1, 9), 3]).point({"x": 0.5, "y": [4, 3]})
        {'x': 0.5, 'y.0': 4}
        """
        values: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name in self._template:
                values |= searched_values(name, self._template[name], value)
        return values

    def convert_point(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return an initial point with its values in the types that a trial would get; see `conversion.convert`.

        Args:
            point: Values of some searched parameters, such as `{"lr": 0.1}`.

        Raises:
            ArgumentError: If the point names a parameter that the search does not have.
            OutOfRangeError: If a value lies outside its marker.
        """
        markers = self._markers
        converted = {}
        for name, given in point.items():
            if name not in markers:
                raise unknown_in_point(self.name, name, markers, is_parameter=True)
            value = domain.named(markers[name], given)
            if not domain.contains(markers[name], value):
                raise out_of_range_in_point(self.name, name, markers[name], value)
            converted[name] = markers[name].to_stored(conversion.convert(markers[name], value))
        return converted

    def __getitem__(self, name: str) -> Suggestion:
        return self._markers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._markers)

    def __len__(self) -> int:
        return len(self._markers)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SearchSpace):
            return NotImplemented
        return self._markers == other._markers and self._template == other._template

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        """Return the space as a tree: its parameters, with their markers, fixed values and defaults."""
        branches = [
            parameter_branch(name, value, "fixed" if name in self._bound else "default")
            for name, value in self._template.items()
        ]
        branches += [Branch(f"{name}: needs a value") for name in self.missing]
        return "\n".join(Branch(f"{self.name}: {size_text(self)}", tuple(branches)).lines())

    def _repr_html_(self) -> str:
        """Return the tree as notebooks show it."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self._template.items())
        return f"SearchSpace({inner})"
