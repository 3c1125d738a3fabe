"""Makes the tree of an objective's arguments from what the signature declares and what calls have given."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from optuna_flyte_dsl._record import record
from optuna_flyte_dsl._text import did_you_mean, shown
from optuna_flyte_dsl.errors import ArgumentError, InvalidAnnotationError
from optuna_flyte_dsl.space.annotations import NO_TYPE, listed
from optuna_flyte_dsl.space.completion import completed
from optuna_flyte_dsl.space.conditions import Condition, When
from optuna_flyte_dsl.space.containers import copy_containers, items_of
from optuna_flyte_dsl.space.declared_parameter import UNDECLARED, Bundle, DeclaredParameter, DeclaredSignature
from optuna_flyte_dsl.space.function_condition import WhenTrue
from optuna_flyte_dsl.space.markers import Category, Fixed, Integer, Repeated, Suggestion, same
from optuna_flyte_dsl.space.nodes import (
    Branches,
    ChosenBranch,
    Conditional,
    Items,
    Leaf,
    Node,
    Record,
    Searched,
    SizedList,
    walk,
)
from optuna_flyte_dsl.space.records import MadeAnew, fields_of
from optuna_flyte_dsl.space.suggestion import holds_marker
from optuna_flyte_dsl.space.tree import ArgumentTree

_NOT_GIVEN = object()


class ChosenLabel(NamedTuple):
    """What a call gives for a choice that holds markers: which choice, and perhaps values inside it."""

    label: Any
    value: Any = _NOT_GIVEN

    @property
    def argument(self) -> Any:
        """What a call gives to choose it."""
        return self.label if self.value is _NOT_GIVEN else self.value


def _chooses(declared: DeclaredParameter, given: Any) -> bool:
    """Return whether what a call gives leaves the fields of the declared classes to the search."""
    labels = given.choices if isinstance(given, Category) else (given,)
    return all(isinstance(label, str) and label in declared.bundles for label in labels)


@record
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
        nodes: dict[str, Node] = {}
        for name, declared in self.signature.parameters.items():
            node = self._parameter(name, declared, missing)
            if node is not None:
                nodes[name] = node
        for name, value in self.given.items():
            if name not in self._paths:
                nodes[name] = self._node(name, value)
        built = {node.name for each in nodes.values() for node, _ in walk(each)}
        for path in self.given:
            if path in self._paths and path not in built:
                raise ArgumentError(
                    f"`{self.objective}`: `{path}` is given, but no trial has it, because another choice is given. "
                    "Leave it out."
                )
        return ArgumentTree(self.objective, nodes, tuple(missing))

    @property
    def _paths(self) -> Mapping[str, DeclaredParameter]:
        return self.signature.paths

    def _parameter(self, path: str, declared: DeclaredParameter, missing: list[str]) -> Node | None:
        """Return the node of a parameter or a field; `None` if it has neither a value nor a marker."""
        given = self.given.get(path, _NOT_GIVEN)
        is_choice = len(declared.bundles) > 1 and _chooses(declared, given)
        if given is not _NOT_GIVEN and isinstance(declared.marker, Repeated):
            self._check_length(path, declared.marker, given)
        if isinstance(given, ChosenLabel):
            assert isinstance(declared.marker, Category)
            choice = declared.marker.choices[declared.marker.branch_labels.index(given.label)]
            value = choice if given.value is _NOT_GIVEN else given.value
            return ChosenBranch(path, given.label, self._node(f"{path}.{given.label}", value))
        if given is not _NOT_GIVEN and not isinstance(given, Suggestion) and not is_choice:
            kinds = declared.bundles.values() if len(declared.bundles) > 1 else ()
            label = next((each.name for each in kinds if isinstance(given, each.type.kind)), None)
            if label is not None:
                return ChosenBranch(path, label, Leaf(f"{path}.{label}", given))
            return self._node(path, given, declared.base)
        if isinstance(given, Suggestion) and not is_choice:
            is_branching = isinstance(declared.marker, Category) and declared.marker.holds_markers
            node = self._marker_node(path, given, declared.base, as_branches=is_branching)
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
        if isinstance(otherwise, MadeAnew) and otherwise.make is None and "." not in path:
            otherwise = None
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
        weights = given.weights if isinstance(given, Category) else None
        return Branches(path, Category(list(records), weights=weights), records)

    def _record(self, name: str, path: str, declared: DeclaredParameter, bundle: Bundle, missing: list[str]) -> Node:
        fields: dict[str, Node] = {}
        defaults: dict[str, Leaf] = {}
        whole = declared.default.make() if isinstance(declared.default, MadeAnew) and declared.default.make else None
        whole = declared.default if whole is None else whole
        known = bundle.type.values_of(whole) if bundle.type.is_instance(whole) else {}
        for field, each in bundle.fields.items():
            inner = declared.field_path(path, bundle, field)
            if field in known and (each.bundles or not each.is_searched):
                each = dataclasses.replace(each, default=known[field])
                if not each.is_searched and inner not in self.given:
                    fields[field] = Leaf(inner, copy_containers(known[field]), is_default=True)
                    continue
            if isinstance(each.default, MadeAnew) and not each.is_searched and inner not in self.given:
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

    def _marker_node(self, path: str, marker: Suggestion, base: Any, *, as_branches: bool = False) -> Node:
        marker = completed(f"`{self.objective}`: `{path}`", marker, NO_TYPE)
        if isinstance(marker, Repeated):
            return self._list_node(path, marker)
        if isinstance(marker, Category) and (marker.holds_markers or (as_branches and marker.names is not None)):
            nodes = {
                label: self._node(f"{path}.{label}", choice)
                for label, choice in zip(marker.branch_labels, marker.choices, strict=True)
            }
            return Branches(path, Category(list(nodes), weights=marker.weights), nodes)
        return Searched(path, marker, base)

    def _list_node(self, path: str, marker: Repeated) -> Node:
        name, length = self._length(path, marker)
        if length is _NOT_GIVEN:
            return SizedList(path, name, [])  # the call gives the length
        if type(length) is int and length >= 0:
            items = {index: self._node(f"{path}.{index}", marker.item) for index in range(length)}
            return Items(path, [None] * length, items)
        if not isinstance(length, Integer) or length.low < 0:
            raise InvalidAnnotationError(
                f"`{self.objective}`: `{name}` is the length of the list `{path}`, so it must be an Integer of 0 or "
                f"more, but got {shown(length)}. Write `{name}: Integer(1, 4)`."
            )
        return SizedList(path, name, [self._node(f"{path}.{index}", marker.item) for index in range(length.high)])

    def _length(self, path: str, marker: Repeated) -> tuple[str, Any]:
        """Return the name of the parameter that is the length of a list, and its marker or value.

        The name of a length that is a number is empty.
        """
        if isinstance(marker.length, int):
            return "", marker.length
        name = self._find(marker.length, path, f"the length of the list {marker!r}")
        declared = self._paths.get(name, UNDECLARED)
        length = self.given.get(name, declared.marker)
        if length is None:
            length = declared.default if declared.has_default else _NOT_GIVEN
        return name, length.value if isinstance(length, Fixed) else length

    def _check_length(self, path: str, marker: Repeated, given: Any) -> None:
        """Check that the length of a list that a call gives is the one that it must have."""
        name, length = self._length(path, marker)
        its = given.length if isinstance(given, Repeated) else len(given) if isinstance(given, list) else None
        if its is None or its in (length, marker.length):
            return
        needed = f"{length}" if type(length) is int else f"what `{name}` says, which is {shown(length)}"
        raise ArgumentError(
            f"`{self.objective}`: the length of `{path}` must be {needed}, but got {shown(given)}. Give a list of that "
            f"length{f', or `{name}` too' if name else ''}."
        )

    def _resolved(self, condition: Condition, path: str) -> Condition:
        """Return a condition with whole paths for names, and with the choices that its values name."""

        def find(when: When | WhenTrue, parameter: str) -> str:
            name = self._find(parameter, path, f"the condition {when!r}")
            if name == path:
                raise InvalidAnnotationError(
                    f"`{self.objective}`: the condition of `{path}` compares `{path}` with itself. Name another "
                    "parameter."
                )
            if isinstance(self._paths.get(name, UNDECLARED).marker, Repeated):
                raise InvalidAnnotationError(
                    f"`{self.objective}`: the condition {when!r} of `{path}` compares `{name}`, which is a list. "
                    "Compare a parameter with a single value."
                )
            return name

        def resolve(when: When | WhenTrue) -> Condition:
            if isinstance(when, WhenTrue):
                return when.naming(functools.partial(find, when))
            name = find(when, when.parameter)
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
                listed_values = isinstance(wrong[0], list | tuple | set) and all(each in known for each in wrong[0])
                cure = f"Write {When(when.parameter, *wrong[0])!r}." if listed_values and wrong[0] else "Correct it."
                near = [str(each) for each in (getattr(marker, "names", None) or known)]
                raise InvalidAnnotationError(
                    f"`{self.objective}`: the condition {when!r} of `{path}` compares `{name}` with {shown(wrong[0])}, "
                    f"which is none of its choices {shown(list(known))}.{did_you_mean(str(wrong[0]), near)} {cure}"
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
                    f"`{self.objective}`: {what} of `{path}` names `{name}`, which is no parameter; the others are "
                    f"{listed(sorted(known - {path})) or 'none'}.{did_you_mean(name, near)} Correct the name."
                )
            inside = inside.rpartition(".")[0]
        bundle = self._paths.get(candidate, UNDECLARED).bundle
        if bundle is not None:
            raise InvalidAnnotationError(
                f"`{self.objective}`: {what} of `{path}` names `{candidate}`, which is a whole "
                f"{bundle.name}. Name one of its fields, as in `{candidate}.{next(iter(bundle.fields))}`."
            )
        return candidate
