"""The errors of calls whose arguments do not fit the objective: each names the parameter, and what to write."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from optuna.distributions import BaseDistribution

from optuna_flyte_dsl._text import did_you_mean, nearest, shown
from optuna_flyte_dsl.errors import ArgumentError, EmptySpaceError, OutOfRangeError
from optuna_flyte_dsl.space.annotations import is_of_type, listed
from optuna_flyte_dsl.space.conditions import Condition
from optuna_flyte_dsl.space.markers import Category, Suggestion

_SUGGESTIONS = {
    int: "suggest.integer(0, 10)",
    float: "suggest.float(0, 1)",
    str: 'suggest.category(["a", "b"])',
    bool: "suggest.category([True, False])",
    inspect.Parameter.empty: "suggest.float(0, 1)",
}
"""An example of a suggestion for each type that Optuna can search."""


def unknown_parameter(objective: str, name: str, known: Collection[str], cure: str = "") -> ArgumentError:
    """Return the error for an argument that the objective does not take.

    Args:
        cure: What else the user may have meant, as a clause.
    """
    return ArgumentError(
        f"`{objective}` has no parameter `{name}`; it has {listed(known) or 'none'}.{did_you_mean(name, known)} "
        f"Correct the name, or add it to the signature{cure and f'; {cure}'}."
    )


def unknown_in_point(objective: str, name: str, known: Collection[str], *, is_parameter: bool = False) -> ArgumentError:
    """Return the error for a name in an initial point that the search does not have.

    Args:
        known: The names that an initial point may have.
        is_parameter: Whether the objective has such a parameter, which is not searched.
    """
    lacks, has = ("does not search", "searches") if is_parameter else ("has no parameter", "has")
    return ArgumentError(
        f"`{objective}` {lacks} `{name}`, named in an initial point; it {has} {listed(known) or 'none'}."
        f"{did_you_mean(name, known)} Correct the name, or leave it out of the point."
    )


def missing_values(objective: str, missing: Mapping[str, Any]) -> ArgumentError:
    """Return the error for parameters that have neither a value nor a marker.

    Args:
        missing: The type of each parameter, by name.
    """
    first, base = next(iter(missing.items()))
    if first == "self":
        return ArgumentError(
            f"`{objective}` needs a value for `self`: it is a method. Decorate a function that is no method, and pass "
            "what it needs as an argument."
        )
    cure, example = "", _SUGGESTIONS.get(base)
    if example is not None:
        cure = f", or a suggestion, `{_as_argument(first, example)}`; or give the parameter a default or a marker"
    return ArgumentError(f"`{objective}` needs a value for {listed(missing)}. Give a value at the call{cure}.")


def nothing_to_search(objective: str, fixed: Collection[str]) -> EmptySpaceError:
    """Return the error for a call that leaves nothing to search.

    Args:
        fixed: The parameters that have a marker, which the call fixes.
    """
    if fixed:
        return EmptySpaceError(
            f"`{objective}` has nothing to search: the call fixes {listed(fixed)}. Leave one of them to the search; "
            f"for one plain run, call `{objective}.task(...)`."
        )
    return EmptySpaceError(
        f"`{objective}` has nothing to search: no parameter has a marker or a suggestion. Give one a marker, "
        f"`x: Float(0, 1)`, or a suggestion, `x=suggest.float(0, 1)`; for one plain run, call `{objective}.task(...)`. "
        "A function without `@fl.task` may suggest its parameters by `trial`."
    )


def out_of_range(objective: str, name: str, marker: Suggestion, base: Any, value: Any) -> OutOfRangeError:
    """Return the error for a fixed value that lies outside its parameter's marker."""
    cure = "Give another value"
    if isinstance(value, list | tuple | set):
        cure = f"To search other values, give a suggestion, `{_as_argument(name, 'suggest.category([...])')}`"
    elif isinstance(value, BaseDistribution | range):
        example = _SUGGESTIONS.get(base, "suggest.float(0, 1)")
        cure = f"To search other values, give a suggestion, `{_as_argument(name, example)}`"
    elif is_of_type(base, value):
        cure += f", or `{_as_argument(name, f'Fixed({shown(value)})')}` to pass it all the same"
    kind = f", of type {type(value).__name__}" if not is_of_type(base, value) else ""
    return OutOfRangeError(
        f"`{objective}`: `{name}` must lie within its marker {shown(marker)}, but got {shown(value)}{kind}."
        f"{_choice_meant(marker, value)} {cure}."
    )


def out_of_range_in_point(objective: str, name: str, marker: Suggestion, value: Any) -> OutOfRangeError:
    """Return the error for a value of an initial point that lies outside its parameter's marker."""
    cure = "Give another value, or leave it out of the point"
    if isinstance(marker, Category) and marker != marker.stored:
        cure += ". Of what a trial has stored, `space.values_of(trial.params)` makes the values"
    return OutOfRangeError(
        f"`{objective}`: `{name}` of an initial point must lie within {shown(marker)}, but got {shown(value)}."
        f"{_choice_meant(marker, value)} {cure}."
    )


def unlike_in_point(
    objective: str, name: str, marker: Suggestion | None, paths: Collection[str], value: Any
) -> OutOfRangeError:
    """Return the error for an argument of an initial point that no trial can get.

    Args:
        marker: The marker of the choice, if the argument is one of several; else `None`.
        paths: The paths of what is searched inside of the argument.
    """
    if isinstance(marker, Category) and (isinstance(value, str | type) or not paths):
        return out_of_range_in_point(objective, name, marker, value)
    choices = f", one of {listed(list(map(str, marker.choices)))}" if isinstance(marker, Category) else ""
    return OutOfRangeError(
        f"`{objective}`: `{name}` of an initial point must be an argument that a trial can get{choices}, but got "
        f"{shown(value)}. Give another one, or its values by their paths: {listed(paths)}."
    )


def inactive_in_point(objective: str, name: str, value: Any, condition: Condition) -> OutOfRangeError:
    """Return the error for a value of an initial point whose parameter is not active in a trial with that point."""
    return OutOfRangeError(
        f"`{objective}`: `{name}` of an initial point got {shown(value)}, but is searched only in trials with "
        f"{condition.in_words()}. Leave it out of the point, or at its default."
    )


def not_carried(objective: str, name: str, marker: Suggestion | None, value: Any) -> OutOfRangeError:
    """Return the error for a value that Flyte cannot carry, because the parameter's choices have names."""
    return OutOfRangeError(
        f"`{objective}`: `{name}` must be one of the choices of {shown(marker)}, because Flyte carries them by their "
        f"names, but got {shown(value)}. Add it to the choices of the signature."
    )


def _as_argument(name: str, value: str) -> str:
    """Return an argument of a call as Python code: a path is no name."""
    return f"{name}={value}" if name.isidentifier() else f"**{{{name!r}: {value}}}"


def _choice_meant(marker: Suggestion, value: Any) -> str:
    """Return a sentence that suggests the choice nearest to a misspelt one, after a blank; empty if none is near."""
    known = (marker.names or marker.choices) if isinstance(marker, Category) else ()
    choices = [choice for choice in known if isinstance(choice, str)]
    near = nearest(value, choices) if isinstance(value, str) else None
    return f" Did you mean {near!r}?" if near is not None else ""
