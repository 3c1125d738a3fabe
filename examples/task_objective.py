"""The second example of flytekitplugins.optuna's documentation: an objective that is a Flyte task.

Three things differ from that documentation. The workflow is an `@fl.eager`, because flytekit refuses an async
`@workflow`. Markers declare the search space of `x` and `y`, which the plugin's example leaves open. The option of
`pyflyte run` is `--x_offset`, as the parameter is called.

    pyflyte run examples/task_objective.py optuna_workflow --x_offset 2.0
    python examples/task_objective.py
"""

import asyncio

import flytekit as fl
import optuna

from optuna_flyte_dsl import Float, Optimizer


@fl.task
async def flyte_objective(x: Float(-10, 10), y: Float(-5, 5), x_offset: float) -> float:
    """Return the squared distance of (x, y) from (x_offset, 0), which the search is to find."""
    await asyncio.sleep(0.1)  # stands for the work of a real objective
    return (x - x_offset) ** 2 + y**2


@fl.eager
async def optuna_workflow(x_offset: float = 2.0) -> float:
    """Run fifteen trials, three at a time, and return the best value."""
    study = optuna.create_study(direction="minimize")
    optimizer = Optimizer(objective=flyte_objective, concurrency=3, n_trials=15, study=study)
    await optimizer(x_offset=x_offset)
    return study.best_trial.value


if __name__ == "__main__":
    print(asyncio.run(optuna_workflow()))
