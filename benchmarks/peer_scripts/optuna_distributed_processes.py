"""Optuna-distributed with its own processes, one for each trial."""

import time
from typing import Any

import optuna
from _command_line import print_seconds
from optuna_distributed import from_study


def search(n_trials: int, at_once: int, seconds: float, client: Any = None) -> None:
    def objective(trial: optuna.Trial) -> float:
        time.sleep(seconds)
        return trial.suggest_float("x", 0, 1)

    study = from_study(optuna.create_study(sampler=optuna.samplers.RandomSampler()), client=client)
    study.optimize(objective, n_trials=n_trials, n_jobs=at_once)
    assert len(study.trials) == n_trials


if __name__ == "__main__":
    print_seconds(search)
