"""The tree of an objective's arguments: which parameters are active, and the arguments of a trial."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, NamedTuple

from optuna_flyte_dsl._record import record
from optuna_flyte_dsl._text import is_storable_name, shown
from optuna_flyte_dsl.errors import ArgumentError, InvalidAnnotationError
from optuna_flyte_dsl.space import domain
from optuna_flyte_dsl.space.conditions import Condition
from optuna_flyte_dsl.space.markers import Suggestion
from optuna_flyte_dsl.space.nodes import (
    Branches,
    Conditional,
    Leaf,
    Node,
    Reading,
    Searched,
    Unlike,
    walk,
)
from optuna_flyte_dsl.space.scenarios import can_hold


class Parameter(NamedTuple):
    """A searched parameter, or a value that is not searched and that a condition compares."""

    name: str
    marker: Suggestion | None
    value: Any  # the value, if it is not searched
    condition: Condition | None  # when the parameter is active; `None` if it always is


@record
class ArgumentTree:
    """The nodes of an objective's arguments.

    Args:
        objective: The objective's name, for errors.
        nodes: A node for each argument that has a value or a marker.
        missing: The paths of the parameters and fields that have neither.
    """

    objective: str
    nodes: Mapping[str, Node]
    missing: tuple[str, ...]

    def fixed_values(self) -> dict[str, Any]:
        """Return the values that are not searched, by path, with the defaults of inactive parameters."""
        fixed: dict[str, Any] = {}
        for node, _ in self.every_node():
            if isinstance(node, Leaf):
                fixed[node.name] = node.value
            elif isinstance(node, Conditional):
                fixed[f"{node.name} unless {node.condition!r}"] = node.otherwise
        return fixed

    def every_node(self) -> Iterator[tuple[Node, Condition | None]]:
        """Yield all nodes, each with its condition; `None` if it is always active."""
        return itertools.chain.from_iterable(map(walk, self.nodes.values()))

    def can_hold(self, condition: Condition) -> bool:
        """Return whether a condition can hold for some values of the parameters."""
        if condition not in self._holding:
            self._holding[condition] = can_hold(condition, self._every_parameter)
        return self._holding[condition]

    def can_ever_hold(self, condition: Condition) -> bool:
        """Return whether a condition can hold, also if calls give other values to what is not searched."""
        return can_hold(condition, {name: each for name, each in self._every_parameter.items() if each.marker})

    @cached_property
    def _holding(self) -> dict[Condition, bool]:
        return {}

    @cached_property
    def _every_parameter(self) -> dict[str, Parameter]:
        """The searched parameters, in the order of the signature, and the values that conditions compare."""
        found: dict[str, Parameter] = {}
        walked = list(self.every_node())
        compared = frozenset().union(*(condition.names for _, condition in walked if condition is not None))
        for node, condition in walked:
            marker = node.marker if isinstance(node, Searched | Branches) else None
            if marker is None and not (isinstance(node, Leaf) and node.name in compared):
                continue
            if node.name in found:
                raise ArgumentError(
                    f"`{self.objective}`: two suggestions have the name `{node.name}`. The names inside a container "
                    "are joined by `.`; rename a key."
                )
            if not is_storable_name(node.name):
                raise ArgumentError(
                    f"`{self.objective}`: the name of a parameter must have at most 512 characters, without NUL and "
                    f"lone surrogates, but got {shown(node.name)}. Rename a key of the container."
                )
            found[node.name] = Parameter(node.name, marker, getattr(node, "value", None), condition)
        return found

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """The searched parameters that can be active, in the order of the signature."""
        return {
            name: parameter
            for name, parameter in self._every_parameter.items()
            if parameter.marker is not None and (parameter.condition is None or self.can_hold(parameter.condition))
        }

    @cached_property
    def order(self) -> tuple[Parameter, ...]:
        """The parameters, and the values that conditions compare, each behind those on which it depends.

        Raises:
            InvalidAnnotationError: If parameters depend on each other in a cycle.
        """
        every = self._every_parameter
        ordered: dict[str, Parameter] = {}

        def add(name: str, path: tuple[str, ...]) -> None:
            if name in path:
                cycle = " -> ".join(f"`{each}`" for each in (*path[path.index(name) :], name))
                raise InvalidAnnotationError(
                    f"`{self.objective}`: the conditions of the parameters go in a cycle: {cycle}. Drop one of them."
                )
            if name in ordered or name not in every:
                return
            parameter = every[name]
            for other in sorted(parameter.condition.names) if parameter.condition is not None else ():
                add(other, (*path, name))
            ordered[name] = parameter

        for name in every:
            add(name, ())
        return tuple(each for each in ordered.values() if each.marker is None or each.name in self.parameters)

    def draw(self, choose: Callable[[str, Suggestion], Any]) -> dict[str, Any]:
        """Return the values of the active parameters, by name, and the values that conditions compare.

        Args:
            choose: Returns the value of a parameter, from its name and its marker.
        """
        values: dict[str, Any] = {}
        for name, marker, value, condition in self.order:
            if condition is None or condition.holds(values):
                values[name] = value if marker is None else choose(name, marker)
        return values

    def active_in(self, given: Mapping[str, Any]) -> set[str]:
        """Return the names of the parameters that are active if parameters have given values."""
        active: set[str] = set()

        def note(name: str, _: Suggestion) -> Any:
            active.add(name)
            return given.get(name)

        self.draw(note)
        return active

    def fill(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of one trial.

        Args:
            values: What `draw` has returned.
        """
        return {name: node.fill(values) for name, node in self.nodes.items()}

    def read(self, kwargs: Mapping[str, Any], *, is_strict: bool) -> dict[str, Any] | None:
        """Return the values of the active parameters in keyword arguments; `None` if these do not fit the tree.

        Args:
            is_strict: Whether an argument that is not searched must be the one that the tree has.
        """
        reading = Reading(is_strict)
        try:
            for name, value in kwargs.items():
                if name in self.nodes:
                    self.nodes[name].read(value, reading)
            reading.settle()
        except Unlike:
            return None
        return {name: value for name, value in reading.values.items() if name in self.parameters}

    def by_path(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return an initial point with what is searched inside of an argument by its path.

        Args:
            point: Values by path, or whole arguments: an object of a class, a dict of some of its fields, a container.
                An argument that is not searched, but has the value that each trial gets, is left out.

        Raises:
            Unlike: If an argument cannot be that of a trial: with its name and the argument.
            InactiveGiven: If an argument has a value for a parameter that is not active.
        """
        reading = Reading(is_strict=True, is_partial=True)
        whole: dict[str, Node] = {}
        for name, value in point.items():
            node = self.nodes.get(name)
            marker = self.parameters[name].marker if name in self.parameters else None
            is_value = marker is not None and domain.contains(marker, domain.named(marker, value))
            if is_value or node is None or isinstance(node, Searched):
                reading.values[name] = value
            else:
                whole[name] = node
        for name, node in whole.items():
            reading.read(node, point[name])
        reading.settle()
        named = point.keys() - whole.keys()
        return {name: value for name, value in reading.values.items() if name in self.parameters or name in named}

    def contains(self, kwargs: Mapping[str, Any]) -> bool:
        """Return whether keyword arguments can be those of a trial."""
        values = self.read(kwargs, is_strict=True) if kwargs.keys() == self.nodes.keys() else None
        if values is None:
            return False
        drawn: dict[str, Any] = {}
        for name, marker, value, condition in self.order:
            if condition is None or condition.holds(drawn):
                if marker is not None and not (name in values and domain.contains(marker, values[name])):
                    return False
                drawn[name] = value if marker is None else values[name]
        return values.keys() <= drawn.keys()
