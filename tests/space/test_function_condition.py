"""Conditions that a function decides: `WhenTrue`."""

import dataclasses
import math
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_flyte_dsl import (
    Category,
    Float,
    Integer,
    InvalidAnnotationError,
    InvalidMarkerError,
    InvalidMarkerTypeError,
    InvalidSpaceError,
    Optimizer,
    SearchSpace,
    When,
    WhenTrue,
    optimize,
)
from optuna_flyte_dsl.testing import strategies


def is_big(depth, width):
    return depth * width > 64


async def later(depth):
    return depth > 3


def relu(n):
    return n


def fit(
    depth: Integer(1, 8),
    width: Integer(1, 64),
    dropout: Annotated[float, Float(0.1, 0.5), WhenTrue(is_big)] = 0.0,
) -> float:
    return dropout


def small(n: Integer(0, 9), x: Annotated[int, Integer(0, 1), WhenTrue(lambda n: n % 3 == 0)] = 7) -> float:
    return n


def test_the_parameter_is_searched_only_where_the_function_is_true():
    @optimize(n_trials=40, seed=1, progress=False)
    async def search(
        depth: Integer(1, 8),
        width: Integer(1, 64),
        dropout: Annotated[float, Float(0.1, 0.5), WhenTrue(is_big)] = 0.0,
    ) -> float:
        assert (dropout >= 0.1) if is_big(depth, width) else (dropout == 0.0)
        return dropout

    trials = search.run_sync().trials
    assert {is_big(each.params["depth"], each.params["width"]) for each in trials} == {True, False}
    for each in trials:
        assert ("dropout" in each.params) == is_big(each.params["depth"], each.params["width"])


@given(point=strategies.params(SearchSpace.of(fit)))
def test_drawn_points_keep_the_condition(point):
    assert (point["dropout"] > 0) == is_big(point["depth"], point["width"])
    assert SearchSpace.of(fit).contains(point)
    wrong = {**point, "dropout": 0.0 if point["dropout"] else 0.2}
    assert not SearchSpace.of(fit).contains(wrong)


def test_the_points_of_a_finite_space_are_counted():
    assert SearchSpace.of(small).n_points == 4 * 2 + 6


def test_it_is_combined_negated_and_read():
    condition = ~WhenTrue(is_big) & When("depth", gt=1) | WhenTrue(lambda n: n, n="width")
    assert repr(condition) == "~WhenTrue(is_big) & When('depth', gt=1) | WhenTrue(lambda n: ..., n='width')"
    assert condition.in_words() == "(not (is_big(depth, width)) and depth > 1) or a function(width)"
    assert condition.names == {"depth", "width"}
    assert condition.holds({"depth": 2, "width": 1}) is True
    assert condition.holds({"depth": 1, "width": 0}) is False
    assert condition.holds({"depth": 1}) is None
    assert "when is_big(depth, width), else 0.0" in str(SearchSpace.of(fit))
    assert WhenTrue(is_big) == WhenTrue(is_big) != WhenTrue(lambda depth, width: True)
    assert hash(WhenTrue(is_big)) == hash(WhenTrue(is_big))


@dataclasses.dataclass
class Config:
    depth: Annotated[int, Integer(1, 4)]
    rate: Annotated[float, Float(0, 1), WhenTrue(lambda depth, kind: depth > 2 and kind == "b")] = math.pi


def test_a_part_that_guards_another_one_is_asked_first():
    def divides(n: int, whole: int = 10) -> bool:
        return whole % n == 0

    guarded = When("n", gt=0) & WhenTrue(divides)
    assert [guarded.holds({"n": n}) for n in (0, 2, 3)] == [False, True, False]
    either = When("n", le=0) | WhenTrue(divides)
    assert [either.holds({"n": n}) for n in (0, 2, 3)] == [True, True, False]
    assert (When("m", 1) & When("n", 2)).holds({"n": 1}) is False
    assert (When("m", 1) | When("n", 2)).holds({"n": 1}) is None
    assert guarded.names == {"n"}
    assert WhenTrue(divides, whole="m").names == {"n", "m"}


def test_names_are_looked_for_in_the_class_first_and_then_further_out():
    def train(config: Config, kind: Category(["a", "b"])) -> float:
        return 1.0

    space = SearchSpace.of(train)
    assert space.conditions["config.rate"].names == {"config.depth", "kind"}
    assert space.active_in({"config.depth": 3, "kind": "b", "config.rate": 0.5}) == {
        "config.depth",
        "kind",
        "config.rate",
    }
    assert space.active_in({"config.depth": 3, "kind": "a"}) == {"config.depth", "kind"}


def test_a_fixed_parameter_decides_at_the_call():
    study = Optimizer(fit, 1, 5, seed=1, progress=False).run_sync(depth=1)
    assert all("dropout" not in trial.params for trial in study.trials)


def test_it_is_written_and_read_with_the_objective():
    for objective in (fit, small):
        space = SearchSpace.of(objective)
        assert SearchSpace.from_yaml(space.to_yaml(), objective) == space
        assert SearchSpace.from_dict(space.to_dict(), objective) == space
    assert SearchSpace.of(fit).to_dict()["parameters"]["dropout"]["when"]["function"].endswith(":is_big")


@pytest.mark.parametrize("name", ["os:getenv", "tests.space.test_function_condition:test_it_is_combined", 3, None])
def test_a_file_cannot_name_a_function_that_is_then_called(name):
    data = SearchSpace.of(fit).to_dict()
    data["parameters"]["dropout"]["when"] = {"function": name, "parameters": {"key": "depth"}}
    with pytest.raises(InvalidSpaceError, match="must be one of the objective's own conditions"):
        SearchSpace.from_dict(data, fit)
    with pytest.raises(InvalidSpaceError, match="must be one of the objective's own conditions"):
        SearchSpace.from_dict(data)


def test_a_file_cannot_call_a_function_that_is_only_a_choice():
    def search(
        n: Integer(0, 9),
        function: Category({"relu": relu, "big": is_big}),
        x: Annotated[float, Float(0, 1), WhenTrue(lambda n: n > 3)] = 0.0,
    ) -> float:
        return x

    data = SearchSpace.of(search).to_dict()
    for called in (f"{__name__}:relu", "evil:relu"):
        data["parameters"]["x"]["when"] = {"function": called, "parameters": {"n": "n"}}
        with pytest.raises(InvalidSpaceError, match="must be one of the objective's own conditions"):
            SearchSpace.from_dict(data, search)


def test_a_function_without_a_name_is_found_by_its_own_place_only():
    data = SearchSpace.of(small).to_dict()
    assert SearchSpace.from_dict(data, small) == SearchSpace.of(small)
    data["parameters"]["x"]["when"]["function"] = "other: when"
    with pytest.raises(InvalidSpaceError, match="must be one of the objective's own conditions"):
        SearchSpace.from_dict(data, small)


@pytest.mark.newest
@given(point=strategies.params(SearchSpace.of(small)))
def test_the_json_schema_takes_all_points(point):
    import jsonschema

    jsonschema.validate(point, SearchSpace.of(small).json_schema())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: WhenTrue(3), InvalidMarkerTypeError, "it takes a function, but got 3"),
        (lambda: WhenTrue(int), InvalidMarkerTypeError, "it takes a function"),
        (lambda: WhenTrue(later), InvalidMarkerTypeError, "must return its value"),
        (lambda: WhenTrue(), InvalidMarkerTypeError, "WhenTrue: .*function"),
        (lambda: WhenTrue(lambda: True), InvalidMarkerError, "it takes none"),
        (lambda: WhenTrue(is_big, height="h"), InvalidMarkerError, "has no parameter `height`; it has depth, width"),
        (lambda: WhenTrue(is_big, depth=3), InvalidMarkerTypeError, "`depth` must be the name of a parameter"),
        (lambda: WhenTrue(lambda depth, /: True), InvalidMarkerError, "Drop the `/`"),
        (lambda: bool(WhenTrue(is_big)), InvalidMarkerTypeError, "neither true nor false"),
    ],
)
def test_a_wrong_function_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        (WhenTrue(lambda n: False), InvalidAnnotationError, "never"),
        (WhenTrue(lambda n: n > 9), InvalidAnnotationError, "never"),
        (WhenTrue(lambda m: True), InvalidAnnotationError, "names `m`, which is no parameter"),
        (WhenTrue(lambda x: True), InvalidAnnotationError, "with itself"),
        (WhenTrue(lambda n: 1 / n), InvalidMarkerError, "raised ZeroDivisionError for {'n': 0}"),
    ],
)
def test_a_condition_that_cannot_be_right_is_an_error_at_decoration(condition, error, message):
    def search(n: Integer(0, 9), x: Annotated[float, Float(0, 1), condition] = 0.0) -> float:
        return x

    with pytest.raises(error, match=message):
        optimize(n_trials=3)(search)


def test_many_combinations_that_are_false_do_not_hold_up_the_import():
    calls = []

    def is_huge(depth, width, batch):
        calls.append(depth)
        return depth * width * batch > 16_000_000

    def search(
        depth: Integer(1, 8),
        width: Integer(1, 4096),
        batch: Integer(1, 512),
        x: Annotated[float, Float(0, 1), WhenTrue(is_huge)] = 0.0,
    ) -> float:
        return x

    SearchSpace.of(search)
    assert len(calls) < 50_000


def test_a_function_that_is_defined_again_is_another_one():
    """As in a notebook, where a cell is changed and run again."""

    def define(body):
        names = {"__name__": "__main__"}
        exec(f"def decides(n): return {body}", names)
        return names["decides"]

    assert WhenTrue(define("n > 3")) == WhenTrue(define("n > 3"))
    assert WhenTrue(define("n > 3")) != WhenTrue(define("n < 3"))
    assert WhenTrue(define("n > 3")) != WhenTrue(define("n > 4"))


def test_the_class_itself_is_refused():
    def search(n: Integer(0, 9), x: Annotated[float, Float(0, 1), WhenTrue] = 0.0) -> float:
        return x

    with pytest.raises(InvalidAnnotationError, match=r"holds the class WhenTrue. Call it, as in `WhenTrue\(lambda"):
        optimize(n_trials=3)(search)


@given(data=st.data())
def test_a_function_that_says_the_same_as_a_comparison_allows_the_same_points(data):
    bound = data.draw(st.integers(0, 8))

    def by_function(n: Integer(0, 9), x: Annotated[int, Integer(0, 3), WhenTrue(lambda n: n > bound)] = 0) -> float:
        return n

    def by_comparison(n: Integer(0, 9), x: Annotated[int, Integer(0, 3), When("n", gt=bound)] = 0) -> float:
        return n

    one, other = SearchSpace.of(by_function), SearchSpace.of(by_comparison)
    assert one.n_points == other.n_points
    for index in range(int(one.n_points)):
        assert one.counter.point(index) == other.counter.point(index)
