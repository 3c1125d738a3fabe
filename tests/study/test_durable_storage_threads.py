"""A search whose trials several threads store and tell, as with a database on a server."""

import asyncio
import contextlib
import threading

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from optuna_flyte_dsl import Category, Float, Integer, optimize
from optuna_flyte_dsl._compat.optuna import engine_of, storage_of
from tests.support.studies import states


def given(server, name, **options):
    return {"storage": server.url, "study_name": name, "concurrency": 12, "progress": False, **options}


@contextlib.contextmanager
def closed(study):
    yield study
    engine_of(storage_of(study)).dispose()


class OneAtATime(TPESampler):
    """A sampler that no two threads may use at the same time."""

    def __init__(self, **options):
        super().__init__(**options)
        self.lock = threading.Lock()
        self.threads = set()

    def alone(self):
        self.threads.add(threading.get_ident())
        assert self.lock.acquire(blocking=False)
        return contextlib.closing(type("", (), {"close": self.lock.release}))

    def before_trial(self, study, trial):
        with self.alone():
            super().before_trial(study, trial)

    def infer_relative_search_space(self, study, trial):
        with self.alone():
            return super().infer_relative_search_space(study, trial)

    def sample_relative(self, study, trial, search_space):
        with self.alone():
            return super().sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, param_name, param_distribution):
        with self.alone():
            return super().sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study, trial, state, values):
        with self.alone():
            super().after_trial(study, trial, state, values)


@pytest.mark.newest
@pytest.mark.parametrize("more", [{}, {"resume": True}])
def test_each_trial_is_stored_once_with_what_its_objective_received(server, name, more):
    received, told, calling = {}, [], threading.Lock()
    sampler = OneAtATime(seed=1, n_startup_trials=5)

    def callback(study, trial):
        with contextlib.ExitStack() as stack:
            assert calling.acquire(blocking=False), "two callbacks at the same time"
            stack.callback(calling.release)
            told.append(trial.number)
            assert trial.number in {
                each.number for each in study.get_trials(deepcopy=False) if each.state.is_finished()
            }

    @optimize(n_trials=60, sampler=sampler, callbacks=[callback], **given(server, name, **more))
    async def search(trial, x: Float(0, 1), n: Integer(1, 1000), kind: Category(["a", "b"])) -> float:
        received[trial.number] = {"x": x, "n": n, "kind": kind}
        trial.set_user_attr("kind", kind)
        await asyncio.sleep(0)
        if trial.number % 7 == 3:
            raise ValueError(trial.number)
        if trial.number % 7 == 5:
            trial.report(x, 0)
            raise optuna.TrialPruned
        return x

    with closed(search.run_sync()) as study:
        assert sorted(told) == list(range(60))
        assert len(sampler.threads) > 1
        for trial in study.trials:
            assert trial.params == received[trial.number]
            assert trial.user_attrs["kind"] == trial.params["kind"]
            kinds = {3: TrialState.FAIL, 5: TrialState.PRUNED}
            assert trial.state is kinds.get(trial.number % 7, TrialState.COMPLETE)


@pytest.mark.newest
def test_no_point_of_a_finite_space_is_tried_twice(server, name):
    @optimize(n_trials=60, sampler=RandomSampler(seed=1), duplicates="resample", **given(server, name))
    async def search(n: Integer(1, 10), kind: Category(list("abcdef"))) -> float:
        await asyncio.sleep(0)
        return n

    with closed(search.run_sync()) as study:
        assert len({tuple(trial.params.values()) for trial in study.trials}) == 60


@pytest.mark.newest
def test_an_error_of_a_callback_ends_the_search_with_every_trial_told(server, name):
    def callback(study, trial):
        if trial.number == 20:
            raise RuntimeError("from the callback")

    @optimize(n_trials=100, sampler=RandomSampler(seed=1), callbacks=[callback], **given(server, name))
    async def search(x: Float(0, 1)) -> float:
        return x

    with pytest.raises(RuntimeError, match="from the callback"):
        search.run_sync()
    with closed(optuna.load_study(study_name=name, storage=server.url)) as study:
        assert set(states(study)) <= {"COMPLETE", "FAIL"}
        assert {trial.number for trial in study.trials if trial.state is TrialState.COMPLETE} >= {20}


@pytest.mark.newest
def test_a_cancelled_search_leaves_no_trial_running(server, name):
    @optimize(n_trials=400, sampler=RandomSampler(seed=1), **given(server, name))
    async def search(trial, x: Float(0, 1)) -> float:
        if trial.number == 40:
            task.cancel()
        returned.add(trial.number)
        return x

    returned = set()

    async def main():
        nonlocal task
        task = asyncio.ensure_future(search())
        with pytest.raises(asyncio.CancelledError):
            await task

    task = None
    asyncio.run(main())
    with closed(optuna.load_study(study_name=name, storage=server.url)) as study:
        assert len(study.trials) < 400
        assert set(states(study)) <= {"COMPLETE", "FAIL"}
        # The objectives of the last trials have returned too, but the search was cancelled before it had their values.
        complete = {trial.number for trial in study.trials if trial.state is TrialState.COMPLETE}
        assert len(returned - complete) <= 12


@pytest.mark.newest
def test_a_deterministic_search_uses_one_thread(server, name):
    sampler = OneAtATime(seed=1)

    @optimize(n_trials=12, sampler=sampler, deterministic=True, **given(server, name))
    async def search(x: Float(0, 1)) -> float:
        return x

    with closed(search.run_sync()):
        assert len(sampler.threads) == 1
