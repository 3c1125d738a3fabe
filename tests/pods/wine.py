"""A user's file, as it runs on a cluster."""

from __future__ import annotations

import flytekit as fl
import optuna

from optuna_flyte_dsl import Category, Float, Integer, Maximize, optimize


@optimize(concurrency=2, n_trials=4, seed=1)
@fl.task
async def train(
    lr: Float(1e-5, 1e-1, log=True),
    depth: Integer(2, 12),
    booster: Category(["gbtree", "dart"]),
    dataset: str = "wine",
) -> Maximize:
    return depth - lr + len(booster) + len(dataset)


@fl.eager
async def search(dataset: str = "digits") -> float:
    study = await train(dataset=dataset)
    return study.best_value


@fl.task
async def mark(study: optuna.Study) -> optuna.Study:
    study.set_user_attr("trials", len(study.trials))
    return study


@fl.eager
async def search_and_mark(dataset: str = "digits") -> optuna.Study:
    study = await train(dataset=dataset)
    return await mark(study=study)
