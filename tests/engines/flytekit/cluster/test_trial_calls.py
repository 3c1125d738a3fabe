"""The calls of one trial."""

import asyncio
import collections
import concurrent.futures
import contextvars
import errno
import importlib
import itertools
import math
import queue
import shutil
import threading
from types import SimpleNamespace

import flytekit as fl
import grpc
import optuna
import pytest
import quick
import reporting
from flytekit.exceptions.eager import EagerException
from flytekit.exceptions.system import FlyteUploadDataException

from optuna_flyte_dsl import Cluster, ExecutionFailedError, Optimizer, optimize, suggest
from optuna_flyte_dsl._compat.optuna import storage_of, trial_id
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_search import ClusterSearch
from optuna_flyte_dsl.engines._flytekit.cluster.converter import Converter
from optuna_flyte_dsl.engines._flytekit.cluster.executions import INPUTS_DIGEST
from optuna_flyte_dsl.engines._flytekit.cluster.launcher import Launcher
from optuna_flyte_dsl.engines._flytekit.cluster.poller import Poller
from optuna_flyte_dsl.study.attributes import EXECUTIONS, OWNER
from optuna_flyte_dsl.study.liveness import owner_keys
from optuna_flyte_dsl.study.storages import open_storage
from tests.support import own_threads, wait_until
from tests.support.cluster_searches import echo, ended_there, executions, outputs, there, with_options
from tests.support.eager_pod import Pod, killed_after
from tests.support.flyteadmin import Failed, Fault, FlyteAdmin, Succeeded
from tests.support.flyteadmin.admin import _Admin
from tests.support.flyteadmin.executions import PHASES
from tests.support.sessions import dead_record
from tests.support.small_searches import states


def test_a_callback_launches_several_and_each_has_a_name_of_its_own(cluster):
    study = there(Optimizer(quick.both, 2, 4, progress=False), cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 4
    assert len(cluster.executions) == 8
    assert all(trial.value == 2 * trial.params["x"] for trial in study.trials)


def test_a_callback_in_a_thread_calls_sync_tasks(cluster):
    study = there(Optimizer(quick.blocking, 3, 3, progress=False), cluster).run_sync()
    assert [trial.value for trial in study.trials] == [trial.params["x"] for trial in study.trials]


def test_a_callback_can_catch_the_failure_of_an_execution(cluster):
    cluster.instant = lambda execution: Failed()

    async def catches(trial: optuna.Trial):
        try:
            await quick.step(x=1.0)
        except EagerException as error:
            return 5.0 if isinstance(error, ExecutionFailedError) else 0.0

    study = there(Optimizer(catches, 1, 2, progress=False), cluster).run_sync()
    assert [trial.value for trial in study.trials] == [5.0, 5.0]


def test_an_execution_that_is_there_with_the_same_inputs_is_adopted(cluster, monkeypatch):
    monkeypatch.setattr("uuid.uuid4", lambda: type("Fixed", (), {"hex": "0" * 32, "bytes": b"0"})())
    first = there(quick.train, cluster).run_sync()
    again = there(quick.train, cluster).run_sync()  # the same seed, so the same inputs
    assert len(cluster.executions) == 6
    assert [trial.value for trial in again.trials] == [trial.value for trial in first.trials]


def test_an_execution_that_is_there_with_other_inputs_is_not_taken(cluster, monkeypatch):
    monkeypatch.setattr("uuid.uuid4", lambda: type("Fixed", (), {"hex": "0" * 32, "bytes": b"0"})())
    there(quick.train, cluster).run_sync()
    study = there(quick.train, cluster).run_sync(base=9.0)
    assert len(cluster.executions) == 12
    assert states(study) == ["COMPLETE"] * 6
    bases = collections.Counter(
        each.inputs.literals["base"].scalar.primitive.float_value for each in executions(cluster)
    )
    assert bases == {3.0: 6, 9.0: 6}


def test_an_execution_of_another_program_is_neither_adopted_nor_believed(cluster, monkeypatch):
    """flyteadmin returns the inputs of the refused request for a name that is taken."""
    monkeypatch.setattr("uuid.uuid4", lambda: type("Fixed", (), {"hex": "0" * 32, "bytes": b"0"})())
    first = there(quick.train, cluster).run_sync()
    for execution in executions(cluster):
        del execution.spec.annotations.values[INPUTS_DIGEST]
    believed = []
    close = Launcher.close
    monkeypatch.setattr(Launcher, "close", lambda self: believed.append(set(self.running)) or close(self))
    again = there(quick.train, cluster).run_sync()
    assert believed == [set()], "what the end of the pod would terminate"
    assert cluster.counts["TerminateExecution"] == 0
    assert states(first) == states(again) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 12


def test_a_name_is_looked_up_before_a_launch_whose_answer_was_lost_is_sent_again(cluster):
    cluster.fail("CreateExecution", Fault(done=True, times=3))
    assert states(there(quick.train, cluster).run_sync()) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 6
    assert cluster.counts["CreateExecution"] == 6, "none was sent twice"
    assert cluster.counts["GetExecution"] == 3


def test_calls_that_a_function_awaits_in_another_order_are_found_again(cluster, tmp_path):
    chains, alive = 4, [True]

    def outcome(execution):
        given = execution.inputs.literals
        x, base = (given[name].scalar.primitive.float_value for name in ("x", "base"))
        if base == 1.0:  # the first step of a chain: that of the last chain ends first
            return Succeeded(outputs(x), 0.2 * (chains - x))
        return Succeeded(outputs(x), math.inf if alive[0] else 0.0)

    async def parallel(trial: optuna.Trial):
        async def chain(x):
            return await quick.step(x=await quick.step(x=x, base=1.0), base=2.0)

        return sum(await asyncio.gather(*(chain(float(k)) for k in range(chains))))

    def search():
        return Optimizer(parallel, 1, 1, progress=False)()

    cluster.instant = outcome
    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2 * chains, search()))
    alive[0] = False
    study = Pod(cluster, tmp_path, 1).run(lambda: ended_there(cluster, search()))
    assert states(study) == ["COMPLETE"]
    assert len(cluster.executions) == 2 * chains
    assert {each.phase for each in executions(cluster)} == {PHASES.SUCCEEDED}


def test_equal_calls_of_one_function_have_an_execution_each(cluster, tmp_path):
    study = Pod(cluster, tmp_path, 0).run(Optimizer(quick.both, 2, 3, progress=False))
    assert states(study) == ["COMPLETE"] * 3
    assert len(cluster.executions) == 6


def test_a_trial_in_its_second_attempt_is_continued_there(cluster, tmp_path):
    def outcome(_):
        number = len(cluster.executions)
        return Failed() if number == 1 else None if number == 2 else Succeeded(outputs(1.0))

    def search():
        return Optimizer(quick.train.task, 1, 1, retries=1, progress=False)()

    cluster.instant = outcome
    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2, search()))
    study = Pod(cluster, tmp_path, 1).run(lambda: ended_there(cluster, search()))
    assert states(study) == ["COMPLETE"]
    assert len(cluster.executions) == 2
    assert [entry["name"] for entry in study.trials[0].user_attrs[EXECUTIONS]] == [
        each.name for each in executions(cluster)
    ]


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_an_outage_of_the_blob_store_fails_no_trial(cluster, monkeypatch, side):
    failures = itertools.count()
    converted = getattr(Converter, side)

    def failing(*given):
        if next(failures) < 20:
            raise FlyteUploadDataException("Failed to put data") from OSError(errno.EBUSY, "Slow Down")
        return converted(*given)

    monkeypatch.setattr(Converter, side, failing)
    assert states(there(quick.train, cluster).run_sync()) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 6


@pytest.mark.parametrize("error", [PermissionError("denied"), FileNotFoundError("gone"), ValueError("wrong")])
def test_what_the_blob_store_refuses_is_a_failed_trial_at_once(cluster, monkeypatch, error):
    asked = itertools.count()

    def refuses(*_):
        next(asked)
        raise FlyteUploadDataException("Failed to put data") from error

    monkeypatch.setattr(Converter, "inputs", refuses)
    study = there(Optimizer(quick.train.task, 1, 2, progress=False), cluster).run_sync()
    assert states(study) == ["FAIL"] * 2
    assert next(asked) == 2


def test_a_function_that_is_continued_holds_no_more_pods_than_its_trials_need(cluster, tmp_path):
    """The address of a trial is another one in each process: its old execution makes room for the new one."""
    cluster.instant = lambda execution: None

    async def reports(trial: optuna.Trial):
        return await asyncio.to_thread(reporting.watched, trial=trial, x=trial.suggest_float("x", 0, 1))

    def search():
        return Optimizer(reports, 2, 2, progress=False)()

    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2, search()))

    async def continued():
        task = asyncio.ensure_future(search())
        while len(cluster.executions) < 4:
            await asyncio.sleep(0.01)
        running.append(len(cluster.running()))
        for execution in cluster.running():
            execution.finish(Succeeded(outputs(1.0)))
        return await task

    running = []
    assert states(Pod(cluster, tmp_path, 1).run(continued)) == ["COMPLETE"] * 2
    assert running == [2]


def test_a_search_that_is_cancelled_before_its_first_launch_does_not_wait_for_flyteadmin(cluster, tmp_path, pauses):
    pauses.launch_rpc = 600.0
    cluster.fail("GetExecution", Fault(times=10**6))
    train = with_options(quick.train, grace=1200.0, patience=1200.0)

    async def workflow():
        search = asyncio.ensure_future(train())
        while not cluster.counts["GetExecution"]:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        search.cancel()
        await asyncio.wait([search])
        return search.cancelled()

    assert Pod(cluster, tmp_path, 0).run(workflow)
    assert not cluster.executions


async def cancelled_when(search, condition):
    """Cancel a search once a condition holds, and wait for its end."""
    task = asyncio.ensure_future(search)
    while not condition():
        await asyncio.sleep(0.005)
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=60)
    assert done, "the search does not end"


def cancelled_around(cluster, call, when):
    """Cancel a search once its trial has begun a call in a thread and a condition holds, and return the call's end.

    flytekit runs the calls of a thread in an event loop of its own, whose tasks the end of a trial does not cancel.
    """
    ends = queue.SimpleQueue()

    def made():
        try:
            ends.put(call())
        except BaseException as error:
            ends.put(error)

    async def waits(trial: optuna.Trial):
        context = contextvars.copy_context()
        threading.Thread(target=lambda: context.run(made), daemon=True).start()
        await asyncio.Event().wait()

    asyncio.run(cancelled_when(there(Optimizer(waits, 1, 1, progress=False), cluster)(), when))
    return ends


def test_a_launch_that_a_thread_waits_for_ends_with_its_trial(cluster, monkeypatch):
    """The execution is launched before the trial ends, and would be polled only afterwards."""
    polls, forgotten, wait_for, forget = threading.Event(), threading.Event(), Poller.wait_for, Poller.forget

    def wait_late(self, *given):
        polls.set()
        forgotten.wait(30)
        return wait_for(self, *given)

    monkeypatch.setattr(Poller, "wait_for", wait_late)
    monkeypatch.setattr(Poller, "forget", lambda self, name: forget(self, name) or forgotten.set())
    cluster.instant = lambda execution: None
    ends = cancelled_around(cluster, lambda: quick.sync_step(x=0.5), polls.is_set)
    assert isinstance(ends.get(timeout=30), concurrent.futures.CancelledError)
    assert [each.phase for each in executions(cluster)] == [PHASES.ABORTED]


def test_a_call_in_a_thread_that_waits_for_a_silent_storage_ends_with_its_trial(cluster, monkeypatch):
    asked = threading.Event()

    async def never_answers(*_):
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(ClusterSearch, "_store_attributes", never_answers)
    ends = cancelled_around(cluster, lambda: quick.sync_step(x=0.5), asked.is_set)
    assert isinstance(ends.get(timeout=30), concurrent.futures.CancelledError)
    assert not cluster.executions


def test_a_thread_that_calls_a_task_after_its_trial_has_ended_is_cancelled(cluster):
    began, ended = threading.Event(), threading.Event()

    def late():
        began.set()
        ended.wait(30)
        return quick.sync_step(x=0.5)

    ends = cancelled_around(cluster, late, began.is_set)
    ended.set()
    assert isinstance(ends.get(timeout=30), concurrent.futures.CancelledError)
    assert not cluster.executions


@pytest.mark.parametrize("comes", [True, False])
def test_a_launch_that_flyteadmin_carries_out_after_the_search_was_cancelled_is_terminated(
    tmp_path, monkeypatch, pauses, caplog, comes
):
    pauses.launch_rpc = 0.5
    late = threading.Event()
    create = _Admin.CreateExecution

    def create_late(self, request, context):
        late.wait(30)
        if comes:
            create(self, request, context)
        context.abort(grpc.StatusCode.UNAVAILABLE, "nobody waits for this")

    monkeypatch.setattr(_Admin, "CreateExecution", create_late)
    one = Optimizer(quick.train.task, 1, 1, progress=False, cluster=Cluster(grace=60.0))

    async def workflow(cluster):
        search = asyncio.ensure_future(there(one, cluster)())
        while not cluster.counts["CreateExecution"]:
            await asyncio.sleep(0.005)
        search.cancel()
        while not cluster.counts["TerminateExecution"]:
            await asyncio.sleep(0.005)
        late.set()
        await asyncio.wait([search])

    with FlyteAdmin(tmp_path / "flyte", instant=lambda execution: None) as cluster:
        asyncio.run(workflow(cluster))
        assert len(cluster.executions) == comes
        assert not cluster.running()
    assert comes or "has not answered the launch of" in caplog.text


def test_a_bare_tasks_pruning_shows_as_pruned_in_the_study(cluster):
    cluster.instant = lambda execution: Failed(
        "USER:Unknown", "Traceback\n\nMessage:\n\n    TrialPruned: at step 3\n\nUser error."
    )
    assert set(states(there(quick.train, cluster).run_sync())) == {"PRUNED"}


def resumed(task, path, **options):
    given = {"concurrency": 2, "storage": path, "study_name": "s", "resume": True, "progress": False, **options}
    return optimize(task, **given)


def test_searches_of_a_study_and_of_its_copy_leave_each_others_executions_alone(cluster, tmp_path):
    """The copy gives its executions the names of the original's."""
    original, copy = tmp_path / "study.journal", tmp_path / "copy.journal"
    there(resumed(quick.train.task, original, n_trials=1), cluster).run_sync()
    shutil.copy(original, copy)
    cluster.instant = echo(seconds=0.3)

    async def both():
        searches = (resumed(quick.train.task, path, n_trials=5) for path in (original, copy))
        return await asyncio.gather(*(there(search, cluster)() for search in searches))

    for study in asyncio.run(both()):
        assert states(study) == ["COMPLETE"] * 5
    assert [each.phase for each in executions(cluster)] == [PHASES.SUCCEEDED] * 9


def test_a_trial_is_left_to_the_search_that_has_taken_its_process_for_dead(cluster, tmp_path, warned, pauses):
    pauses.other_processes = 0.05
    cluster.instant = lambda execution: None
    path, studies = tmp_path / "study.journal", []

    def search():
        studies.append(there(resumed(reporting.fit.task, path, n_trials=1), cluster).run_sync(cheap=True))

    first = threading.Thread(target=search)
    first.start()
    wait_until(cluster.running)
    study = optuna.load_study(study_name="s", storage=open_storage(path))
    (trial,), storage = study.trials, storage_of(study)
    storage.set_trial_system_attr(trial_id(trial), f"{OWNER}other", dead_record())
    for key in owner_keys(trial):
        storage.set_trial_system_attr(trial_id(trial), key, None)
    cluster.instant = lambda execution: Succeeded(outputs(0.25), 0.5)
    search()
    first.join()
    assert [states(each) for each in studies] == [["COMPLETE"]] * 2
    assert [each.phase for each in executions(cluster)] == [PHASES.ABORTED, PHASES.SUCCEEDED]
    assert any("is left to another search" in line for line in warned())


def two_at_once(name):
    """Return a launch plan that allows two executions at once. The oldest flytekit has no such launch plans."""
    policy = importlib.import_module("flytekit.models.concurrency").ConcurrencyPolicy(2)
    return fl.LaunchPlan.get_or_create(quick.flow, name=name, concurrency=policy)


@pytest.mark.newest
def test_a_trial_waits_while_its_launch_plan_allows_no_more_executions(cluster, warned, pauses):
    pauses.full_launch_plan = 0.05
    cluster.instant = echo(seconds=0.3)
    plan = two_at_once("quick.two_at_once")
    options = Cluster(patience=0.2, launches_at_once=1)
    study = there(Optimizer(plan, 5, 8, cluster=options, progress=False), cluster).run_sync(x=suggest.float(0, 1))
    assert states(study) == ["COMPLETE"] * 8
    assert len(executions(cluster)) == 8
    assert cluster.counts["too many of a launch plan"] > 0
    (line,) = warned()
    assert "`quick.two_at_once`" in line
    assert "concurrency limit (2) reached" in line


@pytest.mark.newest
def test_a_search_whose_trials_wait_for_a_place_ends_at_once_and_terminates_what_runs(cluster, warned):
    cluster.instant = lambda execution: None
    plan = two_at_once("quick.two_for_ever")

    async def main():
        task = asyncio.ensure_future(there(Optimizer(plan, 9, 9, progress=False), cluster)(x=suggest.float(0, 1)))
        while cluster.counts["too many of a launch plan"] < 3:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    assert [each.phase for each in executions(cluster)] == [PHASES.ABORTED] * 2
    assert cluster.counts["TerminateExecution"] == 2
    assert warned()[-1] == "2 executions were terminated."
    assert len(warned()) == 2


endless = quick.train.with_options(n_trials=9, concurrency=2)


def searches_itself(trial: optuna.Trial):
    return endless.run_sync(base=trial.suggest_float("base", 0, 1)).best_value


async def searches_in_a_thread(trial: optuna.Trial):
    return await asyncio.to_thread(searches_itself, trial)


async def awaits_no_search(trial: optuna.Trial):
    awaits_no_search.task = asyncio.ensure_future(endless(base=trial.suggest_float("base", 0, 1)))
    await asyncio.Event().wait()


@pytest.mark.parametrize("function", [searches_itself, searches_in_a_thread, awaits_no_search])
def test_a_search_inside_of_a_trial_ends_with_the_trial(cluster, function):
    cluster.instant = lambda execution: None
    asyncio.run(cancelled_when(there(Optimizer(function, 1, 1, progress=False), cluster)(), cluster.executions.__len__))
    assert not cluster.running()
    wait_until(lambda: not own_threads())
    assert {each.phase for each in executions(cluster)} == {PHASES.ABORTED}
    assert len(executions(cluster)) <= 2


def test_each_execution_of_calls_that_are_cancelled_together_is_terminated_once(cluster, warned):
    cluster.instant = lambda execution: None

    async def parallel(trial: optuna.Trial):
        return sum(await asyncio.gather(*(quick.step(x=float(k)) for k in range(3))))

    search = there(Optimizer(parallel, 4, 4, progress=False), cluster)()
    asyncio.run(cancelled_when(search, lambda: len(cluster.running()) == 12))
    assert cluster.counts["TerminateExecution"] == len(executions(cluster)) == 12
    assert warned()[-1] == "12 executions were terminated."


def test_names_that_are_stored_late_replace_no_later_ones(cluster, monkeypatch):
    store, calls, stored = ClusterSearch._store_attributes, itertools.count(), threading.Event()

    async def first_is_last(self, *given):
        if next(calls) == 0:
            await asyncio.to_thread(stored.wait, 30)
        await store(self, *given)
        stored.set()

    monkeypatch.setattr(ClusterSearch, "_store_attributes", first_is_last)
    study = there(Optimizer(quick.both, 1, 1, progress=False), cluster).run_sync()
    assert {entry["name"] for entry in study.trials[0].user_attrs[EXECUTIONS]} == {
        each.name for each in executions(cluster)
    }
    assert len(executions(cluster)) == 2


@pytest.mark.parametrize(
    "silent",
    [
        "optuna_flyte_dsl.engines._flytekit.cluster.trial_calls.refresh",
        "optuna_flyte_dsl.engines._flytekit.cluster.converter.Converter.outputs",
    ],
)
def test_a_search_ends_though_a_storage_or_a_blob_store_never_answers(cluster, monkeypatch, pauses, silent):
    pauses.storage_silence = 0.1
    asked, over = threading.Event(), threading.Event()

    def never_answers(*_):
        asked.set()
        over.wait(120)
        raise OSError

    async def reports(trial: optuna.Trial):
        return await asyncio.to_thread(reporting.watched, trial=trial, x=0.5)

    monkeypatch.setattr(silent, never_answers)
    if silent.endswith("refresh"):
        cluster.instant = lambda execution: None
        asked = SimpleNamespace(is_set=cluster.running)
    options = Cluster(launches_at_once=1, grace=2.0)
    search = there(Optimizer(reports, 1, 1, progress=False, cluster=options), cluster)()
    try:
        asyncio.run(cancelled_when(search, asked.is_set))
    finally:
        over.set()
    assert not cluster.running()
