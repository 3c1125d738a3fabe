"""The nodes of an argument tree: each makes a part of a trial's arguments from the values of the parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna_flyte_dsl._record import record
from optuna_flyte_dsl._text import shown, text_of
from optuna_flyte_dsl.errors import ArgumentError, RefusedPointError
from optuna_flyte_dsl.space import conversion, domain
from optuna_flyte_dsl.space.conditions import Condition, When, both
from optuna_flyte_dsl.space.containers import copy_containers, rebuilt
from optuna_flyte_dsl.space.markers import Category, Suggestion, same
from optuna_flyte_dsl.space.records import MadeAnew, TypeWithFields

ABSENT = object()
"""Stands for a field that a class makes itself."""


class Unlike(Exception):  # noqa: N818 - no user sees it
    """Raised when an argument does not have the shape of a node."""


class InactiveGiven(Unlike):
    """Raised when an argument has another value than the default for an inactive node: its name, value, condition."""


@dataclasses.dataclass(eq=False, repr=False)
class Reading:
    """What reading the arguments of a trial has found.

    Attributes:
        values: The values that were read, by the names of their nodes.
        later: The nodes whose condition depends on values that are read after them, with their arguments.
        is_strict: Whether a value that is not searched must be the one that the node has.
        is_partial: Whether parameters may be left out. A dict of some fields then stands for an object of a class.
    """

    is_strict: bool
    is_partial: bool = False
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    later: list[tuple[Conditional, Any]] = dataclasses.field(default_factory=list)

    def read(self, node: Node, value: Any) -> None:
        """Find the values of the parameters in an argument.

        Raises:
            Unlike: If the argument cannot come from the node: with the node's name and the argument.
        """
        try:
            node.read(value, self)
        except Unlike:
            raise Unlike(node.name, value) from None

    def settle(self) -> None:
        """Read the nodes whose conditions depend on others, in an order in which the others come first.

        Raises:
            Unlike: If an inactive node has another argument than its default.
        """
        while self.later:
            left = [{each.name for each, _ in walk(node)} for node, _ in self.later]
            index = next(
                index
                for index, (node, _) in enumerate(self.later)
                if not any(node.condition.names & names for other, names in enumerate(left) if other != index)
            )
            node, value = self.later.pop(index)
            holds = node.condition.holds(self.values)
            if holds or (holds is None and self.is_partial):
                self.read(node.node, value)
            elif self.is_strict and not (isinstance(node.otherwise, MadeAnew) or same(node.otherwise, value)):
                raise InactiveGiven(node.name, value, node.condition)


@record
class Node:
    """Base of the nodes. A node has the name of a parameter, or a path below it: `params.lr`."""

    name: str

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)

    def fill(self, values: Mapping[str, Any]) -> Any:
        """Return the argument that this node stands for.

        Args:
            values: The values of the active parameters, by name.
        """
        raise NotImplementedError

    def read(self, value: Any, reading: Reading) -> None:
        """Find the values of the parameters in an argument: the inverse of `fill`.

        Raises:
            Unlike: If the argument cannot come from this node.
        """
        raise NotImplementedError

    def template(self) -> Any:
        """Return the argument with a marker in place of each searched value."""
        raise NotImplementedError

    def children(self) -> Iterator[tuple[Node, Condition | None]]:
        """Yield the nodes below this node, each with the condition on which it is active beside this node's own."""
        return iter(())


def walk(node: Node, condition: Condition | None = None) -> Iterator[tuple[Node, Condition | None]]:
    """Yield a node and all nodes below it, each with its whole condition; `None` if it is always active.

    Args:
        condition: When the node itself is active.
    """
    yield node, condition
    for child, further in node.children():
        yield from walk(child, both(condition, further))


@record
class Leaf(Node):
    """A value that is not searched."""

    value: Any
    is_default: bool = False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Leaf):
            return NotImplemented
        is_alike = (self.name, self.is_default, type(self.value)) == (other.name, other.is_default, type(other.value))
        return is_alike and same(self.value, other.value)

    def __hash__(self) -> int:
        return hash(self.name)

    def fill(self, values: Mapping[str, Any]) -> Any:  # noqa: ARG002
        return copy_containers(self.value)

    def read(self, value: Any, reading: Reading) -> None:
        if reading.is_strict and not same(self.value, value):
            raise Unlike
        reading.values[self.name] = self.value

    def template(self) -> Any:
        return self.value


@record
class Searched(Node):
    """A searched value."""

    marker: Suggestion
    base: Any  # the type that the value is to have

    def fill(self, values: Mapping[str, Any]) -> Any:
        return conversion.to_float(self.base, copy_containers(values[self.name]))

    def read(self, value: Any, reading: Reading) -> None:
        reading.values[self.name] = value

    def template(self) -> Any:
        return self.marker


@record
class Items(Node):
    """A dict, a list or a tuple with searched values."""

    container: Any  # `fill` makes copies of it
    items: Mapping[Any, Node]  # by key or index

    def fill(self, values: Mapping[str, Any]) -> Any:
        return rebuilt(self.container, {key: node.fill(values) for key, node in self.items.items()})

    def read(self, value: Any, reading: Reading) -> None:
        if isinstance(self.container, dict):
            if not isinstance(value, dict) or value.keys() != self.items.keys():
                raise Unlike
        elif not isinstance(value, type(self.container)) or len(value) != len(self.items):
            raise Unlike
        for key, node in self.items.items():
            node.read(value[key], reading)

    def template(self) -> Any:
        return rebuilt(self.container, {key: node.template() for key, node in self.items.items()})

    def children(self) -> Iterator[tuple[Node, Condition | None]]:
        return ((node, None) for node in self.items.values())


@record
class SizedList(Node):
    """A list whose length is a parameter too. Each item is active while the list is long enough."""

    length: str  # the name of that parameter
    items: Sequence[Node]

    def fill(self, values: Mapping[str, Any]) -> Any:
        return [node.fill(values) for node in self.items[: values.get(self.length, 0)]]

    def read(self, value: Any, reading: Reading) -> None:
        if type(value) is not list or len(value) > len(self.items):
            raise Unlike
        for node, item in zip(self.items, value, strict=False):
            node.read(item, reading)

    def template(self) -> Any:
        return [node.template() for node in self.items]

    def children(self) -> Iterator[tuple[Node, Condition | None]]:
        return ((node, When(self.length, gt=index)) for index, node in enumerate(self.items))


@record
class Record(Node):
    """An object of a class with searched fields."""

    type: TypeWithFields
    fields: Mapping[str, Node]
    defaults: Mapping[str, Leaf]  # the fields that keep the default of their class

    def fill(self, values: Mapping[str, Any]) -> Any:
        filled = {field: node.fill(values) for field, node in self.fields.items()}
        made = {field: value for field, value in filled.items() if value is not ABSENT}
        try:
            return self.type.make(made)
        except Exception as error:
            raise RefusedPointError(
                f"`{self.name}`: {self.type.kind.__name__} refuses {shown(made)}: {type(error).__name__}: "
                f"{text_of(error)}"
            ) from error

    def read(self, value: Any, reading: Reading) -> None:
        if reading.is_partial and isinstance(value, Mapping):
            if not value.keys() <= {*self.fields, *self.defaults}:
                raise Unlike
            for field, part in value.items():
                (self.fields.get(field) or self.defaults[field]).read(part, reading)
            return
        if not self.type.is_instance(value):
            raise Unlike
        found = self.type.values_of(value)
        for field, node in self.fields.items():
            if field not in found and not isinstance(node, Conditional):
                raise Unlike
            node.read(found.get(field, ABSENT), reading)
        for field, default in self.defaults.items():
            if field in found:
                default.read(found[field], reading)

    def template(self) -> Any:
        return {field: node.template() for field, node in self.fields.items()}

    def children(self) -> Iterator[tuple[Node, Condition | None]]:
        return ((node, None) for node in (*self.fields.values(), *self.defaults.values()))


@record
class Branches(Node):
    """A choice between several nodes. The choice is a parameter, and the parameters of the chosen node are active."""

    marker: Category  # of the labels
    branches: Mapping[Any, Node]  # by label

    def fill(self, values: Mapping[str, Any]) -> Any:
        label = values[self.name]
        if label not in self.branches:
            raise ArgumentError(f"`{self.name}` must be one of {shown(list(self.branches))}, but got {shown(label)}.")
        return self.branches[label].fill(values)

    def read(self, value: Any, reading: Reading) -> None:
        found = None
        for label, node in self.branches.items():
            attempt = Reading(is_strict=True, values={**reading.values, self.name: label})
            try:
                node.read(value, attempt)
            except Unlike:
                continue
            read = [each for each, _ in walk(node) if isinstance(each, Searched) and each.name in attempt.values]
            if not all(domain.contains(each.marker, attempt.values[each.name]) for each in read):
                continue
            if found is None:
                found = attempt
            if all(type(attempt.values[each.name]) in conversion.value_types(each.marker) for each in read):
                found = attempt  # 1 is a value of `Integer(0, 1)` rather than of `Float(0, 1)`
                break
        if found is None:
            raise Unlike
        reading.values.update(found.values)
        reading.later += found.later

    def template(self) -> Any:
        return {label: node.template() for label, node in self.branches.items()}

    def children(self) -> Iterator[tuple[Node, Condition | None]]:
        return ((node, When(self.name, label)) for label, node in self.branches.items())


@record
class ChosenBranch(Node):
    """A branch that a call has chosen: the choice itself is no longer searched."""

    label: str
    node: Node

    def fill(self, values: Mapping[str, Any]) -> Any:
        return self.node.fill(values)

    def read(self, value: Any, reading: Reading) -> None:
        self.node.read(value, reading)
        reading.values[self.name] = self.label

    def template(self) -> Any:
        return self.node.template()

    def children(self) -> Iterator[tuple[Node, Condition | None]]:
        yield Leaf(self.name, self.label), None
        yield self.node, None


@record
class Conditional(Node):
    """A node that is active only while a condition is true."""

    node: Node
    condition: Condition
    otherwise: Any  # the argument while the node is inactive

    def fill(self, values: Mapping[str, Any]) -> Any:
        if self.condition.holds(values):
            return self.node.fill(values)
        if isinstance(self.otherwise, MadeAnew):
            return ABSENT if self.otherwise.make is None else self.otherwise.make()
        return copy_containers(self.otherwise)

    def read(self, value: Any, reading: Reading) -> None:
        reading.later.append((self, value))

    def template(self) -> Any:
        return self.node.template()

    def children(self) -> Iterator[tuple[Node, Condition | None]]:
        return iter([(self.node, self.condition)])
