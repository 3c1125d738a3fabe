import flytekit as fl
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from optuna_flyte_dsl import ArgumentError, Category, Float, Integer, InvalidMarkerTypeError, optimize, suggest
from optuna_flyte_dsl.testing.strategies import params, values
from tests.support import spaces
from tests.user_module import plain, train

QUICK = settings(max_examples=300, database=None, phases=[Phase.generate, Phase.shrink])


@given(st.data())
def test_every_draw_is_a_point_of_its_space(data):
    space = data.draw(spaces.spaces)
    assert space.contains(data.draw(params(space)))


@pytest.mark.parametrize(
    "marker",
    [
        Float(-3, 7),
        Float(1e-6, 1e3, log=True),
        Float(0, 1, step=0.1),
        Integer(-3, 40),
        Integer(1, 10**6, log=True),
        Integer(0, 100, step=5),
    ],
    ids=repr,
)
def test_both_boundaries_are_drawn(marker):
    for bound in (marker.low, marker.high):
        assert find(values(marker), lambda value: value == bound, settings=QUICK) == bound  # noqa: B023


@pytest.mark.parametrize("marker", [Float(1e-6, 1e6, log=True), Integer(1, 10**6, log=True)], ids=repr)
def test_with_log_every_order_of_magnitude_is_drawn(marker):
    low = marker.low
    while low * 10 <= marker.high:
        find(values(marker), lambda value: low <= value <= low * 10, settings=QUICK)  # noqa: B023
        low *= 10


@pytest.mark.parametrize(
    ("marker", "condition", "smallest"),
    [
        (Integer(0, 1000), lambda value: value > 17, 18),
        (Integer(-10, 1000, step=5), lambda value: value > 17, 20),
        (Float(0, 10, step=0.5), lambda value: value > 3.2, 3.5),
        (Float(0, 10), lambda value: value > 3.2, 4.0),
        (Category(["a", "b", "c"]), lambda value: True, "a"),
        (Float(1e-3, 1, log=True), lambda value: True, 1e-3),
    ],
)
def test_draws_shrink_to_the_simplest_value(marker, condition, smallest):
    assert find(values(marker), condition, settings=QUICK) == smallest


@given(params(train, dataset="digits"))
def test_an_objective_under_optimize_gives_the_arguments_of_its_task(drawn):
    assert train.space.bind(dataset="digits").contains(drawn)
    assert drawn["dataset"] == "digits"


@settings(max_examples=10)
@given(params(plain))
def test_a_bare_task_does_too(drawn):
    assert drawn.keys() == {"lr", "depth", "booster", "dataset"}


@optimize
@fl.task
def square(x: Integer(-3, 3), params: dict) -> float:
    return float(x * x + params["y"])


@settings(max_examples=25)
@given(params(square, params={"y": suggest.float(0, 1), "z": [1]}))
def test_a_user_property_holds_of_the_task(drawn):
    assert drawn["params"]["z"] == [1]
    assert square.task(**drawn) >= 0


def test_arguments_are_checked_when_the_strategy_is_made():
    with pytest.raises(ArgumentError, match="needs a value for `params`"):
        params(square)
    with pytest.raises(InvalidMarkerTypeError, match="but got 3"):
        values(3)


@optimize(constraints=[lambda x, n: x + n - 6])
def constrained(x: Float(0, 9), n: Integer(1, 9)) -> float: ...


@given(params(constrained))
def test_the_constraints_of_the_objective_hold(drawn):
    assert drawn["x"] + drawn["n"] <= 6
