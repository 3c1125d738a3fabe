"""Checks the arguments of a call, and spells out those that are objects with searched fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optuna_flyte_dsl._text import did_you_mean, shown
from optuna_flyte_dsl.errors import ArgumentError
from optuna_flyte_dsl.space import conversion, domain
from optuna_flyte_dsl.space.annotations import is_of_type, listed
from optuna_flyte_dsl.space.argument_errors import not_carried, out_of_range, unknown_parameter
from optuna_flyte_dsl.space.containers import copy_containers
from optuna_flyte_dsl.space.declared_parameter import UNDECLARED, Bundle, DeclaredParameter, DeclaredSignature, kinds_of
from optuna_flyte_dsl.space.domain import carries
from optuna_flyte_dsl.space.markers import Category, Fixed, Suggestion, same
from optuna_flyte_dsl.space.suggestion import holds_marker
from optuna_flyte_dsl.space.tree_builder import ChosenLabel


def bind_arguments(
    signature: DeclaredSignature, bound: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the arguments of all calls so far, by the path of a parameter or of a field.

    Args:
        bound: The arguments of earlier calls.
        args: Positional arguments of a call.
        kwargs: Keyword arguments of a call. A name may be a path.

    Raises:
        ArgumentError: If the objective has no such parameter, or a parameter is given twice.
        OutOfRangeError: If a fixed value lies outside its marker.
    """
    objective, paths = signature.objective, signature.paths
    if len(args) > len(signature.parameters):
        raise ArgumentError(
            f"`{objective}` takes {len(signature.parameters)} arguments ({listed(signature.parameters)}), "
            f"but {len(args)} were given by position."
        )
    named = list(zip(signature.parameters, args, strict=False))
    for name, _ in named:
        if name in kwargs:
            raise ArgumentError(f"`{objective}`: `{name}` was given twice, by position and by name. Give it once.")
    result = dict(bound)
    for path, value in sorted([*named, *kwargs.items()], key=lambda each: each[0].count(".")):
        declared = paths.get(path)
        if declared is None and not signature.is_open:
            raise unknown_parameter(objective, path, paths)
        for whole in _paths_above(path):
            is_choice = whole in result and isinstance(result[whole], str | Category)
            if whole in result and whole in paths and not (len(paths[whole].bundles) > 1 and is_choice):
                raise ArgumentError(
                    f"`{objective}`: `{path}` is given, but so is `{whole}` as a whole, which is "
                    f"{shown(result[whole])}. Give one of the two."
                )
        if declared is not None and declared.bundles:
            result.pop(path, None)
            if not isinstance(value, Mapping):
                result = {name: each for name, each in result.items() if not name.startswith(f"{path}.")}
        result.update(accepted(objective, path, declared or UNDECLARED, value, strict=signature.strict))
    return result


def _paths_above(path: str) -> Iterator[str]:
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def accepted(
    objective: str, path: str, declared: DeclaredParameter, value: Any, *, strict: bool
) -> Iterator[tuple[str, Any]]:
    """Yield what a call gives for a parameter, by path: one value, or the values of the fields of a bundle.

    Args:
        objective: The objective's name, for errors.
        path: The path of the parameter or of the field.
        strict: Whether a value must be of its parameter's type: tasks require it.

    Raises:
        ArgumentError: If the value is not of the parameter's type.
        OutOfRangeError: If a value lies outside its marker.
    """
    if isinstance(value, type) and issubclass(value, Suggestion):
        raise ArgumentError(f"`{objective}`: `{path}` got the class {value.__name__}. Call it, with its bounds.")
    if isinstance(value, Fixed):
        if strict and not carries(declared.marker, value.value):
            raise not_carried(objective, path, declared.marker, value.value)
        yield path, conversion.to_float(declared.base, value.value)
    elif value is None and declared.optional:
        yield path, None
    elif declared.bundles:
        yield from _accepted_fields(objective, path, declared, value, strict=strict)
    elif isinstance(value, Suggestion):
        yield path, declared.accept(objective, path, value, is_task=strict)
    elif declared.marker is None:
        if strict and not is_of_type(declared.base, value):
            raise ArgumentError(
                f"`{objective}`: `{path}` must be of type {declared.base.__name__}, as the signature says, but got "
                f"{shown(value)}, of type {type(value).__name__}. Give another value, or change the annotation."
            )
        # The containers are copied, so that the caller cannot change them during the search.
        yield path, conversion.to_float(declared.base, copy_containers(value))
    else:
        if domain.is_composite(declared.marker) and isinstance(declared.marker, Category):
            yield path, _accepted_choice(objective, path, declared, value, strict=strict)
            return
        value = domain.named(declared.marker, value)
        is_template = isinstance(value, list | dict | tuple) and holds_marker(value)
        is_default = declared.condition is not None and same(value, declared.default)
        if is_default:
            yield path, value
            return
        if not domain.contains(declared.marker, value) and not (is_template and domain.is_composite(declared.marker)):
            raise out_of_range(objective, path, declared.marker, declared.base, value)
        yield path, copy_containers(value) if is_template else conversion.convert(declared.marker, value)


def _accepted_choice(
    objective: str, path: str, declared: DeclaredParameter, value: Any, *, strict: bool
) -> ChosenLabel:
    """Return which choice that holds markers a call gives: by its name, by a value, or by a value with suggestions."""
    marker = declared.marker
    assert isinstance(marker, Category)
    if marker.names is not None and isinstance(value, str) and value in marker.names:
        return ChosenLabel(value)
    for label, choice in zip(marker.branch_labels, marker.choices, strict=True):
        if domain.matches(choice, value):
            is_template = holds_marker(value)
            if is_template and strict:
                raise ArgumentError(
                    f"`{objective}`: `{path}` got {shown(value)}, but a task's choices hold the suggestions of its "
                    f"signature: {shown(choice)}. Give values, or the name of a choice."
                )
            return ChosenLabel(label, copy_containers(value))
    raise out_of_range(objective, path, marker, declared.base, value)


def _accepted_fields(
    objective: str, path: str, declared: DeclaredParameter, value: Any, *, strict: bool
) -> Iterator[tuple[str, Any]]:
    bundles = declared.bundles
    if declared.bundle is None:
        label = value.__name__ if isinstance(value, type) else value
        if isinstance(label, str):
            if label not in bundles:
                raise ArgumentError(
                    f"`{objective}`: `{path}` must be one of {listed(bundles)}, but got {shown(value)}."
                    f"{did_you_mean(label, bundles)} Give one of these classes, its name, or an object."
                )
            yield path, label
            return
        if isinstance(value, Category) and not value.holds_markers:
            labels = [each.__name__ if isinstance(each, type) else each for each in value.choices]
            if all(isinstance(each, str) and each in bundles for each in labels):
                yield path, Category(labels, weights=value.weights)
                return
    if isinstance(value, Suggestion):
        kinds = tuple(kinds_of(bundles))
        choices = value.choices if isinstance(value, Category) else ()
        if not choices or not all(isinstance(each, kinds) for each in choices):
            raise ArgumentError(
                f"`{objective}`: `{path}` must be a {' or a '.join(bundles)}, but got the suggestion {shown(value)}. "
                "Give suggestions for its fields."
            )
        yield path, declared.accept(objective, path, value, is_task=strict)
        return
    bundle = next((each for each in bundles.values() if each.type.is_instance(value)), None)
    if bundle is None and isinstance(value, Mapping) and declared.bundle is not None:
        bundle = declared.bundle
        for field in value:
            if field not in bundle.fields:
                raise ArgumentError(
                    f"`{objective}`: `{path}` is a {bundle.name}, which has no field `{field}`; it has "
                    f"{listed(bundle.fields)}.{did_you_mean(str(field), bundle.fields)} Correct the name."
                )
        yield from _each_field(objective, path, declared, bundle, value, strict=strict)
    elif bundle is not None:
        if declared.bundle is None:
            yield path, bundle.name
        yield from _each_field(objective, path, declared, bundle, bundle.type.values_of(value), strict=strict)
    elif any(isinstance(value, each.type.kind) for each in bundles.values() if not _is_dict(each)):
        yield path, value  # an object of a subclass is passed on as it is
    else:
        cure = "a class or its name"
        if declared.bundle is not None:
            field = f"{path}.{next(iter(declared.bundle.fields))}"
            cure = f"a dict of some fields, or one field by its path, as in `**{{{field!r}: ...}}`"
        raise ArgumentError(
            f"`{objective}`: `{path}` must be a {' or a '.join(bundles)}, but got {shown(value)}. "
            f"Give an object, {cure}."
        )


def _is_dict(bundle: Bundle) -> bool:
    return issubclass(bundle.type.kind, dict)


def _each_field(
    objective: str,
    path: str,
    declared: DeclaredParameter,
    bundle: Bundle,
    values: Mapping[str, Any],
    *,
    strict: bool,
) -> Iterator[tuple[str, Any]]:
    for field, value in values.items():
        inner = declared.field_path(path, bundle, field)
        yield from accepted(objective, inner, bundle.fields[field], value, strict=strict)
