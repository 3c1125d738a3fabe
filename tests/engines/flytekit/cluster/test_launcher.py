"""Terminations, and the address for pods."""

import asyncio
import collections
import threading
import time

import grpc
import pytest
import quick
from flytekit.core import python_function_task
from flytekit.core.context_manager import FlyteContextManager
from flytekit.models.literals import LiteralMap

from optuna_flyte_dsl import Cluster, Optimizer, optimize
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.engines._flytekit.cluster import cluster_site as site_module
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_connection import Connection
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_search import ClusterSearch
from optuna_flyte_dsl.study.attributes import EXECUTIONS
from tests.support import wait_until
from tests.support.cluster_searches import echo, executions, outputs, there, with_options
from tests.support.eager_pod import IMAGES, Pod, kill_all, killed_after
from tests.support.flyteadmin import Failed, Fault, Succeeded
from tests.support.flyteadmin.executions import PHASES
from tests.support.small_searches import states


def test_an_execution_that_the_pod_before_has_terminated_is_launched_again(cluster):
    """A pod that is replaced may still be ending, and terminate what its successor has adopted."""
    aborted = []

    def instant(execution):
        outcome = echo()(execution)
        if len(aborted) < 2:
            aborted.append(execution.name)
            execution.terminate("optuna_flyte_dsl: trial 0 was given up")
            return None
        return outcome

    cluster.instant = instant
    study = there(quick.train, cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 8


def test_a_search_that_is_cancelled_while_flyteadmin_is_frozen_ends_within_its_grace_period(cluster, caplog, pauses):
    pauses.rpc = pauses.launch_rpc = 600.0
    cluster.instant = echo(seconds=60.0)
    search = there(with_options(quick.train, grace=2.0), cluster)

    async def run():
        task = asyncio.ensure_future(search())
        await asyncio.to_thread(wait_until, lambda: len(cluster.executions) == 2)
        await asyncio.sleep(0.2)
        cluster.latency = 600.0
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return time.monotonic() - started

    seconds = asyncio.run(run())
    cluster.latency = 0.0
    assert seconds < 120, "the search has waited for the time limit of a request"
    assert "could not be terminated" in caplog.text


def test_a_search_does_not_wait_for_pods_that_are_told_to_end(cluster):
    cluster.abort_seconds = 30.0
    cluster.instant = echo(seconds=60.0)

    async def search():
        task = asyncio.ensure_future(quick.train.on(cluster.remote(), image_config=IMAGES)())
        await asyncio.to_thread(wait_until, lambda: len(cluster.executions) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(search())
    assert {each.phase for each in cluster.executions.values()} == {PHASES.ABORTING}


async def cancelled_when_two_run(cluster, search):
    task = asyncio.ensure_future(search)
    while len(cluster.executions) < 2:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_cancelling_terminates_what_runs_and_tells_its_trials(cluster):
    cluster.instant = lambda execution: None
    objective = there(quick.train, cluster)

    asyncio.run(cancelled_when_two_run(cluster, objective()))
    assert [each.phase for each in executions(cluster)] == [PHASES.ABORTED] * 2
    assert states(objective.study) == ["FAIL", "FAIL"]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
@pytest.mark.parametrize("done", [False, True])
def test_an_execution_is_terminated_though_flyteadmin_fails_for_a_while(cluster, code, done):
    cluster.instant = lambda execution: None
    cluster.fail("TerminateExecution", Fault(code, times=9, done=done))
    objective = there(quick.train, cluster)

    asyncio.run(cancelled_when_two_run(cluster, objective()))
    assert [each.phase for each in executions(cluster)] == [PHASES.ABORTED] * 2


@pytest.mark.parametrize("moment", range(6))
def test_cancelling_at_any_moment_leaves_nothing_running(cluster, moment):
    cluster.instant = echo(seconds=0.2)
    cluster.latency = 0.02
    objective = there(quick.train, cluster)
    objective.n_trials = 30

    async def main():
        search = asyncio.ensure_future(objective())
        while sum(cluster.counts.values()) < 6 + 3 * moment:
            await asyncio.sleep(0.001)
        search.cancel()
        with pytest.raises(asyncio.CancelledError):
            await search

    asyncio.run(main())
    assert not cluster.running()
    assert all(trial.state.is_finished() for trial in objective.study.trials)


def test_a_trial_that_gives_up_an_execution_terminates_it(cluster):
    cluster.instant = lambda execution: quick.launched.release()
    study = there(Optimizer(quick.impatient, 1, 2, progress=False), cluster).run_sync()
    assert [trial.value for trial in study.trials] == [7.0, 7.0]
    assert [each.phase for each in executions(cluster)] == [PHASES.ABORTED] * 2


def test_an_execution_that_a_trial_has_left_behind_is_terminated(cluster):
    cluster.instant = lambda execution: quick.launched.release()
    study = there(Optimizer(quick.careless, 1, 2, progress=False), cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 2
    assert [each.phase for each in executions(cluster)] == [PHASES.ABORTED] * 2
    quick.careless.tasks.clear()


def test_an_error_that_ends_the_search_terminates_what_runs(cluster):
    first = threading.Event()

    def outcome(execution):
        if not first.is_set():
            first.set()
            return Succeeded(outputs(1.0))
        return None

    cluster.instant = outcome

    def callback(study, trial):
        raise LookupError("a callback's own")

    objective = optimize(quick.train, concurrency=3, n_trials=9, callbacks=[callback], progress=False)
    with pytest.raises(LookupError):
        there(objective, cluster).run_sync()
    assert not cluster.running()


def test_a_search_whose_executions_were_terminated_tries_their_points_again(cluster, tmp_path):
    cluster.instant = lambda execution: None

    async def ended(search):
        task = asyncio.ensure_future(search)
        while len(cluster.executions) < 2:
            await asyncio.sleep(0.005)
        site = site_module.current_site()
        await asyncio.to_thread(site.sigterm.stop)
        with pytest.raises(asyncio.CancelledError):
            await task

    Pod(cluster, tmp_path, 0).run(lambda: ended(with_options(quick.train, on_sigterm="terminate")()))
    assert [each.phase for each in executions(cluster)] == [PHASES.ABORTED] * 2
    cluster.instant = echo()
    study = Pod(cluster, tmp_path, 1).run(quick.train)
    assert states(study) == ["FAIL"] * 2 + ["COMPLETE"] * 6
    lost = [trial.params for trial in study.trials[:2]]
    assert [trial.params for trial in study.trials[2:4]] == lost
    assert [trial.user_attrs["optuna_flyte_dsl:retry_of"] for trial in study.trials[2:4]] == [0, 1]


def test_an_execution_that_was_terminated_with_its_pod_is_not_adopted(cluster, tmp_path, monkeypatch):
    cluster.instant = lambda execution: None

    async def ended(search):
        task = asyncio.ensure_future(search)
        while len(cluster.executions) < 2:
            await asyncio.sleep(0.005)
        await kill_all()
        with pytest.raises(asyncio.CancelledError):
            await task

    Pod(cluster, tmp_path, 0).run(lambda: ended(quick.train()))
    for execution in cluster.running():
        execution.terminate("optuna_flyte_dsl: trial 0 was given up")
    cluster.instant = echo()
    study = Pod(cluster, tmp_path, 1).run(quick.train)
    assert states(study) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 8


def test_a_frozen_flyteadmin_is_asked_no_more_when_the_grace_period_is_over(cluster, tmp_path):
    cluster.fail("TerminateExecution", Fault(grpc.StatusCode.UNAVAILABLE, times=10_000))
    options = Cluster(grace=0.2)
    site = site_module.ClusterSite(Connection(cluster.remote(), None, "identity", "o"))
    search = ClusterSearch(site, options, "key", Threads(limit=1))
    deadline = time.monotonic() - 1.0
    for number in range(50):
        search.launcher.terminate(f"e{number}", "is over", deadline)
    assert cluster.counts["TerminateExecution"] == 1
    asyncio.run(search.launcher.close())


def test_attempts_that_have_failed_are_not_terminated(cluster, tmp_path, warned):
    seen = collections.Counter()

    def outcome(execution):
        trial = execution.name.split("-")[-2]
        seen[trial] += 1
        return Failed() if seen[trial] == 1 else Succeeded(outputs(1.0))

    cluster.instant = outcome
    study = Pod(cluster, tmp_path, 0).run(Optimizer(quick.train.task, 2, 4, retries=1, progress=False))
    assert states(study) == ["COMPLETE"] * 4
    assert not cluster.counts["TerminateExecution"]
    assert not any("terminated" in line for line in warned())
    assert {len(trial.user_attrs[EXECUTIONS]) for trial in study.trials} == {2}


def test_flytekits_clean_up_of_a_failed_eager_workflow_terminates_the_trials_that_still_run(
    cluster, tmp_path, monkeypatch
):
    """flytekit registers an eager workflow with a failure node that does this."""
    monkeypatch.setattr(python_function_task, "CLEANUP_LOOP_DELAY_SECONDS", 0.01)
    cluster.instant = lambda execution: None
    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2, quick.train()))
    assert len(cluster.running()) == 2
    clean_up = python_function_task.EagerFailureHandlerTask("clean-up")

    async def run():
        clean_up.dispatch_execute(FlyteContextManager.current_context(), LiteralMap({}))

    Pod(cluster, tmp_path, 1).run(run)
    assert [PHASES.Phase.Name(execution.phase) for execution in executions(cluster)] == ["ABORTED"] * 2
