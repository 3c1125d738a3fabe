"""Worker processes from outside: what becomes of one that dies while no trial runs in it."""

import os
import signal
import threading

import psutil
import pytest

from optuna_flyte_dsl import FixedArgumentError, Float, optimize
from tests.support import wait_until


def reports_its_process(x: Float(0, 1)) -> float:
    return float(os.getpid())


def is_gone(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.newest
def test_the_death_of_an_idle_worker_is_no_trials_failure():
    killed = []

    def kill(study, trial):
        if trial.number == 0:
            killed.append(int(trial.value))
            os.kill(killed[0], signal.SIGKILL)
            wait_until(lambda: is_gone(killed[0]))

    search = optimize(reports_its_process, executor="process", n_trials=3, callbacks=[kill], progress=False)
    study = search.run_sync()
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert len({trial.value for trial in study.trials}) == 2


def takes_anything(x: Float(0, 1), thing: object) -> float:
    return x


@pytest.mark.newest
def test_an_argument_that_no_worker_can_get_ends_the_search_at_its_first_trial():
    search = optimize(takes_anything, executor="process", n_trials=3, progress=False)
    with pytest.raises(FixedArgumentError, match="`takes_anything` cannot get its argument `thing` in another process"):
        search.run_sync(thing=threading.Lock())
    assert [trial.state.name for trial in search.study.trials] == ["FAIL"]
