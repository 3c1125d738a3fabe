"""The space that a call of a search gives."""

import asyncio
import dataclasses
from typing import Annotated

import flytekit as fl
import pytest

from optuna_flyte_dsl import (
    ArgumentError,
    DirectionError,
    Float,
    Integer,
    InvalidOptionError,
    InvalidSpaceError,
    Maximize,
    Minimize,
    SearchSpace,
    optimize,
)

pytestmark = pytest.mark.newest


@dataclasses.dataclass
class Config:
    lr: Annotated[float, Float(1e-5, 1e-1, log=True)]
    depth: Annotated[int, Integer(2, 12)] = 3


@optimize(n_trials=5, progress=False, seed=1)
@fl.task
def train(config: Config, x: Annotated[float, Float(0, 1)], data: str = "wine") -> Minimize:
    return config.lr * config.depth + x


NARROW = train.space.replace(x=Float(0.25, 0.5), **{"config.depth": 5})


def in_each_form(tmp_path):
    file = tmp_path / "space.yaml"
    NARROW.save(file)
    return [NARROW, NARROW.to_dict(), file, str(file)]


@pytest.mark.parametrize("form", range(4))
def test_a_search_takes_its_space_from_a_file(tmp_path, form):
    given = in_each_form(tmp_path)[form]
    study = asyncio.run(train(space=given, **{"config.lr": 0.01}))
    assert {name for trial in study.trials for name in trial.params} == {"x"}
    assert all(0.25 <= trial.params["x"] <= 0.5 for trial in study.trials)
    assert all(trial.value == 0.01 * 5 + trial.params["x"] for trial in study.trials)
    best = train.best(study, {"config.lr": 0.01}, space=given)
    assert best == {"config": Config(0.01, 5), "x": study.best_params["x"], "data": "wine"}


def test_a_space_of_another_objective_fits_if_its_parameters_do():
    def other(x: Float(0.5, 0.75)) -> float: ...

    study = train.run_sync(space=SearchSpace.of(other))
    assert all(0.5 <= trial.params["x"] <= 0.75 for trial in study.trials)
    assert all(trial.params.keys() == {"config.lr", "config.depth", "x"} for trial in study.trials)

    def stranger(y: Float(0, 1)) -> float: ...

    with pytest.raises(ArgumentError, match="`train` has no parameter `y`"):
        train(space=SearchSpace.of(stranger))


def test_what_is_no_space_is_refused(tmp_path):
    with pytest.raises(InvalidOptionError, match=r"`space` must be a SearchSpace, a dict, or the path .* but got 3"):
        train(space=3)
    with pytest.raises(InvalidSpaceError, match="cannot be read"):
        train(space=tmp_path / "none.yaml")

    @optimize(progress=False)
    def own(trial):
        return trial.suggest_float("x", 0, 1)

    with pytest.raises(InvalidOptionError, match="`own` samples by `trial`, so that `space` cannot say"):
        own(space={})


def test_an_objective_may_have_a_parameter_called_space():
    @optimize(progress=False)
    def own(x: Float(0, 1), space: str) -> float:
        assert space == "office"
        return x

    assert own.run_sync(space="office").best_value >= 0


def test_an_objective_that_takes_any_argument_is_searched_as_the_space_says():
    @optimize(progress=False, n_trials=9)
    def own(x: Float(0, 1), **others) -> float:
        assert not others
        return x

    study = own.run_sync(space={"parameters": {"x": {"kind": "float", "low": 0.9, "high": 1}}})
    assert study.best_value >= 0.9


def test_a_search_of_a_single_trial_that_nobody_asked_for_warns_once(caplog):
    def bowl(x: Float(0, 1)) -> Minimize:
        return x

    bare = optimize(bowl, progress=False)
    for _ in range(2):
        bare.run_sync()
    assert [record.getMessage() for record in caplog.records] == [
        "`bowl` runs a single trial, which is the default of `n_trials`. For a search, write `@optimize(n_trials=100)`."
    ]
    caplog.clear()
    optimize(bowl, progress=False, n_trials=1).run_sync()
    bare.with_options(n_trials=1).run_sync()
    bare.with_options(n_trials=2).run_sync()
    assert caplog.records == []


def test_the_best_trial_is_one_of_the_same_objective():
    def named(function):
        return optimize(function, n_trials=2, progress=False)

    @named
    def train(x: Float(0, 1)) -> Maximize:
        return x

    @named
    def other(y: Float(0, 1)) -> Maximize:
        return y

    @named
    def opposite(x: Float(0, 1)) -> Minimize:
        return x

    with pytest.raises(InvalidOptionError, match="have `y`, which `train` does not take"):
        train.best(other.run_sync(), {"x": 0.5})
    with pytest.raises(DirectionError, match="`train` says maximize"):
        train.best(opposite.run_sync())
    assert train.best(train.run_sync()).keys() == {"x"}
