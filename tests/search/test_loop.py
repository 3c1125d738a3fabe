"""The loop, with a runner that the tests hold in their hands: no clock decides anything."""

import asyncio
import contextvars
import copy
import dataclasses
import json
import logging
import math
import pickle
import re
import sys
import tempfile
import threading
from collections import Counter

import flytekit as fl
import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from optuna_flyte_dsl import (
    Float,
    InvalidObjectiveError,
    ObjectiveValueError,
    Optimizer,
    PythonExitError,
    SearchSpace,
    StorageUnavailableError,
    optimize,
    suggest,
)
from optuna_flyte_dsl._compat.optuna import storage_of
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.engines.engine_choice import read_objective
from optuna_flyte_dsl.options import Options
from optuna_flyte_dsl.search.ask_tell import AskTell
from optuna_flyte_dsl.search.loop import SearchLoop
from optuna_flyte_dsl.study.attributes import ERROR
from optuna_flyte_dsl.study.taken_points import TakenPoints
from tests.support import MovableTime, fail_at_call
from tests.support._compat import cached_trials


def declared(x: Float(0, 1)):
    raise NotImplementedError


OBJECTIVE = read_objective(declared)


class FakeRunner:
    """Runs an async function in the place of an objective, and counts."""

    def __init__(self, function):
        self.function = function
        self.running = self.most = self.started = 0

    async def run(self, run):
        assert run.on_begin is None
        self.started += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await self.function(run.trial, **run.arguments)
        finally:
            self.running -= 1

    async def close(self):
        pass


async def run_search(function, *, study=None, n_trials=10, concurrency=1, delay=0.0, space=None, **options):
    study = study or optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    runner = FakeRunner(function)
    thread = Threads(limit=1)
    try:
        ledger = AskTell(
            study,
            OBJECTIVE,
            space or OBJECTIVE.space,
            given := Options(concurrency, n_trials, delay=delay, callbacks=options.pop("callbacks", ())),
            observer=options.pop("observer", None),
            adopted=options.pop("resumed", ()),
        )
        search = SearchLoop(ledger, OBJECTIVE, runner, given, thread=thread, **{"n_trials": n_trials, **options})
        await search.run()
    finally:
        await thread.close()
    return study, runner


class Changing(dict):
    """A dictionary. At each look-up in it, another dictionary gets one more item, as another thread may add it."""

    other: dict

    def __contains__(self, key):
        self.other[len(self.other)] = self.other[0]
        return super().__contains__(key)

    def get(self, key, default=None):
        self.other[len(self.other)] = self.other[0]
        return super().get(key, default)


@pytest.mark.parametrize("end", [AskTell.give_up, lambda trials: trials.close_open("The search was cancelled.")])
def test_the_trials_that_are_open_may_change_while_a_search_ends(end):
    trials = AskTell(optuna.create_study(), OBJECTIVE, OBJECTIVE.space, Options(1, 2))
    trials.ask()
    opened = trials._open
    opened._untold = Changing()
    opened._untold.other = opened._trials
    end(trials)
    assert not opened._trials


def states(study):
    return Counter(trial.state.name for trial in study.get_trials(deepcopy=False))


async def value(trial, x):
    return x


class Slow(InMemoryStorage):
    """A storage of which the search does not know that it is quick: it is used in the search's thread."""


def quick_and_threaded():
    return [
        pytest.param(lambda: optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)), id="quick"),
        pytest.param(
            lambda: optuna.create_study(storage=Slow(), sampler=optuna.samplers.RandomSampler(seed=1)), id="threaded"
        ),
    ]


@pytest.mark.parametrize("make", quick_and_threaded())
@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_it_runs_just_as_many_trials_as_asked_for(make, concurrency):
    study, runner = asyncio.run(run_search(value, study=make(), n_trials=20, concurrency=concurrency))
    assert states(study) == {"COMPLETE": 20}
    assert runner.started == 20
    assert [trial.value for trial in study.trials] == [trial.params["x"] for trial in study.trials]


@pytest.mark.parametrize("make", quick_and_threaded())
def test_it_runs_as_many_at_once_as_allowed_and_refills_each_place(make):
    async def main():
        gates = {}
        full = asyncio.Event()

        async def objective(trial, x):
            gates[trial.number] = asyncio.Event()
            if len(gates) == 4:
                full.set()
            await gates[trial.number].wait()
            return x

        search = asyncio.ensure_future(run_search(objective, study=make(), n_trials=6, concurrency=4))
        await full.wait()
        assert set(gates) == {0, 1, 2, 3}
        gates[2].set()  # the third one ends first: its place is taken, though the others go on
        while 4 not in gates:
            await asyncio.sleep(0)
        assert 5 not in gates
        for number in range(6):
            while number not in gates:
                await asyncio.sleep(0)
            gates[number].set()
        return await search

    study, runner = asyncio.run(main())
    assert runner.most == 4
    assert states(study) == {"COMPLETE": 6}


def test_trials_are_asked_for_only_when_there_is_room():
    asked = []

    async def main():
        gate = asyncio.Event()

        async def objective(trial, x):
            asked.append(len(study.get_trials(deepcopy=False)))
            if len(asked) == 3:
                gate.set()
            await gate.wait()
            return x

        study = optuna.create_study()
        await run_search(objective, study=study, n_trials=9, concurrency=3)

    asyncio.run(main())
    assert max(asked[:3]) <= 3


@pytest.mark.parametrize("make", quick_and_threaded())
def test_an_error_of_a_trial_is_a_failure_and_the_search_goes_on(make, warned, caplog):
    async def objective(trial, x):
        if trial.number % 2:
            raise RuntimeError("boom\nand more")
        return x

    study, _ = asyncio.run(run_search(objective, study=make(), n_trials=6, concurrency=2))
    assert states(study) == {"COMPLETE": 3, "FAIL": 3}
    assert {t.user_attrs.get(ERROR) for t in study.trials if t.number % 2} == {"RuntimeError: boom\nand more"}
    (line,) = warned()  # those that fail in the same way are counted
    assert re.fullmatch(
        r"Trial [135] of `declared` failed: RuntimeError: boom and more "
        r"\(test_loop.py:208, in objective: raise RuntimeError\(\"boom\\nand more\"\)\)",
        line,
    )


def test_a_long_reason_is_cut():
    async def objective(trial, x):
        raise ValueError("x" * 10_000)

    study, _ = asyncio.run(run_search(objective, n_trials=1))
    assert len(study.trials[0].user_attrs[ERROR]) == 2_000


def test_a_pruned_trial_keeps_its_last_reported_value(warned):
    async def objective(trial, x):
        trial.report(0.25, step=1)
        trial.report(0.75, step=2)
        raise optuna.TrialPruned

    study, _ = asyncio.run(run_search(objective, n_trials=2))
    assert states(study) == {"PRUNED": 2}
    assert study.trials[0].value == 0.75
    assert warned() == []


@pytest.mark.filterwarnings("error")
def test_nan_is_a_failure():
    async def objective(trial, x):
        return float("nan")

    study, _ = asyncio.run(run_search(objective, n_trials=3, concurrency=2))
    assert states(study) == {"FAIL": 3}
    assert study.trials[0].user_attrs[ERROR] == "The objective returned NaN: nan"


@pytest.mark.parametrize("make", quick_and_threaded())
def test_a_value_that_no_study_can_take_ends_the_search(make):
    async def main():
        hold = asyncio.Event()

        async def objective(trial, x):
            if trial.number == 2:
                return "abc"
            await hold.wait()

        study = make()
        with pytest.raises(ObjectiveValueError, match="it returned 'abc', of type str"):
            await run_search(objective, study=study, n_trials=100, concurrency=3)
        return study

    study = asyncio.run(main())
    assert states(study) == {"FAIL": 3}
    reasons = [trial.user_attrs[ERROR] for trial in study.trials]
    assert sum("The search ended while this trial ran" in reason for reason in reasons) == 2


@pytest.mark.parametrize("make", quick_and_threaded())
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_of_a_trial_propagates_and_leaves_none_running(make, error):
    studies = []

    async def main():
        async def objective(trial, x):
            if trial.number == 1:
                raise error("out")
            await asyncio.Event().wait()

        studies.append(make())
        await run_search(objective, study=studies[0], n_trials=9, concurrency=3)

    with pytest.raises(error):
        asyncio.run(main())
    assert set(states(studies[0])) == {"FAIL"}


@pytest.mark.parametrize("make", quick_and_threaded())
def test_cancellation_propagates_and_leaves_no_trial_running(make):
    async def main():
        study = make()
        running = asyncio.Event()

        async def objective(trial, x):
            if trial.number == 0:
                return x
            if trial.number == 2:
                running.set()
            await asyncio.Event().wait()

        search = asyncio.ensure_future(run_search(objective, study=study, n_trials=9, concurrency=2))
        await running.wait()
        search.cancel()
        with pytest.raises(asyncio.CancelledError):
            await search
        return study

    study = asyncio.run(main())
    assert states(study) == {"COMPLETE": 1, "FAIL": 2}
    assert study.trials[1].user_attrs[ERROR] == "The search was cancelled while this trial ran."


def test_a_second_cancellation_while_it_closes_changes_nothing():
    class Held(Slow):
        """Holds the tell of the search's end until the test lets it go."""

        closing, go = threading.Event(), threading.Event()

        def set_trial_state_values(self, *args, **kwargs):
            self.closing.set()
            assert self.go.wait(30)
            return super().set_trial_state_values(*args, **kwargs)

    async def main():
        study = optuna.create_study(storage=Held())
        running = asyncio.Event()

        async def objective(trial, x):
            running.set()
            await asyncio.Event().wait()

        search = asyncio.ensure_future(run_search(objective, study=study))
        await running.wait()
        search.cancel()
        await asyncio.to_thread(Held.closing.wait, 30)
        for _ in range(3):
            search.cancel()
            await asyncio.sleep(0)
        assert not search.done()
        Held.go.set()
        with pytest.raises(asyncio.CancelledError):
            await search
        return study

    assert states(asyncio.run(main())) == {"FAIL": 1}


@pytest.mark.parametrize("how", ["raises", "cancels its task", "cancels its task and returns"])
def test_a_trial_that_cancels_itself_has_failed(how):
    async def objective(trial, x):
        if trial.number == 0 and how == "raises":
            raise asyncio.CancelledError("mine")
        if trial.number == 0:
            asyncio.current_task().cancel()
            await asyncio.sleep(0) if how == "cancels its task" else None
        return x

    study, _ = asyncio.run(run_search(objective, n_trials=3))
    assert states(study) == {"FAIL": 1, "COMPLETE": 2}


class Spy(optuna.samplers.TPESampler):
    """Notes how many finished trials each sampling sees, and in which thread."""

    def __init__(self):
        super().__init__(seed=1)
        self.seen, self.threads = {}, set()

    def sample_relative(self, study, trial, search_space):
        self.look(study, trial)
        return super().sample_relative(study, trial, search_space)

    def sample_independent(self, study, trial, name, distribution):
        self.look(study, trial)
        return super().sample_independent(study, trial, name, distribution)

    def look(self, study, trial):
        trials = cached_trials(study, TrialState.COMPLETE)
        self.seen[trial.number] = len(trials)
        self.threads.add(threading.current_thread())


async def async_with_trial(trial: optuna.Trial):
    return trial.suggest_float("x", 0, 1)


def sync_with_trial(trial: optuna.Trial):
    return trial.suggest_float("x", 0, 1)


def with_marker(x: Float(0, 1)):
    return x


@pytest.mark.parametrize("objective", [async_with_trial, sync_with_trial, with_marker])
def test_a_sampler_sees_all_finished_trials_wherever_it_is_asked(objective):
    sampler = Spy()
    study = optuna.create_study(sampler=sampler)
    Optimizer(objective, 1, 25, study).run_sync()
    assert sampler.seen == {number: number for number in range(25)}


def test_relative_sampling_never_happens_in_the_event_loop():
    class Relative(optuna.samplers.RandomSampler):
        def sample_relative(self, study, trial, search_space):
            threads.append(threading.current_thread())
            return {}

    threads = []
    Optimizer(async_with_trial, 2, 5, optuna.create_study(sampler=Relative())).run_sync()
    assert len(threads) == 5
    assert threading.current_thread() not in threads


def test_a_failing_ask_does_not_touch_the_trial_of_another_process():
    class Locked(InMemoryStorage):
        locked = False

        def create_new_trial(self, *args, **kwargs):
            if self.locked:
                raise OSError("database is locked")
            return super().create_new_trial(*args, **kwargs)

    storage = Locked()
    study = optuna.create_study(storage=storage)
    other = study.ask()
    storage.locked = True
    with pytest.raises(OSError, match="locked"):
        asyncio.run(run_search(value, study=study))
    assert study.trials[other.number].state is TrialState.RUNNING
    study.tell(other, 1.0)


class Unreliable(InMemoryStorage):
    """Refuses the first few changes of a trial's state."""

    def __init__(self, refusals):
        super().__init__()
        self.refusals = refusals

    def set_trial_state_values(self, trial_id, state, values=None):
        if state.is_finished() and self.refusals:
            self.refusals -= 1
            raise OSError("gone for a while")
        return super().set_trial_state_values(trial_id, state, values)


def test_a_value_that_the_storage_refused_is_told_when_the_search_ends():
    study = optuna.create_study(storage=Unreliable(2))
    with pytest.raises(OSError, match="gone for a while"):
        asyncio.run(run_search(value, study=study))
    assert states(study) == {"COMPLETE": 1}
    assert study.best_value == study.best_params["x"]


def test_what_the_storage_never_takes_is_saved(caplog, monkeypatch, tmp_path, pauses):
    monkeypatch.chdir(tmp_path)
    pauses.at_last = (0.0, 0.0)
    study = optuna.create_study(storage=Unreliable(99))
    with pytest.raises(StorageUnavailableError, match="trials 0, which have finished") as raised:
        asyncio.run(run_search(value, study=study))
    assert isinstance(raised.value.__context__, OSError)
    assert raised.value.path.parent == tmp_path
    saved = json.loads(raised.value.path.read_text())
    assert saved["trial"] == 0
    assert saved["values"] == [saved["params"]["x"]]
    assert any("Trial 0 of `declared` could not be told" in record.getMessage() for record in caplog.records)


def test_an_error_whose_text_cannot_be_made_is_a_failure_too():
    class Nameless(Exception):
        def __str__(self):
            raise ValueError

    async def objective(trial, x):
        raise Nameless

    study, _ = asyncio.run(run_search(objective, n_trials=1))
    assert study.trials[0].user_attrs[ERROR] == "Nameless: <its text could not be made>"


def test_callbacks_hear_of_each_finished_trial():
    heard = []

    async def objective(trial, x):
        if trial.number == 1:
            raise RuntimeError
        return x

    asyncio.run(
        run_search(
            objective,
            n_trials=3,
            callbacks=[lambda study, trial: heard.append((isinstance(study, optuna.Study), trial.number, trial.state))],
        )
    )
    assert heard == [(True, 0, TrialState.COMPLETE), (True, 1, TrialState.FAIL), (True, 2, TrialState.COMPLETE)]


def test_what_a_callback_changes_in_its_trial_stays_there():
    def callback(study, trial):
        trial.params["x"] = trial.user_attrs["note"] = 7
        trial.values = [7.0]
        trial.distributions["x"].low = 7

    study, _ = asyncio.run(run_search(value, n_trials=2, callbacks=[callback]))
    for trial in study.trials:
        assert trial.params["x"] != 7 != trial.value
        assert "note" not in trial.user_attrs
        assert trial.distributions["x"].low != 7


def test_a_callback_can_pickle_and_copy_the_study():
    copies = []

    def callback(study, trial):
        copies.append((pickle.loads(pickle.dumps(study)), copy.copy(study), copy.deepcopy(study)))

    study, _ = asyncio.run(run_search(value, n_trials=2, callbacks=[callback]))
    for twins in copies:
        assert all(type(twin) is optuna.Study and twin.study_name == study.study_name for twin in twins)
    assert [len(twins[0].trials) for twins in copies] == [1, 2]


def test_a_callback_can_stop_the_search():
    study, _runner = asyncio.run(
        run_search(value, n_trials=1000, concurrency=3, callbacks=[optuna.study.MaxTrialsCallback(5)])
    )
    assert 5 <= len(study.trials) <= 7
    assert set(states(study)) == {"COMPLETE"}


def test_a_trial_can_stop_the_search():
    async def objective(trial, x):
        if trial.number == 2:
            trial.study.stop()
        return x

    study, _ = asyncio.run(run_search(objective, n_trials=1000))
    assert states(study) == {"COMPLETE": 3}


def test_stopping_wakes_a_search_that_waits_for_its_next_start():
    async def objective(trial, x):
        trial.study.stop()
        return x

    study, _ = asyncio.run(run_search(objective, n_trials=5, concurrency=2, delay=3600.0))
    assert states(study) == {"COMPLETE": 1}


def test_an_error_in_a_callback_ends_the_search():
    def callback(study, trial):
        raise LookupError("callback")

    async def objective(trial, x):
        if trial.number:
            await asyncio.Event().wait()
        return x

    study = optuna.create_study()
    with pytest.raises(LookupError, match="callback"):
        asyncio.run(run_search(objective, study=study, concurrency=3, callbacks=[callback]))
    assert states(study)["RUNNING"] == 0


def test_a_runtime_error_whose_text_cannot_be_made_is_a_failure():
    class Unprintable(RuntimeError):
        def __str__(self):
            raise KeyError("boom")

    def train(x: Float(0, 1)):
        raise Unprintable

    study = optimize(train, n_trials=3, catch=(RuntimeError,), progress=False).run_sync()
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 3


@pytest.mark.parametrize(
    "text",
    [
        "cannot schedule new futures after interpreter shutdown",
        "can't create new thread at interpreter shutdown",
        "can't register atexit after shutdown",
    ],
)
def test_a_trial_that_python_starts_no_thread_for_at_its_exit_is_lost(text, tmp_path):
    def train(x: Float(0, 1)):
        raise RuntimeError(text)

    search = optimize(train, n_trials=5, storage=tmp_path / "s.journal", progress=False)
    with pytest.raises(PythonExitError):
        search.run_sync()
    (trial,) = search.study.trials
    assert (trial.state, trial.user_attrs["optuna_flyte_dsl:lost"]) == (TrialState.FAIL, True)


def test_a_sampler_that_raises_ends_the_search_and_leaves_no_trial_running():
    class Broken(optuna.samplers.RandomSampler):
        def infer_relative_search_space(self, study, trial):
            if trial.number == 2:
                raise ArithmeticError("sampler")
            return super().infer_relative_search_space(study, trial)

    study = optuna.create_study(sampler=Broken())
    with pytest.raises(ArithmeticError, match="sampler"):
        asyncio.run(run_search(value, study=study, concurrency=2))
    assert states(study)["RUNNING"] == 0
    assert len(study.trials) == 3


@pytest.mark.parametrize("options", [{"constraints": [lambda x: x - 0.5]}, {"duplicates": "resample"}])
def test_points_are_looked_for_outside_of_the_event_loop(options, monkeypatch):
    def suggest(*args):
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return suggested(*args)

    suggested = TakenPoints.suggest
    monkeypatch.setattr(TakenPoints, "suggest", suggest)

    def objective(x: Float(0, 1)) -> float:
        return x

    search = optimize(objective, n_trials=5, sampler=optuna.samplers.RandomSampler, progress=False, **options)
    assert states(search.run_sync()) == {"COMPLETE": 5}


class Panic(BaseException):
    """As of a sampler that is written in Rust."""


@pytest.mark.parametrize("error", [ArithmeticError, Panic])
def test_an_ask_that_raises_when_its_trial_is_stored_already_leaves_none_running(error):
    class Broken(optuna.samplers.RandomSampler):
        def before_trial(self, study, trial):
            if trial.number == 2:
                raise error("sampler")

    study = optuna.create_study(sampler=Broken())
    with pytest.raises(error, match="sampler"):
        asyncio.run(run_search(value, study=study, concurrency=2))
    assert states(study)["RUNNING"] == 0
    assert study.trials[2].state is TrialState.FAIL


@pytest.mark.parametrize(
    "sampler", [optuna.samplers.GridSampler({"x": [0.1, 0.2, 0.3]}, seed=1), optuna.samplers.BruteForceSampler()]
)
def test_a_sampler_can_end_the_search_when_its_space_is_exhausted(sampler):
    space = SearchSpace.of(declared).bind(x=Float(0.1, 0.3, step=0.1))
    study, _ = asyncio.run(run_search(value, study=optuna.create_study(sampler=sampler), n_trials=50, space=space))
    assert states(study) == {"COMPLETE": 3}
    assert sorted(trial.params["x"] for trial in study.trials) == pytest.approx([0.1, 0.2, 0.3])


def test_starts_are_spaced_by_the_delay():
    async def main():
        loop = asyncio.get_running_loop()
        begin, starts = loop.time(), []

        async def objective(trial, x):
            starts.append(loop.time() - begin)
            return x

        await run_search(objective, n_trials=4, concurrency=4, delay=0.02)
        return starts

    # From the beginning, not from each to the next: a busy machine may hold up the first start, and not the second.
    starts = asyncio.run(main())
    assert all(start >= 0.019 * index for index, start in enumerate(starts))


def test_a_storage_that_blocks_never_blocks_the_event_loop():
    class Blocking(InMemoryStorage):
        """Each of its operations waits for the event loop to go on: in the loop's thread it would wait for ever."""

        def _beat(self):
            assert threading.current_thread() is not loop_thread, "the storage is used in the event loop's thread"
            before = beats[0]
            while beats[0] == before:
                assert not stopped.is_set()

        def create_new_trial(self, *args, **kwargs):
            self._beat()
            return super().create_new_trial(*args, **kwargs)

        def set_trial_state_values(self, *args, **kwargs):
            self._beat()
            return super().set_trial_state_values(*args, **kwargs)

    loop_thread, beats, stopped = threading.current_thread(), [0], threading.Event()

    async def main():
        async def heart():
            while True:
                beats[0] += 1
                await asyncio.sleep(0.001)

        beating = asyncio.ensure_future(heart())
        study, _ = await run_search(value, study=optuna.create_study(storage=Blocking()), concurrency=3)
        beating.cancel()
        stopped.set()
        return study

    assert states(asyncio.run(main())) == {"COMPLETE": 10}


def test_a_callback_never_blocks_the_event_loop():
    loop_thread = threading.current_thread()
    threads = []
    asyncio.run(run_search(value, callbacks=[lambda *_: threads.append(threading.current_thread())]))
    assert loop_thread not in threads


def test_what_a_trial_sets_in_its_context_does_not_reach_the_next():
    variable = contextvars.ContextVar("variable", default=0)
    seen = []

    async def objective(trial, x):
        seen.append(variable.get())
        variable.set(variable.get() + 1)
        return x

    asyncio.run(run_search(objective, n_trials=5, concurrency=2))
    assert seen == [0] * 5


def test_initial_points_come_first_and_once():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(2):
        asyncio.run(run_search(value, study=study, n_trials=4, initial_points=[{"x": 0.25}, {"x": 0.5}]))
    assert [trial.params["x"] for trial in study.trials[:2]] == [0.25, 0.5]
    assert [trial.params["x"] for trial in study.trials].count(0.25) == 1
    assert states(study) == {"COMPLETE": 8}


def test_enqueued_trials_are_honoured():
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.125})
    asyncio.run(run_search(value, study=study, n_trials=2))
    assert len(study.trials) == 2
    assert study.trials[0].params == {"x": 0.125}


def test_failures_are_logged_in_full_at_the_level_debug(caplog):
    async def objective(trial, x):
        raise RuntimeError("boom")

    optuna.logging.set_verbosity(optuna.logging.INFO)
    with caplog.at_level(logging.DEBUG, logger="optuna_flyte_dsl"):
        asyncio.run(run_search(objective, n_trials=1))
    assert any(record.exc_info for record in caplog.records)


class Cancel(Exception):
    """Stands for: the test cancels the search now."""


endings = st.sampled_from(["value", "error", "pruned", "nan", "own cancel", "delay", "stop"])


@settings(max_examples=60)
@given(
    plan=st.lists(endings, max_size=25),
    n_trials=st.integers(1, 30),
    concurrency=st.integers(1, 8),
    threaded=st.booleans(),
    cancel_at=st.none() | st.integers(0, 30),
)
def test_limits_hold_and_every_asked_trial_ends(plan, n_trials, concurrency, threaded, cancel_at):
    async def main():
        async def objective(trial, x):
            if trial.number == cancel_at:
                search.cancel()
                await asyncio.Event().wait()
            ending = plan[trial.number] if trial.number < len(plan) else "value"
            for _ in range(int(x * 5)):
                await asyncio.sleep(0)
            match ending:
                case "error":
                    raise RuntimeError
                case "pruned":
                    raise optuna.TrialPruned
                case "nan":
                    return float("nan")
                case "own cancel":
                    raise asyncio.CancelledError
                case "delay":
                    await asyncio.sleep(0.001)
                case "stop":
                    trial.study.stop()
            return x

        study = optuna.create_study(
            storage=Slow() if threaded else None, sampler=optuna.samplers.RandomSampler(seed=len(plan))
        )
        runner = FakeRunner(objective)
        thread = Threads(limit=1)
        options = Options(concurrency, n_trials, max_consecutive_failures=None)
        search = asyncio.ensure_future(
            SearchLoop(
                AskTell(study, OBJECTIVE, OBJECTIVE.space, options),
                OBJECTIVE,
                runner,
                options,
                thread=thread,
                n_trials=n_trials,
            ).run()
        )
        cancelled = False
        try:
            await search
        except asyncio.CancelledError:
            cancelled = True
        await thread.close()
        return study, runner, cancelled

    study, runner, cancelled = asyncio.run(main())
    assert runner.most <= concurrency
    assert all(trial.state.is_finished() for trial in study.trials)
    assert len(study.trials) <= n_trials
    if not cancelled and "stop" not in plan:
        assert len(study.trials) == n_trials
    for trial in study.trials:
        ending = plan[trial.number] if trial.number < len(plan) else "value"
        if ending in {"value", "delay", "stop"} and not cancelled:
            assert trial.value == trial.params["x"]
        elif ending in {"error", "nan", "own cancel"}:
            assert trial.state is TrialState.FAIL
            assert trial.user_attrs[ERROR]


@pytest.mark.parametrize("make", [True, False])
def test_an_objective_that_raises_generator_exit_ends_the_search(make):
    def sync(trial):
        raise GeneratorExit

    async def coroutine(trial):
        raise GeneratorExit

    optimizer = Optimizer(sync if make else coroutine, 2, 5, progress=False)
    with pytest.raises(InvalidObjectiveError, match="raised GeneratorExit, which ends the search"):
        asyncio.run(asyncio.wait_for(optimizer(), 30))
    assert {trial.state.name for trial in optimizer.study.trials} == {"FAIL"}


class Uncountable:
    def __float__(self):
        raise RuntimeError("a tensor of two elements, for example")


@pytest.mark.parametrize("value", [10**400, Uncountable(), 1 + 2j, np.complex128(1 + 2j)])
def test_what_no_float_can_hold_is_no_number(value):
    optimizer = Optimizer(lambda trial: value, 1, 3, progress=False)
    with pytest.raises(ObjectiveValueError, match="must return a number"):
        optimizer.run_sync()


@pytest.mark.filterwarnings("ignore:.*optuna.terminator.*:FutureWarning")
def test_the_terminator_callback_works():
    from optuna.terminator import StaticErrorEvaluator, Terminator, TerminatorCallback
    from optuna.terminator.improvement.evaluator import BestValueStagnationEvaluator

    terminator = Terminator(BestValueStagnationEvaluator(max_stagnation_trials=3), StaticErrorEvaluator(0.0), 5)
    optimizer = Optimizer(
        lambda trial: trial.suggest_float("x", 0, 1) * 0,
        1,
        1000,
        callbacks=[TerminatorCallback(terminator)],
        progress=False,
    )
    assert len(optimizer.run_sync().trials) < 50


@st.composite
def whole_searches(draw):
    return {
        "kind": draw(st.sampled_from(["async", "sync", "task", "async_task", "markers"])),
        "storage": draw(st.sampled_from(["memory", "journal", "sqlite"])),
        "delay": draw(st.sampled_from([0.0, 0.001])),
        "concurrency": draw(st.integers(1, 5)),
        "n_trials": draw(st.integers(1, 12)),
        "plan": draw(st.lists(st.sampled_from(["value", "error", "prune", "nan", "cancel itself"]), min_size=1)),
        "cancel_after": draw(st.none() | st.integers(0, 6)),
        "cancels": draw(st.integers(1, 2)),
    }


@pytest.mark.newest
@settings(max_examples=20)
@given(case=whole_searches())
def test_limits_hold_for_whole_searches_over_real_threads_and_storages(case):
    running, most, started = 0, 0, []
    enough = threading.Event()
    lock = threading.Lock()

    def outcome(number):
        match case["plan"][number % len(case["plan"])]:
            case "error":
                raise ValueError("it failed")
            case "prune":
                raise optuna.TrialPruned
            case "nan":
                return math.nan
            case "cancel itself":
                raise asyncio.CancelledError
        return 1.0

    def enter():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            started.append(1)
            if case["cancel_after"] is not None and len(started) > case["cancel_after"]:
                enough.set()
            return len(started)

    def leave():
        nonlocal running
        with lock:
            running -= 1

    def sync(trial):
        number = enter()
        try:
            trial.suggest_float("x", 0, 1)
            return outcome(number)
        finally:
            leave()

    async def coroutine(trial):
        number = enter()
        try:
            trial.suggest_float("x", 0, 1)
            await asyncio.sleep(0)
            return outcome(number)
        finally:
            leave()

    async def markers(x: Float(0, 1)):
        number = enter()
        try:
            await asyncio.sleep(0.001)
            return outcome(number)
        finally:
            leave()

    with tempfile.TemporaryDirectory() as folder:
        storage = {
            "memory": lambda: None,
            "journal": lambda: JournalStorage(JournalFileBackend(f"{folder}/journal")),
            "sqlite": lambda: f"sqlite:///{folder}/study.db",
        }[case["storage"]]()
        study = optuna.create_study(storage=storage)
        objective = {"async": coroutine, "sync": sync, "markers": markers}.get(case["kind"])
        given_inputs = {}
        if objective is None:
            objective, given_inputs = of_task(case["kind"], enter, leave, outcome), {"x": suggest.float(0, 1)}
        given = {"progress": False, "max_consecutive_failures": None}
        optimizer = Optimizer(objective, case["concurrency"], case["n_trials"], study, case["delay"], **given)

        async def main():
            search = asyncio.ensure_future(optimizer(**given_inputs))
            if case["cancel_after"] is not None:
                while not enough.is_set() and not search.done():
                    await asyncio.sleep(0.0005)
                for _ in range(case["cancels"]):
                    search.cancel()
                    await asyncio.sleep(0)
            try:
                await search
            except asyncio.CancelledError:
                return "cancelled"
            return "ended"

        ended = asyncio.run(main())
        trials = optuna.load_study(study_name=study.study_name, storage=storage_of(study)).trials
    assert all(trial.state.is_finished() for trial in trials)
    assert len(trials) <= case["n_trials"]
    if ended == "ended":
        assert len(trials) == case["n_trials"]
        assert most <= case["concurrency"]


_plan = {}


@fl.task
def planned(x: float) -> float:
    return _run_plan()


@fl.task
async def planned_async(x: float) -> float:
    return _run_plan()


def _run_plan():
    number = _plan["enter"]()
    try:
        return _plan["outcome"](number)
    finally:
        _plan["leave"]()


def of_task(kind, enter, leave, outcome):
    _plan.update(enter=enter, leave=leave, outcome=outcome)
    return planned if kind == "task" else planned_async


@pytest.mark.parametrize("place", ["ask", "suggestion", "callback", "after the trial"])
@pytest.mark.parametrize("kind", ["memory", "journal"])
def test_a_cancelled_search_does_not_wait_for_a_sampler_or_a_callback_that_hangs(place, kind, tmp_path, pauses, warned):
    pauses.code_at_end = 0.3
    released, hangs = threading.Event(), threading.Event()
    returned = []

    def hang(number):
        if number == 3:
            hangs.set()
            released.wait()

    class Hanging(optuna.samplers.RandomSampler):
        def sample_relative(self, study, trial, space):
            if place == "ask":
                hang(trial.number)
            return super().sample_relative(study, trial, space)

        def sample_independent(self, study, trial, name, distribution):
            if place == "suggestion":
                hang(trial.number)
            return super().sample_independent(study, trial, name, distribution)

        def after_trial(self, study, trial, state, values):
            if place == "after the trial":
                hang(trial.number)

    def callback(_study, trial):
        if place == "callback":
            hang(trial.number)

    async def objective(x: Float(0, 1)) -> float:
        await asyncio.sleep(0.01)
        returned.append(x)
        return x

    storage = None if kind == "memory" else str(tmp_path / "search.journal")
    options = {"storage": storage, "sampler": Hanging(), "callbacks": [callback], "progress": False}
    search = optimize(objective, n_trials=9, concurrency=3, **options)

    async def main():
        searching = asyncio.ensure_future(search())
        await asyncio.to_thread(hangs.wait)
        while len(returned) < 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        searching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await searching

    try:
        asyncio.run(main())
        found = [trial.state.name for trial in search.study.get_trials()]
    finally:
        released.set()
    assert "RUNNING" not in found
    assert found.count("COMPLETE") == len(returned)
    assert any("ends without its sampler or a callback, which has not returned" in each for each in warned())


def test_what_user_code_sets_in_the_context_of_a_trial_reaches_its_objective_only():
    variable = contextvars.ContextVar("variable", default=None)
    seen = []

    class Noting:
        def __post_init__(self):
            variable.set(self)

    @dataclasses.dataclass
    class Adam(Noting):
        lr: Float(0, 1)

    @dataclasses.dataclass
    class Sgd:
        lr: Float(0, 1)

    class Number:
        def __float__(self):
            variable.set("the result")
            return 0.5

    def objective(model: Adam | Sgd):
        seen.append((model, variable.get()))
        return Number()

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    Optimizer(objective, 3, 60, study, progress=False).run_sync()
    assert {type(model) for model, _ in seen} == {Adam, Sgd}
    assert all(found is (model if isinstance(model, Adam) else None) for model, found in seen)
    assert states(study) == {"COMPLETE": 60}


def test_each_coroutine_of_a_sync_function_has_a_task_and_a_context_of_its_own():
    variable = contextvars.ContextVar("variable", default=0)
    seen, tasks = [], []

    async def compute(x):
        seen.append(variable.get())
        variable.set(variable.get() + 1)
        tasks.append(asyncio.current_task())
        return x

    def objective(x: Float(0, 1)):
        return compute(x) if x < 0.5 else x

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    Optimizer(objective, 3, 60, study, progress=False).run_sync()
    assert set(seen) == {0}
    assert len(set(tasks)) == len(seen) > 5
    assert states(study) == {"COMPLETE": 60}


def test_the_event_loop_goes_on_while_a_class_refuses_all_points():
    @dataclasses.dataclass
    class Refusing:
        x: Float(0, 1)

        def __post_init__(self):
            raise ValueError

    def objective(refusing: Refusing) -> float:
        raise NotImplementedError

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))

    async def main():
        search = asyncio.ensure_future(
            Optimizer(objective, 2, 500, study, progress=False, max_consecutive_failures=None)()
        )
        while len(study.trials) < 10:
            await asyncio.sleep(0)
        search.cancel()
        with pytest.raises(asyncio.CancelledError):
            await search

    asyncio.run(main())
    assert len(study.trials) < 50
    assert set(states(study)) == {"FAIL"}


async def instant(x: Float(0, 1)) -> float:
    return x


@pytest.mark.parametrize(
    ("owner", "method", "is_done"),
    [
        *((InMemoryStorage, method, True) for method in ("create_new_trial", "get_trial", "set_trial_param")),
        (InMemoryStorage, "set_trial_state_values", True),
        *((SearchLoop, method, True) for method in ("_claim", "_add_trial", "_on_trial_done")),
        *((SearchLoop, method, False) for method in ("_claim", "_add_trial", "_on_trial_done")),
    ],
)
def test_an_interrupt_at_any_step_of_a_quick_search_ends_it_and_leaves_no_trial_running(
    owner, method, is_done, monkeypatch
):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    fail_at_call(monkeypatch, owner, method, KeyboardInterrupt(), is_done=is_done)
    with pytest.raises(KeyboardInterrupt):
        Optimizer(instant, 3, 100, study, progress=False).run_sync()
    assert states(study).keys() <= {"COMPLETE", "FAIL"}
    assert len(study.trials) < 25


def test_a_first_ask_that_fails_leaves_the_running_trials_of_others(monkeypatch):
    def refuses(*_):
        raise MemoryError

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    theirs = study.ask()
    monkeypatch.setattr(InMemoryStorage, "set_trial_param", refuses)
    with pytest.raises(MemoryError):
        Optimizer(instant, 2, 3, study, progress=False).run_sync()
    assert {trial.number: trial.state for trial in study.trials} == {
        theirs.number: TrialState.RUNNING,
        1: TrialState.FAIL,
    }


def test_an_error_starts_no_other_trial_of_an_async_function(monkeypatch):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    fail_at_call(monkeypatch, InMemoryStorage, "set_trial_state_values", MemoryError())
    with pytest.raises(MemoryError):
        Optimizer(instant, 1, 100, study, progress=False).run_sync()
    assert len(study.trials) == 20


def test_a_quick_search_asks_for_no_trial_after_its_timeout():
    async def objective(x: Float(0, 1)) -> float:
        if len(study.trials) == 5:
            asyncio.get_running_loop().skip(1_000)
        return x

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    with asyncio.Runner(loop_factory=MovableTime) as runner:
        runner.run(Optimizer(objective, 1, 100, study, progress=False, timeout=500)())
    assert states(study) == {"COMPLETE": 5}


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler(seed=1), optuna.samplers.TPESampler(seed=1)])
def test_a_cancelled_error_of_a_callback_ends_the_search(sampler):
    def callback(study, trial):
        if trial.number == 3:
            raise asyncio.CancelledError

    study = optuna.create_study(sampler=sampler)
    with pytest.raises(asyncio.CancelledError):
        Optimizer(instant, 2, 30, study, progress=False, callbacks=[callback]).run_sync()
    assert states(study).keys() <= {"COMPLETE", "FAIL"}
    assert len(study.trials) < 10


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_trials_are_no_eager_tasks():
    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        await Optimizer(instant, 4, 2_000, study, progress=False)()

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    asyncio.run(main())
    assert states(study) == {"COMPLETE": 2_000}
