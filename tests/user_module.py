"""A user's file, with string annotations: what a pod imports, and what `pyflyte run` is pointed at."""

from __future__ import annotations

from typing import Annotated

import flytekit as fl

from optuna_flyte_dsl import Category, Float, Integer, Maximize, optimize


@optimize(concurrency=3, n_trials=6)
@fl.task
async def train(
    lr: Float(1e-5, 1e-1, log=True),
    depth: Annotated[int, Integer(2, 12)],
    booster: Category(["gbtree", "dart"]),
    dataset: str = "wine",
) -> Maximize:
    """Train a model.

    Args:
        lr: The learning rate.
    """
    return lr * depth + len(booster) + len(dataset)


@fl.task
async def plain(
    lr: Float(1e-5, 1e-1, log=True),
    depth: Annotated[int, Integer(2, 12)],
    booster: Category(["gbtree", "dart"]),
    dataset: str = "wine",
) -> Maximize:
    """Train a model.

    Args:
        lr: The learning rate.
    """
    return lr * depth + len(booster) + len(dataset)


@optimize(concurrency=2, n_trials=4)
@fl.task
def sync_train(x: Float(0, 1)) -> float:
    return x


@fl.eager
async def search(dataset: str = "digits") -> float:
    study = await train(dataset=dataset)
    return study.best_value


@fl.eager
async def search_sync() -> int:
    study = await sync_train()
    return len(study.trials)
