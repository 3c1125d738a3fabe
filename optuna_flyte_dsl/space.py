"""The search space: what a signature and a call's arguments leave to be searched.

Pure: it knows neither Flyte nor storages. Data flows from a signature, over the arguments of a call, to the keyword
arguments of one trial.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from numbers import Integral, Real
from typing import Annotated, Any, Union, get_args, get_origin

import optuna
from optuna.distributions import BaseDistribution

from optuna_flyte_dsl.errors import (
    ArgumentError,
    EmptySpaceError,
    InvalidAnnotationError,
    InvalidMarkerError,
    OutOfRangeError,
)
from optuna_flyte_dsl.markers import Category, Fixed, Float, Integer, Suggestion, same
from optuna_flyte_dsl.signatures import read_signature

_EMPTY = inspect.Parameter.empty
_OPTIONS = frozenset({"n_trials", "concurrency", "delay", "study", "sampler", "seed", "direction", "directions"})


@dataclasses.dataclass(frozen=True)
class _Declared:
    """One parameter of the objective, as its signature declares it."""

    marker: Suggestion | None
    base: Any  # the annotation without marker; _EMPTY where there is none
    optional: bool
    default: Any  # _EMPTY where there is none


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SearchSpace(Mapping[str, Suggestion]):
    """The parameters that a search varies, by name, and the fixed arguments beside them.

    A mapping from each searched parameter's name to its marker, in the order of the signature. A parameter inside a
    container has its path for a name: `params.lr`, `params.layers.0`. Spaces are values: `bind` returns a new one.

    >>> def train(lr: Float(1e-5, 1e-1, log=True), depth: Integer(2, 12), dataset: str = "wine") -> float: ...
    >>> space = SearchSpace.of(train)
    >>> dict(space)
    {'lr': Float(1e-05, 0.1, log=True), 'depth': Integer(2, 12)}
    >>> space.bind(depth=3, dataset="digits").contains({"lr": 0.01, "depth": 3, "dataset": "digits"})
    True
    """

    name: str
    _declared: Mapping[str, _Declared]
    _open: bool  # whether the objective takes any keyword
    _strict: bool  # whether a value must be of its parameter's type, as Flyte asks for
    _bound: Mapping[str, Any]  # what the calls gave, by parameter, Fixed taken off

    @classmethod
    def of(cls, objective: Callable[..., Any] | SearchSpace) -> SearchSpace:
        """Return the space of a function, of a decorated objective, or of something that has a `space`.

        Raises:
            InvalidAnnotationError: If a marker stands where it has no meaning.
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
        """Make the space of a signature whose annotations are objects, not strings.

        Args:
            signature: The signature of one trial.
            arguments: Keyword arguments of a call, bound at once.
            name: What error messages call the objective.
            ignore: Parameters that are no arguments of a call, such as `trial`.
            strict: Whether a value must be of its parameter's type, where that is a plain one.
        """
        declared: dict[str, _Declared] = {}
        takes_any = False
        for parameter in signature.parameters.values():
            if parameter.name in ignore or parameter.kind is parameter.VAR_POSITIONAL:
                continue
            if parameter.kind is parameter.VAR_KEYWORD:
                takes_any = True
                continue
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise InvalidAnnotationError(
                    f"`{name}`: the parameter `{parameter.name}` is positional-only, but a trial gets keyword "
                    "arguments. Drop the `/` from the signature."
                )
            declared[parameter.name] = _declare(name, parameter)
        space = cls(name, declared, takes_any, strict, {})
        return space.bind(**arguments) if arguments else space

    def bind(self, /, *args: Any, **kwargs: Any) -> SearchSpace:
        """Return the space with a call's arguments in it.

        A value fixes its parameter, a suggestion takes the place of its marker, and a dict, list or tuple may hold
        suggestions at any depth. `Fixed(value)` passes a value that its marker does not contain.

        Args:
            *args: Values of the first parameters.
            **kwargs: Values by parameter name.

        Raises:
            ArgumentError: If the objective has no such parameter, or one is given twice.
            OutOfRangeError: If a fixed value lies outside its marker.
        """
        if len(args) > len(self._declared):
            raise ArgumentError(
                f"`{self.name}` takes {len(self._declared)} arguments ({_listed(self._declared)}), "
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
                cure = "Correct the name, or add it to the signature"
                if name in _OPTIONS:
                    cure += f"; an option of the search is given to `optimize({name}=...)`, not to the call"
                raise ArgumentError(
                    f"`{self.name}` has no parameter `{name}`; it has {_listed(self._declared) or 'none'}. {cure}."
                )
            declared = _Declared(None, _EMPTY, False, _EMPTY)
        if isinstance(value, type) and issubclass(value, Suggestion):
            raise ArgumentError(f"`{self.name}`: `{name}` got the class {value.__name__}. Call it, with its bounds.")
        if isinstance(value, Fixed):
            return _fit(declared.base, value.value)
        if isinstance(value, Suggestion):
            if (clash := _clash(value, declared.base)) and not (declared.base is float and isinstance(value, Integer)):
                raise ArgumentError(f"`{self.name}`: `{name}` {clash}. Let the two agree.")
            return value
        if declared.marker is None:
            if self._strict and not _is_of(declared.base, value):
                raise ArgumentError(
                    f"`{self.name}`: `{name}` must be of type {declared.base.__name__}, as the signature says, but got "
                    f"{value!r}, of type {type(value).__name__}. Give another value, or change the annotation."
                )
            # A copy of the containers: what the caller does to them later is not seen by the search.
            return _fit(declared.base, _walk(name, value, lambda _, marker: marker))
        if value is None and declared.optional:
            return value
        if not _within(declared.marker, value):
            cure = "Give another value"
            if declared.base is _EMPTY or _is_of(declared.base, value):
                cure += f", or `{name}=Fixed({value!r})` to pass it all the same"
            raise OutOfRangeError(
                f"`{self.name}`: `{name}` must lie within its marker {declared.marker!r}, but got {value!r}. {cure}."
            )
        return _converted(declared.marker, value)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments of a trial, by parameter, with a marker in the place of each searched value."""
        return types.MappingProxyType(self._template)

    @cached_property
    def _template(self) -> dict[str, Any]:
        template: dict[str, Any] = {}
        for name, declared in self._declared.items():
            if name in self._bound:
                template[name] = self._bound[name]
            elif declared.marker is not None:
                template[name] = declared.marker
            elif declared.default is not _EMPTY:
                template[name] = declared.default
        template.update((name, value) for name, value in self._bound.items() if name not in self._declared)
        return template

    @property
    def missing(self) -> tuple[str, ...]:
        """The parameters that neither the signature nor a call gives a value."""
        template = self._template
        return tuple(name for name in self._declared if name not in template)

    def check_ready(self) -> None:
        """Check that a search can start from this space.

        Raises:
            ArgumentError: If an argument is missing.
            EmptySpaceError: If nothing is left to search.
        """
        self.check_complete()
        if not self:
            raise EmptySpaceError(
                f"`{self.name}` has nothing to search: each of its parameters has a fixed value. Give one a marker, "
                f"`x: Float(0, 1)`, or a suggestion, `x=suggest.float(0, 1)`. For one plain run, call "
                f"`{self.name}.task(...)`."
            )

    def check_complete(self) -> None:
        """Check that every argument has a value or a marker.

        Raises:
            ArgumentError: If one has neither.
        """
        if self.missing:
            raise ArgumentError(
                f"`{self.name}` needs a value for {_listed(self.missing)}. Give it at the call, or give the parameter "
                "a default or a marker."
            )

    @cached_property
    def _markers(self) -> dict[str, Suggestion]:
        markers: dict[str, Suggestion] = {}

        def note(name: str, marker: Suggestion) -> None:
            if name in markers:
                raise ArgumentError(
                    f"`{self.name}`: two suggestions have the name `{name}`. The names inside a container are joined "
                    "by `.`; rename a key."
                )
            markers[name] = marker

        for name, value in self._template.items():
            _walk(name, value, note)
        return markers

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the Optuna distribution of each searched parameter, by name."""
        return {name: marker.to_distribution() for name, marker in self.items()}

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Return one trial's keyword arguments: the fixed ones, and those that the trial suggests.

        Containers are built anew for each trial; the caller's stay as they are.

        Args:
            trial: The trial that chooses the values.
        """
        return self.fill(lambda name, marker: _suggest(trial, name, marker))

    def fill(self, choose: Callable[[str, Suggestion], Any]) -> dict[str, Any]:
        """Return keyword arguments in which each marker is replaced by what `choose(name, marker)` returns."""
        return {name: _fit(self._base(name), _walk(name, value, choose)) for name, value in self._template.items()}

    def _base(self, name: str) -> Any:
        declared = self._declared.get(name)
        return _EMPTY if declared is None else declared.base

    def contains(self, kwargs: Mapping[str, Any]) -> bool:
        """Tell whether keyword arguments are a point of this space.

        They are if each searched parameter lies within its marker (on the grid of its step), each fixed one equals its
        value, and there are no others.

        Args:
            kwargs: The keyword arguments of one trial.
        """
        template = self._template
        return template.keys() == kwargs.keys() and all(
            _matches(value, kwargs[name]) for name, value in template.items()
        )

    def check_point(self, point: Mapping[str, Any]) -> None:
        """Check an initial point as far as the signature tells: a call may bring suggestions of its own.

        Args:
            point: The values, such as `{"lr": 0.1}`.

        Raises:
            ArgumentError: If there is no such parameter.
            OutOfRangeError: If a value lies outside the marker of the signature, and no call could change that.
        """
        for name in point:
            if name.split(".", 1)[0] not in self._declared and not self._open:
                raise ArgumentError(
                    f"`{self.name}` has no parameter `{name}`, named in an initial point; it has "
                    f"{_listed(self._declared) or 'none'}. Correct the name, or leave it out of the point."
                )

    def point(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the searched values, by name, in one trial's keyword arguments: `suggest` the other way round.

        Args:
            kwargs: The keyword arguments of a trial, or some of them.

        >>> SearchSpace.of(lambda x, y: x).bind(x=Float(0, 1), y=[Integer(1, 9), 3]).point({"x": 0.5, "y": [4, 3]})
        {'x': 0.5, 'y.0': 4}
        """
        values: dict[str, Any] = {}

        def note(template: Any, value: Any, name: str) -> None:
            if isinstance(template, Suggestion):
                values[name] = _converted(template, value)
            elif isinstance(template, dict):
                for key, inner in template.items():
                    note(inner, value[key], f"{name}.{key}")
            elif isinstance(template, list | tuple):
                for index, inner in enumerate(template):
                    note(inner, value[index], f"{name}.{index}")

        for name, value in kwargs.items():
            if name in self._template:
                note(self._template[name], value, name)
        return values

    def convert_point(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return values for some of the searched parameters, by name, as their markers give them.

        Args:
            point: The values, such as `{"lr": 0.1}`.

        Raises:
            ArgumentError: If there is no such parameter.
            OutOfRangeError: If a value lies outside.
        """
        markers = self._markers
        for name, value in point.items():
            if name not in markers:
                raise ArgumentError(
                    f"`{self.name}` does not search `{name}`, named in an initial point; it searches "
                    f"{_listed(markers)}. Correct the name, or leave it out of the point."
                )
            if not _within(markers[name], value):
                raise OutOfRangeError(
                    f"`{self.name}`: `{name}` of an initial point must lie within {markers[name]!r}, but got "
                    f"{value!r}. Give another value, or leave it out of the point."
                )
        return {name: _converted(markers[name], value) for name, value in point.items()}

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

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self._template.items())
        return f"SearchSpace({inner})"


def _declare(objective: str, parameter: inspect.Parameter) -> _Declared:
    where = f"`{objective}`: the annotation of `{parameter.name}`"
    marker, base, optional = _read_annotation(where, parameter.annotation)
    fine = parameter.default is _EMPTY or (parameter.default is None and optional)
    if marker is not None and not fine and not _within(marker, parameter.default):
        raise InvalidMarkerError(
            f"`{objective}`: the default of `{parameter.name}` must lie within its marker {marker!r}, "
            f"but got {parameter.default!r}. Change the default, or widen the marker."
        )
    return _Declared(marker, base, optional, parameter.default)


def _read_annotation(where: str, annotation: Any) -> tuple[Suggestion | None, Any, bool]:
    """Return an annotation's marker, the type beside it, and whether it takes None."""
    if isinstance(annotation, type) and issubclass(annotation, Suggestion):
        raise InvalidAnnotationError(
            f"{where} is the class {annotation.__name__}. Call it, with its bounds: `{_example(annotation)}`."
        )
    if isinstance(annotation, Suggestion):
        return annotation, _base_of(annotation), False
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *extras = get_args(annotation)
        marker, base, optional = _read_annotation(where, base)
        found = [extra for extra in extras if isinstance(extra, Suggestion)]
        found += [marker] if marker is not None else []
        for extra in extras:
            if isinstance(extra, type) and issubclass(extra, Suggestion):
                raise InvalidAnnotationError(
                    f"{where} holds the class {extra.__name__}. Call it, with its bounds: `{_example(extra)}`."
                )
        if len(found) > 1:
            raise InvalidAnnotationError(f"{where} holds {len(found)} markers: {_listed(map(repr, found))}. Keep one.")
        if found:
            _check_base(where, found[0], base)
        return (found[0] if found else None), base, optional
    if origin in (Union, types.UnionType):
        read = [_read_annotation(where, argument) for argument in get_args(annotation)]
        found = [marker for marker, _, _ in read if marker is not None]
        if len(found) > 1:
            raise InvalidAnnotationError(f"{where} holds {len(found)} markers: {_listed(map(repr, found))}. Keep one.")
        optional = type(None) in get_args(annotation)
        bases = tuple(base for _, base, _ in read)
        return (found[0] if found else None), Union[bases], optional  # noqa: UP007 - the members are known at run time only
    for argument in get_args(annotation):
        if not isinstance(argument, list) and _holds_marker(argument):
            raise InvalidAnnotationError(
                f"{where} holds a marker inside {origin!r}, where it has no meaning. Give the suggestion at the call, "
                f"inside the container, as in `params={{'lr': suggest.float(0, 1)}}`."
            )
    return None, annotation, annotation is None


def _holds_marker(annotation: Any) -> bool:
    if isinstance(annotation, Suggestion):
        return True
    return any(_holds_marker(argument) for argument in get_args(annotation) if get_origin(annotation) is not None)


def _example(marker: type[Suggestion]) -> str:
    return 'Category(["a", "b"])' if marker is Category else f"{marker.__name__}(0, 1)"


def _base_of(marker: Suggestion) -> Any:
    if isinstance(marker, Float):
        return float
    return int if isinstance(marker, Integer) else _EMPTY


def _check_base(where: str, marker: Suggestion, base: Any) -> None:
    if clash := _clash(marker, base):
        raise InvalidAnnotationError(f"{where} {clash}. Let the two agree.")


def _clash(marker: Suggestion, base: Any) -> str | None:
    """Say how the values of a marker are none of the type it stands for, as far as plain types tell."""
    allowed = get_args(base) if get_origin(base) in (Union, types.UnionType) else (base,)
    plain = {bool, int, float, str, type(None)}
    if not set(allowed) <= plain:
        return None
    if isinstance(marker, Category):
        wrong = [choice for choice in marker.choices if type(choice) in plain and type(choice) not in allowed]
        if wrong and not (float in allowed and all(type(choice) is int for choice in wrong)):
            return f"says {_type_name(base)}, but {marker!r} holds {wrong[0]!r}"
        return None
    kind, article = (float, "a float") if isinstance(marker, Float) else (int, "an int")
    return None if kind in allowed else f"says {_type_name(base)}, but {marker!r} gives {article}"


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _walk(name: str, value: Any, visit: Callable[[str, Suggestion], Any]) -> Any:
    """Copy a value, its containers made anew, with `visit(name, marker)` in the place of each marker."""
    if isinstance(value, Suggestion):
        return visit(name, value)
    if isinstance(value, Fixed):
        return value.value
    if isinstance(value, dict):
        filled = {key: _walk(f"{name}.{key}", inner, visit) for key, inner in value.items()}
        if type(value) is dict:
            return filled
        copied = copy.copy(value)  # an OrderedDict, a defaultdict
        copied.update(filled)
        return copied
    if type(value) is list:
        return [_walk(f"{name}.{index}", inner, visit) for index, inner in enumerate(value)]
    if isinstance(value, tuple):
        inner = [_walk(f"{name}.{index}", item, visit) for index, item in enumerate(value)]
        if hasattr(value, "_fields"):
            return type(value)(*inner)
        return tuple(inner) if type(value) is tuple else value
    if _hides_suggestion(value):
        raise ArgumentError(
            f"`{name}` holds a suggestion inside a {type(value).__name__}, where it cannot be replaced by a value. "
            "Put it into a dict, a list or a tuple."
        )
    return value


def _hides_suggestion(value: Any) -> bool:
    if isinstance(value, set | frozenset):
        return any(isinstance(item, Suggestion) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(isinstance(getattr(value, field.name, None), Suggestion) for field in dataclasses.fields(value))
    return False


def _suggest(trial: optuna.trial.BaseTrial, name: str, marker: Suggestion) -> Any:
    match marker:
        case Float():
            # An enqueued int comes as it is.
            return float(trial.suggest_float(name, marker.low, marker.high, step=marker.step, log=marker.log))
        case Integer():
            return trial.suggest_int(name, marker.low, marker.high, step=marker.step, log=marker.log)
        case Category():
            return trial.suggest_categorical(name, marker.choices)
    raise ArgumentError(f"`{name}`: {marker!r} is no marker of this library. Use Float, Integer or Category.")


def _within(marker: Suggestion, value: Any) -> bool:
    """Tell whether a value is one that a marker can give."""
    if isinstance(marker, Category):
        return any(_is_choice(value, choice) for choice in marker.choices)
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    if isinstance(marker, Integer):
        number = int(value) if isinstance(value, Integral) else float(value)
        return marker.low <= number <= marker.high and (number - marker.low) % marker.step == 0
    assert isinstance(marker, Float)
    if not marker.low <= float(value) <= marker.high:
        return False
    if marker.step is None:
        return True
    steps = (float(value) - marker.low) / marker.step
    # Optuna's own tolerance, and what rounding does to numbers far greater than the step.
    rounding = 4 * math.ulp(max(abs(marker.low), abs(marker.high))) / marker.step
    return abs(steps - round(steps)) < 1e-8 + rounding


def _converted(marker: Suggestion, value: Any) -> Any:
    if isinstance(marker, Float):
        return float(value)
    if isinstance(marker, Integer):
        return int(value)
    assert isinstance(marker, Category)
    return next(choice for choice in marker.choices if _is_choice(value, choice))


def _is_choice(value: Any, choice: Any) -> bool:
    return isinstance(value, bool) == isinstance(choice, bool) and same(value, choice)


def _is_of(base: Any, value: Any) -> bool:
    """Tell whether flytekit takes a value for a parameter, as far as plain types tell; it converts none."""
    if base is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    if base in (int, str, bool):
        return type(value) is base or (base is str and isinstance(value, str))
    return True


def _fit(base: Any, value: Any) -> Any:
    """Make an int a float where the signature says float: flytekit converts none."""
    if base is float and isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    return value


def _matches(template: Any, value: Any) -> bool:
    if isinstance(template, Suggestion):
        return _within(template, value)
    if isinstance(template, dict):
        return (
            isinstance(value, dict)
            and template.keys() == value.keys()
            and all(_matches(inner, value[key]) for key, inner in template.items())
        )
    if type(template) is list or isinstance(template, tuple):
        return (
            isinstance(value, type(template))
            and len(template) == len(value)
            and all(_matches(inner, item) for inner, item in zip(template, value, strict=True))
        )
    return template is value or same(template, value)


def _listed(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)
