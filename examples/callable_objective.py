"""The first example of flytekitplugins.optuna's documentation: an objective that is a plain function.

python examples/callable_objective.py
"""

import asyncio

import optuna

from optuna_flyte_dsl import Optimizer


async def my_objective(trial: optuna.Trial, x_offset: float) -> float:
    """Return the squared distance of (x, y) from (x_offset, 0), which the search is to find."""
    x = trial.suggest_float("x", -10, 10)
    y = trial.suggest_float("y", -5, 5)
    await asyncio.sleep(0.1)  # stands for the work of a real objective
    return (x - x_offset) ** 2 + y**2


async def run_optimization() -> optuna.Study:
    """Run ten trials, two at a time, their starts a tenth of a second apart."""
    study = optuna.create_study(direction="minimize")
    optimizer = Optimizer(objective=my_objective, concurrency=2, n_trials=10, study=study, delay=0.1)
    await optimizer(x_offset=2.0)
    print(f"Best trial: {study.best_trial.value}")
    print(f"Best parameters: {study.best_trial.params}")
    return study


if __name__ == "__main__":
    asyncio.run(run_optimization())
