"""The objectives of the benchmarks.

The module lacks `from __future__ import annotations`, because flytekitplugins.optuna refuses string annotations.
"""

import asyncio
import time

import flytekit as fl
import optuna

from optuna_flyte_dsl import Float

SECONDS = 0.1


@fl.task
async def async_task(x: float) -> float:
    await asyncio.sleep(SECONDS)
    return x


@fl.task
def sync_task(x: float) -> float:
    time.sleep(SECONDS)
    return x


@fl.task
def nothing(x: float) -> float:
    return x


@fl.task
def waits(x: float, seconds: float) -> float:
    time.sleep(seconds)
    return x


async def callback(trial: optuna.Trial) -> float:
    await asyncio.sleep(SECONDS)
    return trial.suggest_float("x", 0, 1)


def blocking(trial: optuna.Trial) -> float:
    time.sleep(SECONDS)
    return trial.suggest_float("x", 0, 1)


async def instant(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


async def marked(x: Float(0, 1)) -> float:
    return x
