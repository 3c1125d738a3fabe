"""A search that is cancelled at any moment leaves no trial running, no thread and no execution."""

import asyncio
import collections
import random
import threading

import optuna
import psutil
import pytest
import quick

from optuna_flyte_dsl import Float, Optimizer
from optuna_flyte_dsl.flyte import admin as admin_module
from optuna_flyte_dsl.flyte import watch as watch_module
from optuna_flyte_dsl.storage import open_storage
from tests.conftest import own_threads, wait_until
from tests.flyteadmin import FlyteAdmin
from tests.test_cluster import echo, there


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


def steps_of(make):
    """Yield each step at which a search can be cancelled, until one ends before it is."""
    for step in range(10_000):
        task, study = cancelled_at(step, make)
        check(study)
        wait_until(lambda: not own_threads())
        if not task.cancelled():
            assert len(study.trials) == 4
            assert task.exception() is None
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


def test_at_steps_with_sqlite(tmp_path):
    for step in range(0, 40, 3):
        url = f"sqlite:///{tmp_path}/{step}.db"
        _, study = cancelled_at(step, lambda url=url: Optimizer(waits, 2, 4, storage=url, resume=True, progress=False))
        check(study)
        wait_until(lambda: not own_threads())


def test_at_every_step_on_a_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(watch_module, "_SHORTEST", 0.005)
    monkeypatch.setattr(watch_module, "_CALLS_A_SECOND", 200.0)
    monkeypatch.setattr(admin_module, "_FIRST_PAUSE", 0.01)
    rng = random.Random(1)
    with FlyteAdmin(tmp_path / "flyte", instant=echo(0.01)) as admin:
        step = last = 0
        while True:
            optimizer = there(Optimizer(quick.train.task, 2, 4, progress=False), admin)
            task, study = cancelled_at(step, lambda optimizer=optimizer: optimizer)
            check(study)
            assert not admin.running(), step
            wait_until(lambda: not own_threads())
            if not task.cancelled():
                break
            last, step = step, step + rng.randint(1, 12)
    assert last > 4


def test_in_processes(tmp_path):
    """Each worker costs about a second, so some steps only."""
    rng = random.Random(2)
    for step in (3, rng.randint(4, 30), 100):
        task, study = cancelled_at(
            step,
            lambda: Optimizer(sleeps, 2, 4, executor="process", progress=False, study=optuna.create_study()),
            pulse=0.05,
        )
        assert task.cancelled()
        assert not [trial for trial in study.trials if trial.state.name == "RUNNING"]
        wait_until(lambda: not own_threads())
        left = [p for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        assert not [p for p in left if "popen_loky" in " ".join(p.cmdline())]


def sleeps(x: Float(0, 1)) -> float:
    threading.Event().wait(60)
    return x
