"""The tree of an objective's arguments, made from what the signature declares and what calls have given."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from optuna_flyte_dsl._text import did_you_mean, is_storable_name, shown
from optuna_flyte_dsl.errors import ArgumentError, InvalidAnnotationError
from optuna_flyte_dsl.space import domain
from optuna_flyte_dsl.space.annotations import NO_TYPE, listed
from optuna_flyte_dsl.space.completion import completed
from optuna_flyte_dsl.space.conditions import Condition, When
from optuna_flyte_dsl.space.containers import copy_containers, items_of
from optuna_flyte_dsl.space.declared_parameter import UNDECLARED, Bundle, DeclaredParameter, DeclaredSignature
from optuna_flyte_dsl.space.markers import Category, Fixed, Integer, Repeated, Suggestion, same
from optuna_flyte_dsl.space.nodes import (
    Branches,
    ChosenBranch,
    Conditional,
    Items,
    Leaf,
    Node,
    Reading,
    Record,
    Searched,
    SizedList,
    Unlike,
    walk,
)
from optuna_flyte_dsl.space.records import MADE_ANEW, fields_of
from optuna_flyte_dsl.space.scenarios import can_hold
from optuna_flyte_dsl.space.suggestion import holds_marker

_NOT_GIVEN = object()


class Parameter(NamedTuple):
    """A searched parameter, or a value that is not searched and that a condition compares."""

    name: str
    marker: Suggestion | None
    value: Any  # the value, if it is not searched
    condition: Condition | None  # when the parameter is active; `None` if it always is


@dataclasses.dataclass(frozen=True)
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

    def every_node(self) -> Iterator[tuple[Node, Condition | None]]:
        """Yield all nodes, each with its condition; `None` if it is always active."""
        return itertools.chain.from_iterable(map(walk, self.nodes.values()))

    def can_hold(self, condition: Condition) -> bool:
        """Return whether a condition can hold for some values of the parameters."""
        if condition not in self._holding:
            self._holding[condition] = can_hold(condition, self._every_parameter)
        return self._holding[condition]

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

    @cached_property
    def _n_free(self) -> int:
        """How many parameters, at the beginning of `order`, are always active."""
        return sum(1 for _ in itertools.takewhile(lambda each: each.condition is None, self.order))

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


@dataclasses.dataclass(frozen=True)
class TreeBuilder:
    """Makes the tree of an objective's arguments.

    Args:
        given: The arguments of calls, by the path of a parameter or of a field.
    """

    signature: DeclaredSignature
    given: Mapping[str, Any]

    @property
    def objective(self) -> str:
        """The objective's name, for errors."""
        return self.signature.objective

    def build(self) -> ArgumentTree:
        """Return the tree.

        Raises:
            InvalidAnnotationError: If a condition names an unknown parameter.
            ArgumentError: If a suggestion stands where it cannot be replaced by a value.
        """
        missing: list[str] = []
        nodes = {}
        for name, declared in self.signature.parameters.items():
            node = self._parameter(name, declared, missing)
            if node is not None:
                nodes[name] = node
        for name, value in self.given.items():
            if name not in self._paths:
                nodes[name] = self._node(name, value)
        return ArgumentTree(self.objective, nodes, tuple(missing))

    @property
    def _paths(self) -> Mapping[str, DeclaredParameter]:
        return self.signature.paths

    def _parameter(self, path: str, declared: DeclaredParameter, missing: list[str]) -> Node | None:
        """Return the node of a parameter or a field; `None` if it has neither a value nor a marker."""
        given = self.given.get(path, _NOT_GIVEN)
        is_choice = len(declared.bundles) > 1 and isinstance(given, Category | str)
        if given is not _NOT_GIVEN and not isinstance(given, Suggestion) and not is_choice:
            return self._node(path, given, declared.base)
        if isinstance(given, Suggestion) and not is_choice:
            node = self._node(path, given, declared.base)
        elif declared.marker is not None:
            node = self._node(path, declared.marker, declared.base)
        elif declared.bundles:
            node = self._choice_of_bundles(path, declared, given, missing)
        elif declared.has_default:
            return Leaf(path, copy_containers(declared.default), is_default=True)
        else:
            missing.append(path)
            return None
        if declared.condition is None:
            return node
        otherwise = declared.default if declared.has_default else None
        return Conditional(path, node, self._resolved(declared.condition, path), otherwise)

    def _choice_of_bundles(self, path: str, declared: DeclaredParameter, given: Any, missing: list[str]) -> Node:
        chosen = declared.bundles
        if isinstance(given, str):
            chosen = {given: declared.bundles[given]}
        elif isinstance(given, Category):
            chosen = {name: declared.bundles[name] for name in given.choices}
        records = {
            name: self._record(
                path if len(declared.bundles) == 1 else f"{path}.{name}", path, declared, bundle, missing
            )
            for name, bundle in chosen.items()
        }
        if len(declared.bundles) == 1:
            return records[next(iter(records))]
        if isinstance(given, str):
            return ChosenBranch(path, given, records[given])
        return Branches(path, Category(list(records)), records)

    def _record(self, name: str, path: str, declared: DeclaredParameter, bundle: Bundle, missing: list[str]) -> Node:
        fields: dict[str, Node] = {}
        defaults: dict[str, Leaf] = {}
        for field, each in bundle.fields.items():
            inner = declared.field_path(path, bundle, field)
            if each.default is MADE_ANEW and not each.is_searched and inner not in self.given:
                continue
            node = self._parameter(inner, each, missing)
            if isinstance(node, Leaf) and node.is_default:
                defaults[field] = node
            elif node is not None:
                fields[field] = node
        return Record(name, bundle.type, fields, defaults)

    def _node(self, path: str, value: Any, base: Any = NO_TYPE) -> Node:
        """Return the node of a value, which may be a marker, or hold some."""
        if isinstance(value, Suggestion):
            return self._marker_node(path, value, base)
        if not holds_marker(value):
            return Leaf(path, copy_containers(value))
        items = items_of(value)
        if items is not None:
            return Items(path, value, {key: self._node(f"{path}.{key}", item) for key, item in items.items()})
        fields = fields_of(type(value))
        if fields is None or not fields.is_instance(value):
            raise ArgumentError(
                f"`{path}` holds a suggestion inside a {type(value).__name__}, where it cannot be replaced by a value. "
                "Put it into a dict, a list, a tuple or a dataclass."
            )
        nodes = {field: self._node(f"{path}.{field}", each) for field, each in fields.values_of(value).items()}
        return Record(path, fields, nodes, {})

    def _marker_node(self, path: str, marker: Suggestion, base: Any) -> Node:
        marker = completed(f"`{self.objective}`: `{path}`", marker, NO_TYPE)
        if isinstance(marker, Repeated):
            return self._list_node(path, marker)
        if isinstance(marker, Category) and marker.holds_markers:
            nodes = {
                label: self._node(f"{path}.{label}", choice)
                for label, choice in zip(marker.branch_labels, marker.choices, strict=True)
            }
            return Branches(path, Category(list(nodes)), nodes)
        return Searched(path, marker, base)

    def _list_node(self, path: str, marker: Repeated) -> Node:
        if isinstance(marker.length, int):
            items = {index: self._node(f"{path}.{index}", marker.item) for index in range(marker.length)}
            return Items(path, [None] * marker.length, items)
        name = self._find(marker.length, path, f"the length of the list {marker!r}")
        length = self.given.get(name, _NOT_GIVEN)
        if length is _NOT_GIVEN and name in self._paths:
            length = self._paths[name].marker
        if isinstance(length, Fixed):
            length = length.value
        if type(length) is int and length >= 0:
            return self._list_node(path, Repeated(marker.item, length))
        if not isinstance(length, Integer) or length.low < 0:
            raise InvalidAnnotationError(
                f"`{self.objective}`: `{name}` is the length of the list `{path}`, so it must be an Integer of 0 or "
                f"more, but got {shown(length)}. Write `{name}: Integer(1, 4)`."
            )
        return SizedList(path, name, [self._node(f"{path}.{index}", marker.item) for index in range(length.high)])

    def _resolved(self, condition: Condition, path: str) -> Condition:
        """Return a condition with whole paths for names, and with the choices that its values name."""

        def resolve(when: When) -> When:
            name = self._find(when.parameter, path, f"the condition {when!r}")
            if name == path:
                raise InvalidAnnotationError(
                    f"`{self.objective}`: the condition of `{path}` compares `{path}` with itself. Name another "
                    "parameter."
                )
            declared = self._paths.get(name, UNDECLARED)
            values = tuple(each.__name__ if isinstance(each, type) else each for each in when.values)
            marker = declared.marker
            known: Sequence[Any] = ()
            if declared.bundles:
                known = list(declared.bundles)
            elif isinstance(marker, Category):
                known = marker.branch_labels if marker.holds_markers else marker.choices
                values = when.values if marker.holds_markers else tuple(map(marker.named, when.values))
            wrong = [each for each in values if known and not any(same(each, choice) for choice in known)]
            if wrong and name not in self.given:
                near = [str(each) for each in (getattr(marker, "names", None) or known)]
                raise InvalidAnnotationError(
                    f"`{self.objective}`: the condition {when!r} of `{path}` compares `{name}` with {shown(wrong[0])}, "
                    f"which is none of its choices {shown(list(known))}.{did_you_mean(str(wrong[0]), near)} Correct it."
                )
            return when.comparing(name, values)

        return condition.replaced(resolve)

    def _find(self, name: str, path: str, what: str) -> str:
        """Return the whole path of a parameter that is named inside another one: in its class first, then further out.

        Args:
            path: The parameter whose annotation names the other one.
            what: What names it, for errors.
        """
        known = {*self._paths, *self.given}
        inside = path.rpartition(".")[0]
        while True:
            candidate = f"{inside}.{name}" if inside else name
            if candidate in known:
                break
            if not inside:
                near = [each.removeprefix(f"{path.rpartition('.')[0]}.") for each in known - {path}]
                raise InvalidAnnotationError(
                    f"`{self.objective}`: {what} of `{path}` names `{name}`, which is no parameter; there are "
                    f"{listed(sorted(known - {path}))}.{did_you_mean(name, near)} Correct the name."
                )
            inside = inside.rpartition(".")[0]
        bundle = self._paths.get(candidate, UNDECLARED).bundle
        if bundle is not None:
            raise InvalidAnnotationError(
                f"`{self.objective}`: {what} of `{path}` names `{candidate}`, which is a whole "
                f"{bundle.name}. Name one of its fields, as in `{candidate}.{next(iter(bundle.fields))}`."
            )
        return candidate
