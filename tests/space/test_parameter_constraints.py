"""Constraints on the parameters of a search."""

import dataclasses
from typing import Annotated

import flytekit as fl
import optuna
import pytest

from optuna_flyte_dsl import Category, Float, Integer, InvalidOptionError, TooManyFailuresError, optimize


@dataclasses.dataclass
class Config:
    depth: Annotated[int, Integer(1, 12)]
    width: Annotated[int, Integer(1, 1024, log=True)]


def is_large(config):
    return config.depth * config.width - 100


def train(config: Config, booster: Category(["tree", "dart"]), data: str = "wine") -> float:
    return config.depth * config.width


def points_of(study):
    return [(trial.params["config.depth"], trial.params["config.width"]) for trial in study.trials]


@pytest.mark.newest
def test_only_points_that_the_constraints_allow_are_run():
    forbidden = [is_large, lambda booster, config: booster == "dart" and config.depth > 3]
    study = optimize(train, n_trials=60, concurrency=3, seed=0, constraints=forbidden).run_sync()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 60
    assert all(depth * width <= 100 for depth, width in points_of(study))
    assert all(trial.params["booster"] == "tree" or trial.params["config.depth"] <= 3 for trial in study.trials)


def test_rare_points_are_found_without_the_sampler():
    # One point in 12,288 has both; the sampler's 30 points will not do.
    rare = [lambda config: abs(config.width - 512) - 20, lambda booster: booster == "dart"]
    study = optimize(train, n_trials=5, seed=0, constraints=rare).run_sync()
    assert all(492 <= width <= 532 for _, width in points_of(study))


def test_an_impossible_constraint_is_named_by_the_trials_and_ends_the_search():
    def line(x: Float(0, 1)) -> float:
        raise NotImplementedError

    with pytest.raises(TooManyFailuresError, match="No point that the constraints allow was found"):
        optimize(line, n_trials=100, constraints=[lambda x: x + 1], max_consecutive_failures=3).run_sync()


def test_a_finite_space_without_an_allowed_point_is_refused_at_the_call():
    def steps(n: Integer(1, 9)) -> float:
        raise NotImplementedError

    with pytest.raises(InvalidOptionError, match="`constraints`: they allow no point of the space of `steps`"):
        optimize(steps, n_trials=3, constraints=[lambda n: n]).run_sync()


def test_an_initial_point_that_is_not_allowed_fails_its_trial():
    points = [{"config.depth": 12, "config.width": 1024, "booster": "tree"}, {"config.depth": 12}]
    study = optimize(train, n_trials=3, seed=0, constraints=[is_large], initial_points=points).run_sync()
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert (
        "`constraints[0]` (`is_large`, test_parameter_constraints.py:"
        in study.trials[0].user_attrs["optuna_flyte_dsl:error"]
    )
    assert "is 12188 for" in study.trials[0].user_attrs["optuna_flyte_dsl:error"]
    assert study.trials[1].params["config.depth"] == 12


def test_only_the_allowed_points_of_a_finite_space_are_counted():
    def grid(x: Integer(0, 9), y: Integer(0, 9)) -> float:
        return x + y

    options = {"constraints": [lambda x, y: abs(x - y)], "stop_when_exhausted": True, "duplicates": "resample"}
    study = optimize(grid, n_trials=50, seed=0, **options).run_sync()
    assert sorted((trial.params["x"], trial.params["y"]) for trial in study.trials) == [(n, n) for n in range(10)]


def test_a_task_and_its_constraints_repeat_with_a_seed():
    @optimize(n_trials=12, concurrency=4, seed=3, deterministic=True, constraints=[lambda x, y: x + y - 0.5])
    @fl.task
    def task(x: Float(0, 1), y: Float(0, 1)) -> float:
        return x + y

    first, second = task.run_sync(), task.run_sync()
    assert [trial.params for trial in first.trials] == [trial.params for trial in second.trials]
    assert all(trial.value <= 0.5 for trial in first.trials)


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ([lambda depht: depht], r"takes `depht`, which is no parameter of `train`; it has `config`, `booster`, `data`"),
        ([lambda dta: dta], r"Did you mean `data`\?"),
        ([lambda *args: 0], "must take the arguments of `train` by their names, but `args` is positional"),
        ([lambda config, /: 0], "but `config` is positional"),
        ([3], r"`constraints` must be a list of functions of the objective's arguments, but got \[3\]"),
        (is_large, "`constraints` must be a list of functions"),
    ],
)
def test_a_wrong_constraint_is_refused_at_decoration(constraints, message):
    with pytest.raises(InvalidOptionError, match=message):
        optimize(train, constraints=constraints)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (lambda config: config.dept, r"raised AttributeError: 'Config' object has no attribute 'dept'"),
        (lambda config: None, "must return a number, of which at most 0 is feasible.*but got None"),
        (lambda config: float("nan"), "but got nan"),
        (lambda config: "3", "but got '3'"),
    ],
)
def test_a_constraint_that_fails_ends_the_search(constraint, message):
    with pytest.raises(InvalidOptionError, match=message):
        optimize(train, n_trials=3, constraints=[constraint]).run_sync()


def test_constraints_see_any_argument_and_defaults():
    seen = []
    constraints = [
        lambda data, limit=3: seen.append((data, limit)) or 0,
        lambda **arguments: seen.append(set(arguments)) or 0,
    ]
    optimize(train, n_trials=1, constraints=constraints).run_sync(data="digits")
    assert ("digits", 3) in seen
    assert {"config", "booster", "data"} in seen


def test_an_objective_that_samples_by_itself_has_no_constraints():
    def itself(trial: optuna.Trial) -> float:
        raise NotImplementedError

    with pytest.raises(InvalidOptionError, match="`constraints` needs a search space that is known"):
        optimize(itself, constraints=[lambda trial: 0])
