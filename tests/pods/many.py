"""A user's file with a large search; the cluster of the tests makes the trials' outputs."""

from __future__ import annotations

import os

import flytekit as fl

from optuna_flyte_dsl import Float, Minimize, optimize


@optimize(concurrency=int(os.environ.get("CONCURRENCY", "2")), n_trials=int(os.environ.get("N_TRIALS", "4")))
@fl.task
async def train(x: Float(-1, 1)) -> Minimize:
    return x


@fl.eager(metadata=fl.TaskMetadata(retries=3))
async def search() -> str:
    study = await train()
    return " ".join(f"{trial.state.name}:{trial.params['x']!r}:{trial.value!r}" for trial in study.trials)
