"""A user's objectives of every kind, as they run on a cluster."""

from __future__ import annotations

import asyncio
import dataclasses
from functools import partial
from typing import NamedTuple

import flytekit as fl
import optuna
from flytekit.core.container_task import ContainerTask
from flytekit.types.file import FlyteFile

from optuna_flyte_dsl import Float, Integer, Maximize, Minimize, Optimizer, optimize, suggest


@optimize(concurrency=2, n_trials=2)
@fl.task
def sync_task(x: Float(0, 1), base: float = 10.0) -> float:
    return base + x


@fl.task
async def double(x: float) -> float:
    return 2 * x


class Scores(NamedTuple):
    quality: Maximize
    cost: Minimize


@optimize(concurrency=2, n_trials=2)
@fl.task
async def several(x: Float(0, 1)) -> Scores:
    return Scores(quality=x, cost=x * x)


@dataclasses.dataclass
class Config:
    rate: float
    layers: int


@optimize(concurrency=2, n_trials=2)
@fl.task(cache=True, cache_version="1")
async def with_inputs(n: Integer(1, 4), config: Config, data: FlyteFile) -> float:
    with open(data) as file:
        return n * config.rate * config.layers + len(file.read())


@fl.task
def twice(x: float) -> float:
    return 2 * x


@fl.workflow
def pipeline(x: float) -> float:
    return twice(x=twice(x=x))


@fl.task
def each(x: float) -> float:
    return x + 1


@fl.task
def spread(x: float) -> list[float]:
    return [x, x + 1]


@fl.task
def total(values: list[float]) -> float:
    return sum(values)


@fl.workflow
def mapped(x: float) -> float:
    return total(values=fl.map_task(each)(x=spread(x=x)))


@fl.workflow
def branching(x: float) -> float:
    large = fl.conditional("size").if_((x > 0.5) & (x <= 1.0)).then(twice(x=x)).else_().then(each(x=x))
    return twice(x=large)


@fl.dynamic
def dynamic(x: float) -> float:
    return twice(x=each(x=x))


container = ContainerTask(
    name="container",
    image="any",
    inputs={"x": float},
    outputs={"y": float},
    input_data_dir="/var/inputs",
    output_data_dir="/var/outputs",
    command=["sh", "-c", "cat /var/inputs/x > /var/outputs/y"],
)


async def callback(trial: optuna.Trial, base: float) -> float:
    x = trial.suggest_float("x", 0, 1)
    first, second = await asyncio.gather(double(x=x), double(x=x + base))
    return first + second


def sync_callback(trial: optuna.Trial):
    return double(x=trial.suggest_float("x", 0, 1))


@fl.eager
async def everything(data: FlyteFile) -> list[str]:
    """Search over every kind of objective, and return what each found."""
    x = suggest.float(0, 1)
    two = partial(Optimizer, concurrency=2, n_trials=2)
    studies = await asyncio.gather(
        sync_task(),
        several(),
        with_inputs(config=Config(rate=0.5, layers=2), data=data),
        two(pipeline)(x=x),
        two(mapped)(x=x),
        Optimizer(branching, concurrency=1, n_trials=1)(x=x),
        Optimizer(dynamic, concurrency=1, n_trials=1)(x=x),
        two(container)(x=x),
        two(callback)(base=100.0),
        two(sync_callback)(),
    )
    outside = await double(x=21.0)  # not a trial: flytekit's own
    found = [
        f"{trial.state.name} {trial.params} {trial.values or trial.user_attrs}"
        for study in studies
        for trial in study.trials
    ]
    return [*found, f"outside {outside}"]
