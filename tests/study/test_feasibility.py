"""Constraints on the results: values that the objective returns beside its objectives."""

from typing import NamedTuple

import flytekit as fl
import optuna
import pytest

from optuna_flyte_dsl import (
    Category,
    Constraint,
    DirectionError,
    Float,
    Maximize,
    Minimize,
    NoBestTrialError,
    ObjectiveValueError,
    optimize,
)
from optuna_flyte_dsl.search.progress import Tally
from optuna_flyte_dsl.study.feasibility import IS_OPTUNA_4, constraints_of, is_feasible


class Result(NamedTuple):
    accuracy: Maximize
    memory: Constraint
    seconds: Minimize


@fl.task
def bounded(x: Float(0, 1)) -> tuple[Maximize, Constraint]:
    return x, x - 0.5


def test_the_best_trial_is_a_feasible_one():
    search = optimize(bounded, n_trials=30, seed=0, initial_points=[{"x": 0.5}, {"x": 0.9}])
    study = search.run_sync()
    assert study.directions == [optuna.study.StudyDirection.MAXIMIZE]
    assert [constraints_of(trial) for trial in study.trials[:2]] == [(0.0,), (pytest.approx(0.4),)]
    assert study.best_value == 0.5 or 0.4 < study.best_value <= 0.5
    assert search.best(study)["x"] <= 0.5
    assert [is_feasible(trial) for trial in study.trials] == [trial.value <= 0.5 for trial in study.trials]


def test_the_sampler_sees_the_constraints():
    @fl.task
    def unbounded(x: Float(0, 1)) -> Maximize:
        return x

    counts = []
    for objective in (bounded, unbounded):
        study = optimize(objective, n_trials=60, seed=0).run_sync()
        counts.append(sum(trial.value <= 0.5 for trial in study.trials[30:]))
    assert counts[0] > 2 * counts[1]


def test_the_front_has_feasible_trials_only():
    @optimize(n_trials=30, seed=0)
    def search(x: Float(0, 1)) -> Result:
        return Result(accuracy=x, memory=x - 0.5, seconds=x**2)

    study = search.run_sync()
    assert study.metric_names == ["accuracy", "seconds"]
    assert study.best_trials
    assert all(trial.values[0] <= 0.5 for trial in study.best_trials)
    assert search.best(study, weights={"accuracy": 1})["x"] <= 0.5


@pytest.mark.parametrize("options", [{"executor": "process"}, {"deterministic": True, "concurrency": 3}])
def test_constraints_come_from_wherever_the_trial_runs(options):
    study = optimize(bounded, n_trials=4, seed=1, **options).run_sync()
    assert [constraints_of(trial) for trial in study.trials] == [(pytest.approx(t.value - 0.5),) for t in study.trials]


def test_a_kept_study_and_a_repeated_point_keep_their_constraints(tmp_path):
    options = {"storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s", "duplicates": "reuse"}

    def single(x: Category([0.9])) -> tuple[Maximize, Constraint]:
        return x, x - 0.5

    search = optimize(single, n_trials=2, **options)
    study = search.run_sync()
    assert [constraints_of(trial) for trial in study.trials] == [(pytest.approx(0.4),)] * 2
    assert study.trials[1].user_attrs["optuna_flyte_dsl:same_as"] == 0
    with pytest.raises(NoBestTrialError, match="complete and feasible"):
        search.best(study)


def test_nan_and_a_wrong_number_of_values_are_refused():
    @optimize(n_trials=1)
    def nan(x: Float(0, 1)) -> tuple[Minimize, Constraint]:
        return x, float("nan")

    assert nan.run_sync().trials[0].state.name == "FAIL"

    @optimize(n_trials=1)
    def single(x: Float(0, 1)) -> tuple[Minimize, Constraint]:
        return x

    with pytest.raises(ObjectiveValueError, match="the study has 1 direction, and the annotation 1 constraint"):
        single.run_sync()


def test_an_objective_of_constraints_only_is_refused():
    def nothing(x: Float(0, 1)) -> Constraint:
        return x

    with pytest.raises(DirectionError, match="`nothing` returns constraints only"):
        optimize(nothing)


def test_infeasible_trials_are_counted():
    study = optimize(bounded, n_trials=2, initial_points=[{"x": 0.9}, {"x": 0.2}]).run_sync()
    tally = Tally("bounded", 2, study.directions)
    for trial in study.trials:
        tally.add(trial)
    assert tally.describe() == "best 0.2, 1 infeasible"


def test_a_constraint_that_is_set_on_the_trial_counts_too():
    if IS_OPTUNA_4:
        pytest.skip("Optuna 4 has no `trial.set_constraint`")

    @fl.task
    def reporting(trial: optuna.Trial, x: Float(0, 1)) -> Maximize:
        trial.set_constraint("memory", x - 0.5)
        return x

    for options in ({}, {"executor": "process"}):
        study = optimize(reporting, n_trials=2, initial_points=[{"x": 0.9}, {"x": 0.2}], **options).run_sync()
        assert study.best_value == 0.2
        assert not is_feasible(study.trials[0])
