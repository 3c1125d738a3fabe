"""Markers that leave their bounds or their choices to the type beside them."""

import dataclasses
import typing
from typing import Annotated, Literal, Optional

import pytest

from optuna_flyte_dsl import (
    ArgumentError,
    Category,
    Float,
    Integer,
    InvalidAnnotationError,
    InvalidMarkerError,
    Ordinal,
    SearchSpace,
    suggest,
)
from tests.support.spaces import Kernel


@dataclasses.dataclass
class Bounds:
    """Has the attributes of the constraints of annotated_types, and of their `Interval`."""

    ge: typing.Any = None
    gt: typing.Any = None
    le: typing.Any = None
    lt: typing.Any = None
    multiple_of: typing.Any = None


class Field:
    """As pydantic's `Field`, which keeps its constraints in a list."""

    def __init__(self, *constraints):
        self.metadata = list(constraints)


def marker_of(annotation):
    def objective(x):
        raise NotImplementedError

    objective.__annotations__["x"] = annotation
    return SearchSpace.of(objective)["x"]


@pytest.mark.parametrize(
    ("annotation", "marker"),
    [
        (Annotated[Literal["gbtree", "dart"], Category()], Category(["gbtree", "dart"])),
        (Annotated[Literal[16, 32], Ordinal()], Ordinal([16, 32])),
        (Annotated[bool, Category()], Category([False, True])),
        (Annotated[Kernel, Category()], Category(Kernel)),
        (Annotated[Optional[Kernel], Category()], Category(Kernel)),
        (Optional[Annotated[Literal["a"], Category()]], Category(["a"])),
        (Annotated[float, Bounds(ge=0), Bounds(le=1), Float()], Float(0, 1)),
        (Annotated[float, Float(log=True), Bounds(ge=1, le=9)], Float(1, 9, log=True)),
        (Annotated[float, Float(high=3), Bounds(ge=1, le=9)], Float(1, 3)),
        (Annotated[float, Field(Bounds(ge=0), Bounds(le=1)), Float()], Float(0, 1)),
        (Annotated[float, Bounds(ge=0.2, le=1, multiple_of=0.25), Float()], Float(0.25, 1, step=0.25)),
        (Annotated[int, Bounds(ge=1), Bounds(le=9), Integer()], Integer(1, 9)),
        (Annotated[int, Bounds(gt=1, lt=9), Integer()], Integer(2, 8)),
        (Annotated[int, Bounds(gt=0.5, lt=8.5), Integer()], Integer(1, 8)),
        (Annotated[int, Bounds(ge=1, le=9, multiple_of=2), Integer()], Integer(2, 8, step=2)),
        (Annotated[int, Bounds(ge=1, le=9), Integer(log=True)], Integer(1, 9, log=True)),
        (Annotated[float, Bounds(ge=0.1, le=0.7, multiple_of=0.1), Float()], Float(0.1, 0.7, step=0.1)),
        (Annotated[int, Bounds(ge=0), Bounds(gt=3), Bounds(le=8), Integer()], Integer(4, 8)),
        (Annotated[float, Bounds(ge=0), Bounds(ge=3), Bounds(le=9), Bounds(le=8), Float()], Float(3, 8)),
        (Annotated[int, Bounds(ge=0.5, le=8.5), Integer()], Integer(1, 8)),
        (
            Annotated[int, Bounds(ge=10**17 + 1, le=10**17 + 11, multiple_of=2), Integer()],
            Integer(10**17 + 2, 10**17 + 10, step=2),
        ),
        (Annotated[int, Bounds(multiple_of=8), Integer(0, 64, step=16)], Integer(0, 64, step=16)),
    ],
)
def test_the_type_has_what_the_marker_leaves_out(annotation, marker):
    assert marker_of(annotation) == marker


def test_an_exclusive_bound_is_left_out():
    marker = marker_of(Annotated[float, Bounds(gt=0, lt=1), Float()])
    assert 0 < marker.low < 1e-300
    assert 0.999999 < marker.high < 1


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (
            Annotated[int, Bounds(multiple_of=8), Integer(0, 64)],
            r"Integer\(0, 64\) has values that a cons",
        ),
        (
            Annotated[int, Bounds(ge=1, le=64, multiple_of=8), Integer(log=True)],
            "has values that a constraint beside it",
        ),
        (Annotated[int, Bounds(ge=10), Integer(0, 64)], "has values that a constraint beside it excludes"),
        (
            Annotated[float, Bounds(ge=0, le=1, multiple_of=0), Float()],
            "at most one `multiple_of`, greater than 0",
        ),
        (Annotated[float, Bounds(gt="0", le=1), Float()], "`gt` must be a finite number, but got '0'"),
        (Category(), r"of `x`: `Category\(\)` takes its choices from the type beside it.*There is no type. Write"),
        (Annotated[str, Category()], r"There is <class 'str'>. Write the choices: `Category\(\[\"a\", \"b\"\]\)`"),
        (Annotated[list[int], Ordinal()], r"`Ordinal\(\)` takes its choices.*There is list\[int\]"),
        (Float(), r"`Float\(\)` lacks `low` and `high`, and no constraint beside it has them. Write `Float\(0, 1\)`"),
        (Annotated[int, Integer(low=1)], r"`Integer\(low=1\)` lacks `high`, and no constraint beside it has it"),
        (
            Annotated[float, Bounds(gt=0, le=1), Float(log=True)],
            r"with `log=True`, `low` cannot be taken from an exclus",
        ),
    ],
)
def test_what_no_type_has_is_named(annotation, message):
    with pytest.raises(InvalidAnnotationError, match=message):
        marker_of(annotation)


def test_bounds_that_break_a_rule_are_refused():
    with pytest.raises(InvalidAnnotationError, match=r"of `x`: the constraints .* give no range.*`low < high`"):
        marker_of(Annotated[float, Bounds(ge=3, le=1), Float()])


def test_a_suggestion_of_a_call_takes_the_choices_of_the_signature():
    def objective(kernel: Kernel, rate: float, other: typing.Any = None):
        raise NotImplementedError

    space = SearchSpace.of(objective)
    assert space.bind(kernel=suggest.category())["kernel"] == Category(Kernel)
    with pytest.raises(InvalidAnnotationError, match=r"`objective`: `rate`: `Float\(\)` lacks `low` and `high`"):
        space.bind(rate=suggest.float())
    with pytest.raises(InvalidAnnotationError, match=r"`objective`: `other.x`: `Float\(\)` lacks"):
        dict(space.bind(other={"x": suggest.float()}))
    with pytest.raises(ArgumentError):
        space.bind(kern=suggest.category())


def test_a_marker_that_is_not_complete_has_no_distribution():
    for marker in (Float(), Integer(low=1), Category(), Ordinal()):
        with pytest.raises(InvalidMarkerError, match="has no values by itself"):
            marker.to_distribution()


@pytest.mark.parametrize(
    ("marker", "cure"),
    [(Integer(10), r"Integer\(10, 11\)"), (Float(high=3), r"Float\(2.0, 3.0\)"), (Float(), r"Float\(0, 1\)")],
)
def test_the_cure_of_a_marker_without_a_bound_has_the_bound_that_it_has(marker, cure):
    def objective(x: Annotated[float, marker]):
        raise NotImplementedError

    with pytest.raises(InvalidAnnotationError, match=f"Write `{cure}`"):
        SearchSpace.of(objective)
