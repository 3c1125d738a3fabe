"""Only type-checked, by mypy and pyright: the public API as checked code uses it."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, assert_type

import flytekit as fl
import optuna
from optuna.storages import InMemoryStorage

from optuna_flyte_dsl import (
    Beta,
    Category,
    Fixed,
    Float,
    Integer,
    Maximize,
    Minimize,
    Normal,
    Optimized,
    Optimizer,
    Ordinal,
    SearchSpace,
    Suggestion,
    WhenTrue,
    optimize,
    suggest,
)
from optuna_flyte_dsl.engines._flytekit import flytekit_engine, types
from optuna_flyte_dsl.engines.engine import Engine, EngineTypes
from optuna_flyte_dsl.engines.functions import FunctionRunner
from optuna_flyte_dsl.search.runner import Runner
from optuna_flyte_dsl.search_plan import Plan
from optuna_flyte_dsl.space.objective import Objective
from optuna_flyte_dsl.testing import Faults, Simulation, simulate
from optuna_flyte_dsl.testing.conformance import EngineConformance

engine: Engine = flytekit_engine
carries: EngineTypes = types


@optimize(concurrency=8, n_trials=200, seed=1, sampler=optuna.samplers.TPESampler, initial_points=[{"lr": 0.1}])
@fl.task
async def train(
    lr: Annotated[float, Float(1e-5, 1e-1, log=True)],
    depth: Annotated[int, Integer(2, 12)],
    booster: Annotated[str, Category(["gbtree", "dart"])],
    dataset: str = "wine",
) -> Maximize:
    return lr * depth * len(booster) * len(dataset)


@optimize(
    concurrency=2,
    n_trials=20,
    storage=Path("search.journal"),
    study_name="kept",
    resume=True,
    takeover=True,
    timeout=timedelta(hours=8),
    trial_timeout=3600,
    max_consecutive_failures=None,
    retries=2,
    catch=(ValueError, MemoryError),
    executor="process",
    gpus=[0, "GPU-1"],
    duplicates="resample",
    stop_when_exhausted=True,
    pruner=optuna.pruners.MedianPruner,
)
@fl.task
def kept(trial: optuna.Trial, x: Annotated[float, Float(0, 1)]) -> Minimize:
    trial.report(x, 0)
    return x


@optimize
def bare(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


async def both(x: Annotated[float, Float(0, 1)]) -> tuple[Maximize, Minimize]:
    return x, x


@optimize
@fl.task
def typed(
    booster: Annotated[Literal["gbtree", "dart"], Category()], rate: Annotated[float, Float(log=True, low=0.1, high=1)]
) -> float:
    return rate


@optimize(n_trials=3)
def with_priors(
    lr: Annotated[float, Float(1e-5, 1e-1, log=True, prior=Normal(1e-3, 3))],
    depth: Annotated[int, Integer(1, 8, prior=Beta(2, 5))],
    kernel: Annotated[str, Category(["rbf", "linear"], weights=[3, 1])],
    gamma: Annotated[float, Float(0, 1), WhenTrue(lambda depth, kernel: depth > 3 and kernel == "rbf")] = 0.0,
) -> float:
    return lr * depth * gamma


class Workflow:
    """What neither checker knows: still a decorated objective."""

    def __call__(self, x: float) -> float:
        return x


@optimize(n_trials=3)
@fl.task(retries=2)
def with_arguments(x: Annotated[float, Float(0, 1)]) -> float:
    return x


async def use() -> None:
    assert_type(train.space, SearchSpace)
    assert_type(train.study, optuna.Study)
    assert_type(train.best(train.study, {"dataset": "digits"}, within={"accuracy": 0.5}), dict[str, Any])
    assert_type((train.n_trials, train.concurrency, train.delay), tuple[int, int, float])
    assert_type(train.run_sync(dataset="digits"), optuna.Study)
    assert_type(await train(lr=suggest.float(1e-4, 1e-2), depth=Fixed(30), dataset="digits"), optuna.Study)
    assert_type(await train.task(lr=0.1, depth=3, booster="dart"), float)
    assert_type(await train.task(0.1, 3, "dart", dataset="digits"), float)
    assert_type(kept.task(optuna.create_study().ask(), 0.5), float)
    assert_type(bare.task(optuna.create_study().ask()), float)
    assert_type(bare.run_sync(), optuna.Study)
    assert_type(await with_arguments.with_options(storage="s.journal", resume=True)(), optuna.Study)
    study: optuna.Study = await train(lr=0.1)
    assert_type(study.best_value, float)
    assert_type(optimize(bare.task, 2, 10, seed=1).run_sync(), optuna.Study)
    assert_type(await optimize(both, n_trials=3).task(0.5), tuple[float, float])
    assert_type(await with_arguments(), optuna.Study)
    assert_type(await optimize(Workflow(), n_trials=2)(), optuna.Study)
    again: Optimized[[optuna.Trial], float] = bare.with_options(n_trials=20, seed=1)
    assert_type(again.n_trials, int)
    optimizer = Optimizer(both, 2, 3, delay=0.1, max_consecutive_failures="auto", storage=lambda: InMemoryStorage())
    assert_type(await optimizer(), optuna.Study)
    assert_type(optimizer.study, optuna.Study)
    assert_type(Optimizer(objective=both, concurrency=2, n_trials=3).run_sync(), optuna.Study)
    assert_type(optimizer.with_options(n_trials=4), Optimizer)
    assert_type(Ordinal([16, 32]).choices, tuple[Any, ...])
    assert_type(Category({"a": len}).names, tuple[str, ...] | None)
    markers: list[Suggestion] = [Float(0, 1), Integer(1, 9, step=2), suggest.category(["a"])]
    assert_type(markers[0].to_distribution(), optuna.distributions.BaseDistribution)
    assert_type(Float(0, 1).low, float)
    assert_type(suggest.integer(0, 3).high, int)


async def spaces_and_tests() -> None:
    space = train.space
    assert_type(space.to_dict(), dict[str, Any])
    assert_type(SearchSpace.from_dict(space.to_dict(), train), SearchSpace)
    assert_type(SearchSpace.load(Path("space.yaml")), SearchSpace)
    assert_type(SearchSpace.from_yaml(space.to_yaml(), train.space), SearchSpace)
    narrow = space.replace(lr=Float(1e-4, 1e-2, log=True), depth=Annotated[int, Integer(2, 4)])
    assert_type(narrow, SearchSpace)
    assert_type(narrow.difference(space), str)
    assert_type(space.json_schema(), dict[str, Any])
    for given in (narrow, narrow.to_dict(), "space.yaml", Path("space.yaml")):
        assert_type(await train(space=given), optuna.Study)
        assert_type(train.best(train.study, space=given), dict[str, Any])
    plan = train.plan(dataset="digits", n_trials=20)
    assert_type(plan, Plan)
    assert_type(plan.warnings, tuple[str, ...])
    study = train.with_options(warm_start=["old.journal", train.study]).run_sync()
    assert_type(study, optuna.Study)
    simulation = simulate(train, durations=timedelta(hours=1), outcomes=lambda lr: lr, faults=Faults(crash=0.1))
    assert_type(simulation, Simulation)
    assert_type(simulation.best_after(3600), float | None)
    faults = {3: "hang"}
    simulate(train, durations=lambda random: random.gauss(10, 1), faults=faults, seed=1, n_trials=5, trial_timeout=60)


class Suite(EngineConformance):
    def make_runner(self, objective: Objective) -> Runner:
        return FunctionRunner(objective)


@fl.task
def report(study: optuna.Study) -> str:
    return study.study_name
