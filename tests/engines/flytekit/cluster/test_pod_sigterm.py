"""The end of a pod by SIGTERM."""

import asyncio
import dataclasses
import math
import threading
import time

import optuna
import pytest
import quick
from flyteidl.core import execution_pb2
from flytekit.configuration import SerializationSettings
from flytekit.core.worker_queue import Controller

from optuna_flyte_dsl import Cluster, Float, Optimizer, optimize
from optuna_flyte_dsl._compat.flytekit import set_stop_handler
from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl.engines._flytekit.cluster import cluster_site as site_module
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_search import ClusterSearch
from optuna_flyte_dsl.engines._flytekit.cluster.executions import ATTEMPT, INPUTS_DIGEST
from optuna_flyte_dsl.study.attributes import OWNER
from optuna_flyte_dsl.study.storages import open_storage
from tests.support import wait_until
from tests.support.cluster_searches import echo, executions, with_options
from tests.support.eager_pod import IMAGES, Pod
from tests.support.flyteadmin.nodes import TASK
from tests.support.small_searches import states


def test_flytekits_handler_of_sigterm_calls_what_is_put_there(cluster):
    controller = Controller(cluster.remote(), SerializationSettings(IMAGES), "tag", "tag", "e")
    try:
        stopped = []
        set_stop_handler(controller, type("Ending", (), {"stop": lambda self: stopped.append(1)})())
        with pytest.raises(SystemExit):
            controller.get_signal_handler()(15, None)
        assert stopped == [1]
    finally:
        controller.stopping_condition.set()
        from flytekit.core import worker_queue

        worker_queue.handling_signal = 0


def test_all_searches_of_a_pod_have_one_grace_period(cluster, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(ClusterSearch, "wait", lambda self, deadline: waited.append(deadline) or True)
    cluster.instant = lambda execution: None
    objective = with_options(quick.train, grace=7.0, on_sigterm="terminate")

    async def workflow():
        searches = [asyncio.ensure_future(objective(base=float(base))) for base in range(3)]
        while len(cluster.executions) < 6:
            await asyncio.sleep(0.01)
        site = site_module.current_site()
        started = time.monotonic()
        await asyncio.to_thread(site.sigterm.stop)
        await asyncio.gather(*searches, return_exceptions=True)
        return started

    started = Pod(cluster, tmp_path, 0).run(workflow)
    assert len(waited) == 6
    middle, waited = waited[:3], waited[3:]
    assert max(middle) < started + 7.0, "what runs is terminated in time, if a search does not do it"
    assert max(waited) - min(waited) < 1e-6
    assert waited[0] - started >= 7.0
    assert not cluster.running()


def test_a_search_that_was_stopped_is_not_gone_on_with(cluster, tmp_path):
    def stop(study, trial):
        if trial.number == 2:
            study.stop()

    def search():
        return optimize(quick.train, concurrency=1, n_trials=9, callbacks=[stop], progress=False)()

    assert len(Pod(cluster, tmp_path, 0).run(search).trials) == 3
    assert len(Pod(cluster, tmp_path, 1).run(search).trials) == 3


def test_after_sigterm_a_pod_begins_no_other_search(cluster, tmp_path):
    cluster.instant = lambda execution: None

    async def workflow():
        first = await until_two_run(cluster, quick.train())
        stopping = asyncio.ensure_future(asyncio.to_thread(site_module.current_site().sigterm.stop))
        await asyncio.gather(first, return_exceptions=True)
        with pytest.raises(asyncio.CancelledError, match="begins no other search"):
            await quick.train(base=1.0)
        await stopping

    Pod(cluster, tmp_path, 0).run(workflow)
    assert len(cluster.executions) == 2


async def until_two_run(cluster, search):
    task = asyncio.ensure_future(search)
    while len(cluster.executions) < 2:
        await asyncio.sleep(0.005)
    await asyncio.sleep(0.05)
    return task


def test_a_pod_that_has_a_successor_leaves_executions_to_it_though_no_retries_are_left(cluster, tmp_path, warned):
    cluster.instant = lambda execution: None
    pod = Pod(cluster, tmp_path, 0)

    async def told_to_end():
        task = await until_two_run(cluster, quick.train())
        pod.node.tasks[:] = [TASK.FAILED, TASK.QUEUED]  # Flyte has begun the next attempt
        await asyncio.to_thread(site_module.current_site().sigterm.stop)
        with pytest.raises(asyncio.CancelledError):
            await task

    pod.run(told_to_end)
    assert "The pod ends: running executions are left running." in warned()
    assert len(cluster.running()) == 2
    cluster.instant = echo()
    for execution in executions(cluster):
        execution.finish(echo()(execution))
    study = Pod(cluster, tmp_path, 1).run(quick.train)
    assert states(study) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 6


def test_a_pod_that_ends_late_tells_no_trial_that_its_successor_has_adopted(cluster, tmp_path):
    """In a storage of the user's, both attempts see the same trials. flyteadmin does not know of the second one."""
    cluster.instant = lambda execution: None
    path = tmp_path / "study.journal"
    study = Optimizer(quick.train.task, 2, 3, storage=path, resume=True, progress=False)

    async def adopted_meanwhile():
        task = await until_two_run(cluster, study())
        storage = open_storage(path)
        record = {f"{OWNER}successor": {"session": "successor", "host": "there", "pid": 1}}
        for trial in optuna.load_study(study_name="train", storage=storage).trials:
            for key, value in {**record, **dict.fromkeys(trial.system_attrs, None)}.items():
                if key.startswith(OWNER):
                    storage.set_trial_system_attr(trial_id(trial), key, value)
        await asyncio.to_thread(site_module.current_site().sigterm.stop)
        with pytest.raises(asyncio.CancelledError):
            await task

    Pod(cluster, tmp_path, 0).run(adopted_meanwhile)
    left = optuna.load_study(study_name="train", storage=open_storage(path)).trials
    assert [trial.state.name for trial in left] == ["RUNNING"] * 2
    assert not any("optuna_flyte_dsl:lost" in trial.user_attrs for trial in left)


@pytest.mark.parametrize("is_stored", [False, True])
@pytest.mark.parametrize("same_inputs", [False, True])
def test_a_pod_that_meets_an_execution_of_its_successor_leaves_the_search_to_it(
    cluster, tmp_path, warned, is_stored, same_inputs
):
    cluster.instant = echo(seconds=math.inf)
    options = {"storage": tmp_path / "study.journal", "resume": True} if is_stored else {}
    train = optimize(quick.train.task, concurrency=2, n_trials=6, seed=1, progress=False, **options)

    async def meets_a_successor():
        task = await until_two_run(cluster, train())
        # The successor runs trial 2 with another point, under the name that this pod would give it.
        first = next(iter(cluster.executions.values()))
        site = site_module.current_site()
        (search,) = site.sigterm.searches
        theirs = dataclasses.replace(first, name=search.launcher.names.name(2, "quick.train", "0", 0), ends=math.inf)
        theirs.spec = type(first.spec)()
        theirs.spec.CopyFrom(first.spec)
        theirs.spec.annotations.values[ATTEMPT] = "1"
        if same_inputs:
            converted = search.launcher.converter.inputs
            same = theirs.spec.annotations.values[INPUTS_DIGEST]
            search.launcher.converter.inputs = lambda *given: (converted(*given)[0], same, same)
        cluster.executions[theirs.key] = theirs
        first.finish(echo()(first))
        with pytest.raises(asyncio.CancelledError):
            await task
        return theirs

    theirs = Pod(cluster, tmp_path, 0).run(meets_a_successor)
    assert any("A later attempt of this pod runs the search" in line for line in warned())
    assert theirs.running
    assert not cluster.counts["TerminateExecution"]


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_at_sigterm_executions_are_left_while_flyte_starts_the_pod_again(cluster, tmp_path, failures):
    """Flyte retries three failures of the system's, whatever the retries of the task are."""
    cluster.instant = lambda execution: None

    async def ended(search):
        task = await until_two_run(cluster, search)
        site = site_module.current_site()
        await asyncio.to_thread(site.sigterm.stop)
        with pytest.raises(asyncio.CancelledError):
            await task

    pod = Pod(cluster, tmp_path, 3)
    pod.node.errors = [execution_pb2.ExecutionError.USER] * (3 - failures)
    pod.node.errors += [execution_pb2.ExecutionError.SYSTEM] * failures
    pod.run(lambda: ended(quick.train()))
    assert [each.running for each in executions(cluster)] == [failures < 3] * 2


@pytest.mark.parametrize("begins_before", [True, False])
def test_a_pod_that_ends_leaves_its_executions_to_a_successor_whatever_it_is_told(cluster, tmp_path, begins_before):
    cluster.instant = lambda execution: None
    pod = Pod(cluster, tmp_path, 0)

    async def ended(search):
        task = await until_two_run(cluster, search)
        site = site_module.current_site()
        (running,) = site.sigterm.searches
        begin = running.end

        def end(*, leave):
            assert leave is begins_before
            if not begins_before:
                pod.node.tasks.append(TASK.RUNNING)
            begin(leave=leave)

        running.end = end
        if begins_before:
            pod.node.tasks.append(TASK.RUNNING)
        await asyncio.to_thread(site.sigterm.stop)
        with pytest.raises(asyncio.CancelledError):
            await task

    pod.run(lambda: ended(with_options(quick.train, on_sigterm="terminate")()))
    assert all(each.running for each in executions(cluster))
    assert not cluster.counts["TerminateExecution"]


def test_at_sigterm_executions_are_terminated_though_the_event_loop_is_blocked(cluster, tmp_path):
    cluster.instant = lambda execution: None
    release = threading.Event()

    async def prepares(trial: optuna.Trial):
        task = asyncio.ensure_future(quick.step(x=trial.suggest_float("x", 0, 1)))
        if trial.number == 1:
            while len(cluster.running()) < 2:
                await asyncio.sleep(0.01)
            release.wait(60)  # in the event loop
        return await task

    def stop(site):
        wait_until(lambda: len(cluster.running()) == 2)
        site.sigterm.stop()
        left.extend(cluster.running())
        release.set()

    async def main():
        options = Cluster(grace=2.0, on_sigterm="terminate")
        search = asyncio.ensure_future(Optimizer(prepares, 2, 2, cluster=options, progress=False)())
        await asyncio.sleep(0)
        thread = threading.Thread(target=stop, args=(site_module.current_site(),))
        thread.start()
        await asyncio.wait([search])
        await asyncio.to_thread(thread.join)

    left = []
    Pod(cluster, tmp_path, 0).run(main)
    assert not left


def test_a_replaced_pod_that_is_not_told_to_end_terminates_nothing_and_gives_the_search_up(cluster, tmp_path, warned):
    """A machine that the control plane cannot reach runs on."""
    cluster.instant = lambda execution: None
    pod = Pod(cluster, tmp_path, 0)

    async def gives_a_trial_up():
        search = asyncio.ensure_future(Optimizer(impatient, 1, 3, progress=False)())
        while not cluster.executions:
            await asyncio.sleep(0.005)
        pod.node.tasks.append(TASK.RUNNING)  # Flyte has begun the next attempt
        begun.set()
        with pytest.raises(asyncio.CancelledError):
            await search

    begun = asyncio.Event()

    async def impatient(x: Float(0, 1)):
        task = asyncio.ensure_future(quick.step(x=x))
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        return x

    pod.run(gives_a_trial_up)
    assert all(each.running for each in executions(cluster))
    assert any("A later attempt of this pod runs the search" in line for line in warned())
    assert not cluster.counts["TerminateExecution"]


@pytest.mark.newest
def test_a_launch_that_waits_for_its_turn_when_the_pod_ends_is_not_made(cluster, tmp_path):
    cluster.instant = lambda execution: None
    options = Cluster(grace=4.0, on_sigterm="terminate", launches_per_second=1.0, launch_burst=1)
    optimizer = Optimizer(quick.train.task, 6, 6, cluster=options, progress=False)
    release = threading.Event()

    def stop(site):
        site.sigterm.stop()
        release.set()

    async def main():
        search = await until_two_run(cluster, optimizer())
        thread = threading.Thread(target=stop, args=(site_module.current_site(),))
        thread.start()
        release.wait(60)  # in the event loop: while it is blocked, nobody gives up the launches that wait
        launched.append(len(cluster.executions))
        await asyncio.wait([search])
        await asyncio.to_thread(thread.join)

    launched = []
    Pod(cluster, tmp_path, 0).run(main)
    assert launched == [2]
    assert not cluster.running()
