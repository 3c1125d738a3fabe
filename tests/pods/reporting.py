"""Tasks that report to their trial."""

import flytekit as fl
import optuna

from optuna_flyte_dsl import Float, optimize


@fl.task
def watched(trial: optuna.Trial, x: float) -> float:
    trial.report(x, 0)
    return x


@optimize(n_trials=1, progress=False)
@fl.task
def fit(trial: optuna.Trial, x: Float(0, 1), cheap: bool) -> float:
    trial.report(x, int(cheap))
    if not cheap:
        raise optuna.TrialPruned
    return 0.25


def tries_again(trial: optuna.Trial) -> float:
    """Calls the task again, with less to do, if it was pruned."""
    x = trial.suggest_float("x", 0, 1)
    try:
        return fit.task(trial=trial, x=x, cheap=False)
    except optuna.TrialPruned:
        return fit.task(trial=trial, x=x, cheap=True)
