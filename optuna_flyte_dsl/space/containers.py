"""Suggestions inside containers: dicts, lists and tuples that a call passes, with markers among their items.

The name of a nested parameter is its path, joined by dots: `params.lr`, `params.layers.0`.
"""

import collections
import copy
import dataclasses
import types
from collections.abc import Callable
from typing import Any

from optuna_flyte_dsl.errors import ArgumentError
from optuna_flyte_dsl.space import conversion, domain
from optuna_flyte_dsl.space.markers import Fixed, Suggestion, same

_ATOMS = frozenset({bool, int, float, str, bytes, type(None)})
"""The types of values that hold no other values."""


def replace_markers(name: str, value: Any, replace: Callable[[str, Suggestion], Any]) -> Any:
    """Copy a value; in its dicts, lists and tuples, replace each marker by `replace(path, marker)`."""
    if type(value) in _ATOMS:  # most values: nothing is to be looked for
        return value
    if isinstance(value, Suggestion):
        return replace(name, value)
    if isinstance(value, Fixed):
        return value.value
    if isinstance(value, dict):
        items = {key: replace_markers(f"{name}.{key}", inner, replace) for key, inner in value.items()}
        if type(value) is dict:
            return items
        copied = copy.copy(value)  # a subclass, such as OrderedDict or defaultdict
        for key, item in items.items():  # not by `update`, which adds counts in a Counter
            copied[key] = item
        return copied
    if type(value) is list:
        return [replace_markers(f"{name}.{index}", inner, replace) for index, inner in enumerate(value)]
    if isinstance(value, tuple):
        inner = [replace_markers(f"{name}.{index}", item, replace) for index, item in enumerate(value)]
        if hasattr(value, "_fields"):
            return type(value)(*inner)
        if type(value) is tuple:
            return tuple(inner)
    if _hides_marker(value):
        raise ArgumentError(
            f"`{name}` holds a suggestion inside a {type(value).__name__}, where it cannot be replaced by a value. "
            "Put it into a dict, a list or a tuple: where a task's parameter is a dataclass, flytekit makes the "
            "dataclass of a dict."
        )
    return set(value) if type(value) is set else value


def copy_containers(value: Any) -> Any:
    """Copy the dicts, lists, tuples and sets of a value, at any depth."""
    return replace_markers("", value, lambda _, marker: marker)


def searched_values(name: str, template: Any, value: Any) -> dict[str, Any]:
    """Return, by path, the items of `value` that stand where `template` has a marker."""
    if isinstance(template, Suggestion):
        return {name: template.to_stored(conversion.convert(template, value))}
    found: dict[str, Any] = {}
    if isinstance(template, dict | list | tuple):
        for key, inner in template.items() if isinstance(template, dict) else enumerate(template):
            found |= searched_values(f"{name}.{key}", inner, value[key])
    return found


def matches(template: Any, value: Any) -> bool:
    """Return whether a value is a template with each marker replaced by one of the marker's values."""
    if isinstance(template, Suggestion):
        return domain.contains(template, value)
    if isinstance(template, dict):
        return (
            isinstance(value, dict)
            and template.keys() == value.keys()
            and all(matches(inner, value[key]) for key, inner in template.items())
        )
    if type(template) is list or isinstance(template, tuple):
        return (
            isinstance(value, type(template))
            and len(template) == len(value)
            and all(matches(inner, item) for inner, item in zip(template, value, strict=True))
        )
    return template is value or same(template, value)


def _hides_marker(value: Any) -> bool:
    """Return whether a value that is not copied holds a marker, at any depth."""
    if isinstance(value, Suggestion):
        return True
    if isinstance(value, collections.UserDict | types.MappingProxyType | dict):
        return any(map(_hides_marker, value.values()))
    if isinstance(value, set | frozenset | collections.deque | collections.UserList | list | tuple):
        return any(map(_hides_marker, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(_hides_marker(getattr(value, field.name, None)) for field in dataclasses.fields(value))
    return False
