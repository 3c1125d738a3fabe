"""Generated spaces, with classes, choices and conditions one inside the other."""

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optuna_flyte_dsl.testing import strategies

pytestmark = pytest.mark.newest
SLOW = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
seeds = st.integers(0, 2**31)


def sample(space, seed):
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()
    return space.suggest(trial), trial


@SLOW
@given(strategies.spaces(), seeds)
def test_what_is_suggested_is_contained(space, seed):
    point, trial = sample(space, seed)
    assert space.contains(point)
    assert space.point(point) == trial.params
    assert space.fill(trial.params) == point
    assert trial.distributions.items() <= space.distributions().items()


@SLOW
@given(strategies.spaces(), seeds)
def test_inactive_parameters_are_never_suggested(space, seed):
    _, trial = sample(space, seed)
    values = space.values_of(trial.params)
    assert trial.params.keys() == space.active_in(trial.params)
    for name in space:
        condition = space.conditions.get(name)
        assert (name in values) == (condition is None or bool(condition.holds(values)))


@SLOW
@given(st.data())
def test_what_is_not_contained_is_never_suggested(data):
    space = data.draw(strategies.spaces())
    point = data.draw(strategies.params(space))
    assert space.contains(point)
    stored = space.point(point)
    trial = optuna.trial.FixedTrial(stored)
    assert space.suggest(trial) == point
    name = data.draw(st.sampled_from(sorted(stored)))
    assert not space.contains({**point, "further": 1})
    other, trial = sample(space, data.draw(seeds))
    assert (space.point(other) == stored) == (other == point)
    assert name in space


@SLOW
@given(strategies.spaces(max_parameters=3))
def test_the_points_of_a_finite_space_are_all_different(space):
    if space.n_points <= 300:
        values = [space.counter.point(index) for index in range(int(space.n_points))]
        points = [space.fill(lambda name, _, each=each: each[name]) for each in values]
        assert all(map(space.contains, points))
        assert len({repr(sorted(space.point(point).items())) for point in points}) == space.n_points
    assert str(space)


@SLOW
@given(strategies.spaces())
def test_a_space_is_itself(space):
    assert space == space.bind()
    assert all(repr(name) for name in space.conditions.values())
