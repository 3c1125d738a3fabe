"""What the conditions of parameters allow: whether a condition can hold, and how many points a space has."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from optuna_flyte_dsl.space import domain
from optuna_flyte_dsl.space.conditions import Combined, Condition, NotThat, When
from optuna_flyte_dsl.space.function_condition import WhenTrue
from optuna_flyte_dsl.space.markers import Category, Float, Integer, Suggestion

if TYPE_CHECKING:
    from optuna_flyte_dsl.space.tree import Parameter

_MOST = 10_000
"""How many combinations of values are looked at before a condition is taken to be one that can hold."""


def can_hold(condition: Condition, parameters: Mapping[str, Parameter]) -> bool:
    """Return whether a condition can hold for some values of the parameters that it compares.

    All combinations of a few values of each parameter are tried. These values lie on both sides of each bound, so that
    no other value would change a comparison. Where a function decides, all values of each parameter are tried; if there
    are too many of them, the condition is taken to be one that can hold.

    Args:
        parameters: The searched parameters, and the values that are not searched, by name.
    """
    deciding = deciding_for([condition], parameters)
    if any(name not in parameters for name in deciding):
        return True  # the value of a parameter is not known yet
    constants: dict[str, list[Any]] = {name: [] for name in deciding}
    unclear: set[str] = set()  # the parameters of functions
    for each in [condition, *(parameters[name].condition for name in deciding)]:
        for when in comparisons(each):
            if isinstance(when, WhenTrue):
                unclear |= when.names
            else:
                constants[when.parameter] += when.constants
    if unclear and math.prod(_count(parameters[name]) for name in deciding if name in unclear) > _MOST:
        return True
    tried = _scenarios(
        [parameters[name] for name in deciding],
        lambda each: _values(each) if each.name in unclear else telling_values(each, constants),
        condition,
    )
    return any(condition.holds(values) or number > _MOST for number, values in enumerate(tried))


def deciding_for(conditions: Sequence[Condition], parameters: Mapping[str, Parameter]) -> list[str]:
    """Return the names of the parameters on which conditions depend, each behind those on which it depends itself."""
    ordered: dict[str, None] = {}

    def add(name: str, path: tuple[str, ...]) -> None:
        condition = parameters[name].condition if name in parameters else None
        for other in sorted(condition.names) if condition is not None else ():
            if other not in (*path, name):
                add(other, (*path, name))
        ordered[name] = None

    for condition in conditions:
        for name in sorted(condition.names):
            add(name, ())
    return list(ordered)


def comparisons(condition: Condition | None) -> Iterator[When | WhenTrue]:
    """Yield the comparisons and the functions in a condition."""
    match condition:
        case When() | WhenTrue():
            yield condition
        case Combined():
            for part in condition.parts:
                yield from comparisons(part)
        case NotThat():
            yield from comparisons(condition.part)


def telling_values(parameter: Parameter, constants: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    """Return values of a parameter of which one lies in each interval between the numbers that it is compared with."""
    marker = parameter.marker
    if marker is None:
        return [parameter.value]
    if isinstance(marker, Category):
        return marker.choices
    assert isinstance(marker, Float | Integer)
    numbers = sorted({float(each) for each in constants[parameter.name] if isinstance(each, Real)})
    inside = [each for each in numbers if marker.low <= each <= marker.high]
    grid = domain.grid_of(marker)
    if grid is None:
        bounds = [marker.low, *inside, marker.high]
        return sorted({*bounds, *((low + high) / 2 for low, high in itertools.pairwise(bounds))})
    last = int(grid.whole_steps)
    indices = {0, last}
    for number in inside:
        below = bisect.bisect_right(range(last + 1), number, key=grid.value) - 1
        indices |= {index for index in (below - 1, below, below + 1, below + 2) if 0 <= index <= last}
    return [grid.value(index) for index in sorted(indices)]


def _scenarios(
    deciding: Sequence[Parameter],
    values_of: Callable[[Parameter], Sequence[Any]],
    wanted: Condition | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield each combination of values of the parameters that are active in it.

    Args:
        wanted: Combinations in which this condition is false are left out.
    """
    if not deciding:
        yield {}
        return
    *others, last = deciding
    for values in _scenarios(others, values_of, wanted):
        if last.condition is None or last.condition.holds(values):
            for value in values_of(last):
                combined = {**values, last.name: value}
                if wanted is None or wanted.holds(combined) is not False:
                    yield combined
        else:
            yield values


class PointCounter:
    """Counts the points of a space with conditions, and finds the point at an index.

    Parameters that do not depend on each other, in whatever way, are counted apart: their numbers are multiplied.
    """

    def __init__(self, order: Sequence[Parameter]) -> None:
        self._groups = [_Group(each) for each in _independent(order)]

    @property
    def count(self) -> float:
        """The number of points: an int, or infinity. A space with too many combinations to be counted has infinity."""
        counts = [group.count for group in self._groups]
        return math.inf if math.inf in counts else math.prod(map(int, counts))

    def point(self, index: int) -> dict[str, Any]:
        """Return the values of the active parameters at an index, from 0 to `count - 1`."""
        values: dict[str, Any] = {}
        for group in self._groups:
            index, inner = divmod(index, int(group.count))
            values |= group.point(inner)
        return values


class _Group:
    """Parameters that depend on each other."""

    def __init__(self, order: Sequence[Parameter]) -> None:
        self._order = order
        compared = {name for each in order if each.condition is not None for name in each.condition.names}
        self._deciding = [each for each in order if each.name in compared]
        self._others = [each for each in order if each.name not in compared and each.marker is not None]
        infinite = any(each.marker is not None and math.isinf(domain.count(each.marker)) for each in order)
        self._counts: list[tuple[dict[str, Any], int]] = []
        self.count: float = math.inf
        if infinite:
            return
        sizes = [(each, int(domain.count(_marker(each)))) for each in self._others]
        most = min(_MOST, 20 * _MOST // max(1, len(sizes)))
        for values in _scenarios(self._deciding, _values):
            self._counts.append((values, math.prod(size for each, size in sizes if _is_active(each, values))))
            if len(self._counts) > most:
                return
        self.count = sum(count for _, count in self._counts)

    def point(self, index: int) -> dict[str, Any]:
        scenario = 0
        while index >= self._counts[scenario][1]:
            index -= self._counts[scenario][1]
            scenario += 1
        values = self._counts[scenario][0]
        point = dict(values)
        for each in self._others:
            if _is_active(each, values):
                index, digit = divmod(index, int(domain.count(_marker(each))))
                point[each.name] = domain.value_at(_marker(each), digit)
        return {each.name: point[each.name] for each in self._order if each.marker is not None and each.name in point}


def _is_active(parameter: Parameter, values: Mapping[str, Any]) -> bool:
    return parameter.condition is None or bool(parameter.condition.holds(values))


def _marker(parameter: Parameter) -> Suggestion:
    assert parameter.marker is not None
    return parameter.marker


def _count(parameter: Parameter) -> float:
    return 1 if parameter.marker is None else domain.count(parameter.marker)


def _values(parameter: Parameter) -> Sequence[Any]:
    if parameter.marker is None:
        return [parameter.value]
    return [domain.value_at(parameter.marker, index) for index in range(int(domain.count(parameter.marker)))]


def _independent(order: Sequence[Parameter]) -> list[list[Parameter]]:
    """Return groups of parameters such that no condition of a group compares a parameter of another group."""
    group_of: dict[str, set[str]] = {each.name: {each.name} for each in order}
    for each in order:
        for name in each.condition.names if each.condition is not None else ():
            if name in group_of and group_of[name] is not group_of[each.name]:
                merged = group_of[name] | group_of[each.name]
                for member in merged:
                    group_of[member] = merged
    groups: dict[int, list[Parameter]] = {}
    for each in order:
        groups.setdefault(id(group_of[each.name]), []).append(each)
    return list(groups.values())
