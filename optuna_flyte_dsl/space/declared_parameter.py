"""What a signature declares: its parameters, and the fields of the classes that are their types."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import Any, Union, get_args, get_origin

from optuna_flyte_dsl._record import record
from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import ArgumentError, InvalidAnnotationError, InvalidMarkerError
from optuna_flyte_dsl.space import domain
from optuna_flyte_dsl.space.annotations import (
    NO_TYPE,
    check_default,
    listed,
    names_marker,
    place_of_annotation,
    positional_only,
    read_annotation,
    type_clash,
)
from optuna_flyte_dsl.space.argument_errors import not_carried, unknown_in_point
from optuna_flyte_dsl.space.completion import completed
from optuna_flyte_dsl.space.conditions import Condition
from optuna_flyte_dsl.space.markers import Category, Integer, Suggestion
from optuna_flyte_dsl.space.records import MadeAnew, TypeWithFields, fields_of
from optuna_flyte_dsl.space.suggestion import holds_marker

_EMPTY = inspect.Parameter.empty


@record
class DeclaredParameter:
    """One parameter of the objective, or one field of a bundle, as it is declared."""

    marker: Suggestion | None
    base: Any  # the type beside the marker; NO_TYPE if the annotation names no type
    optional: bool  # whether None is accepted
    default: Any  # the default; `inspect.Parameter.empty` without a default
    metadata: tuple[Any, ...] = ()  # what stands beside the type: constraints of a number, and others
    condition: Condition | None = None  # when the parameter is active; `None` if it always is
    bundles: Mapping[str, Bundle] = dataclasses.field(default_factory=dict)  # by class name: several are a choice

    @property
    def is_searched(self) -> bool:
        """Whether the annotation leaves something to the search."""
        return self.marker is not None or bool(self.bundles)

    @property
    def bundle(self) -> Bundle | None:
        """The class whose fields are searched; `None` if there is none, or a choice of several."""
        return next(iter(self.bundles.values())) if len(self.bundles) == 1 else None

    @property
    def has_default(self) -> bool:
        """Whether the parameter may be left out."""
        return self.default is not _EMPTY

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

    def paths(self, name: str) -> Iterator[tuple[str, DeclaredParameter]]:
        """Yield this parameter and all fields below it, with their paths.

        Args:
            name: The path of this parameter.
        """
        yield name, self
        for bundle in self.bundles.values():
            for field, declared in bundle.fields.items():
                yield from declared.paths(self.field_path(name, bundle, field))

    def replaced(self, name: str, path: str, replacement: DeclaredParameter) -> DeclaredParameter:
        """Return this parameter with another declaration of itself, or of a field below it.

        Args:
            name: The path of this parameter.
            path: The path of what is replaced.
        """
        if name == path:
            return replacement
        bundles = dict(self.bundles)
        for label, bundle in self.bundles.items():
            fields = {
                field: each.replaced(self.field_path(name, bundle, field), path, replacement)
                for field, each in bundle.fields.items()
            }
            bundles[label] = dataclasses.replace(bundle, fields=fields)
        return dataclasses.replace(self, bundles=bundles)

    def field_path(self, name: str, bundle: Bundle, field: str) -> str:
        """Return the path of a field of one of this parameter's bundles: `config.lr`; `model.SVM.C` in a choice."""
        return f"{name}.{field}" if len(self.bundles) == 1 else f"{name}.{bundle.name}.{field}"


UNDECLARED = DeclaredParameter(None, NO_TYPE, False, _EMPTY)
"""A parameter that `**kwargs` takes."""


@record
class Bundle:
    """A class with searched fields: a dataclass, a pydantic model, a NamedTuple or a TypedDict."""

    type: TypeWithFields
    fields: Mapping[str, DeclaredParameter]

    @cached_property
    def name(self) -> str:
        """The name of the class."""
        return str(self.type.kind.__name__)

    @property
    def is_searched(self) -> bool:
        """Whether a field leaves something to the search."""
        return any(field.is_searched for field in self.fields.values())


@record
class DeclaredSignature:
    """The parameters of an objective.

    Attributes:
        objective: The objective's name.
        is_open: Whether the objective takes `**kwargs`.
        strict: Whether a value must be of its parameter's type: tasks require it.
    """

    objective: str
    parameters: Mapping[str, DeclaredParameter]
    is_open: bool
    strict: bool

    @cached_property
    def paths(self) -> Mapping[str, DeclaredParameter]:
        """Every parameter, and every field below it, by path."""
        return dict(path for name, declared in self.parameters.items() for path in declared.paths(name))

    def replaced(self, path: str, annotation: Any) -> DeclaredSignature:
        """Return a signature in which a parameter or a field has another annotation.

        Raises:
            ArgumentError: If the annotation's values are not of the parameter's type.
            InvalidAnnotationError: If the annotation has no marker.
        """
        before = self.paths[path]
        where = place_of_annotation(self.objective, path)
        marker, _, _, _, condition = read_annotation(where, annotation)
        if marker is None:
            raise InvalidAnnotationError(f"{where} must hold a marker, but got {shown(annotation)}.")
        after = dataclasses.replace(
            before,
            marker=before.accept(self.objective, path, marker, is_task=self.strict),
            condition=before.condition if condition is None else condition,
            bundles={},
        )
        parameters = {name: each.replaced(name, path, after) for name, each in self.parameters.items()}
        return dataclasses.replace(self, parameters=parameters)

    def check_point(self, point: Iterable[str]) -> None:
        """Check the names in an initial point.

        Raises:
            ArgumentError: If the objective has no such parameter.
        """
        for name in point:
            root = name.split(".", 1)[0]  # what is below a container is known at the call only
            has_fields = bool(self.parameters.get(root, UNDECLARED).bundles)
            known = self.paths if has_fields else self.parameters
            if not self.is_open and (name if has_fields else root) not in known:
                raise unknown_in_point(self.objective, name, known)


def declare_signature(
    signature: inspect.Signature, objective: str, *, ignore: AbstractSet[str], strict: bool
) -> DeclaredSignature:
    """Read the parameters of an objective.

    Args:
        objective: The objective's name, for errors.
        ignore: Parameters that a call does not give, such as `trial`.
        strict: Whether a value must be of its parameter's type: tasks require it.
    """
    declared: dict[str, DeclaredParameter] = {}
    is_open = False
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) and names_marker(parameter.annotation):
            name = str(parameter).partition(":")[0]
            raise InvalidAnnotationError(
                f"`{objective}`: `{name}` has a marker, but a search does not know which arguments it stands for. Give "
                "each parameter a name and a marker, as in `x: Float(0, 1)`, or write a list, as in "
                "`x: Float(0, 1) * 3`."
            )
        if parameter.name in ignore or parameter.kind is parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is parameter.VAR_KEYWORD:
            is_open = True
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InvalidAnnotationError(positional_only(objective, parameter.name))
        declared[parameter.name] = declare(objective, parameter, strict=strict)
    return DeclaredSignature(objective, declared, is_open, strict)


def declare(
    objective: str, parameter: inspect.Parameter, *, strict: bool = False, inside: str = "", above: tuple[Any, ...] = ()
) -> DeclaredParameter:
    """Read a parameter of an objective's signature, or a field of a bundle.

    Args:
        objective: The objective's name, for errors.
        strict: Whether a value must be of its parameter's type: tasks require it.
        inside: The path of what has the field, with a dot behind it; empty for a parameter.
        above: The classes that have the field. A class inside itself is not searched.

    Raises:
        InvalidAnnotationError: If a marker is used in a way that has no meaning.
        InvalidMarkerError: If the default lies outside the marker.
    """
    path = f"{inside}{parameter.name}"
    where = place_of_annotation(objective, path)
    marker, base, optional, metadata, condition = read_annotation(where, parameter.annotation)
    check_default(f"`{objective}`", parameter)
    bundles = {} if marker is not None else _bundles_in(objective, path, base, strict=strict, above=above)
    default = parameter.default
    if condition is not None:
        if marker is None and not bundles:
            raise InvalidAnnotationError(
                f"{where} holds the condition {condition!r}, but no marker that it belongs to. Write "
                f"`Annotated[float, Float(0, 1), {condition!r}]`."
            )
        if strict and (default is _EMPTY or default is None) and not optional:
            is_none = default is None
            lack = "the default None, which is not of its type" if is_none else "no default"
            cure = "Give it another one" if is_none else "Give it one"
            raise InvalidAnnotationError(
                f"`{objective}`: `{path}` gets its default where {condition.in_words()} is not true, but has {lack}. "
                f"{cure}, or write `{parameter.name}: Annotated[... | None, ...]`."
            )
    if bundles:
        _check_default_object(objective, path, default, bundles, is_optional=optional or condition is not None)
    accepted = default is _EMPTY or isinstance(default, MadeAnew) or (default is None and optional)
    if marker is not None and condition is None and not accepted and not domain.contains(marker, default):
        raise InvalidMarkerError(
            f"`{objective}`: the default of `{path}` must lie within its marker {shown(marker)}, "
            f"but got {shown(default)}. Change the default, or widen the marker."
        )
    return DeclaredParameter(marker, base, optional, default, metadata, condition, bundles)


def _check_default_object(
    objective: str, path: str, default: Any, bundles: Mapping[str, Bundle], *, is_optional: bool
) -> None:
    """Check the default of a parameter whose class has searched fields."""
    if default is _EMPTY or isinstance(default, MadeAnew) or (default is None and is_optional):
        return
    if not any(isinstance(default, dict if issubclass(kind, dict) else kind) for kind in kinds_of(bundles)):
        raise InvalidMarkerError(
            f"`{objective}`: the default of `{path}` must be a {' or a '.join(bundles)}, but got {shown(default)}."
        )
    if holds_marker(default):
        raise InvalidMarkerError(
            f"`{objective}`: the default of `{path}` holds a suggestion, {shown(default)}, but a call gives "
            "suggestions. Mark the field of the class, or leave the default out."
        )


def kinds_of(bundles: Mapping[str, Bundle]) -> list[type]:
    """Return the classes of bundles."""
    return [bundle.type.kind for bundle in bundles.values()]


def bundles_of(annotation: Any) -> Mapping[str, Bundle]:
    """Return the classes with searched fields that a type is a choice of, by name; none if nothing is searched.

    Raises:
        InvalidAnnotationError: If the type mixes such classes with others.
    """
    read = read_annotation("An annotation", annotation)
    return _bundles_in("An objective", "parameter", read.base, strict=False, above=()) if read.marker is None else {}


def declare_bundle(objective: str, path: str, kind: Any) -> Bundle:
    """Read the fields of a class.

    Args:
        objective: The objective's name, for errors.
        path: The path of the parameter that has the class.
        kind: A class with fields; see `fields_of`.
    """
    fields = fields_of(kind)
    assert fields is not None
    return _bundle(objective, f"{path}.", fields, strict=False, above=())


def _bundle(objective: str, inside: str, fields: TypeWithFields, *, strict: bool, above: tuple[Any, ...]) -> Bundle:
    declared = {
        field.name: declare(objective, field, strict=strict, inside=inside, above=(*above, fields.kind))
        for field in fields.fields.values()
    }
    return Bundle(fields, declared)


def _bundles_in(objective: str, path: str, base: Any, *, strict: bool, above: tuple[Any, ...]) -> Mapping[str, Bundle]:
    """Return the classes with searched fields that a type is a choice of, by name; none if nothing is searched."""
    is_union = get_origin(base) in (Union, types.UnionType)
    members = [each for each in get_args(base) if each is not type(None)] if is_union else [base]
    found = [(each, fields) for each in members if (fields := fields_of(each)) is not None and each not in above]
    if not found:
        return {}
    bundles: dict[str, Bundle] = {}
    for kind, fields in found:
        name = kind.__name__
        inside = f"{path}." if len(members) == 1 else f"{path}.{name}."
        if name in bundles:
            raise InvalidAnnotationError(
                f"`{objective}`: two of the classes of `{path}` are called `{name}`, so a trial could not tell which "
                "one it has. Rename one."
            )
        bundles[name] = _bundle(objective, inside, fields, strict=strict, above=above)
    if not any(bundle.is_searched for bundle in bundles.values()):
        return {}
    dicts = [name for name, bundle in bundles.items() if issubclass(bundle.type.kind, dict)]
    if len(dicts) > 1:
        raise InvalidAnnotationError(
            f"{place_of_annotation(objective, path)} is a choice between the TypedDicts {listed(dicts)}, whose "
            "objects are dicts that do not tell which one they are. Make them dataclasses."
        )
    tuples = [name for name, bundle in bundles.items() if issubclass(bundle.type.kind, tuple)]
    if strict and tuples:
        raise InvalidAnnotationError(
            f"`{objective}`: `{path}` is the NamedTuple `{tuples[0]}`, but Flyte takes no tuple for a parameter of a "
            "task. Make it a dataclass."
        )
    if len(found) < len(members):
        other = next(each for each in members if all(each is not kind for kind, _ in found))
        raise InvalidAnnotationError(
            f"{place_of_annotation(objective, path)} is a choice between {listed(bundles)} and {shown(other)}, "
            "which has no fields. Make each member of the union a dataclass, or search them by the parameter's marker."
        )
    return bundles
