"""Syne Tune with its backend for Python functions, which starts a process for each trial."""

import logging

from _command_line import print_seconds
from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend import PythonBackend
from syne_tune.config_space import uniform
from syne_tune.optimizer.baselines import RandomSearch


def objective(x: float, seconds: float) -> None:
    import time

    from syne_tune import Reporter

    time.sleep(seconds)
    Reporter()(value=x)


def search(n_trials: int, at_once: int, seconds: float) -> None:
    space = {"x": uniform(0, 1), "seconds": seconds}
    tuner = Tuner(
        trial_backend=PythonBackend(tune_function=objective, config_space=space),
        scheduler=RandomSearch(space, metrics=["value"]),
        stop_criterion=StoppingCriterion(max_num_trials_finished=n_trials),
        n_workers=at_once,
        sleep_time=0.01,
        save_tuner=False,
        suffix_tuner_name=True,
    )
    tuner.run()
    assert tuner.tuning_status.num_trials_completed >= n_trials


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.ERROR)
    print_seconds(search)
