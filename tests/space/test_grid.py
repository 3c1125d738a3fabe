"""Grid arithmetic: every place that counts steps agrees, also where a step is not exact in binary."""

from fractions import Fraction

import optuna
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from optuna_flyte_dsl import Category, Float, Integer, optimize
from optuna_flyte_dsl.space import conversion, domain
from optuna_flyte_dsl.space.grid import Grid

steps = st.sampled_from([0.1, 0.01, 0.3, 0.7, 1 / 3, 1e-3, 0.25, 2.5, 1e6])
lows = st.floats(-1e3, 1e3).map(lambda number: round(number, 3))


@st.composite
def grids(draw):
    low, step, count = draw(lows), draw(steps), draw(st.integers(1, 200))
    high = float(Fraction(str(low)) + count * Fraction(str(step)))
    assume(Grid(low, high, step).reaches_high)
    return Float(low, high, step=step), count


@given(grids(), st.data())
def test_a_value_is_found_at_its_index_however_it_was_computed(made, data):
    marker, count = made
    assert domain.count(marker) == count + 1
    index = data.draw(st.integers(0, count))
    exact = domain.value_at(marker, index)
    summed = min(marker.low + index * marker.step, marker.high)
    assert domain.key_of(marker, exact) == domain.key_of(marker, summed) == index
    assert domain.value_at(marker, 0) == marker.low
    assert domain.value_at(marker, count) == marker.high


@given(grids(), st.data())
def test_what_optuna_samples_lies_on_the_grid(made, data):
    marker, count = made
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=data.draw(st.integers(0, 99))))
    value = conversion.suggest(study.ask(), "x", marker.to_distribution())
    assert domain.contains(marker, value)
    assert 0 <= domain.key_of(marker, value) <= count


@given(grids(), st.data())
def test_what_lies_between_two_values_is_not_contained(made, data):
    marker, count = made
    index = data.draw(st.integers(0, count - 1))
    between = domain.value_at(marker, index) + marker.step * data.draw(st.floats(0.01, 0.99))
    assert not domain.contains(marker, between)


@given(st.integers(-(10**6), 10**6), st.integers(1, 1000), st.integers(1, 1000))
def test_integers_are_counted_exactly(low, step, count):
    marker = Integer(low, low + step * count, step=step)
    assert domain.count(marker) == count + 1
    assert [domain.key_of(marker, low + step * index) for index in (0, count)] == [0, count]
    assert domain.key_of(marker, float(low)) == 0
    if step > 1:
        assert not domain.contains(marker, low + 1)


@pytest.mark.parametrize(
    ("marker", "value"),
    [
        (Float(0, 1), float("nan")),
        (Float(0, 1), float("inf")),
        (Float(0, 1, step=0.5), "0.5"),
        (Integer(0, 9), True),
        (Integer(0, 9), 10**400),
        (Integer(0, 9), 1.5),
        (Category(["a"]), "b"),
    ],
)
def test_what_no_marker_gives_is_not_contained(marker, value):
    assert not domain.contains(marker, value)


SAMPLERS = [
    optuna.samplers.RandomSampler,
    optuna.samplers.TPESampler,
    optuna.samplers.QMCSampler,
    optuna.samplers.NSGAIISampler,
]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_each_point_of_a_grid_is_run_before_a_search_is_exhausted(sampler):
    @optimize(n_trials=60, sampler=sampler, seed=1, duplicates="resample", stop_when_exhausted=True, progress=False)
    def search(x: Float(0.1, 1.0, step=0.1)) -> float:
        return x

    study = search.run_sync(x=Float(0.1, 1.0, step=0.1))
    assert sorted(round(trial.params["x"], 10) for trial in study.trials) == [k / 10 for k in range(1, 11)]


def test_an_initial_point_and_a_sampled_one_are_the_same_point():
    @optimize(
        n_trials=20,
        sampler=optuna.samplers.RandomSampler,
        seed=1,
        duplicates="resample",
        stop_when_exhausted=True,
        initial_points=[{"x": 0.3}, {"x": 0.1 + 2 * 0.1}],
        progress=False,
    )
    def search(x: Float(0.1, 0.5, step=0.1)) -> float:
        return x

    study = search.run_sync()
    assert {round(trial.params["x"], 10) for trial in study.trials} == {0.1, 0.2, 0.3, 0.4, 0.5}
    kept = optuna.create_study()
    kept.enqueue_trial({"x": 0.3})
    kept.enqueue_trial({"x": 0.1 + 2 * 0.1})
    optimize(search.task, n_trials=2, study=kept, duplicates="reuse", progress=False).run_sync()
    assert kept.trials[1].user_attrs["optuna_flyte_dsl:same_as"] == 0
