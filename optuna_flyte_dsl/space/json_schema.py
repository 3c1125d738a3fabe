"""The JSON schema of a search space; see `SearchSpace.json_schema`."""

from __future__ import annotations

import contextlib
import enum
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from optuna_flyte_dsl.space import conversion, domain
from optuna_flyte_dsl.space.conditions import AllOf, AnyOf, Condition, NotThat, When
from optuna_flyte_dsl.space.markers import Category, Float, Integer, Suggestion
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
)
from optuna_flyte_dsl.space.records import MadeAnew, fields_of
from optuna_flyte_dsl.space.tree import ArgumentTree

Schema: TypeAlias = dict[str, Any]
_Place: TypeAlias = tuple[str | int, ...]  # the keys and the indices that lead to a value

_MOST_VALUES = 1000  # a grid of so many values is written as a list of them
_BOUNDS = {"gt": "exclusiveMinimum", "ge": "minimum", "lt": "exclusiveMaximum", "le": "maximum"}


class NotJson(Exception):  # noqa: N818 - no user sees it
    """Raised for a value that has no form in JSON."""


def json_schema(name: str, tree: ArgumentTree) -> Schema:
    """Return the JSON schema, of the draft 2020-12, of the keyword arguments of a trial."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": name,
        **_SchemaWriter(tree).schema(),
    }


def json_value(value: Any) -> Any:
    """Return the JSON form of a value that is not searched.

    Raises:
        NotJson: If it has none.
    """
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NotJson
        return float(value)
    if conversion.is_numpy_scalar(value):
        return json_value(value.item())
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: json_value(item) for key, item in value.items()}
    fields = fields_of(type(value)) if not isinstance(value, type) else None
    if fields is None:
        raise NotJson
    return {name: json_value(each) for name, each in fields.values_of(value).items()}


def json_choice(marker: Category, index: int) -> Any:
    """Return the JSON form of a choice: its name, if the choices have names."""
    return marker.names[index] if marker.names is not None else json_value(marker.choices[index])


class _SchemaWriter:
    def __init__(self, tree: ArgumentTree) -> None:
        self._tree = tree
        self._places: dict[str, tuple[_Place, Node]] = {}  # by the name of a node
        self._conditions: dict[str, Condition] = {}  # when each node that is not always active is active
        for name, node in tree.nodes.items():
            self._note(node, (name,))
        for node, condition in tree.every_node():
            if condition is not None:
                self._conditions.setdefault(node.name, condition)

    def _note(self, node: Node, place: _Place) -> None:
        self._places[node.name] = (place, node)
        for key, child in _children(node):
            self._note(child, (*place, *key))

    def schema(self) -> Schema:
        schema = _object({name: self._of(node) for name, node in self._tree.nodes.items()})
        rules = list(self._rules())
        return schema | ({"allOf": rules} if rules else {})

    def _of(self, node: Node) -> Schema:
        """Return the schema of a node, whatever the other parameters are."""
        match node:
            case Searched():
                return _marker_schema(node.marker)
            case Leaf():
                return _constant(node.value)
            case Items() if isinstance(node.container, dict):
                return _object({str(key): self._of(each) for key, each in node.items.items()})
            case Items():
                return _array([self._of(each) for each in node.items.values()])
            case SizedList():
                return {"type": "array", "prefixItems": [self._of(each) for each in node.items], "items": False}
            case Record():
                others: dict[str, Schema] = {field: {} for field in node.type.fields}
                fields = {field: self._of(each) for field, each in {**node.fields, **node.defaults}.items()}
                return _object({**others, **fields}, node.fields)
            case Branches():
                return {"anyOf": [self._of_branch(node, label) for label in node.branches]}
            case ChosenBranch() if isinstance(node.node, Record):
                return _object({str(node.label): self._of(node.node)})
            case ChosenBranch():
                return self._of(node.node)
            case Conditional():
                return {"anyOf": [self._of(node.node), _otherwise(node)]}
        raise AssertionError(node)

    def _of_branch(self, node: Branches, label: Any) -> Schema:
        schema = self._of(node.branches[label])
        return _object({str(label): schema}) if isinstance(node.branches[label], Record) else schema

    def _rules(self) -> Iterator[Schema]:
        """Yield what the parameters that are active say about others.

        A condition that compares a value which JSON does not have is left out.
        """
        for node, whole in self._tree.every_node():
            with contextlib.suppress(NotJson):
                yield from self._rules_of(node, whole)

    def _rules_of(self, node: Node, whole: Condition | None) -> Iterator[Schema]:
        place = self._places[node.name][0] if node.name in self._places else ()
        active = self._holds(whole) if whole is not None else {}
        match node:
            case Conditional():
                above = self._above(place)
                holds = self._holds(node.condition)
                yield _if(_all([above, holds]), _at(place, self._of(node.node)))
                yield _if(_all([above, {"not": holds}]), _at(place, _otherwise(node)))
            case SizedList():
                for count in range(len(node.items) + 1) if node.length in self._places else ():
                    rule = _at(place, {"minItems": count, "maxItems": count})
                    yield _if(_all([active, self._holds(When(node.length, count))]), rule)

    def _above(self, place: _Place) -> Schema:
        """Return the schema that says that what is around a place is there."""
        return _at(place[:-1], {}) if len(place) > 1 else {}

    def _holds(self, condition: Condition, *, is_true: bool = True) -> Schema:
        """Return the schema that says that a condition is true, or that it is false.

        A comparison with an inactive parameter is neither.
        """
        match condition:
            case NotThat():
                return self._holds(condition.part, is_true=not is_true)
            case AllOf() | AnyOf():
                parts = [self._holds(part, is_true=is_true) for part in condition.parts]
                return {"allOf" if isinstance(condition, AllOf) == is_true else "anyOf": parts}
            case When():
                place, node = self._places[condition.parameter]
                compared = self._compared(condition, node)
                own = self._conditions.get(condition.parameter)
                return _all(
                    [
                        self._holds(own) if own is not None else {},
                        _at(place, compared if is_true else {"not": compared}),
                    ]
                )
        raise NotJson  # a function decides

    def _compared(self, when: When, node: Node) -> Schema:
        while isinstance(node, Conditional):
            node = node.node
        if not when.values:
            return {"type": "number", **{_BOUNDS[name]: bound for name, bound in when.bounds.items()}}
        match node:
            case Branches():
                return {"anyOf": [self._of_branch(node, label) for label in when.values if label in node.branches]}
            case ChosenBranch():
                return {} if node.label in when.values else {"not": {}}
            case Searched(marker=Category() as marker):
                found = [
                    json_choice(marker, marker.index(value)) for value in when.values if domain.contains(marker, value)
                ]
                return {"enum": found}
        return {"enum": [json_value(value) for value in when.values]}


def _children(node: Node) -> Iterator[tuple[_Place, Node]]:
    """Yield the nodes below a node, each with the keys that lead to it."""
    match node:
        case Items() | SizedList():
            items = node.items.items() if isinstance(node, Items) else enumerate(node.items)
            is_dict = isinstance(node, Items) and isinstance(node.container, dict)
            yield from (((str(key) if is_dict else key,), each) for key, each in items)
        case Record():
            yield from (((field,), each) for field, each in {**node.fields, **node.defaults}.items())
        case Branches():
            yield from (
                ((str(label),) if isinstance(each, Record) else (), each) for label, each in node.branches.items()
            )
        case ChosenBranch():
            yield ((str(node.label),) if isinstance(node.node, Record) else ()), node.node
        case Conditional():
            yield (), node.node


def _marker_schema(marker: Suggestion) -> Schema:
    match marker:
        case Category():
            try:
                return {"enum": [json_choice(marker, index) for index in range(len(marker.choices))]}
            except NotJson:
                return {}
        case Float() | Integer():
            kind = "integer" if isinstance(marker, Integer) else "number"
            schema: Schema = {"type": kind, "minimum": marker.low, "maximum": marker.high}
            if marker.step in (None, 1):
                return schema
            if isinstance(marker, Integer) and marker.low % marker.step == 0:
                return schema | {"multipleOf": marker.step}
            count = domain.count(marker)
            return (
                {"enum": [domain.value_at(marker, index) for index in range(int(count))]}
                if count <= _MOST_VALUES
                else schema
            )
    raise AssertionError(marker)


def _constant(value: Any) -> Schema:
    try:
        return {"const": json_value(value)}
    except NotJson:
        return {}


def _otherwise(node: Conditional) -> Schema:
    if isinstance(node.otherwise, MadeAnew):
        return {}
    return _constant(node.otherwise)


def _object(properties: Mapping[str, Schema], required: Mapping[str, Any] | None = None) -> Schema:
    needed = list(properties if required is None else required)
    return {"type": "object", "properties": dict(properties), "required": needed, "additionalProperties": False}


def _array(items: Sequence[Schema]) -> Schema:
    return {"type": "array", "prefixItems": list(items), "items": False, "minItems": len(items)}


def _at(place: _Place, schema: Schema) -> Schema:
    """Return the schema of a whole whose part at a place has a schema."""
    for key in reversed(place):
        if isinstance(key, str):
            schema = {"properties": {key: schema}, "required": [key]}
        else:
            schema = {"prefixItems": [{}] * key + [schema], "minItems": key + 1}
    return schema


def _all(schemas: Sequence[Schema]) -> Schema:
    told = [schema for schema in schemas if schema]
    return told[0] if len(told) == 1 else {"allOf": told} if told else {}


def _if(condition: Schema, then: Schema) -> Schema:
    return {"if": condition, "then": then}
