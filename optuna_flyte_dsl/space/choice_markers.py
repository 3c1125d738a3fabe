"""The markers of choices: `Category`, and `Ordinal`, whose choices stand in an order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidMarkerError, InvalidMarkerTypeError
from optuna_flyte_dsl.space.suggestion import Suggestion


@dataclass(frozen=True, slots=True, repr=False, eq=False, init=False)
class Category(Suggestion):
    """A searched value that is one of several choices.

    Args:
        choices: The choices: any ordered iterable except a string. The choices are kept as a tuple. Optuna can store
            `None`, `bool`, `int`, `float` and `str` in every storage. Optuna warns of choices of other types.

    Raises:
        InvalidMarkerError: If there is no choice, or two choices are equal (as `1`, `1.0` and `True` are).
        InvalidMarkerTypeError: If `choices` is not an iterable of values, or is unordered, as a set is.

    >>> Category(["gbtree", "dart"]).choices
    ('gbtree', 'dart')
    """

    choices: tuple[Any, ...]

    def __init__(self, choices: Iterable[Any]) -> None:
        if isinstance(choices, str | bytes | Mapping) or not isinstance(choices, Iterable):
            raise InvalidMarkerTypeError(
                f'Category: `choices` must be a list of values, but got {shown(choices)}. Write `Category(["a", "b"])`.'
            )
        if isinstance(choices, AbstractSet):
            raise InvalidMarkerTypeError(
                f"Category: `choices` must stand in an order, which a {type(choices).__name__} has anew in each "
                f"process, but got {shown(choices)}. Write a list."
            )
        object.__setattr__(self, "choices", tuple(choices))
        if not self.choices:
            raise InvalidMarkerError("Category: `choices` must hold at least one value, but got none.")
        for choice in self.choices:
            if isinstance(choice, Suggestion):
                raise InvalidMarkerTypeError(
                    f"Category: a choice must be a value, but got the marker {shown(choice)}. For a space that depends "
                    "on a choice, write a function that takes `trial: optuna.Trial`."
                )
        if repeated := _repetition(self.choices):
            raise InvalidMarkerError(
                f"Category: each of the `choices` must stand once, but got both {shown(repeated[0])} and "
                f"{shown(repeated[1])}, which are equal in Python. Drop one, or write them as strings."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Category):
            return NotImplemented
        return len(self.choices) == len(other.choices) and all(
            type(mine) is type(its) and same(mine, its) for mine, its in zip(self.choices, other.choices, strict=True)
        )

    def __hash__(self) -> int:
        # Hashed by `repr`, because a choice such as a list is not hashable.
        return hash((Category, tuple(map(repr, self.choices))))

    def __repr__(self) -> str:
        return f"Category({list(self.choices)!r})"

    def to_distribution(self) -> CategoricalDistribution:
        """Return the Optuna distribution with the same values."""
        return CategoricalDistribution(self.choices)


def same(left: Any, right: Any) -> bool:
    """Return whether Optuna regards two choices as the same one: they are equal, or both NaN."""
    if left is right:
        return True
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left) and math.isnan(right):
        return True
    try:
        return bool(left == right)
    except Exception:  # noqa: BLE001 - comparing arrays gives an array, and a user's `__eq__` may raise anything
        return False


def _repetition(choices: Sequence[Any]) -> tuple[Any, Any] | None:
    """Return the first two choices that are the same one, if any. The time is linear if all choices have a hash."""
    hashed: dict[Any, Any] = {}
    unhashed: list[Any] = []
    for index, choice in enumerate(choices):
        key = "NaN" if isinstance(choice, float) and math.isnan(choice) else (choice,)
        rivals: Sequence[Any] = unhashed
        try:
            if key in hashed:
                return hashed[key], choice
            hashed[key] = choice
        except Exception:  # noqa: BLE001 - the choice has no hash, or a user's `__hash__` or `__eq__` raises
            rivals = choices[:index]
        for earlier in rivals:
            if same(choice, earlier):
                return earlier, choice
        if rivals is not unhashed:
            unhashed.append(choice)
    return None
