"""A thread that has run a trial goes on with the next one: nothing else about a search changes by that."""

import asyncio
import contextlib
import contextvars
import math
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import flytekit as fl
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from optuna_flyte_dsl import Float, ObjectiveValueError, Optimizer, WhenTrue
from optuna_flyte_dsl.search.ask_tell import AskTell
from optuna_flyte_dsl.search.outcome import Judge
from optuna_flyte_dsl.search.runner import TrialRun, run_series
from optuna_flyte_dsl.search.trial_series import SeriesGate, TrialSeries
from optuna_flyte_dsl.study.attributes import ERROR
from tests.support import fail_at_call, own_threads, wait_until


def in_memory():
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))


def states(study):
    return Counter(trial.state.name for trial in study.trials)


def test_a_thread_goes_on_while_the_event_loop_is_busy():
    study, threads, over = in_memory(), set(), threading.Event()

    def objective(x: Float(0, 1)):
        threads.add(threading.current_thread())
        if not over.is_set() and len(study.trials) == 1:
            loop.call_soon_threadsafe(over.wait, 30)
        if len(study.trials) == 9:
            over.set()
        return x

    async def main():
        nonlocal loop
        loop = asyncio.get_running_loop()
        await Optimizer(objective, 1, 10, study, progress=False)()

    loop = None
    asyncio.run(main())
    assert states(study) == {"COMPLETE": 10}
    assert len(threads) == 1
    assert [trial.value for trial in study.trials] == [trial.params["x"] for trial in study.trials]


FATES = {
    "a number": (lambda x: x, "COMPLETE"),
    "an integer": (lambda _: 1, "COMPLETE"),
    "infinity": (lambda _: math.inf, "COMPLETE"),
    "nan": (lambda _: math.nan, "FAIL"),
    "raises": (lambda _: [][0], "FAIL"),
    "a coroutine": (lambda x: asyncio.sleep(0, x), "COMPLETE"),
    "is pruned": (lambda _: _raise(optuna.TrialPruned()), "PRUNED"),
    "is cancelled": (lambda _: _raise(asyncio.CancelledError()), "FAIL"),
}


def _raise(error):
    raise error


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(sorted(FATES)), min_size=1, max_size=30), st.integers(1, 6), st.booleans())
def test_each_trial_ends_as_its_objective_does(fates, concurrency, takes_trial):
    study, lock = in_memory(), threading.Lock()
    running = most = 0

    def run(number, x):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return FATES[fates[number]][0](x)
        finally:
            with lock:
                running -= 1

    def with_trial(trial):
        return run(trial.number, trial.suggest_float("x", 0, 1))

    numbers = iter(range(len(fates)))

    def with_marker(x: Float(0, 1)):
        with lock:
            number = next(numbers)
        return run(number, x)

    objective = with_trial if takes_trial else with_marker
    Optimizer(objective, concurrency, len(fates), study, progress=False, max_consecutive_failures=None).run_sync()
    assert states(study) == Counter(FATES[fate][1] for fate in fates)
    assert most <= concurrency
    assert own_threads() == set()
    if takes_trial:
        assert [trial.state.name for trial in study.trials] == [FATES[fate][1] for fate in fates]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_an_error_of_a_later_trial_ends_the_search(concurrency):
    study = in_memory()

    def objective(trial):
        if trial.number == 7:
            raise KeyError("seven")
        return trial.suggest_float("x", 0, 1)

    with pytest.raises(KeyError, match="seven"):
        Optimizer(objective, concurrency, 500, study, catch=ValueError, progress=False).run_sync()
    assert study.trials[7].state is TrialState.FAIL
    assert study.trials[7].user_attrs["optuna_flyte_dsl:error"] == "KeyError: 'seven'"
    assert states(study).keys() <= {"COMPLETE", "FAIL"}


def test_no_thread_goes_on_while_the_event_loop_has_to_judge(monkeypatch):
    study, started, seen, loops = in_memory(), [], [], []
    handed_over, over = threading.Event(), threading.Event()
    hand_over = TrialSeries.hand_over
    monkeypatch.setattr(TrialSeries, "hand_over", lambda series: (hand_over(series), handed_over.set()))

    def look():
        wait_until(lambda: states(study)["COMPLETE"] == 1)
        time.sleep(0.05)  # a thread that goes on would have begun other trials by now
        seen.extend(started)
        over.set()

    def objective(trial):
        started.append(trial.number)
        if trial.number == 0:
            wait_until(lambda: len(started) == 2)
            loops[0].call_soon_threadsafe(over.wait, 30)
            threading.Thread(target=look).start()
            raise KeyError("zero")
        handed_over.wait(30)
        return trial.suggest_float("x", 0, 1)

    async def main():
        loops.append(asyncio.get_running_loop())
        await Optimizer(objective, 2, 50, study, catch=ValueError, progress=False)()

    with pytest.raises(KeyError, match="zero"):
        asyncio.run(main())
    assert sorted(seen) == [0, 1]


def test_an_objective_that_stops_its_search_runs_no_other_trial():
    study = in_memory()

    def objective(trial):
        if trial.number == 3:
            trial.study.stop()
        return trial.suggest_float("x", 0, 1)

    Optimizer(objective, 1, 100, study, progress=False).run_sync()
    assert states(study) == {"COMPLETE": 4}


@pytest.mark.parametrize("n_before", [0, 1, 7, 60])
def test_a_cancelled_search_starts_no_other_trial_and_leaves_none_running(n_before):
    study = in_memory()

    def objective(x: Float(0, 1)):
        time.sleep(0)
        return x

    async def main():
        search = asyncio.ensure_future(Optimizer(objective, 4, 10**6, study, progress=False)())
        while len(study.get_trials(deepcopy=False)) < n_before:
            await asyncio.sleep(0)
        search.cancel()
        with pytest.raises(asyncio.CancelledError):
            await search
        return len(study.trials)

    n_trials = asyncio.run(main())
    wait_until(lambda: not own_threads())  # a thread cannot be stopped: it ends when its objective has returned
    assert len(study.trials) == n_trials < 10**6
    assert states(study).keys() <= {"COMPLETE", "FAIL"}


def test_the_child_of_an_objective_that_forks_goes_on_with_no_trial(tmp_path):
    study = in_memory()

    def objective(trial):
        number = trial.number
        if number == 2 and (child := os.fork()):
            os.waitpid(child, 0)
        (tmp_path / f"{number}-{os.getpid()}").touch()
        return trial.suggest_float("x", 0, 1)

    Optimizer(objective, 1, 6, study, progress=False).run_sync()
    assert states(study) == {"COMPLETE": 6}
    assert sorted(path.name[0] for path in tmp_path.iterdir()) == ["0", "1", "2", "2", "3", "4", "5"]


@fl.task
def writes_nothing(x: Float(0, 1)) -> float:
    directories.append(Path(fl.current_context().working_directory))
    assert directories[-1].exists()
    assert not any(directory.exists() for directory in directories[:-1])
    return x


directories = []


def test_the_directory_of_a_trial_goes_with_the_trial():
    directories.clear()
    study = Optimizer(writes_nothing, 1, 5, in_memory(), progress=False).run_sync()
    assert states(study) == {"COMPLETE": 5}
    assert len(set(directories)) == 5


@fl.task
def returns_a_text_at_last(x: Float(0, 1), good: int) -> float:
    calls.append(x)
    return x if len(calls) <= good else "high"


calls = []


@pytest.mark.parametrize("good", [0, 3])
def test_a_result_that_no_study_takes_is_refused_in_the_same_words_in_a_later_trial(good):
    calls.clear()
    with pytest.raises(ObjectiveValueError) as error:
        Optimizer(returns_a_text_at_last, 1, 5, in_memory(), progress=False).run_sync(good=good)
    assert len(calls) == good + 1
    assert "'high'" in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize(
    "options", [{"trial_timeout": 60}, {"timeout": 60}, {"retries": 1}, {"delay": 1e-9}, {"deterministic": True}]
)
def test_where_more_is_asked_for_each_trial_goes_through_the_event_loop(options, monkeypatch):
    monkeypatch.setattr(TrialSeries, "advance", lambda *_: pytest.fail("a thread has gone on"))

    def objective(x: Float(0, 1)):
        return x

    study = Optimizer(objective, 2, 6, seed=1, sampler=optuna.samplers.RandomSampler, progress=False, **options)
    assert states(study.run_sync()) == {"COMPLETE": 6}


class Refusing:
    """Trials that raise an error at an ask or at a tell."""

    def __init__(self, place):
        self.place = place
        self.told = []
        self.stopped = False

    def tell(self, asked, outcome):
        if self.place == "tell":
            raise LookupError(self.place)
        self.told.append((asked.number, outcome.values))

    def ask(self):
        raise LookupError(self.place)


class Asked:
    number, trial, arguments, attempts, outcome = 0, None, {}, (), None


@pytest.mark.parametrize("place", ["tell", "ask"])
def test_an_error_of_an_ask_or_a_tell_is_none_of_the_objective(place):
    trials, asked = Refusing(place), Asked()
    series = TrialSeries(trials, Judge("o", 1, ()), asked, trials.ask, contextvars.copy_context(), SeriesGate())
    assert run_series(TrialRun(None, {}, series=series), lambda _: 0.5) == 0.5
    assert trials.stopped
    with pytest.raises(LookupError, match=place):
        series.take()
    assert trials.told == ([] if place == "tell" else [(0, (0.5,))])
    assert series.asked is (asked if place == "tell" else None)


@pytest.mark.parametrize("fails", [False, True])
def test_a_forked_child_waits_for_no_lock(fails):
    def call(_):
        if fails:
            raise LookupError
        return 0.5

    def run():
        with contextlib.suppress(LookupError):
            run_series(TrialRun(None, {}, series=series), call)

    trials, gate = Refusing("tell"), SeriesGate()
    series = TrialSeries(trials, Judge("o", 1, ()), Asked(), trials.ask, contextvars.copy_context(), gate, pid=0)
    with gate.lock:  # in the child, no thread releases it
        child = threading.Thread(target=run, daemon=True)
        child.start()
        child.join(30)
        assert not child.is_alive()


@pytest.mark.parametrize("method", ["create_new_trial", "set_trial_state_values"])
@pytest.mark.parametrize("concurrency", [1, 8])
def test_an_error_of_an_ask_or_a_tell_in_a_thread_ends_the_search_at_once(concurrency, method, monkeypatch):
    def objective(x: Float(0, 1)):
        return x

    study = in_memory()
    fail_at_call(monkeypatch, InMemoryStorage, method, MemoryError(method))
    with pytest.raises(MemoryError, match=method):
        Optimizer(objective, concurrency, 5_000, study, progress=False).run_sync()
    assert states(study).keys() <= {"COMPLETE", "FAIL"}
    assert len(study.trials) < 20 + 2 * concurrency


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_trial_whose_task_is_cancelled_fails_and_the_search_goes_on(concurrency):
    def objective(x: Float(0, 1)):
        time.sleep(0.001 * x)
        return x

    async def main():
        search = asyncio.ensure_future(
            Optimizer(objective, concurrency, 300, study, progress=False, max_consecutive_failures=None)()
        )
        while len(study.trials) <= concurrency:
            await asyncio.sleep(0.001)
        for _ in range(15):
            await asyncio.sleep(0.002)
            for task in asyncio.all_tasks():
                trial = task.get_coro()
                if trial.__name__ == "_run_trial" and trial.cr_await is not None:  # its objective runs
                    task.cancel()
        await search

    study = in_memory()
    asyncio.run(main())
    assert states(study).keys() == {"COMPLETE", "FAIL"}
    assert len(study.trials) == 300
    for trial in study.trials:
        assert (ERROR in trial.user_attrs) == (trial.state is TrialState.FAIL)


def test_a_trial_that_its_thread_tells_while_the_search_is_cancelled_has_no_error(monkeypatch):
    tell = AskTell.tell

    def slow(self, *args):
        time.sleep(0.01)
        return tell(self, *args)

    def objective(x: Float(0, 1)):
        time.sleep(0.001 * x)
        return x

    async def main():
        search = asyncio.ensure_future(Optimizer(objective, 4, 300, study, progress=False)())
        while not study.trials or study.trials[-1].number < 6:
            await asyncio.sleep(0.001)
        search.cancel()
        with pytest.raises(asyncio.CancelledError):
            await search

    monkeypatch.setattr(AskTell, "tell", slow)
    for _ in range(5):
        study = in_memory()
        asyncio.run(main())
        assert states(study).keys() <= {"COMPLETE", "FAIL"}
        for trial in study.trials:
            assert (ERROR in trial.user_attrs) == (trial.state is TrialState.FAIL)


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_of_a_condition_does_not_block_the_event_loop(is_async):
    in_loops_thread = []

    def is_large(x):
        in_loops_thread.append(threading.current_thread() is threading.main_thread())
        return x > 0.5

    def objective(x: Float(0, 1), y: Annotated[float, Float(0, 1), WhenTrue(is_large)] = 0.0):
        return x + y

    async def async_objective(x: Float(0, 1), y: Annotated[float, Float(0, 1), WhenTrue(is_large)] = 0.0):
        return x + y

    in_loops_thread.clear()
    study = in_memory()
    search = Optimizer(async_objective if is_async else objective, 4, 20, study, progress=False)
    in_loops_thread.clear()  # a decoration may try the function
    search.run_sync()
    assert states(study) == {"COMPLETE": 20}
    assert len(in_loops_thread) >= 20
    assert not any(in_loops_thread[-20:])
