"""Where a search runs."""

import collections
from typing import Any

import objectives
import optuna
import pytest
import quick
from flytekit.core.context_manager import ExecutionState, FlyteContextManager
from flytekit.core.worker_queue import Controller

from optuna_flyte_dsl import Optimizer, RefusedError
from optuna_flyte_dsl._compat.flytekit import controller_thread, runner_of
from optuna_flyte_dsl.engines._flytekit.cluster import cluster_site as site_module
from optuna_flyte_dsl.engines._flytekit.cluster.trial_calls import TrialCalls
from optuna_flyte_dsl.engines._flytekit.event_loops import _OwnLoop
from tests.support.cluster_searches import echo, there
from tests.support.eager_pod import Pod
from tests.support.small_searches import states


def test_a_search_inside_of_a_trial_goes_to_the_cluster_too(cluster):
    study = there(Optimizer(quick.nested, 2, 2, progress=False), cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 2
    assert len(cluster.executions) == 12


class Unknown:
    """A controller of somebody else's."""

    def __init__(self):
        self.added: list[Any] = []

    async def add(self, entity, input_kwargs):
        self.added.append(entity)
        return 1.0


def test_a_controller_that_is_not_known_is_used_as_it_is():
    controller = Unknown()
    context = FlyteContextManager.current_context()
    state = context.new_execution_state().with_params(mode=ExecutionState.Mode.EAGER_EXECUTION)
    with FlyteContextManager.with_context(context.with_execution_state(state).with_worker_queue(controller)):
        study = quick.train.run_sync()
    assert states(study) == ["COMPLETE"] * 6
    assert controller.added == [quick.train.task] * 6


def test_the_parts_of_flytekit_that_are_used_are_where_they_were(cluster):
    assert callable(cluster.remote().fast_package)
    assert isinstance(site_module._sites, collections.abc.MutableMapping)
    assert TrialCalls.add.__name__ == Controller.add.__name__
    assert objectives.container.python_interface.outputs == {"y": float}


def test_a_pod_that_does_not_know_flyteadmins_address_is_told_at_once_what_is_missing(cluster, tmp_path, monkeypatch):
    monkeypatch.delenv("FLYTE_PLATFORM_URL", raising=False)
    pod = Pod(cluster, tmp_path, 0)
    del pod.environment["FLYTE_PLATFORM_URL"]
    with pytest.raises(RefusedError, match=r"FLYTE_PLATFORM_URL for all pods, in `plugins.k8s.default-env-vars`"):
        pod.run(quick.train)
    assert not cluster.counts


def test_the_thread_of_flytekits_controller_outlives_the_exit(cluster, tmp_path):
    """See `outlive_exit`."""
    cluster.instant = echo()
    pod = Pod(cluster, tmp_path, 0)
    pod.run(quick.train)
    name = controller_thread(pod.controller).name
    assert isinstance(runner_of(name), _OwnLoop)


def test_an_optimizer_is_used_at_the_top_and_inside_of_a_trial(cluster, tmp_path):
    shared = Optimizer(quick.both, 1, 2, progress=False)

    async def outer(trial: optuna.Trial):
        return (await shared()).best_value + trial.suggest_float("y", 0, 1)

    top = Optimizer(outer, 1, 2, progress=False)

    async def workflow():
        await shared()
        await top()

    Pod(cluster, tmp_path, 0).run(workflow)
    assert states(top.study) == ["COMPLETE"] * 2
    assert states(shared.study) == ["COMPLETE"] * 6
