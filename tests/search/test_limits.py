"""Limits, retries, repetition: a search does what was asked for, and no more."""

import asyncio
import collections
import contextlib
import datetime
import functools
import itertools
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import flytekit as fl
import optuna
import psutil
import pytest
from flytekit.exceptions.base import FlyteRecoverableException
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState

from optuna_flyte_dsl import (
    Category,
    Float,
    Integer,
    InvalidObjectiveError,
    InvalidOptionError,
    Maximize,
    Minimize,
    Optimizer,
    TooManyFailuresError,
    optimize,
    suggest,
)
from optuna_flyte_dsl._foreign_errors import says_retries_are_used
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.errors import ExecutionFailedError
from optuna_flyte_dsl.study.attributes import ATTEMPTS, ERROR, LOST, OUTCOME, SAME_AS
from optuna_flyte_dsl.study.storages import open_storage
from tests.support import in_movable_time, own_threads, wait_until
from tests.support.marks import newest


def search(function, **options):
    return optimize(function, **{"n_trials": 4, "progress": False, **options})


def plain(x: Float(0, 1)) -> float:
    return x


def states(study):
    return [trial.state.name for trial in study.trials]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "`timeout` must be a number of seconds above 0, or a timedelta, but got 0"),
        ({"timeout": "1h"}, "`timeout` must be a number of seconds above 0, or a timedelta, but got '1h'"),
        ({"trial_timeout": datetime.timedelta(0)}, "`trial_timeout` must be a number of seconds above 0"),
        ({"max_consecutive_failures": 0}, "`max_consecutive_failures` must be an integer greater than 0, but got 0"),
        ({"retries": -1}, "`retries` must be an integer 0 or greater, but got -1"),
        ({"catch": "ValueError"}, r"`catch` must be an exception class.*Write `catch=\(ValueError,\)`"),
        ({"catch": [3]}, "`catch` must be an exception class"),
        ({"executor": "gpu"}, '`executor` must be "thread" or "process", but got \'gpu\''),
        ({"gpus": [0]}, '`gpus` needs `executor="process"`'),
        ({"gpus": "0,1", "executor": "process"}, "`gpus` must be a list of devices"),
        ({"gpus": [0], "executor": "process", "concurrency": 2}, r"`gpus` has 1 devices, fewer than `concurrency=2`"),
        ({"deterministic": True}, "`deterministic=True` needs `seed`"),
        ({"deterministic": True, "seed": 1, "timeout": 3}, "`deterministic=True` and `timeout` were both given"),
        ({"deterministic": True, "seed": 1, "pruner": optuna.pruners.NopPruner}, "what pruner does depends on time"),
        ({"deterministic": 1}, "`deterministic` must be True or False"),
        ({"duplicates": "never"}, "`duplicates` must be 'allow', 'reuse', 'resample', but got 'never'"),
        ({"pruner": 3}, "`pruner` must be a pruner of Optuna's"),
        ({"pruner": int}, "but got the class"),
        ({"pruner": optuna.pruners.MedianPruner(), "study": optuna.create_study()}, "`pruner` and `study` were both"),
    ],
)
def test_wrong_options_are_named_at_decoration(options, message):
    with pytest.raises(InvalidOptionError, match=message):
        search(plain, **options)


def test_options_that_need_a_space_are_refused_where_there_is_none():
    def samples(trial) -> float:
        return trial.suggest_float("x", 0, 1)

    for options in ({"duplicates": "reuse"}, {"stop_when_exhausted": True}):
        with pytest.raises(InvalidOptionError, match="needs a search space that is known before"):
            search(samples, **options)
    with pytest.raises(InvalidOptionError, match="each trial needs a sampler of its own"):
        search(samples, deterministic=True, concurrency=2, sampler=TPESampler(seed=1))


def test_pruning_with_several_objectives_is_refused_before_the_first_trial():
    def two(trial: optuna.Trial, x: Float(0, 1)) -> tuple[Minimize, Maximize]:
        return x, x

    def unknown(trial: optuna.Trial, x: Float(0, 1)):
        raise AssertionError("it ran")

    with pytest.raises(InvalidOptionError, match=r"`two` has 2 objectives, and Optuna prunes for one only"):
        search(two, pruner=optuna.pruners.MedianPruner())
    study = optuna.create_study(directions=["minimize"] * 2, pruner=optuna.pruners.HyperbandPruner())
    with pytest.raises(InvalidOptionError, match="Optuna prunes for one only"):
        search(unknown, study=study).run_sync()
    with pytest.raises(InvalidOptionError, match="Optuna prunes for one only"):
        search(unknown, directions=["minimize"] * 2, pruner=optuna.pruners.MedianPruner)
    assert len(search(two).run_sync().trials) == 4, "each study has a MedianPruner, asked for or not"


@pytest.mark.parametrize("executor", ["thread", newest("process")])
@pytest.mark.parametrize("call", ["report", "should_prune"])
def test_a_report_to_several_objectives_ends_the_search_at_once(executor, call):
    def two(trial: optuna.Trial, x: Float(0, 1)) -> tuple[Minimize, Maximize]:
        trial.report(x, 0) if call == "report" else trial.should_prune()
        return x, x

    optimizer = Optimizer(two, 1, 5, executor=executor, progress=False)
    with pytest.raises(InvalidObjectiveError, match=r"`two` has 2 objectives, and Optuna takes `trial.report`"):
        optimizer.run_sync()
    assert states(optimizer.study) == ["FAIL"]


@fl.task
def task_that_reports(trial: optuna.Trial, x: Float(0, 1)) -> tuple[Minimize, Maximize]:
    trial.report(x, 0)
    return x, x


@pytest.mark.parametrize("executor", ["thread", newest("process")])
def test_a_report_to_several_objectives_of_a_task_ends_the_search_too(executor):
    optimizer = Optimizer(task_that_reports, 1, 5, executor=executor, progress=False)
    with pytest.raises(InvalidObjectiveError, match=r"has 2 objectives, and Optuna takes `trial.report`"):
        optimizer.run_sync()
    assert states(optimizer.study) == ["FAIL"]


def test_another_studys_refusal_of_reports_is_a_failure_as_any():
    def two(trial: optuna.Trial, x: Float(0, 1)) -> tuple[Minimize, Maximize]:
        raise NotImplementedError("not for multi-objective work")

    def one(trial: optuna.Trial, x: Float(0, 1)) -> float:
        optuna.create_study(directions=["minimize"] * 2).ask().report(x, 0)
        return x

    for objective in (two, one):
        assert states(search(objective, n_trials=2).run_sync()) == ["FAIL"] * 2


# Failures.


def test_by_default_a_search_ends_when_nothing_works():
    def fails(x: Float(0, 1)) -> float:
        raise ValueError("nothing works")

    with pytest.raises(TooManyFailuresError, match="10 trials of `fails` have failed in a row") as error:
        search(fails, n_trials=1000).run_sync()
    assert states(error.value.study) == ["FAIL"] * 10
    assert isinstance(error.value.__cause__, ValueError)
    with pytest.raises(TooManyFailuresError) as error:
        search(fails, n_trials=1000, concurrency=16).run_sync()
    assert 32 <= len(error.value.study.trials) < 32 + 16
    assert set(states(error.value.study)) == {"FAIL"}
    assert len(search(fails, n_trials=30, max_consecutive_failures=None).run_sync().trials) == 30
    for n_trials, failures in ((11, 5), (20, 5), (32, 8), (60, 10)):
        with pytest.raises(TooManyFailuresError) as error:
            search(fails, n_trials=n_trials).run_sync()
        assert len(error.value.study.trials) == failures
    assert states(search(fails, n_trials=10).run_sync()) == ["FAIL"] * 10


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 6))
@settings(max_examples=50)
def test_failures_count_in_a_row_only(plan, limit):
    def follows(trial) -> float:
        if not plan[trial.number]:
            raise ValueError("planned")
        return 0.0

    runs = [(works, len(list(group))) for works, group in itertools.groupby(plan)]
    ends = any(not works and length >= limit for works, length in runs)
    run = search(follows, n_trials=len(plan), max_consecutive_failures=limit).run_sync
    with pytest.raises(TooManyFailuresError) if ends else contextlib.nullcontext():
        assert len(run().trials) == len(plan)


def test_after_a_success_more_failures_are_borne():
    def fails_later(trial) -> float:
        if trial.number:
            raise ValueError("later")
        return 0.0

    with pytest.raises(TooManyFailuresError, match="50 trials"):
        search(fails_later, n_trials=1000).run_sync()


def test_what_is_not_caught_ends_the_search(warned):
    def raises(trial, x: Float(0, 1)) -> float:
        raise ValueError("caught") if trial.number < 2 else KeyError("not caught")

    optimizer = Optimizer(raises, 1, 10, catch=ValueError, progress=False)
    with pytest.raises(KeyError, match="not caught"):
        optimizer.run_sync()
    assert states(optimizer.study) == ["FAIL"] * 3

    def stops(x: Float(0, 1)) -> float:
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        search(stops).run_sync()
    assert "Trial 0 of `stops` ends the search: SystemExit: 1" in warned()
    assert states(search(stops, catch=(SystemExit,), max_consecutive_failures=None).run_sync()) == ["FAIL"] * 4


@pytest.mark.parametrize(
    ("message", "kinds", "caught"),
    [
        ("Traceback\n  File x\nMessage:\n\n    ValueError: boom\n", (ValueError,), True),
        ("Traceback\n\nUser error.\nMessage:\n\n    ValueError: boom", (ArithmeticError,), False),
        ("Message:\n\n    ZeroDivisionError: x", (ArithmeticError,), True),
        ("Message:\n\n    torch.cuda.OutOfMemoryError: x", (ValueError,), False),
        ("", (ValueError,), False),
    ],
)
def test_an_execution_stands_for_what_was_raised_in_its_pod(message, kinds, caught):
    error = ExecutionFailedError("t", name="n", url="u", phase="FAILED", code="", kind="USER", message=message)
    assert error.stands_for(kinds) is caught


def test_attempts_are_kept_and_the_last_one_counts():
    calls = []

    def raises(trial, x: Float(0, 1)) -> float:
        calls.append(x)
        if len(calls) < 3:
            raise ValueError(f"attempt {len(calls)}")
        return x

    study = search(raises, n_trials=1, retries=5).run_sync()
    assert study.trials[0].user_attrs == {ATTEMPTS: ["ValueError: attempt 1", "ValueError: attempt 2"]}
    assert calls == [study.best_params["x"]] * 3

    def always(x: Float(0, 1)) -> float:
        raise ValueError("always")

    (trial,) = search(always, n_trials=1, retries=2).run_sync().trials
    assert (trial.state, len(trial.user_attrs[ATTEMPTS])) == (TrialState.FAIL, 2)


def test_pruning_and_wrong_values_are_not_tried_again():
    calls = []

    def prunes(x: Float(0, 1)) -> float:
        calls.append(x)
        raise optuna.TrialPruned

    assert states(search(prunes, retries=3).run_sync()) == ["PRUNED"] * 4
    assert len(calls) == 4


def test_a_tasks_own_timeout_holds_on_this_machine():
    over = threading.Event()

    @fl.task(timeout=datetime.timedelta(seconds=0.1))
    def test_waits(x: float) -> float:
        over.wait(30)
        return x

    try:
        study = Optimizer(test_waits, 2, 2, progress=False).run_sync(x=Float(0, 1))
        assert states(study) == ["FAIL"] * 2
        assert "`test_waits` ran for longer than its `timeout`, 0.1 s" in (study.trials[0].user_attrs[ERROR])
    finally:
        over.set()


attempts = collections.Counter()
over = threading.Event()


@fl.task(retries=2)
def recovers(x: float) -> float:
    attempts["recovers"] += 1
    if attempts["recovers"] < 3:
        raise FlyteRecoverableException("for this attempt")
    return x


@fl.task(retries=1, timeout=datetime.timedelta(hours=1))
def hangs_once(x: float) -> float:
    attempts["hangs"] += 1
    if attempts["hangs"] == 1:
        over.wait(30)
    return x


@fl.task(retries=1, timeout=datetime.timedelta(minutes=1))
def hangs(x: float) -> float:
    attempts["hangs"] += 1
    over.wait(30)
    return x


@fl.task(retries=5)
def fails_for_good(x: float) -> float:
    attempts["fails"] += 1
    if x >= 0:
        raise ValueError("this is no error that passes")
    return x


@fl.task(retries=5)
def is_a_part_of_a_task(x: float) -> float:
    attempts["part"] += 1
    if x >= 0:
        raise FlyteRecoverableException("for this attempt")
    return x


@fl.task
def calls_a_task(x: float) -> float:
    return is_a_part_of_a_task(x=x)


@fl.workflow
def inner(x: float) -> float:
    return hangs_once(x=recovers(x=x))


@fl.workflow
def in_a_workflow(x: Float(0, 1)) -> float:
    return hangs_once(x=recovers(x=x))


@fl.workflow
def in_a_workflow_of_a_workflow(x: Float(0, 1)) -> float:
    return inner(x=x)


@fl.dynamic
def in_a_dynamic_task(x: Float(0, 1)) -> float:
    return hangs_once(x=recovers(x=x))


@fl.workflow
def in_a_branch(x: Float(0, 1)) -> float:
    return fl.conditional("side").if_(x >= 0.0).then(inner(x=x)).else_().then(fails_for_good(x=x))


@fl.eager
async def in_an_eager_workflow(x: Float(0, 1)) -> float:
    return hangs_once(x=await asyncio.to_thread(lambda: x) and recovers(x=x))


def in_a_function(x: Float(0, 1)) -> float:
    return inner(x=x)


@pytest.fixture
def counted(monkeypatch):
    """Count attempts. The first attempt at anything with a timeout is waited for in vain, the others are not."""
    call = Threads.call

    def waits_in_vain_first(self, function, seconds):
        attempts["in time"] += 1
        return call(self, function, 0.05 if attempts["in time"] == 1 or seconds == 60 else seconds)

    monkeypatch.setattr(Threads, "call", waits_in_vain_first)
    attempts.clear()
    over.clear()
    yield attempts
    over.set()


@pytest.mark.parametrize(
    "objective",
    [
        in_a_workflow,
        in_a_workflow_of_a_workflow,
        in_a_dynamic_task,
        in_a_branch,
        in_an_eager_workflow,
        in_a_function,
        fl.LaunchPlan.get_or_create(in_a_workflow, "limits_in_a_workflow"),
    ],
)
def test_the_limits_of_tasks_hold_wherever_they_are_called(objective, counted):
    study = Optimizer(objective, 1, 1, progress=False).run_sync(x=Float(0, 1))
    assert states(study) == ["COMPLETE"]
    assert study.best_value == study.best_params["x"]
    assert counted == {"recovers": 3, "hangs": 2, "in time": 2}
    over.set()
    wait_until(lambda: not own_threads())


@pytest.mark.parametrize(
    ("task", "error", "times"),
    [
        (hangs, "TrialTimeoutError: `hangs` ran for longer than its `timeout`, 60 s", {"hangs": 2, "in time": 2}),
        (fails_for_good, "ValueError", {"fails": 1}),
        (calls_a_task, "FlyteRecoverableException", {"part": 1}),
    ],
)
def test_what_the_limits_of_tasks_do_not_help_fails(task, error, times, counted):
    @fl.workflow
    def flow(x: float) -> float:
        return task(x=x)

    study = Optimizer(flow, 1, 1, retries=0, progress=False).run_sync(x=Float(0, 1))
    assert states(study) == ["FAIL"]
    assert study.trials[0].user_attrs[ERROR].startswith(error)
    assert counted == times


def test_outside_of_a_search_tasks_are_what_flytekit_makes_of_them(counted):
    assert states(Optimizer(in_a_workflow, 1, 1, progress=False).run_sync(x=Float(0, 1))) == ["COMPLETE"]
    counted.clear()
    with pytest.raises(FlyteRecoverableException):
        inner(x=0.5)
    assert counted == {"recovers": 1}


@fl.task(retries=10**9)
def recovers_for_ever(x: float) -> float:
    attempts["for ever"] += 1
    if attempts["for ever"] == 3:
        given_up.set()
    raise FlyteRecoverableException("for this attempt")
    return x


@fl.workflow
def for_ever(x: float) -> float:
    return recovers_for_ever(x=x)


given_up = threading.Event()


@pytest.mark.parametrize("objective", [recovers_for_ever, for_ever])
@pytest.mark.parametrize("how", ["cancelled", "late"])
def test_what_is_given_up_is_not_tried_again(objective, how, counted):
    given_up.clear()

    async def main(loop):
        limits = {"trial_timeout": 3600} if how == "late" else {}
        search = asyncio.ensure_future(Optimizer(objective, 1, 1, progress=False, **limits)(x=Float(0, 1)))
        await asyncio.to_thread(given_up.wait)
        if how == "late":
            loop.skip(3601)
        else:
            search.cancel()
        await asyncio.wait([search])

    in_movable_time(main)
    wait_until(lambda: not own_threads())


@fl.dynamic(timeout=datetime.timedelta(minutes=1))
def in_a_dynamic_task_that_is_late(x: float) -> float:
    return recovers_for_ever(x=x)


def test_an_attempt_that_is_late_makes_no_more_attempts(counted):
    study = Optimizer(in_a_dynamic_task_that_is_late, 1, 1, progress=False).run_sync(x=Float(0, 1))
    assert states(study) == ["FAIL"]
    wait_until(lambda: not own_threads())


class Refusing(FlyteRecoverableException):
    def __setattr__(self, name, value):
        if name.startswith("__optuna"):
            raise AttributeError("refused")
        super().__setattr__(name, value)


@fl.task(retries=1)
def raises_what_refuses(x: float) -> float:
    attempts["refusing"] += 1
    if x >= 0:
        raise Refusing("for this attempt")
    return x


def test_an_error_may_refuse_attributes(counted):
    study = Optimizer(raises_what_refuses, 1, 1, progress=False).run_sync(x=Float(0, 1))
    assert study.trials[0].user_attrs[ERROR].startswith("Refusing: ")
    assert counted == {"refusing": 2}


@fl.task(retries=2, timeout=datetime.timedelta(hours=1))
def element(x: float, index: int) -> float:
    attempts[index] += 1
    if index == 0 and attempts[index] == 1:
        over.wait(30)
    if index == 1 and attempts[index] < 3:
        raise FlyteRecoverableException("for this attempt")
    return x + index


@fl.task
def total(values: list[float]) -> float:
    return sum(values)


@fl.workflow
def in_a_map_task(x: Float(0, 1), index: list[int]) -> float:
    return total(values=fl.map_task(functools.partial(element, x=x))(index=index))


def test_the_limits_of_a_mapped_task_are_those_of_each_element(counted):
    study = Optimizer(in_a_map_task, 1, 1, progress=False).run_sync(x=Float(0, 1), index=[0, 1, 2])
    assert states(study) == ["COMPLETE"]
    assert study.best_value == pytest.approx(3 * study.best_params["x"] + 3)
    assert counted == {0: 2, 1: 3, 2: 1, "in time": 6}


the_same = FlyteRecoverableException("one instance for all")


@fl.task(retries=1)
def raises_the_same(x: float) -> float:
    attempts["same"] += 1
    if x >= 0:
        raise the_same
    return x


def test_an_error_may_be_raised_again_and_again(counted):
    study = Optimizer(raises_the_same, 1, 3, retries=1, progress=False).run_sync(x=Float(0, 1))
    assert states(study) == ["FAIL"] * 3
    assert counted == {"same": 6}


class Unsendable(FlyteRecoverableException):
    def __init__(self, *, code):
        super().__init__(f"code {code}")


@fl.task(retries=1)
def raises_what_cannot_be_sent(x: float, path: str) -> float:
    with open(path, "a") as file:
        file.write("x")
    if x >= 0:
        raise Unsendable(code=7)
    return x


def test_retries_do_not_multiply_where_an_error_cannot_be_sent(tmp_path):
    path = str(tmp_path / "calls")
    optimizer = Optimizer(raises_what_cannot_be_sent, 1, 1, retries=2, executor="process", progress=False)
    assert states(optimizer.run_sync(x=Float(0, 1), path=path)) == ["FAIL"]
    assert len((tmp_path / "calls").read_text()) == 2


@fl.task(timeout=datetime.timedelta(seconds=0.2))
def tells_its_process_and_hangs(x: float, path: str) -> float:
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    threading.Event().wait(60)
    return x


@pytest.mark.newest
def test_a_process_ends_with_the_attempt_that_has_taken_too_long(tmp_path, warned):
    path = str(tmp_path / "pids")
    optimizer = Optimizer(tells_its_process_and_hangs, 1, 2, executor="process", progress=False)
    assert states(optimizer.run_sync(x=Float(0, 1), path=path)) == ["FAIL"] * 2
    assert len(set((tmp_path / "pids").read_text().split())) == 2


@pytest.mark.parametrize(
    ("message", "used"),
    [
        ("[2/2] currentAttempt done. Last Error: USER::for this attempt", True),
        ("[1/1] currentAttempt done. Last Error: USER::OOMKilled", False),
        ("[3/3] currentAttempt done. Last Error: SYSTEM::the node was preempted", False),
        ("[1/1] currentAttempt done. Last Error: USER::[4/4] currentAttempt done. Last Error: USER::of a part", True),
        ("RuntimeError: boom", False),
    ],
)
def test_flyte_says_whether_retries_are_used_up(message, used):
    assert says_retries_are_used(message) is used


# Time.


def test_at_the_deadline_running_trials_are_stopped_and_the_study_is_returned():
    started = []

    async def waits(x: Float(0, 1)) -> float:
        started.append(x)
        if len(started) == 3:
            asyncio.get_running_loop().skip(3601)
        await asyncio.Event().wait()

    limited = search(waits, n_trials=100, concurrency=3, timeout=datetime.timedelta(hours=1))
    study = in_movable_time(lambda loop: limited())
    assert states(study) == ["FAIL"] * 3
    assert all("The search's timeout of 3600 s" in trial.user_attrs[ERROR] for trial in study.trials)


def test_trials_that_the_deadline_has_stopped_do_not_count_and_are_tried_again(tmp_path):
    first = []

    async def waits(x: Float(0, 1)) -> float:
        if len(first) < 2:
            first.append(x)
            if len(first) == 2:
                asyncio.get_running_loop().skip(3601)
            await asyncio.Event().wait()
        return x

    options = {"storage": tmp_path / "s.journal", "resume": True, "concurrency": 2, "n_trials": 3}
    stopped = in_movable_time(lambda loop: search(waits, timeout=3600, **options)())
    assert all(trial.user_attrs[LOST] for trial in stopped.trials)
    study = search(waits, **options).run_sync()
    assert states(study) == ["FAIL"] * 2 + ["COMPLETE"] * 3
    assert {trial.params["x"] for trial in study.trials[2:]} >= set(first)


def test_the_time_of_a_trial_is_that_of_all_its_attempts():
    attempts = []

    async def fails_slowly(x: Float(0, 1)) -> float:
        attempts.append(x)
        await asyncio.sleep(0.05)
        raise ValueError("again")

    (trial,) = search(fails_slowly, n_trials=1, trial_timeout=0.12, retries=100).run_sync().trials
    assert trial.user_attrs[ERROR].startswith("TrialTimeoutError")
    assert len(attempts) <= 3


def test_a_trial_waits_for_nothing_when_its_time_is_up():
    async def swallows(x: Float(0, 1)) -> float:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        raise TimeoutError("of its own")

    study = search(swallows, n_trials=1, trial_timeout=60).run_sync()
    assert study.trials[0].user_attrs[ERROR] == "TimeoutError: of its own"


# Determinism.


def shaken(seed):
    """Return objectives whose trials end in another order each time."""
    rng = random.Random(seed)
    pauses = [rng.choice([0.0, 0.001, 0.005]) for _ in range(100)]

    async def space(trial, x: Float(-1, 1), kind: Category(["a", "b"])) -> float:
        await asyncio.sleep(pauses[trial.number])
        if x > 0.9:
            raise ValueError("at times")
        return x * x + (kind == "a")

    async def marked(x: Float(-1, 1), kind: Category(["a", "b"])) -> float:
        await asyncio.sleep(pauses[int(abs(x) * 99)] if seed % 2 else rng.choice(pauses))
        if x > 0.9:
            raise ValueError("at times")
        return x * x + (kind == "a")

    def samples(trial) -> float:
        x = trial.suggest_float("x", -1, 1)
        time.sleep(pauses[trial.number])
        return x * x + trial.suggest_float("y" if x > 0 else "z", 0, 1)

    return {"with-trial": space, "marked": marked, "samples": samples}


@pytest.mark.parametrize("sampler", [None, RandomSampler, TPESampler])
@pytest.mark.parametrize("kind", ["with-trial", "marked", "samples"])
def test_a_deterministic_search_repeats_whatever_order_its_trials_end_in(kind, sampler):
    runs = []
    for seed in range(3):
        options = {"sampler": sampler} if sampler else {}
        objective = shaken(seed)[kind]
        study = search(objective, n_trials=24, concurrency=4, seed=7, deterministic=True, **options).run_sync()
        runs.append([(trial.params, trial.value) for trial in study.trials])
    assert runs[0] == runs[1] == runs[2]
    assert len({str(params) for params, _ in runs[0]}) == 24, "each trial has draws of its own"


def test_a_given_studys_sampler_stays_and_its_pruner_is_refused():
    def samples(trial) -> float:
        return trial.suggest_float("x", 0, 1)

    def run():
        study = optuna.create_study(sampler=RandomSampler(seed=1))
        return [t.params for t in search(samples, study=study, deterministic=True).run_sync().trials]

    assert run() == run()
    study = optuna.create_study(pruner=optuna.pruners.HyperbandPruner())
    with pytest.raises(InvalidOptionError, match="the study has a pruner"):
        search(samples, study=study, deterministic=True)
    optimizer = Optimizer(samples, 1, 4, study=optuna.create_study(), deterministic=True)
    with pytest.raises(InvalidOptionError, match="each trial needs a sampler of its own"):
        optimizer.concurrency = 4


def test_a_deterministic_search_learns_and_stops_as_any():
    study = search(shaken(0)["marked"], n_trials=60, concurrency=4, seed=1, deterministic=True).run_sync()
    assert study.best_value < 0.05

    def stop(study, trial):
        if trial.number == 5:
            study.stop()

    stopped = search(shaken(0)["marked"], n_trials=60, concurrency=4, seed=1, deterministic=True, callbacks=[stop])
    assert len(stopped.run_sync().trials) in range(6, 11)


def test_what_waits_for_its_turn_is_kept(tmp_path):
    seen = []

    async def objective(trial, x: Float(0, 1)) -> float:
        if trial.number == 0:
            for _ in range(1000):
                there = optuna.load_study(study_name="s", storage=open_storage(tmp_path / "s.journal"))
                seen.extend(t.user_attrs[OUTCOME] for t in there.trials if OUTCOME in t.user_attrs)
                if seen:
                    break
                await asyncio.sleep(0.01)
        return x

    study = search(
        objective,
        n_trials=4,
        concurrency=2,
        seed=1,
        deterministic=True,
        storage=tmp_path / "s.journal",
        study_name="s",
    ).run_sync()
    assert seen[0] == {"state": "COMPLETE", "values": [study.trials[1].value]}


def test_a_seed_alone_repeats_where_one_trial_runs_at_a_time():
    values = [[t.params for t in search(plain, n_trials=15, seed=3).run_sync().trials] for _ in range(2)]
    assert values[0] == values[1]


# Repeated points.


def small(i: Integer(1, 3), kind: Category(["a", "b"])) -> float:
    return i + (kind == "a")


def keys(study):
    return [tuple(sorted(trial.params.items())) for trial in study.trials]


@pytest.mark.parametrize("sampler", [RandomSampler(seed=1), TPESampler(seed=1, n_startup_trials=2)])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_resampled_points_are_new_until_none_is_left(sampler, concurrency, warned):
    study = search(small, n_trials=6, duplicates="resample", sampler=sampler, concurrency=concurrency).run_sync()
    assert len(set(keys(study))) == 6
    assert set(states(study)) == {"COMPLETE"}
    assert all(trial.value == small(**trial.params) for trial in study.trials)
    more = search(small, n_trials=9, duplicates="resample", seed=1, concurrency=concurrency).run_sync()
    assert len(more.trials) == 9
    assert any("all 6 points of the space are taken" in line for line in warned())
    assert len(set(keys(more))) == 6


@pytest.mark.parametrize("duplicates", ["allow", "reuse", "resample"])
def test_a_search_ends_when_its_space_is_exhausted_if_asked_to(duplicates):
    options = {"duplicates": duplicates, "stop_when_exhausted": True, "seed": 1}
    study = search(small, n_trials=500, concurrency=2, **options).run_sync()
    assert len(set(keys(study))) == 6
    assert len(study.trials) < 500
    if duplicates == "resample":
        assert len(study.trials) == 6


def test_a_space_without_end_cannot_be_exhausted():
    with pytest.raises(InvalidOptionError, match=r"`x` has values without end. Give it a `step`"):
        search(plain, stop_when_exhausted=True)()


def test_repeated_points_are_answered_from_the_finished_trial():
    calls = []

    def counts(i: Integer(1, 3)) -> float:
        calls.append(i)
        return float(i)

    study = search(counts, n_trials=30, duplicates="reuse", seed=1).run_sync()
    assert len(calls) == 3
    assert states(study) == ["COMPLETE"] * 30
    for trial in study.trials:
        assert trial.value == trial.params["i"]
        if SAME_AS in trial.user_attrs:
            assert study.trials[trial.user_attrs[SAME_AS]].params == trial.params


def test_points_of_the_user_are_not_resampled():
    points = [{"i": 2, "kind": "a"}] * 1
    study = search(small, n_trials=3, duplicates="resample", initial_points=points, seed=1).run_sync()
    assert study.trials[0].params == {"i": 2, "kind": "a"}
    part = search(small, n_trials=3, duplicates="resample", initial_points=[{"i": 3}], seed=1).run_sync()
    assert part.trials[0].params["i"] == 3


@pytest.mark.newest
@given(
    st.integers(-5, 5),
    st.integers(0, 4),
    st.integers(1, 3),
    st.sampled_from([0.25, 0.5]),
    st.integers(1, 4),
)
@settings(max_examples=6)
def test_every_point_of_a_finite_space_is_found(low, steps, step, fraction, n_choices):
    space = {
        "i": Integer(low, low + steps * step, step=step) if steps else Integer(low, low + 1),
        "f": Float(0, 1, step=fraction),
        "c": Category(list("abcd")[:n_choices]),
    }

    def objective(i: int, f: float, c: str) -> float:
        return 0.0

    size = ((steps or 1) + 1) * (round(1 / fraction) + 1) * n_choices
    optimizer = Optimizer(
        _taking(objective),
        concurrency=2,
        n_trials=size + 5,
        seed=1,
        duplicates="resample",
        stop_when_exhausted=True,
        progress=False,
    )
    study = optimizer.run_sync(**space)
    assert len(study.trials) == len(set(keys(study))) == size


def _taking(function):
    def marked(i: Integer(0, 1), f: Float(0, 1), c: Category(["a"])) -> float:
        return function(i, f, c)

    return marked


def test_the_same_point_with_other_fixed_arguments_is_another():
    def scaled(i: Integer(1, 3), scale: float = 1.0) -> float:
        return i * scale

    optimizer = Optimizer(scaled, 1, 6, duplicates="reuse", seed=1, progress=False)
    optimizer.run_sync(scale=1.0)
    study = optimizer.run_sync(scale=100.0)
    assert [trial.value for trial in study.trials[6:]] == [trial.params["i"] * 100 for trial in study.trials[6:]]
    both = Optimizer(scaled, 1, 9, duplicates="resample", stop_when_exhausted=True, seed=1, progress=False)
    assert len(both.run_sync(scale=1.0).trials) == 3
    assert len(both.run_sync(scale=2.0).trials) == 6
    assert len(both.run_sync(i=Integer(1, 2), scale=1.0).trials) == 6
    assert len(both.run_sync(i=Integer(2, 4), scale=1.0).trials) == 7


# Processes.


@pytest.mark.newest
def test_a_process_that_is_exchanged_for_its_size_runs_on():
    def grows(x: Float(0, 1)) -> float:
        import builtins

        if os.environ.setdefault("GROWN", str(os.getpid())) == str(os.getpid()) and not hasattr(builtins, "kept"):
            builtins.kept = bytearray(400 * 2**20)
        return x

    study = search(grows, executor="process", n_trials=5).run_sync()
    assert states(study) == ["COMPLETE"] * 5


class Particular(ValueError):
    def __init__(self, a, b):
        super().__init__("particular")


def raises_particular(x: Float(0, 1)) -> float:
    raise Particular(1, 2)


def crashes(x: Float(0, 1)) -> float:
    os._exit(3)
    return x


@pytest.mark.parametrize("executor", ["thread", newest("process")])
def test_what_is_caught_is_the_same_in_a_process(executor):
    study = search(raises_particular, executor=executor, n_trials=2, catch=ValueError).run_sync()
    assert states(study) == ["FAIL"] * 2
    assert "Particular: particular" in study.trials[0].user_attrs[ERROR]
    with pytest.raises(Exception, match="particular"):
        search(raises_particular, executor=executor, n_trials=2, catch=KeyError).run_sync()


@pytest.mark.newest
def test_a_crash_is_a_failed_trial_whatever_is_caught():
    assert states(search(crashes, executor="process", n_trials=2, catch=KeyError).run_sync()) == ["FAIL"] * 2


def test_what_cannot_be_sent_to_a_process_is_named():
    lock = threading.Lock()

    def holds(x: Float(0, 1)) -> float:
        with lock:
            return x

    with pytest.raises(Exception, match=r"`holds` cannot be sent to another process.*lock"):
        search(holds, executor="process").run_sync()


@pytest.mark.newest
def test_each_process_has_a_device_of_its_own_and_all_end_with_the_search():
    def device(x: Float(0, 1)) -> float:
        return float(os.environ["CUDA_VISIBLE_DEVICES"]) + os.getpid() / 1e9

    study = search(device, executor="process", gpus=[3, 5], concurrency=2, n_trials=6).run_sync()
    values = {trial.value for trial in study.trials}
    assert {int(value) for value in values} <= {3, 5}
    assert len(values) <= 2, "workers are used again"


def test_a_result_that_cannot_be_sent_is_a_failed_trial():
    def odd(x: Float(0, 1)) -> float:
        class Odd(Exception):
            def __reduce__(self):
                raise TypeError("not me")

        raise Odd("of its own kind")

    study = search(odd, executor="process", n_trials=1).run_sync()
    assert "Odd: of its own kind" in study.trials[0].user_attrs[ERROR]


class Hostile(Exception):
    """An error of which nothing can be asked."""

    def __getattr__(self, name):
        raise KeyError(name)

    def __str__(self):
        raise ValueError("no text")


@pytest.mark.parametrize("is_async", [False, True])
def test_an_error_that_raises_when_it_is_asked_for_anything_is_a_failed_trial(is_async):
    def fails(x: Float(0, 1)) -> float:
        raise Hostile

    async def fails_later(x: Float(0, 1)) -> float:
        await asyncio.sleep(0)
        raise Hostile

    study = optuna.create_study()
    search = optimize(n_trials=3, concurrency=2, progress=False, study=study)(fails_later if is_async else fails)
    search.run_sync()
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 3
    assert {trial.user_attrs[ERROR].split(":")[0] for trial in study.trials} == {"Hostile"}


def test_what_a_killed_worker_has_started_ends_with_the_search(tmp_path):
    """As the kernel kills a process when memory runs out."""

    @optimize(n_trials=1, executor="process", progress=False)
    def starts(x: Float(0, 1), file: str) -> float:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path(file).write_text(str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)
        return x

    study = starts.run_sync(file=str(tmp_path / "pid"))
    assert states(study) == ["FAIL"]
    child = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


# What an attack has found.


@pytest.mark.parametrize("executor", ["thread", newest("process")])
def test_a_second_attempt_does_not_see_what_the_first_has_changed(executor, tmp_path):
    def objective(x: Float(0, 1), p, seen, path) -> float:
        rate = p["rate"]
        p["rate"] *= 10
        seen.add(rate)
        if not pathlib.Path(path).exists():
            pathlib.Path(path).touch()
            raise MemoryError
        return rate + len(seen)

    given = {"p": {"rate": suggest.float(0, 1)}, "seen": set(), "path": str(tmp_path / "tried")}
    study = search(objective, n_trials=3, concurrency=1, retries=1, executor=executor).run_sync(**given)
    assert [trial.value for trial in study.trials] == [trial.params["p.rate"] + 1 for trial in study.trials]


@pytest.mark.parametrize("kept", [True, False])
def test_a_deterministic_search_that_ends_in_an_error_keeps_what_was_finished(tmp_path, kept):
    async def waits(trial: optuna.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        if trial.number == 0:
            await asyncio.sleep(0.3)
            raise KeyError("boom")
        return x

    options = {"storage": tmp_path / "study.journal", "study_name": "s"} if kept else {}
    decorated = search(waits, n_trials=6, concurrency=3, deterministic=True, seed=1, catch=(ValueError,), **options)
    with pytest.raises(KeyError):
        decorated.run_sync()
    assert states(decorated.study) == ["FAIL", "COMPLETE", "COMPLETE"]


def test_a_deterministic_search_ends_though_an_ask_has_found_nothing_for_a_while():
    @fl.task
    def objective(trial: optuna.Trial, d: Integer(1, 2)) -> float:
        time.sleep(0.05)
        trial.suggest_float("extra", 0, 1)
        return float(d)

    options = {"stop_when_exhausted": True, "duplicates": "resample", "deterministic": True, "seed": 1}
    study = search(objective, n_trials=12, concurrency=3, sampler=RandomSampler, **options).run_sync()
    assert set(states(study)) == {"COMPLETE"}


def test_points_with_parameters_that_a_task_samples_itself_are_not_compared_and_it_says_so(caplog):
    @fl.task
    def objective(trial: optuna.Trial, d: Integer(1, 3)) -> float:
        trial.suggest_float("extra", 0, 1)
        return float(d)

    study = search(objective, n_trials=8, concurrency=1, duplicates="reuse").run_sync()
    assert not any(SAME_AS in trial.user_attrs for trial in study.trials)
    assert caplog.text.count("has also sampled `extra`") == 1


def test_a_retry_of_a_lost_trial_lies_within_the_bounds_of_today(tmp_path):
    async def never(x: Float(5, 10)) -> float:
        await asyncio.Event().wait()

    async def today(x: Float(0, 1)) -> float:
        assert 0 <= x <= 1
        return x

    options = {"n_trials": 2, "storage": tmp_path / "study.journal", "study_name": "s", "resume": True}
    search(never, timeout=0.5, **options).run_sync()
    study = search(today, **options).run_sync()
    assert states(study)[-2:] == ["COMPLETE"] * 2


def test_a_space_of_any_size_can_be_counted():
    def objective(mask, x: Float(0, 1)) -> float:
        return float(sum(mask))

    mask = [suggest.category([True, False]) for _ in range(1100)]
    assert len(search(objective, n_trials=2, duplicates="resample").run_sync(mask=mask).trials) == 2

    def finite(mask, n: Integer(0, 1)) -> float:
        return float(sum(mask))

    assert len(search(finite, n_trials=2, stop_when_exhausted=True).run_sync(mask=mask).trials) == 2
