"""The JSON schema of a space holds for its points, and for no others."""

import dataclasses
import math
from typing import Annotated, Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from optuna_flyte_dsl import Category, Fixed, Float, Integer, SearchSpace, When
from optuna_flyte_dsl.space.json_schema import json_choice, json_value
from optuna_flyte_dsl.space.nodes import Branches, ChosenBranch, Conditional, Items, Record, Searched, SizedList
from optuna_flyte_dsl.testing import strategies
from tests.space.written.test_declarations import SPACE, Kind

pytestmark = pytest.mark.newest  # jsonschema is installed there only, and nothing here depends on other versions


def is_valid(schema: dict[str, Any], value: Any) -> bool:
    import jsonschema

    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


def in_json(node: Any, value: Any, values: dict[str, Any]) -> Any:
    """Return the JSON form of an argument."""
    match node:
        case Searched(marker=Category() as marker):
            return json_choice(marker, marker.index(value))
        case Items():
            items = {key: in_json(each, value[key], values) for key, each in node.items.items()}
            return items if isinstance(node.container, dict) else list(items.values())
        case SizedList():
            return [in_json(each, item, values) for each, item in zip(node.items, value, strict=False)]
        case Record():
            found = node.type.values_of(value)
            fields = {**node.fields, **node.defaults}
            return {
                name: in_json(fields[name], each, values) if name in fields else json_value(each)
                for name, each in found.items()
            }
        case Branches():
            label = values[node.name]
            inner = in_json(node.branches[label], value, values)
            return {label: inner} if isinstance(node.branches[label], Record) else inner
        case ChosenBranch():
            inner = in_json(node.node, value, values)
            return {node.label: inner} if isinstance(node.node, Record) else inner
        case Conditional():
            return in_json(node.node, value, values) if node.condition.holds(values) else json_value(node.otherwise)
    return json_value(value)


def drawn_arguments(data: st.DataObject, space: SearchSpace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw the arguments of a trial. Return them in JSON, and the values of the parameters."""
    values = space._tree.draw(lambda name, marker: data.draw(strategies.values(marker), label=name))
    filled = space._tree.fill(values)
    return {name: in_json(node, filled[name], values) for name, node in space._tree.nodes.items()}, values


@given(strategies.spaces(), st.data())
@settings(max_examples=40)
def test_each_point_of_any_space_is_valid(space, data):
    arguments, _ = drawn_arguments(data, space)
    assert is_valid(space.json_schema(), arguments), (str(space), arguments)


@given(st.data())
@settings(max_examples=40)
def test_each_point_of_a_space_with_everything_is_valid(data):
    space = SPACE.bind(needed="x", function=Fixed(3.5))
    arguments, _ = drawn_arguments(data, space)
    assert is_valid(space.json_schema(), arguments), arguments


@dataclasses.dataclass
class Inner:
    a: Annotated[int, Integer(0, 9, step=3)]
    b: Annotated[float, Float(0, 1, step=0.1), When("a", ge=6)] = 0.5


def train(
    inner: Inner,
    n: Integer(1, 3),
    sizes: Integer(1, 9, step=2) * "n",  # noqa: F821
    kind: Annotated[Kind, Category()],
    x: Annotated[float, Float(0, 1), ~When("kind", Kind.LARGE) | When("inner.a", 0)] = 2.0,
) -> float: ...


def test_a_condition_on_what_json_does_not_have_is_left_out():
    def objective(
        act: Category([max, min]),
        size: Category([np.int64(1), np.int64(2)]),
        far: Category([math.inf, 1.0]),
        y: Annotated[float, Float(0, 1), When("act", max) | When("far", math.inf)] = 0.0,
    ): ...

    schema = SearchSpace.of(objective).json_schema()
    assert is_valid(schema, {"act": 0, "size": 2, "far": 1.0, "y": 0.5})
    assert not is_valid(schema, {"act": 0, "size": 3, "far": 1.0, "y": 0.5})


def test_the_schema_is_one():
    import jsonschema

    for space in (SearchSpace.of(train), SPACE.bind(needed="x")):
        jsonschema.Draft202012Validator.check_schema(space.json_schema())


VALID = {"inner": {"a": 9, "b": 0.3}, "n": 2, "sizes": [1, 9], "kind": "SMALL", "x": 0.25}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"inner": {"a": 3, "b": 0.5}}, True),
        ({"inner": {"a": 3, "b": 0.3}}, False),
        ({"inner": {"a": 4, "b": 0.5}}, False),
        ({"inner": {"a": 9, "b": 0.31}}, False),
        ({"inner": {"a": 9}}, False),
        ({"inner": {"a": 9, "b": 0.3, "c": 1}}, False),
        ({"n": 3}, False),
        ({"n": 4, "sizes": [1, 1, 1, 1]}, False),
        ({"n": 1, "sizes": [7]}, True),
        ({"sizes": [1, 2]}, False),
        ({"kind": "LARGE"}, False),
        ({"kind": "LARGE", "x": 2.0}, True),
        ({"kind": "LARGE", "x": 0.25, "inner": {"a": 0, "b": 0.5}}, True),
        ({"kind": "HUGE"}, False),
        ({"x": 1.5}, False),
        ({"more": 1}, False),
    ],
)
def test_what_is_no_point_is_not_valid(change, expected):
    assert is_valid(SearchSpace.of(train).json_schema(), {**VALID, **change}) is expected


@given(strategies.spaces(), st.data())
@settings(max_examples=25)
def test_a_point_with_a_value_of_another_type_is_not_valid(space, data):
    arguments, _ = drawn_arguments(data, space)
    name = data.draw(st.sampled_from(sorted(arguments)))
    assume(arguments[name] is not None)
    assert not is_valid(space.json_schema(), {**arguments, name: {"no": ["such", "value"]}})
    assert not is_valid(space.json_schema(), {key: each for key, each in arguments.items() if key != name})
