"""What earlier attempts of a pod have left running."""

import asyncio
import itertools
import time
import types

import grpc
import optuna
import pytest
import quick

from optuna_flyte_dsl import ClusterUnavailableError, Optimizer, RefusedError
from optuna_flyte_dsl.engines._flytekit.cluster import cluster_search
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_site import current_site
from optuna_flyte_dsl.engines._flytekit.cluster.launcher import Launcher
from optuna_flyte_dsl.engines._flytekit.cluster.leftover_executions import terminate_leftovers
from tests.support.cluster_searches import echo, executions, outputs
from tests.support.eager_pod import Pod, killed_after
from tests.support.flyteadmin import Fault, Succeeded
from tests.support.flyteadmin.executions import PHASES
from tests.support.small_searches import states


def test_an_execution_that_nobody_asks_for_again_is_terminated(cluster, tmp_path):
    cluster.instant = lambda execution: None  # all run on
    points = itertools.count()

    async def fickle(trial: optuna.Trial):
        trial.suggest_float("x", 0, 1)
        return await quick.step(x=float(next(points)))  # another input at each attempt

    def search():
        return Optimizer(fickle, 2, 2, optuna.create_study() if given else None, progress=False)()

    for given in (False, True):
        cluster.executions.clear()
        cluster.instant = lambda execution: None
        folder = tmp_path / str(given)
        Pod(cluster, folder, 0).run(lambda: killed_after(cluster, 2, search()))
        first = list(cluster.executions.values())
        cluster.instant = echo()
        Pod(cluster, folder, 1).run(search)
        executions(cluster)  # those that were told to end have ended
        assert [each.phase for each in first] == [PHASES.ABORTED] * 2
        assert not cluster.running()


def test_a_call_that_is_made_fewer_times_leaves_no_execution_behind(cluster, tmp_path):
    cluster.instant = lambda execution: None
    times = [2]

    async def some(trial: optuna.Trial):
        return sum(await asyncio.gather(*(quick.step(x=0.5) for _ in range(times[0]))))

    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2, Optimizer(some, 1, 1, progress=False)()))
    times[0] = 1
    cluster.instant = echo()
    optimizer = Optimizer(some, 1, 1, progress=False)

    async def workflow():
        search = asyncio.ensure_future(optimizer())
        while not (taken := [name for each in current_site().sigterm.searches for name in each.launcher.taken]):
            await asyncio.sleep(0.01)
        for execution in cluster.running():  # the one that is adopted ends now
            if execution.name in taken:
                execution.finish(Succeeded(outputs(0.5)))
        await search

    Pod(cluster, tmp_path, 1).run(workflow)
    assert states(optimizer.study) == ["COMPLETE"]
    assert not cluster.running()


def nested_search():
    return Optimizer(quick.nested, 1, 2, progress=False)()


def kill_a_search_with_searches_inside(cluster, folder, monkeypatch):
    """Kill a pod whose trials search too, so that it terminates nothing."""
    cluster.instant = lambda execution: None
    with monkeypatch.context() as killed:
        killed.setattr(Launcher, "terminate", lambda *_: None)
        Pod(cluster, folder, 0).run(lambda: killed_after(cluster, 2, nested_search()))


def test_executions_of_a_search_inside_a_trial_do_not_outlive_a_kill(cluster, tmp_path, monkeypatch):
    kill_a_search_with_searches_inside(cluster, tmp_path, monkeypatch)
    left = executions(cluster)
    assert all(each.running for each in left)
    cluster.instant = echo()
    Pod(cluster, tmp_path, 1).run(nested_search)
    executions(cluster)  # those that were told to end have ended
    assert {each.phase for each in left} == {PHASES.ABORTED}
    assert not cluster.running()


def test_what_earlier_attempts_have_left_is_terminated_though_the_search_cannot_begin(cluster, tmp_path):
    cluster.instant = lambda execution: None
    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2, quick.train()))
    left = executions(cluster)
    cluster.fail("GetExecutionData", Fault(grpc.StatusCode.PERMISSION_DENIED, times=1000))
    with pytest.raises(RefusedError, match=r"PERMISSION_DENIED.*Give the eager workflow's service account"):
        Pod(cluster, tmp_path, 2).run(quick.train)  # attempt 1 has left nothing, so the inputs of its trials are read
    executions(cluster)  # those that were told to end have ended
    assert {each.phase for each in left} == {PHASES.ABORTED}
    assert not cluster.running()


def test_executions_that_an_attempt_launches_while_it_still_ends_are_terminated_at_the_end(
    cluster, tmp_path, monkeypatch
):
    kill_a_search_with_searches_inside(cluster, tmp_path, monkeypatch)
    left = dict(cluster.executions)
    cluster.executions.clear()  # the attempt before has not launched them yet
    looks = []

    def late(*given):
        looks.append(given)
        if len(looks) == 1:
            cluster.executions.update(left)

    sweep = cluster_search.terminate_leftovers
    monkeypatch.setattr(cluster_search, "terminate_leftovers", lambda *given: (sweep(*given), late(*given)))
    cluster.instant = echo()
    Pod(cluster, tmp_path, 1).run(nested_search)
    executions(cluster)  # those that were told to end have ended
    assert {each.phase for each in left.values()} == {PHASES.ABORTED}


class _Silent:
    """A flyteadmin that answers nothing."""

    def __init__(self):
        self.limits = []

    def pages(self, *_, patience, seconds):
        self.limits.append((patience, seconds))
        raise ClusterUnavailableError("no answer")
        yield


@pytest.mark.parametrize("left", [20.0, -1.0])
def test_a_pod_that_ends_asks_a_frozen_flyteadmin_no_longer_than_its_grace_period(left, warned):
    admin = _Silent()
    where = types.SimpleNamespace(project="project", domain="development", attempt=1)
    launcher = types.SimpleNamespace(connection=where, admin=admin, is_silent=False, taken=set())
    terminate_leftovers(launcher, "label", time.monotonic() + left)
    assert all(patience + seconds <= left for patience, seconds in admin.limits)
    assert len(admin.limits) == (1 if left > 0 else 0)
    launcher.is_silent = True  # flyteadmin has not answered the termination before
    terminate_leftovers(launcher, "label", time.monotonic() + left)
    assert len(admin.limits) == (1 if left > 0 else 0)
    assert len(warned()) == 2
