"""A task's own `retries` and `timeout` hold on this machine."""

import asyncio
import collections
import datetime
import functools
import os
import threading

import flytekit as fl
import pytest
from flytekit.exceptions.base import FlyteRecoverableException

from optuna_flyte_dsl import Float, Optimizer
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.study.attributes import ERROR
from tests.support import in_movable_time, own_threads, wait_until
from tests.support.small_searches import states


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


@pytest.mark.newest
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
