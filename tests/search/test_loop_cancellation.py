"""A search that is cancelled at any moment leaves no trial running, no thread and no execution."""

import asyncio
import collections
import contextlib
import functools
import itertools
import os
import threading

import optuna
import pytest
import quick

from optuna_flyte_dsl import Float, Optimizer
from optuna_flyte_dsl.study.storages import open_storage
from tests.support import own_threads, wait_until, worker_processes
from tests.support.cluster_searches import echo, there
from tests.support.flyteadmin import FlyteAdmin
from tests.support.postgres import Postgres


class Steps(asyncio.SelectorEventLoop):
    """An event loop that cancels a task just before one of its steps."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.step = 0
        self.task: asyncio.Task | None = None

    def _run_once(self) -> None:
        if self.task is not None:
            if self.step == self.at:
                self.task.cancel()
            self.step += 1
        super()._run_once()


def cancelled_at(step, make, pulse=None):
    """Run a search and cancel it at a step of the loop. Return how it ended, and its study."""
    loop = Steps(step)
    optimizer = make()
    beats = []

    async def beat():
        while True:
            await asyncio.sleep(pulse)

    try:

        async def main():
            if pulse is not None:
                beats.append(asyncio.ensure_future(beat()))
            loop.task = asyncio.ensure_future(optimizer())
            return await asyncio.wait([loop.task])

        loop.run_until_complete(main())
        for each in beats:
            each.cancel()
        if beats:
            loop.run_until_complete(asyncio.wait(beats))
        return loop.task, optimizer.study
    finally:
        loop.close()


def check(study):
    states = collections.Counter(trial.state.name for trial in study.trials)
    assert not states["RUNNING"], states
    for trial in study.trials:
        if trial.state.name == "COMPLETE":
            assert trial.value == trial.params["x"]


EVERY = int(os.environ.get("CANCEL_EVERY", "7"))
"""Of the steps at which it takes a second to cancel, one in so many; `CANCEL_EVERY=1` does all."""


def steps_of(make, n_trials=4, check_more=lambda: None, every=1):
    """Cancel a search at each step, until one ends before it is cancelled. Return how many there are."""
    for step in itertools.count(step=every):
        task, study = cancelled_at(step, make)
        check(study)
        wait_until(lambda: not own_threads())
        check_more()
        if not task.cancelled():
            assert task.exception() is None
            assert len(study.trials) == n_trials
            return step
    raise AssertionError


async def waits(x: Float(0, 1)) -> float:
    await asyncio.sleep(0)
    return x


def blocks(x: Float(0, 1)) -> float:
    return x


@pytest.mark.parametrize("objective", [waits, blocks])
@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler(seed=1), optuna.samplers.TPESampler(seed=1)])
def test_at_every_step_in_memory(objective, sampler):
    steps = steps_of(lambda: Optimizer(objective, 2, 4, study=optuna.create_study(sampler=sampler), progress=False))
    assert steps > 8


@pytest.mark.newest
@pytest.mark.parametrize(
    "options",
    [
        {"resume": True},
        {"deterministic": True, "seed": 1},
        {"delay": 0.001},
        {"retries": 1, "timeout": 60, "trial_timeout": 60},
        {"duplicates": "resample", "initial_points": [{"x": 0.5}]},
    ],
)
def test_at_every_step_with_a_storage(tmp_path, options):
    paths = iter(range(10_000))

    def make():
        storage = open_storage(tmp_path / f"{next(paths)}.journal")
        return Optimizer(waits, 2, 4, storage=storage, study_name="s", progress=False, **options)

    assert steps_of(make) > 8


async def reports(trial: optuna.Trial, x: Float(0, 1)) -> float:
    trial.report(x, 0)
    trial.should_prune()
    await asyncio.sleep(0)
    return x


@pytest.mark.newest
def test_at_steps_with_sqlite(tmp_path):
    urls = (f"sqlite:///{tmp_path}/{number}.db" for number in itertools.count())
    options = {"study_name": "s", "resume": True, "progress": False}
    assert steps_of(lambda: Optimizer(waits, 2, 2, storage=next(urls), **options), 2, every=EVERY) > 8


@pytest.mark.newest
def test_at_steps_with_postgresql():
    names = map(str, itertools.count())
    with contextlib.closing(Postgres()) as server:
        options = {"storage": server.url, "resume": True, "progress": False}
        assert steps_of(lambda: Optimizer(reports, 2, 2, study_name=next(names), **options), 2, every=EVERY) > 8


@pytest.mark.newest
def test_at_every_step_on_a_cluster(tmp_path, pauses):
    pauses.poll_shortest = pauses.list_call = 0.005
    pauses.admin_first = 0.01
    with FlyteAdmin(tmp_path / "flyte", instant=echo(0.01)) as admin:

        def nothing_runs():
            assert not admin.running()

        assert steps_of(lambda: there(Optimizer(quick.train.task, 2, 4, progress=False), admin), 4, nothing_runs) > 8


def no_workers():
    assert not worker_processes()


@pytest.mark.newest
def test_at_steps_in_a_process(capfd):
    options = {"executor": "process", "progress": False}
    make = functools.partial(Optimizer, blocks, 1, 1, **options)
    assert steps_of(lambda: make(study=optuna.create_study()), 1, no_workers, every=EVERY) > 8
    assert "Traceback" not in capfd.readouterr().err


def test_while_processes_work():
    task, study = cancelled_at(
        100,
        lambda: Optimizer(sleeps, 2, 4, executor="process", progress=False, study=optuna.create_study()),
        pulse=0.05,
    )
    assert task.cancelled()
    check(study)
    wait_until(lambda: not own_threads())
    no_workers()


def sleeps(x: Float(0, 1)) -> float:
    threading.Event().wait(60)
    return x
