"""The markers of choices: `Category`, and `Ordinal`, whose choices stand in an order."""

from __future__ import annotations

import enum
import math
import types
from collections.abc import Iterable, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from optuna_flyte_dsl._text import is_storable_name, shown
from optuna_flyte_dsl.errors import InvalidMarkerError, InvalidMarkerTypeError
from optuna_flyte_dsl.space.finite_number import plain_number
from optuna_flyte_dsl.space.number_markers import Integer
from optuna_flyte_dsl.space.suggestion import Suggestion, holds_marker


@dataclass(frozen=True, slots=True, repr=False, eq=False, init=False)
class Category(Suggestion):
    """A searched value that is one of several choices.

    Args:
        choices: The choices: a list of values, a dict of values by name, or an Enum. Without choices, the type beside
            the marker names them: `Annotated[Literal["a", "b"], Category()]`, a `bool`, or an Enum. A choice may hold
            markers, as in `Category({"svm": {"C": Float(0.1, 10)}, "forest": {"n_trees": Integer(10, 500)}})`. They
            are searched only in trials with that choice.
        weights: How often each choice is expected to be the best one, as numbers from 0 on, one for each choice. The
            first points of an `AutoSampler`, and points that a search draws at random, are drawn by them; by default
            all choices are drawn equally often.

    Optuna can store `None`, `bool`, `int`, `float` and `str` in every storage, and warns of other choices. For choices
    that have names, Optuna stores the names: the keys of a dict, and the names of an Enum's members. Of choices without
    names that hold markers, Optuna stores the indices. The objective gets the choices themselves.

    Raises:
        InvalidMarkerError: If there is no choice, or two choices are equal (as `1`, `1.0` and `True` are); or if there
            is not one weight for each choice.
        InvalidMarkerTypeError: If `choices` is not an iterable of values, or is unordered, as a set is.

    >>> Category(["gbtree", "dart"]).choices
    ('gbtree', 'dart')
    >>> Category({"small": (16, 16), "large": (512, 512)}).to_distribution()
    CategoricalDistribution(choices=('small', 'large'))
    """

    choices: tuple[Any, ...]
    names: tuple[str, ...] | None
    holds_markers: bool
    weights: tuple[float, ...] | None

    def __init__(
        self, choices: Iterable[Any] | Mapping[str, Any] | None = None, *, weights: Sequence[float] | None = None
    ) -> None:
        name = type(self).__name__
        object.__setattr__(self, "weights", None if weights is None else _checked_weights(name, weights))
        object.__setattr__(self, "names", None)
        object.__setattr__(self, "choices", ())
        object.__setattr__(self, "holds_markers", False)
        if choices is None:
            return
        if isinstance(choices, str | bytes) or not isinstance(choices, Iterable):
            raise InvalidMarkerTypeError(
                f'{name}: `choices` must be a list of values, but got {shown(choices)}. Write `{name}(["a", "b"])`.'
            )
        if isinstance(choices, AbstractSet) and not isinstance(choices, KeysView):
            raise InvalidMarkerTypeError(
                f"{name}: `choices` must stand in an order, which a {type(choices).__name__} has anew in each "
                f"process, but got {shown(choices)}. Write a list."
            )
        if isinstance(choices, Mapping):
            object.__setattr__(self, "names", tuple(choices))
            choices = choices.values()
        object.__setattr__(self, "choices", tuple(choices))
        if not self.choices:
            raise InvalidMarkerError(f"{name}: `choices` must hold at least one value, but got none.")
        kinds = {type(choice) for choice in self.choices}
        if self.names is None and len(kinds) == 1 and issubclass(kinds.pop(), enum.Enum):
            names = tuple(choice.name for choice in self.choices)
            object.__setattr__(self, "names", None if None in names else names)  # some members of a Flag have none
        for each in self.names or ():
            if not isinstance(each, str) or not is_storable_name(each):
                raise InvalidMarkerTypeError(
                    f"{name}: each name of a choice, a key of the dict, must be a str of 1 to 512 characters, but got "
                    f"{shown(each)}."
                )
        texts = {choice: index for index, choice in enumerate(self.choices) if isinstance(choice, str)}
        for index, each in enumerate(self.names or ()):
            if texts.get(each, index) != index:
                raise InvalidMarkerError(
                    f"{name}: the name {each!r} of one choice is another choice, so it would not be clear which one is "
                    "meant. Rename it."
                )
        object.__setattr__(self, "holds_markers", holds_marker(list(self.choices)))
        if self.weights is not None and len(self.weights) != len(self.choices):
            raise InvalidMarkerError(
                f"{name}: `weights` must hold one number for each of the {len(self.choices)} choices, but got "
                f"{len(self.weights)}."
            )
        if repeated := _repetition(self.choices):
            is_same = self.names is not None or all(isinstance(each, str) for each in repeated)
            cure = "Drop one." if is_same else "Drop one, or write them as strings."
            raise InvalidMarkerError(
                f"{name}: each of the `choices` must stand once, but got both {shown(repeated[0])} and "
                f"{shown(repeated[1])}, which are equal in Python. {cure}"
            )

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        assert isinstance(other, Category)
        return (
            self.names == other.names
            and self.weights == other.weights
            and len(self.choices) == len(other.choices)
            and all(
                type(mine) is type(its) and same(mine, its)
                for mine, its in zip(self.choices, other.choices, strict=True)
            )
        )

    def __hash__(self) -> int:
        # Hashed by `repr`, because a choice such as a list is not hashable.
        return hash((type(self), self.names or tuple(map(repr, self.choices))))

    def __repr__(self) -> str:
        # The repr of an object may hold its address, which differs between processes: names stand for objects.
        kinds = {type(choice) for choice in self.choices}
        if self.names is None:
            inner = repr(list(self.choices)) if self.choices else ""
        elif len(kinds) == 1 and issubclass(kind := kinds.pop(), enum.Enum):
            is_whole = list(self.choices) == list(kind)
            inner = kind.__name__ if is_whole else f"[{', '.join(f'{kind.__name__}.{each}' for each in self.names)}]"
        else:
            named = zip(self.names, self.choices, strict=True)
            texts = [f"{name!r}: {repr(each) if holds_marker(each) else '...'}" for name, each in named]
            inner = f"{{{', '.join(texts)}}}"
        if self.weights is not None:
            inner = f"{inner}{', ' if inner else ''}weights={list(self.weights)!r}"
        return f"{type(self).__name__}({inner})"

    @property
    def is_complete(self) -> bool:
        """Whether the marker has choices."""
        return bool(self.choices)

    def to_distribution(self) -> BaseDistribution:
        """Return the Optuna distribution of the choices; of their names, if they have names."""
        self.check_complete()
        return CategoricalDistribution(self.names or self.choices)

    @property
    def branch_labels(self) -> tuple[Any, ...]:
        """The labels of choices that hold markers: their names, or else their indices."""
        return self.names or tuple(range(len(self.choices)))

    @property
    def stored(self) -> Suggestion:
        """The marker of what Optuna stores: the names of the choices, if they have names."""
        return self if self.names is None else Category(self.names)

    def to_stored(self, value: Any) -> Any:
        """Return the name of a choice, if the choices have names."""
        return value if self.names is None else self.names[self.index(value)]

    def from_stored(self, stored: Any) -> Any:
        """Return the choice that has a name, if the choices have names."""
        if self.names is None:
            return stored
        if stored not in self.names:
            raise ValueError(f"{shown(stored)} is none of the names of {self!r}.")
        return self.choices[self.names.index(stored)]

    def index(self, value: Any) -> int:
        """Return the index of a choice.

        Raises:
            ValueError: If the value is no choice.
        """
        for index, choice in enumerate(self.choices):
            if isinstance(value, bool) == isinstance(choice, bool) and same(value, choice):
                return index
        raise ValueError(f"{shown(value)} is no choice of {self!r}.")

    def named(self, value: Any) -> Any:
        """Return the choice that has a name; return any other value as it is."""
        if isinstance(value, str) and self.names is not None and value in self.names:
            return self.choices[self.names.index(value)]
        return value


class Ordinal(Category):
    """A searched value that is one of several choices which stand in an order, as in `Ordinal([16, 32, 64, 128])`.

    A sampler knows that 32 lies between 16 and 64. Optuna stores the index of a choice, from 0, and the objective gets
    the choice itself.

    Args:
        choices: Two choices or more, in their order; see `Category`.
        weights: As those of `Category`.

    Raises:
        InvalidMarkerError: If there are fewer than two choices, or two choices are equal.
        InvalidMarkerTypeError: If `choices` is not an iterable of values, or is unordered, as a set is.

    >>> Ordinal([16, 32, 64]).to_distribution()
    IntDistribution(high=2, log=False, low=0, step=1)
    """

    __slots__ = ()

    def __init__(
        self, choices: Iterable[Any] | Mapping[str, Any] | None = None, *, weights: Sequence[float] | None = None
    ) -> None:
        super().__init__(choices, weights=weights)
        if self.holds_markers:
            raise InvalidMarkerTypeError(
                f"Ordinal: a choice must be a value, but got {shown(list(self.choices))}. For choices that hold "
                "markers, write `Category([...])`."
            )
        if len(self.choices) == 1:
            raise InvalidMarkerError(
                f"Ordinal: `choices` must hold at least two values, but got {shown(list(self.choices))}. Give the "
                "value itself: it needs no search."
            )

    @property
    def labels(self) -> list[str]:
        """The choices as text, in their order: their names, if they have names."""
        return list(self.names or map(repr, self.choices))

    def to_distribution(self) -> BaseDistribution:
        """Return the Optuna distribution of the indices of the choices."""
        self.check_complete()
        return IntDistribution(0, len(self.choices) - 1)

    @property
    def stored(self) -> Suggestion:
        """The marker of the indices, which Optuna stores."""
        return Integer(0, len(self.choices) - 1)

    def to_stored(self, value: Any) -> Any:
        """Return the index of a choice."""
        return self.index(value)

    def from_stored(self, stored: Any) -> Any:
        """Return the choice at an index."""
        if isinstance(stored, bool) or not isinstance(stored, int) or not 0 <= stored < len(self.choices):
            raise ValueError(f"{shown(stored)} is no index of {self!r}.")
        return self.choices[stored]


def _checked_weights(marker: str, weights: Any) -> tuple[float, ...]:
    if isinstance(weights, str | bytes | Mapping | AbstractSet) or not isinstance(weights, Iterable):
        raise InvalidMarkerTypeError(
            f"{marker}: `weights` must be a list of numbers, but got {shown(weights)}. Write `weights=[3, 1]`."
        )
    checked = tuple(plain_number(marker, "weights", each) for each in weights)
    if negative := [each for each in checked if each < 0]:
        raise InvalidMarkerError(f"{marker}: each of the `weights` must be at least 0, but got {negative[0]}.")
    if checked and not any(checked):
        raise InvalidMarkerError(f"{marker}: one of the `weights` must be above 0, but got {shown(list(checked))}.")
    return checked


def same(left: Any, right: Any) -> bool:
    """Return whether Optuna regards two choices as the same one: they are equal, or both NaN."""
    if left is right or _is_copy(left, right):
        return True
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left) and math.isnan(right):
        return True
    try:
        return bool(left == right)
    except Exception:  # noqa: BLE001 - comparing arrays gives an array, and a user's `__eq__` may raise anything
        return False


def _is_copy(left: Any, right: Any) -> bool:
    """Return whether one value is a copy of the other: a worker process has copies of a script's functions."""
    return (
        isinstance(left, type | types.FunctionType)
        and type(left) is type(right)
        and left.__module__ == right.__module__ == "__main__"
        and left.__qualname__ == right.__qualname__
        and "<" not in left.__qualname__
    )


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
