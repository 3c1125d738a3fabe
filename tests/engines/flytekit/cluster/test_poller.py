"""How the state of executions is read."""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
import quick

from optuna_flyte_dsl import Cluster, ClusterError, ClusterUnavailableError, Optimizer, suggest
from optuna_flyte_dsl.engines._flytekit.cluster import poller as poller_module
from optuna_flyte_dsl.study.attributes import EXECUTION_ERROR
from tests.support import in_movable_time, wait_until
from tests.support.cluster_searches import echo, outputs, there, with_options
from tests.support.eager_pod import Pod
from tests.support.flyteadmin import Fault, Succeeded
from tests.support.small_searches import states


@pytest.mark.newest
def test_state_is_read_with_few_calls_however_many_trials_run(cluster, pauses):
    vars(pauses).clear()  # the library's own
    cluster.instant = echo(seconds=3.0)
    cluster.single_task_races = 0
    objective = with_options(quick.train, launches_per_second=1000, launches_at_once=16)
    objective.concurrency, objective.n_trials = 300, 360
    study = there(objective, cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 360
    looks = [moment for rpc, moment in cluster.times if rpc == "ListExecutions"]
    most = max(sum(1 for other in looks if moment <= other < moment + 1) for moment in looks)
    assert most <= 10
    assert cluster.counts["CreateExecution"] == cluster.counts["GetExecutionData"] == 360
    assert cluster.counts["GetExecution"] == 0


def test_looks_are_rarer_as_trials_prove_long(monkeypatch, pauses):
    vars(pauses).clear()  # the library's own
    now = [0.0]
    monkeypatch.setattr(poller_module.time, "monotonic", lambda: now[0])
    watch = poller_module.Poller(None, "p", "d", lambda: None)
    monkeypatch.setattr(poller_module.threading.Thread, "start", lambda self: None)
    watch.wait_for("a")
    assert watch.interval() == 0.2
    now[0] = 40.0
    assert watch.interval() == pytest.approx(2.0)
    now[0] = 10_000.0
    assert watch.interval() == 5.0
    watch._durations.extend([10.0, 10.0, 10.0])
    assert watch.interval() == pytest.approx(0.5)
    for index in range(500):
        watch.wait_for(f"e{index}")
    assert watch.interval() == pytest.approx(6 / 5)


def test_an_execution_that_lists_leave_out_is_asked_for(cluster, monkeypatch, pauses):
    polls = []

    def find_nothing(self, names, **limits):
        polls.append(names)
        return {}

    monkeypatch.setattr(poller_module.Poller, "find", find_nothing)
    study = there(quick.train, cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 6

    def vanish(execution):
        del cluster.executions[execution.key]
        return echo()(execution)

    cluster.instant = vanish
    study = there(quick.train, cluster).run_sync()
    assert states(study) == ["FAIL"] * 6
    assert study.trials[0].user_attrs[EXECUTION_ERROR]["code"] == "NotFound"

    pauses.replica_lag = 600.0
    with ThreadPoolExecutor(1) as thread:
        searching = thread.submit(there(quick.train, cluster).run_sync)
        until = len(polls) + 30
        wait_until(lambda: len(polls) > until or searching.done())
        assert not searching.done(), "a replica of the database may lack what was just created"
        pauses.replica_lag = 0.0
        assert states(searching.result()) == ["FAIL"] * 6


async def while_hours_pass(loop, search):
    while not search.done():
        loop.skip(3601)
        await asyncio.sleep(0.005)
    return await search


def test_the_time_of_a_trial_goes_on_while_its_second_attempt_waits_for_a_machine(cluster):
    def instant(execution):
        execution.is_second_attempt = True
        return Succeeded(outputs(1.0), seconds=math.inf, queued=math.inf)

    cluster.instant = instant

    async def search(loop):
        limited = Optimizer(quick.train.task, 2, 2, trial_timeout=3600, progress=False)
        running = asyncio.ensure_future(there(limited, cluster)())
        return await while_hours_pass(loop, running)

    assert states(in_movable_time(search)) == ["FAIL"] * 2


def test_the_time_of_a_trial_begins_when_its_pod_runs(cluster):
    """Flyte says RUNNING of an execution whose pod still waits for a machine."""

    def start():
        limited = Optimizer(quick.train.task, 2, 2, trial_timeout=3600, progress=False)
        return asyncio.ensure_future(there(limited, cluster)())

    async def waits_in_a_queue(loop):
        cluster.instant = lambda execution: Succeeded(outputs(1.0), seconds=math.inf, queued=math.inf)
        search = start()
        while cluster.counts["ListTaskExecutions"] < 4:
            await asyncio.sleep(0.005)
        loop.skip(7200)
        while cluster.counts["ListTaskExecutions"] < 8:
            await asyncio.sleep(0.005)
        for execution in cluster.running():
            execution.finish(Succeeded(outputs(1.0)))
        return await search

    async def runs_for_ever(loop):
        cluster.instant = lambda execution: Succeeded(outputs(1.0), seconds=math.inf)
        search = start()
        return await while_hours_pass(loop, search)

    assert states(in_movable_time(waits_in_a_queue)) == ["COMPLETE"] * 2
    assert states(in_movable_time(runs_for_ever)) == ["FAIL"] * 2
    assert not cluster.running()
    cluster.counts.clear()
    cluster.instant = echo()
    there(Optimizer(quick.train.task, 2, 2, progress=False), cluster).run_sync()
    assert not cluster.counts["ListTaskExecutions"], "nobody needs to know"


@pytest.mark.parametrize("name", ["outer_flow", "branching_flow", "launching_flow"])
def test_the_time_of_a_trial_begins_though_its_pod_is_inside_of_other_nodes(cluster, name):
    cluster.instant = lambda execution: Succeeded(outputs(1.0), seconds=math.inf)
    limited = Optimizer(getattr(quick, name), 2, 2, trial_timeout=3600, progress=False)

    async def search(loop):
        running = asyncio.ensure_future(there(limited, cluster)(x=suggest.float(0, 1)))
        return await while_hours_pass(loop, running)

    assert states(in_movable_time(search)) == ["FAIL"] * 2


def test_an_outage_of_what_tells_whether_pods_run_does_not_hold_up_the_search(cluster):
    cluster.instant = echo(seconds=0.5)
    cluster.fail("ListNodeExecutions", Fault(grpc.StatusCode.UNAVAILABLE, times=10**9))
    options = Cluster(patience=0.2)
    limited = Optimizer(quick.train.task, 2, 2, trial_timeout=3600, cluster=options, progress=False)
    assert states(there(limited, cluster).run_sync()) == ["COMPLETE"] * 2


def test_an_error_of_the_poller_itself_reaches_those_who_wait(cluster, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a fault of the library")

    monkeypatch.setattr(poller_module.Poller, "interval", broken)
    with pytest.raises(ClusterError, match="a fault of the library"):
        there(quick.train, cluster).run_sync()


def test_each_search_waits_out_an_outage_for_as_long_as_its_own_patience(cluster, tmp_path):
    """The searches of one workflow share the poller."""
    cluster.instant = lambda execution: None
    hasty, patient = with_options(quick.train, patience=0.2, grace=0.2), with_options(quick.train, patience=600.0)

    async def workflow():
        searches = [asyncio.ensure_future(hasty(base=1.0)), asyncio.ensure_future(patient(base=2.0))]
        while len(cluster.executions) < 4:
            await asyncio.sleep(0.005)
        cluster.fail("ListExecutions", Fault(times=10**6))
        with pytest.raises(ClusterUnavailableError, match=r"has not answered for .* `Cluster\(patience=0\.4\)`"):
            await searches[0]
        cluster.faults.clear()
        cluster.instant = echo()
        for execution in cluster.running():
            execution.finish(echo()(execution))
        return await searches[1]

    assert states(Pod(cluster, tmp_path, 0).run(workflow)) == ["COMPLETE"] * 6
