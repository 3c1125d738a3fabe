"""`Faults`: what goes wrong in a simulated search, and how often."""

import dataclasses
import math
import random
from numbers import Real
from typing import Any, Literal, Self, TypeAlias, get_args

from optuna_flyte_dsl._option_names import check_names
from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidOptionError

Fault: TypeAlias = Literal["crash", "hang", "nan", "straggler"]


@dataclasses.dataclass(frozen=True)
class Faults:
    """How often the attempts of trials go wrong: probabilities from 0 to 1, of which at most one fault happens.

    Args:
        crash: The objective raises an error, at a random moment of its duration.
        hang: The objective never ends.
        nan: The objective returns NaN.
        straggler: The objective takes `slowdown` times as long.
        slowdown: How many times as long a straggler takes.
    """

    crash: float = 0.0
    hang: float = 0.0
    nan: float = 0.0
    straggler: float = 0.0
    slowdown: float = 10.0

    def __new__(cls, *_: Any, **given: Any) -> Self:
        """Refuse names of unknown faults, before Python does."""
        check_names("Faults", given, cls.__dataclass_fields__)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in get_args(Fault):
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) <= 1:
                raise InvalidOptionError(
                    f"Faults: `{name}` must be a probability, from 0 to 1, but got {shown(getattr(self, name))}."
                )
        if sum(getattr(self, name) for name in get_args(Fault)) > 1:
            raise InvalidOptionError("Faults: the probabilities must add up to at most 1. Lower one of them.")
        if not _is_number(self.slowdown) or not 0 < self.slowdown < math.inf:
            raise InvalidOptionError(
                f"Faults: `slowdown` must be a number greater than 0, but got {shown(self.slowdown)}."
            )

    def drawn(self, generator: random.Random) -> Fault | None:
        """Return the fault of an attempt."""
        left = generator.random()
        for name in get_args(Fault):
            left -= getattr(self, name)
            if left < 0:
                return name  # type: ignore[no-any-return]
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
