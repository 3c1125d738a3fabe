"""The first points of a search."""

import math

import optuna
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from optuna_flyte_dsl.sampling.quasi_random import QuasiRandomPoints, value_at


@st.composite
def distributions(draw):
    kind = draw(st.sampled_from(["float", "step", "log", "int", "int log", "choices"]))
    if kind == "choices":
        return CategoricalDistribution(draw(st.lists(st.text(max_size=3), min_size=1, max_size=6, unique=True)))
    if kind.startswith("int"):
        low = draw(st.integers(1, 100))
        high = low + draw(st.integers(0, 100))
        if "log" in kind:
            return IntDistribution(low, high, log=True)
        return IntDistribution(low, low + 3 * (high - low), step=3)
    low = draw(st.floats(1e-3, 100))
    high = low + draw(st.floats(0, 100))
    if kind == "step":
        return FloatDistribution(0.5, 0.5 + 0.25 * draw(st.integers(0, 40)), step=0.25)
    return FloatDistribution(low, high, log=kind == "log")


@given(distributions(), st.floats(0, 1))
def test_a_value_lies_in_its_distribution(distribution, share):
    value = value_at(share, distribution)
    with_default = optuna.trial.FixedTrial({"x": value})
    match distribution:
        case CategoricalDistribution():
            assert value in distribution.choices
        case IntDistribution():
            assert type(value) is int
            assert (value - distribution.low) % distribution.step == 0
        case FloatDistribution():
            assert type(value) is float
    if not isinstance(distribution, CategoricalDistribution):
        assert distribution.low <= value <= distribution.high
        suggest = with_default.suggest_int if isinstance(distribution, IntDistribution) else with_default.suggest_float
        suggest("x", distribution.low, distribution.high, step=distribution.step, log=distribution.log)


@given(distributions())
def test_the_ends_of_the_share_are_the_ends_of_the_range(distribution):
    if isinstance(distribution, CategoricalDistribution):
        ends = distribution.choices[0], distribution.choices[-1]
    else:
        ends = distribution.low, distribution.high
    for share, end in zip((0.0, 1.0), ends, strict=True):
        value = value_at(share, distribution)
        assert value == end or math.isclose(value, end)


def test_points_of_a_logarithmic_range_are_even_in_the_logarithm():
    points = QuasiRandomPoints(1)
    drawn = [points.value(index, 0, FloatDistribution(1e-4, 1.0, log=True)) for index in range(64)]
    assert [sum(10.0**-k < x <= 10.0 ** (1 - k) for x in drawn) for k in (1, 2, 3, 4)] == [16, 16, 16, 16]
