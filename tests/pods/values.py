"""Tasks that return what no study can take, or what Flyte does not take."""

from __future__ import annotations

import flytekit as fl
import numpy as np

from optuna_flyte_dsl import Float, Minimize, optimize


@optimize(n_trials=5, seed=1)
@fl.task
def text(x: Float(0, 1)) -> Minimize:
    return f"{x}"


@optimize(n_trials=1, seed=1)
@fl.task
async def numpy(x: Float(0, 1)) -> float:
    return np.float64(x)


@optimize(n_trials=1, seed=1)
@fl.task
def a_list(x: Float(0, 1)) -> float:
    return [x]


@optimize(n_trials=1, seed=1)
@fl.task
def raises(x: Float(0, 1)) -> float:
    if x < 2:
        raise ValueError("it was not to be")
    return x


@fl.eager
async def search() -> list[str]:
    found = []
    for objective in (text, numpy, a_list, raises):
        try:
            await objective()
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
        found += [str(trial.user_attrs.get("optuna_flyte_dsl:error")) for trial in objective.study.trials]
    return found
