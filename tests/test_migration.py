"""What works with flytekitplugins.optuna works here; where it is broken, this is right."""

import asyncio
from typing import Union

import flytekit as fl
import optuna
import pytest

import optuna_flyte_dsl
from optuna_flyte_dsl import DirectionError, Float, InvalidOptionError, Optimizer, optimize, suggest


@fl.task
async def energy(letter: str, number: Union[float, int], other: str, fixed: str) -> float:
    return float(len(letter) + number + len(other) + len(fixed))


def callback(trial: optuna.Trial, fixed: str):
    letter = trial.suggest_categorical("letter", ["A", "B", "neither"])
    number = {
        "A": lambda: trial.suggest_int("number_A", 1, 10),
        "B": lambda: trial.suggest_float("number_B", 10.0, 20.0),
        "neither": lambda: 10,
    }[letter]()
    return energy(letter, number, trial.suggest_categorical("other", ["one", "two words"]), fixed)


async def async_callback(trial: optuna.Trial, fixed: str):
    return await callback(trial, fixed)


@pytest.mark.parametrize("objective", [callback, async_callback])
def test_a_callback_that_calls_a_task_in_an_eager_workflow(objective):
    @fl.eager
    async def train(concurrency: int, n_trials: int) -> float:
        study = optuna.create_study(direction="maximize")
        optimizer = Optimizer(objective, concurrency=concurrency, n_trials=n_trials, study=study)
        await optimizer(fixed="hello!")
        assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
        return float(optimizer.study.best_value)

    assert asyncio.run(train(concurrency=2, n_trials=10)) > 10


def test_a_decorated_task_defined_and_searched_in_an_eager_workflow():
    @fl.eager
    async def train(concurrency: int, n_trials: int) -> float:
        @optimize(concurrency=concurrency, n_trials=n_trials)
        @fl.task
        async def optimizer(x: float, y: int, z: int, power: int) -> float:
            return float(((x - 5) ** 2 + (y + 4) ** 4 + (3 * z - 3) ** 2) ** power)

        await optimizer(
            x=suggest.float(low=-10, high=10),
            y=suggest.integer(low=-10, high=10),
            z=suggest.category([-5, 0, 3, 6, 9]),
            power=2,
        )
        return optimizer.study.best_value

    assert asyncio.run(train(concurrency=2, n_trials=10)) >= 0


def test_a_bare_decorator_whose_limits_are_assigned_later():
    @optimize
    def optimizer(trial: optuna.Trial, fixed: str):
        return callback(trial, fixed)

    optimizer.n_trials = 7
    optimizer.concurrency = 3
    asyncio.run(optimizer(fixed="x"))
    assert len(optimizer.study.trials) == 7


def test_a_bundle_of_suggestions_in_a_dict():
    @fl.task
    async def objective(suggestions: dict[str, Union[int, float]], z: int, power: int) -> float:
        return float(((suggestions["x"] - 5) ** 2 + (suggestions["y"] + 4) ** 4) ** power)

    optimizer = Optimizer(objective, concurrency=2, n_trials=5)
    asyncio.run(
        optimizer(
            suggestions={"x": suggest.float(low=-10, high=10), "y": suggest.integer(low=-10, high=10)},
            z=suggest.category([-5, 0, 3]),
            power=2,
        )
    )
    assert optimizer.study.trials[0].params.keys() == {"suggestions.x", "suggestions.y", "z"}


def test_several_objectives():
    @fl.task
    async def objective(x: float) -> tuple[float, float]:
        return x, -x

    study = optuna.create_study(directions=["maximize", "maximize"])
    asyncio.run(Optimizer(objective=objective, concurrency=2, n_trials=5, study=study)(x=suggest.float(0, 1)))
    assert all(trial.values == [trial.params["x"], -trial.params["x"]] for trial in study.trials)


def test_a_float_delay_is_taken():
    async def objective(trial: optuna.Trial, x_offset: float) -> float:
        return (trial.suggest_float("x", -10, 10) - x_offset) ** 2

    optimizer = Optimizer(objective=objective, concurrency=2, n_trials=3, delay=0.01)
    asyncio.run(optimizer(x_offset=2.0))
    assert len(optimizer.study.trials) == 3


def test_an_eager_workflow_inside_of_which_a_task_runs_a_search():
    @fl.task
    async def holder(n: int) -> float:
        async def objective(trial: optuna.Trial):
            return trial.suggest_float("x", 0, 1)

        optimizer = Optimizer(objective, concurrency=2, n_trials=n)
        await optimizer()
        return optimizer.study.best_value

    assert 0 <= asyncio.run(holder(n=4)) <= 1


def test_sync_tasks_and_workflows_are_run_which_the_peer_refuses():
    @fl.task
    def task(x: Float(0, 1)) -> float:
        return x

    @fl.workflow
    def workflow(x: float) -> float:
        return task(x=x)

    for objective, arguments in ((task, {}), (workflow, {"x": suggest.float(0, 1)})):
        assert len(Optimizer(objective, 2, 3).run_sync(**arguments).trials) == 3


def test_a_wrongly_typed_task_is_refused_as_the_peer_does():
    @fl.task
    async def mistyped(x: int) -> str:
        return "abc"

    with pytest.raises(ValueError, match="must return a float"):
        Optimizer(mistyped, concurrency=3, n_trials=10)


def test_a_failing_pruned_or_nan_trial_does_not_end_the_search(warned):
    @fl.task
    async def objective(x: Float(0, 1), number: int) -> float:
        return x

    async def wrapper(trial: optuna.Trial):
        await objective(x=trial.suggest_float("x", 0, 1), number=trial.number)
        match trial.number:
            case 0:
                raise RuntimeError
            case 1:
                raise optuna.TrialPruned
            case 2:
                return float("nan")
        return 1.0

    study = Optimizer(wrapper, 2, 6).run_sync()
    assert [trial.state.name for trial in study.trials[:3]] == ["FAIL", "PRUNED", "FAIL"]
    assert {trial.state.name for trial in study.trials[3:]} == {"COMPLETE"}


def test_the_module_of_the_optimizer_has_the_names_it_had():
    from optuna_flyte_dsl import optimizer

    for name in ("Optimizer", "optimize", "suggest", "Suggestion", "Number", "Float", "Integer", "Category"):
        assert getattr(optimizer, name) is getattr(optuna_flyte_dsl, name)
    with pytest.raises(AttributeError, match="nothing"):
        _ = optimizer.nothing


def test_the_study_can_be_assigned():
    optimizer = Optimizer(lambda trial: trial.suggest_float("x", 0, 1), 1, 2, progress=False)
    optimizer.run_sync()
    optimizer.study = study = optuna.create_study()
    assert optimizer.run_sync() is study
    assert len(study.trials) == 2

    decorated = optimize(lambda trial: 1.0, n_trials=2, progress=False)
    decorated.study = study
    assert decorated.run_sync() is study is decorated.study
    assert decorated.objective is decorated.task

    with pytest.raises(InvalidOptionError, match=r"`study` must be an optuna.Study, but got 3"):
        optimizer.study = 3
    with pytest.raises(DirectionError, match="but the study has 2 directions"):
        optimize(one, n_trials=2).study = optuna.create_study(directions=["minimize", "minimize"])


def one(trial: optuna.Trial) -> float:
    return 1.0
