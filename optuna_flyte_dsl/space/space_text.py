"""Shows a search space as text: a tree of its parameters, with their markers, fixed values and defaults."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from optuna_flyte_dsl._text import counted, shown
from optuna_flyte_dsl.space import domain
from optuna_flyte_dsl.space.markers import Suggestion

_VALUE_LIMIT = 60  # characters of a fixed value


@dataclasses.dataclass(frozen=True)
class Branch:
    """A line of the tree, and the lines below it."""

    text: str
    branches: tuple["Branch", ...] = ()

    def lines(self) -> Iterator[str]:
        """Yield the lines of the tree."""
        yield self.text
        for number, branch in enumerate(self.branches, start=1):
            is_last = number == len(self.branches)
            first, *others = branch.lines()
            yield f"{'└── ' if is_last else '├── '}{first}"
            for line in others:
                yield f"{'    ' if is_last else '│   '}{line}"


def parameter_branch(name: str, value: Any, origin: str) -> Branch:
    """Return the branch of a parameter.

    Args:
        value: The parameter's marker, its value, or a container of markers and values.
        origin: Where a value comes from: "fixed" or "default".
    """
    if isinstance(value, Suggestion):
        return Branch(f"{name}: {value!r}")
    if _holds_marker(value):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return Branch(name, tuple(parameter_branch(str(key), each, origin) for key, each in items))
    return Branch(f"{name} = {shown(value, _VALUE_LIMIT)} ({origin})")


def size_text(markers: Mapping[str, Suggestion]) -> str:
    """Return how many parameters are searched, and how many points there are: "2 parameters, 12 points"."""
    counts = [domain.count(marker) for marker in markers.values()]
    if math.inf in counts:
        return f"{counted(len(counts), 'parameter')}, infinitely many points"
    return f"{counted(len(counts), 'parameter')}, {counted(math.prod(map(int, counts)), 'point')}"


def _holds_marker(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_marker, value.values()))
    return any(map(_holds_marker, value)) if isinstance(value, list | tuple) else isinstance(value, Suggestion)
