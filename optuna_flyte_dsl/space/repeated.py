"""`Repeated`: the marker of a list of searched values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidMarkerError, InvalidMarkerTypeError
from optuna_flyte_dsl.space.suggestion import Suggestion


@dataclass(frozen=True, slots=True, repr=False)
class Repeated(Suggestion):
    """A list of searched values. It is written by `*`: `Float(0, 1) * 3`, or `Integer(16, 256) * "n_layers"`.

    The items are parameters of their own, called `widths.0`, `widths.1` and so on.

    Args:
        item: The marker of each item.
        length: The length of the list: a number, or the name of a parameter that is the length. In a trial, only the
            items up to that length are searched.

    Raises:
        InvalidMarkerError: If the length is less than 1.
        InvalidMarkerTypeError: If the length is neither an int nor a str.

    >>> from optuna_flyte_dsl import Integer, SearchSpace
    >>> def train(n_layers: Integer(1, 3), widths: Integer(16, 256) * "n_layers"): ...
    >>> SearchSpace.of(train).contains({"n_layers": 2, "widths": [32, 64]})
    True
    """

    item: Suggestion
    length: int | str

    def __post_init__(self) -> None:
        if isinstance(self.length, bool) or not isinstance(self.length, int | str):
            raise InvalidMarkerTypeError(
                f"A marker is repeated a number of times, or as often as a parameter says, but got "
                f'{shown(self.length)}. Write `{self.item!r} * 3`, or `{self.item!r} * "n_layers"`.'
            )
        if self.length in ("", 0) or (isinstance(self.length, int) and self.length < 0):
            raise InvalidMarkerError(f"A marker must be repeated at least once, but got {self.length!r}.")

    def __repr__(self) -> str:
        return f"{self.item!r} * {self.length!r}"

    def has_length(self, value: list[Any]) -> bool:
        """Return whether a list can have its length. That which a parameter says is not known here."""
        return isinstance(self.length, str) or len(value) == self.length
