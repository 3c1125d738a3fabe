"""A user's file whose task has limits that Flyte reads from a node."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import flytekit as fl

from optuna_flyte_dsl import Float, Minimize, Optimizer, optimize, suggest


@optimize(concurrency=2, n_trials=2)
@fl.task(timeout=timedelta(seconds=3), interruptible=True)
async def train(x: Float(0, 1)) -> Minimize:
    await asyncio.sleep(300)
    return x


@fl.task(timeout=timedelta(seconds=3), interruptible=True)
async def bare(x: float) -> float:
    await asyncio.sleep(300)
    return x


@fl.eager
async def search() -> str:
    decorated = await train()
    optimizer = Optimizer(bare, 2, 2)
    await optimizer(x=suggest.float(0, 1))
    return " ".join(str(trial.user_attrs) for trial in (*decorated.trials, *optimizer.study.trials))
