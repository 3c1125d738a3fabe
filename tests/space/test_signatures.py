from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import optuna
import pytest

from optuna_flyte_dsl import Float, OptunaFlyteError, UnresolvedAnnotationError, optimize
from optuna_flyte_dsl.space.signatures import read_signature

if TYPE_CHECKING:
    from decimal import Decimal

LOW = -10


def module_level(x: Float(LOW, 10)) -> float:
    raise NotImplementedError


class Callable:
    def __call__(self, x: Float(LOW, 10)) -> float:
        raise NotImplementedError

    def method(self, x: Float(LOW, 10)) -> float:
        raise NotImplementedError


@pytest.mark.parametrize(
    "function",
    [module_level, Callable(), Callable().method, functools.partial(module_level), functools.partial(Callable())],
)
def test_string_annotations_become_objects(function):
    signature = read_signature(function)
    assert signature.parameters["x"].annotation == Float(-10, 10)
    assert signature.return_annotation is float


def test_a_wrapped_function_is_read_through():
    @functools.wraps(module_level)
    def wrapper(*args, **kwargs):
        raise NotImplementedError

    assert read_signature(wrapper).parameters["x"].annotation == Float(-10, 10)


def test_names_local_to_an_enclosing_function_are_found():
    high = 3

    def outer():
        low = 1

        @optimize
        def objective(x: Float(low, high)) -> float:
            raise NotImplementedError

        return objective

    assert dict(outer().space) == {"x": Float(1, 3)}


def test_names_that_a_function_closes_over_are_found_after_its_maker_has_returned():
    def outer():
        low = 1

        def objective(trial: optuna.Trial, x: Float(low, 3)) -> float:
            return low

        return objective

    assert read_signature(outer()).parameters["x"].annotation == Float(1, 3)


def test_an_annotation_that_is_no_expression_is_named():
    def misspelled(x: optuna.Tial, y: Float(0, 1)) -> float:
        raise NotImplementedError

    with pytest.raises(UnresolvedAnnotationError, match=r"An annotation of `.*misspelled` cannot be read: .*Tial"):
        optimize(misspelled)


def test_a_name_that_cannot_be_found_is_named_with_its_cure():
    def objective(x: Float(0, 1), y: Decimal) -> float:
        raise NotImplementedError

    with pytest.raises(UnresolvedAnnotationError) as caught:
        optimize(objective)
    assert isinstance(caught.value, OptunaFlyteError | NameError)
    assert str(caught.value) == (
        "The name 'Decimal', in an annotation of "
        "`test_a_name_that_cannot_be_found_is_named_with_its_cure.<locals>.objective`, cannot be found. Import it or "
        "define it at the top of the module (not under `if TYPE_CHECKING`), or apply `optimize` inside the function "
        "that defines it."
    )
