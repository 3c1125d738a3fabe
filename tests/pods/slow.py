"""A user's file whose trials last as long as a test wants."""

from __future__ import annotations

import asyncio
import os
import pathlib

import flytekit as fl
from flytekit.core.node_creation import create_node

from optuna_flyte_dsl import Float, Minimize, optimize

FOLDER = pathlib.Path(os.environ.get("TEST_FOLDER", "."))


@optimize(concurrency=2, n_trials=6)
@fl.task
async def train(x: Float(-1, 1)) -> Minimize:
    """Runs until the test lets it go on."""
    name = fl.current_context().execution_id.name
    with (FOLDER / "log").open("a") as log:
        log.write(f"start {name}\n")
    while not (FOLDER / "go").exists():
        await asyncio.sleep(0.02)
    return x * x


@fl.eager(metadata=fl.TaskMetadata(retries=2))
async def search() -> str:
    study = await train()
    return " ".join(trial.state.name for trial in study.trials)


@fl.eager
async def search_once() -> str:
    study = await train()
    return " ".join(trial.state.name for trial in study.trials)


@fl.eager
async def search_few() -> str:
    study = await optimize(train.task, concurrency=2, n_trials=2)()
    return " ".join(trial.state.name for trial in study.trials)


@fl.workflow
def two_searches() -> tuple[str, str]:
    """Two nodes of one execution, whose searches are the same."""
    return create_node(search_few).o0, create_node(search_few).o0
