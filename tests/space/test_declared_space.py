"""What a space declares: changed, and compared."""

import dataclasses
from typing import Annotated

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from optuna_flyte_dsl import (
    ArgumentError,
    Category,
    Float,
    Integer,
    InvalidAnnotationError,
    OutOfRangeError,
    SearchSpace,
    When,
)
from optuna_flyte_dsl.testing import strategies


@dataclasses.dataclass
class SVM:
    C: Annotated[float, Float(0.1, 10, log=True)]
    gamma: Annotated[float, Float(0, 1), When("kernel", "rbf")] = 0.0


@dataclasses.dataclass
class Forest:
    n_trees: Annotated[int, Integer(10, 500)]


def train(
    model: SVM | Forest, kernel: Category(["linear", "rbf"]), x: Annotated[float, Float(0, 1)], data: str = "wine"
) -> float: ...


SPACE = SearchSpace.of(train)


def test_a_replaced_space_declares_other_markers():
    space = SPACE.replace(x=Integer(1, 5), data="digits", **{"model.SVM.C": Float(1, 2)})
    assert space["x"] == Integer(1, 5)
    assert space["model.SVM.C"] == Float(1, 2)
    assert space.fixed_values()["data"] == "digits"
    assert space.conditions["model.SVM.gamma"] == SPACE.conditions["model.SVM.gamma"]
    with pytest.raises(OutOfRangeError, match="`x` must lie within its marker Integer"):
        space.bind(x=9)
    assert space.replace(x=Float(0, 1), **{"model.SVM.C": Float(0.1, 10, log=True)}).replace(data="wine") == SPACE.bind(
        data="wine"
    )


def test_a_replaced_parameter_can_have_another_condition():
    space = SPACE.replace(x=Annotated[float | None, Float(0, 1), When("kernel", "linear")])
    assert space.conditions["x"] == When("kernel", "linear")
    assert space.contains({"model": Forest(10), "kernel": "rbf", "x": None, "data": "wine"})


def test_a_replaced_parameter_is_free_again():
    assert SPACE.bind(x=0.5).replace(x=Float(0, 1)) == SPACE


@pytest.mark.parametrize(
    ("declared", "error", "message"),
    [
        ({"y": Float(0, 1)}, ArgumentError, "has no parameter `y`; it has `model`"),
        ({"x": Category(["a"])}, ArgumentError, "`x` says float, but Category"),
        ({"x": Annotated[float, "a note"]}, InvalidAnnotationError, "`x` must hold a marker, but got"),
        ({"x": Annotated[float, Float(0, 1), When("x", 3)]}, InvalidAnnotationError, "compares `x` with itself"),
        ({"kernel": Category(["linear"])}, InvalidAnnotationError, "`kernel` with 'rbf', which is none of its choices"),
        ({"x": 7.0}, OutOfRangeError, "`x` must lie within its marker"),
    ],
)
def test_a_replacement_that_does_not_fit_is_refused(declared, error, message):
    with pytest.raises(error, match=message):
        SPACE.replace(**declared)


def test_a_difference_is_told_in_words():
    changed = SPACE.replace(x=Float(0, 2), **{"model.SVM.gamma": 0.5}).bind(kernel="rbf")
    assert changed.difference(SPACE).splitlines() == [
        "model.SVM.gamma: 0.5 (fixed) when model is 'SVM', "
        "was Float(0, 1) when model is 'SVM' and kernel is 'rbf', else 0.0",
        "kernel: 'rbf' (fixed), was Category(['linear', 'rbf'])",
        "x: Float(0, 2), was Float(0, 1)",
    ]

    def other(x: Float(0, 2), y: Integer(0, 1), needed: int) -> float: ...

    lines = SearchSpace.of(other).difference(SPACE).splitlines()
    assert lines[0] == "needed: a value that a call must give, which is new"
    assert "y: Integer(0, 1), which is new" in lines
    assert "model.Forest.n_trees: gone, was Integer(10, 500) when model is 'Forest'" in lines


def test_spaces_with_arrays_are_compared():
    def array(x: Float(0, 1), w: object = None): ...

    one, other = (SearchSpace.of(array).bind(w=np.arange(size)) for size in (3, 4))
    assert one != other
    assert one == SearchSpace.of(array).bind(w=one.arguments["w"])


def test_other_types_are_a_difference():
    def one(x: Annotated[float, Category([1.0, 2.0])]) -> float: ...
    def other(x: Category([1.0, 2.0])) -> float: ...

    spaces = SearchSpace.of(one), SearchSpace.of(other)
    assert spaces[0] != spaces[1]
    assert spaces[0].difference(spaces[1]) == "The parameters look alike, but have other types or other objects."


@given(strategies.spaces(), st.data())
def test_two_spaces_differ_in_words_if_they_are_not_equal(space, data):
    assert space.difference(space) == ""
    drawn = data.draw(strategies.params(space))
    name = data.draw(st.sampled_from(sorted(drawn)))
    try:
        fixed = space.bind(**{name: drawn[name]})
    except ArgumentError:  # a list is fixed together with its length only
        reject()
    assert (fixed.difference(space) == "") == (fixed == space)
    assert all(line.startswith(name) or name in line for line in fixed.difference(space).splitlines())
    if name in space:
        assert fixed.difference(space).splitlines()
