"""Optuna-distributed with the threads of a local Dask cluster."""

import time

import optuna
from _command_line import print_seconds
from dask.distributed import Client
from optuna_distributed import from_study


def search(n_trials: int, at_once: int, seconds: float) -> None:
    def objective(trial: optuna.Trial) -> float:
        time.sleep(seconds)
        return trial.suggest_float("x", 0, 1)

    study = from_study(optuna.create_study(sampler=optuna.samplers.RandomSampler()), client=client)
    study.optimize(objective, n_trials=n_trials, n_jobs=at_once)
    assert len(study.trials) == n_trials


if __name__ == "__main__":
    client = Client(n_workers=1, threads_per_worker=64, dashboard_address=None)
    print_seconds(search)
    client.close()
