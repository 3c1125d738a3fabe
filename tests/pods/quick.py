"""Tasks that are never run: the cluster of the tests makes their outputs."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import Any, NamedTuple, Optional

import flytekit as fl
import optuna
from flytekit.models.common import RawOutputDataConfig
from flytekit.models.security import Identity, SecurityContext
from flytekit.types.file import FlyteFile

from optuna_flyte_dsl import Category, Float, Minimize, optimize


@optimize(concurrency=2, n_trials=6, progress=False, seed=1)
@fl.task
async def train(x: Float(0, 1), base: float = 3.0, name: Optional[str] = None) -> Minimize:
    return x


@fl.task
async def step(x: float, base: float = 3.0) -> float:
    return x


@fl.task
def sync_step(x: float) -> float:
    return x


@optimize(concurrency=2, n_trials=3, progress=False)
@fl.task
async def reads(kind: Category(["a", "b"]), file: FlyteFile) -> float:
    return 1.0


@fl.task
def takes_anything(x: float, thing: Any) -> float:
    return x


@fl.task
def names_an_entity(entity: float) -> float:
    return entity


@fl.task
def returns_an_id(x: float) -> NamedTuple("Found", [("id", float)]):
    return (x,)


@fl.workflow
def one_input(x: float) -> float:
    return sync_step(x=x)


@fl.workflow
def flow(x: float, base: float = 2.0) -> float:
    return sync_step(x=x)


plan = fl.LaunchPlan.get_or_create(flow, name="quick.plan", fixed_inputs={"base": 5.0})
own_plan = fl.LaunchPlan.get_or_create(
    flow,
    name="quick.own_plan",
    fixed_inputs={"base": 5.0},
    security_context=SecurityContext(run_as=Identity(k8s_service_account="gpu")),
    raw_output_data_config=RawOutputDataConfig("s3://own"),
)


async def both(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    return sum(await asyncio.gather(step(x=x), step(x=x)))


def blocking(trial: optuna.Trial) -> float:
    return sync_step(x=trial.suggest_float("x", 0, 1))


launched = threading.Semaphore(0)
"""Released by the cluster of a test, once for each execution that it has been asked for."""


async def impatient(trial: optuna.Trial) -> float:
    """Gives up what it waits for as soon as the cluster has it."""
    task = asyncio.ensure_future(step(x=0.5))
    await asyncio.to_thread(launched.acquire)
    task.cancel()
    await asyncio.wait([task])
    return 7.0 if task.cancelled() else task.result()


async def careless(trial: optuna.Trial) -> float:
    """Leaves an execution running."""
    task = asyncio.ensure_future(step(x=trial.suggest_float("x", 0, 1)))
    await asyncio.to_thread(launched.acquire)
    careless.tasks.append(task)
    return 1.0


careless.tasks = []


async def nested(trial: optuna.Trial) -> float:
    study = await train(base=trial.suggest_float("base", 0, 1))
    return study.best_value


@dataclasses.dataclass
class Prepared:
    """A file in a value of another kind."""

    file: FlyteFile
    note: str = ""


@dataclasses.dataclass
class Tagged:
    """Sets in a value of another kind."""

    tags: set[int]
    file: FlyteFile | None
    inner: list[dict[str, frozenset[int]]]


@optimize(concurrency=2, n_trials=2, progress=False, seed=1)
@fl.task
def reads_tagged(x: Float(0, 1), tagged: Tagged) -> float:
    return x


@optimize(concurrency=2, n_trials=2, progress=False, seed=1)
@fl.task
def reads_prepared(x: Float(0, 1), prepared: Prepared) -> float:
    return x


@fl.workflow
def outer_flow(x: float) -> float:
    return one_input(x=x)


@fl.workflow
def branching_flow(x: float) -> float:
    return fl.conditional("which").if_(x > -1.0).then(sync_step(x=x)).else_().then(sync_step(x=0.5))


@fl.workflow
def launching_flow(x: float) -> float:
    return plan(x=x)


@fl.eager
async def eager_flow(x: float) -> float:
    return await step(x=x)
