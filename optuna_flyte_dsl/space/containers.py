"""Containers of values: dicts, lists and tuples that a call passes, with markers among their items."""

import copy
from collections.abc import Mapping
from typing import Any

from optuna_flyte_dsl.space.markers import Fixed

_ATOMS = frozenset({bool, int, float, str, bytes, type(None)})
"""The types of values that hold no other values."""


def items_of(value: Any) -> Mapping[Any, Any] | None:
    """Return the items of a container that can be copied with other items, by key or index; `None` for other values."""
    if type(value) in _ATOMS:  # most values: nothing is to be looked for
        return None
    if isinstance(value, dict):
        return value
    if type(value) in (list, tuple) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        return dict(enumerate(value))
    return None


def rebuilt(value: Any, items: Mapping[Any, Any]) -> Any:
    """Return a copy of a container with other items."""
    if type(value) is dict:
        return dict(items)
    if isinstance(value, dict):  # a subclass, such as OrderedDict or defaultdict
        copied = copy.copy(value)
        for key, item in items.items():  # not by `update`, which adds counts in a Counter
            copied[key] = item
        return copied
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*items.values())
    return type(value)(items.values())


def copy_containers(value: Any) -> Any:
    """Copy the dicts, lists, tuples and sets of a value, at any depth, with the values of each `Fixed`."""
    if type(value) in _ATOMS:
        return value
    if isinstance(value, Fixed):
        return value.value
    items = items_of(value)
    if items is None:
        return set(value) if type(value) is set else value
    return rebuilt(value, {key: copy_containers(item) for key, item in items.items()})
