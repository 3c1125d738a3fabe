"""The arguments of a study's best trial."""

import math
import typing

import flytekit as fl
import optuna
import pytest

from optuna_flyte_dsl import (
    ArgumentError,
    Category,
    Float,
    InvalidOptionError,
    Maximize,
    Minimize,
    NoBestTrialError,
    Optimizer,
    Ordinal,
    optimize,
)
from optuna_flyte_dsl.study import best_trial
from tests.support.spaces import Kernel


class Scores(typing.NamedTuple):
    accuracy: Maximize
    seconds: Minimize


@optimize(n_trials=8, seed=1, progress=False)
@fl.task
def train(x: Float(0, 1), kernel: Category(Kernel), width: Ordinal([16, 32]), dataset: str = "wine") -> Maximize:
    return x + width + (kernel is Kernel.RBF) + len(dataset)


@optimize(n_trials=8, seed=1, progress=False)
def several(x: Float(0, 1)) -> Scores:
    return Scores(x, x * x)


def test_the_final_run_is_one_call():
    study = train.run_sync()
    best = train.best(study)
    assert (best["kernel"] in Kernel, best["width"] in (16, 32), best["dataset"]) == (True, True, "wine")
    assert train.task(**best) == study.best_value
    assert Optimizer(train.task, 1, 1).best(study) == best


def test_what_the_search_got_is_given_again():
    study = train.run_sync(dataset="digits", width=32)
    fixed = {"dataset": "digits", "width": 32}
    assert train.task(**train.best(study, fixed)) == study.best_value
    with pytest.raises(
        ArgumentError, match=r"`best` does not know `width`, which.*Give what the search got, as in `fixed=\{'width'"
    ):
        train.best(study)
    with pytest.raises(ArgumentError, match="has no parameter `datset`"):
        train.best(study, {"datset": "digits"})
    with pytest.raises(ArgumentError, match=r"^`fixed` must be a dict of what the search got, .*but got \[1\]"):
        train.best(study, [1])


def test_what_only_the_search_got_is_asked_for():
    @optimize(n_trials=2, progress=False)
    def scaled(x: Float(0, 1), n: int) -> float:
        return x * n

    study = scaled.run_sync(n=5)
    with pytest.raises(ArgumentError, match=r"`best` does not know `n`, which the search got.*`fixed=\{'n': \.\.\.\}`"):
        scaled.best(study)
    with pytest.raises(InvalidOptionError, match="`best` takes a study"):
        scaled.best(study.best_trial)
    assert scaled.best(study, {"n": 5}) == {"x": study.best_params["x"], "n": 5}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"weights": {"accuracy": 1}}, max),
        ({"weights": {"seconds": 1}}, min),
        ({"weights": {"accuracy": 1, "seconds": 0}}, max),
        ({"weights": {"accuracy": 1, "seconds": 100}}, min),
        ({"weights": {"accuracy": 1}, "within": {"seconds": math.inf}}, max),
    ],
)
def test_of_several_objectives_weights_and_bounds_choose(choice, expected):
    study = several.run_sync()
    xs = [trial.params["x"] for trial in study.trials]
    assert several.best(study, **choice) == {"x": expected(xs)}


def test_a_bound_leaves_trials_out():
    study = several.run_sync()
    xs = sorted(trial.params["x"] for trial in study.trials)
    bound = xs[3] ** 2
    assert several.best(study, weights={"accuracy": 1}, within={"seconds": bound}) == {"x": xs[3]}
    with pytest.raises(
        NoBestTrialError, match=r"is within \{'seconds': -1.0\}: the best values are accuracy 0\..*, seconds "
    ):
        several.best(study, weights={"accuracy": 1}, within={"seconds": -1.0})


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({}, r"has 2 objectives, so `weights` must say how much each counts, as in `weights=\{'accuracy': 1\}`"),
        ({"weights": {"accuracy": 0}}, "`weights` must say how much each counts"),
        (
            {"weights": [1, 0]},
            r"`weights` must be a dict by objective, as in `weights=\{'accuracy': 1\}`, but got \[1, 0\]",
        ),
        ({"within": "accuracy"}, "`within` must be a dict by objective, .* but got 'accuracy'"),
        (
            {"weights": {"acuracy": 1}},
            r"names the objective 'acuracy', but the study has 'accuracy', 'seconds'. Did you",
        ),
        ({"weights": {"accuracy": -1}}, "must be 0 or more, but got -1"),
        (
            {"weights": {"accuracy": 1}, "within": {"seconds": "1"}},
            r"`within\['seconds'\]` must be a number, but got '1'",
        ),
    ],
)
def test_a_wrong_choice_is_named(choice, message):
    with pytest.raises(InvalidOptionError, match=message):
        several.best(several.run_sync(), **choice)


def test_objectives_without_names_have_their_number():
    @optimize(n_trials=3, directions=["minimize", "maximize"], progress=False)
    def pair(x: Float(0, 1)):
        return x, x

    study = pair.run_sync()
    assert pair.best(study, weights={"1": 1.0}) == {"x": max(trial.params["x"] for trial in study.trials)}


def test_a_study_without_a_complete_trial_says_why():
    @optimize(n_trials=2, progress=False)
    def breaks(x: Float(0, 1)) -> float:
        raise ValueError("a bug.")

    with pytest.raises(NoBestTrialError, match=r"complete and feasible; the first that failed: ValueError: a bug\.$"):
        breaks.best(breaks.run_sync())
    pruned = optuna.create_study()
    pruned.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.PRUNED))
    with pytest.raises(NoBestTrialError, match="is complete and feasible: 1 are PRUNED"):
        breaks.best(pruned)
    with pytest.raises(NoBestTrialError, match="Run a search first"):
        breaks.best(optuna.create_study())


def test_an_objective_that_samples_by_its_trial_has_another_cure():
    search = optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1, progress=False)
    with pytest.raises(InvalidOptionError, match=r"Run it with `optuna.trial.FixedTrial\(study.best_params\)`"):
        search.best(search.run_sync())


def test_what_is_no_study_is_refused():
    with pytest.raises(InvalidOptionError, match=r"`best` takes a study, as `train.run_sync.*but got None"):
        best_trial.best_trial_of(None)
