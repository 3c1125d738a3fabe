"""Searches on a cluster that makes outputs at once: names, options, faults, stopping."""

import asyncio
import collections
import dataclasses
import importlib.util
import itertools
import math
import re
import socket
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any, Optional

import flytekit as fl
import grpc
import numpy as np
import objectives
import optuna
import pytest
import quick
import requests
from flyteidl.core import execution_pb2, identifier_pb2, literals_pb2
from flytekit.clients.auth.authenticator import PKCEAuthenticator
from flytekit.clients.auth.exceptions import AccessTokenNotFoundError, AuthenticationError
from flytekit.configuration import ImageConfig, SerializationSettings
from flytekit.core.checkpointer import SyncCheckpoint
from flytekit.core.context_manager import ExecutionState, FlyteContextManager
from flytekit.core.task import ReferenceTask
from flytekit.core.worker_queue import Controller
from flytekit.deck.deck import Deck
from flytekit.exceptions.eager import EagerException
from flytekit.models.filters import ValueIn
from flytekit.models.interface import ParameterMap
from flytekit.models.literals import LiteralMap
from flytekit.models.security import Identity, SecurityContext
from flytekit.types.file import FlyteFile

from optuna_flyte_dsl import (
    Cluster,
    ClusterError,
    ClusterUnavailableError,
    ExecutionFailedError,
    Float,
    InvalidOptionError,
    Minimize,
    Optimizer,
    RefusedError,
    UnloadableError,
    optimize,
    suggest,
)
from optuna_flyte_dsl._compat.flytekit import controller_thread, runner_of, set_stop_handler, wrap_literal_cache
from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl._pauses import Pauses
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.engines._flytekit.cluster import home as home_module
from optuna_flyte_dsl.engines._flytekit.cluster import poller as poller_module
from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_search import ClusterSearch
from optuna_flyte_dsl.engines._flytekit.cluster.connection import Connection
from optuna_flyte_dsl.engines._flytekit.cluster.executions import ATTEMPT, INPUTS_DIGEST
from optuna_flyte_dsl.engines._flytekit.cluster.launcher import Launcher
from optuna_flyte_dsl.engines._flytekit.cluster.traffic import Traffic
from optuna_flyte_dsl.engines._flytekit.cluster.trial_calls import TrialCalls
from optuna_flyte_dsl.engines._flytekit.event_loops import _OwnLoop
from optuna_flyte_dsl.engines._flytekit.literal_cache import LockedLiteralCache
from optuna_flyte_dsl.study.attributes import ERROR, EXECUTION_ERROR, EXECUTIONS, OWNER
from optuna_flyte_dsl.study.liveness import Life
from optuna_flyte_dsl.study.storages import open_storage
from tests.support import in_movable_time, own_threads, wait_until
from tests.support._compat import enable_deck, forget_uploads, set_python_outputs
from tests.support.eager_pod import IMAGES, Pod, eager_execution, killed_after
from tests.support.flyteadmin import Execution, Failed, Fault, FlyteAdmin, Succeeded
from tests.support.flyteadmin.errors import NAME
from tests.support.flyteadmin.executions import PHASES
from tests.support.flyteadmin.nodes import NODE, TASK
from tests.support.sessions import dead_record


def outputs(value):
    literals = literals_pb2.LiteralMap()
    literals.literals["o0"].scalar.primitive.float_value = value
    return literals


def echo(seconds=0.0):
    """Let each execution return its `x`."""

    def outcome(execution):
        given = execution.inputs.literals
        value = given["x"].scalar.primitive.float_value if "x" in given else 1.0
        return Succeeded(outputs(value), seconds)

    return outcome


@pytest.fixture(autouse=True)
def _hurried(pauses):
    """Nothing here is worth waiting for."""
    pauses.poll_shortest = 0.02
    pauses.list_call = 0.02
    pauses.checkpoint_idle = 0.05
    pauses.admin_first = 0.01
    pauses.admin_longest = 0.05


@pytest.fixture
def cluster(tmp_path):
    """Make a cluster; its instant outcome can be changed."""
    with FlyteAdmin(tmp_path / "flyte", instant=echo()) as admin:
        yield admin
    wait_until(lambda: not own_threads())


def there(objective, admin):
    return objective.on(admin.remote(), image_config=IMAGES)


def with_options(objective, **options):
    copy = objective.__copy__()
    session = copy._session
    session.options = dataclasses.replace(session.options, cluster=Cluster(**options))
    return copy


def states(study):
    return [trial.state.name for trial in study.trials]


def executions(admin):
    return list(admin.executions.values())


# What is launched.


def test_each_trial_is_an_execution_whose_name_stands_in_its_attributes(cluster):
    study = there(quick.train, cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 6
    assert [trial.value for trial in study.trials] == [trial.params["x"] for trial in study.trials]
    named = [entry for trial in study.trials for entry in trial.user_attrs[EXECUTIONS]]
    assert sorted(entry["name"] for entry in named) == sorted(each.name for each in executions(cluster))
    for entry in named:
        assert NAME.fullmatch(entry["name"])
        assert len(entry["name"]) <= 63
        assert entry["url"].endswith(f"/console/projects/project/domains/development/executions/{entry['name']}")


def test_inputs_that_a_call_leaves_out_are_filled_in(cluster):
    there(quick.train, cluster).run_sync()
    for execution in executions(cluster):
        assert execution.inputs.literals["base"].scalar.primitive.float_value == 3.0
        assert execution.inputs.literals["name"].scalar.union.value.scalar.HasField("none_type")
    cluster.executions.clear()
    there(Optimizer(quick.both, 1, 1, progress=False), cluster).run_sync()
    assert [each.inputs.literals["base"].scalar.primitive.float_value for each in executions(cluster)] == [3.0, 3.0]


def test_an_execution_gets_all_that_a_user_may_set_for_it(cluster):
    context = SecurityContext(run_as=Identity(k8s_service_account="robot"))
    tuned = with_options(
        quick.train,
        interruptible=True,
        overwrite_cache=True,
        labels={"team": "a"},
        annotations={"note": "b"},
        env={"KEY": "value"},
        tags=("nightly",),
        cluster_pool="pool",
        execution_cluster_label="label",
        raw_output_prefix="s3://bucket/folder",
        security_context=context,
        max_parallelism=3,
    )
    there(tuned, cluster).run_sync()
    for execution in executions(cluster):
        spec = execution.spec
        assert spec.interruptible.value is True
        assert spec.overwrite_cache is True
        assert spec.labels.values["team"] == "a"
        digest = spec.annotations.values[INPUTS_DIGEST]
        assert dict(spec.annotations.values) == {"note": "b", INPUTS_DIGEST: digest, ATTEMPT: "0"}
        assert {pair.key: pair.value for pair in spec.envs.values} == {"KEY": "value"}
        assert list(spec.tags) == ["nightly"]
        assert spec.cluster_assignment.cluster_pool_name == "pool"
        assert spec.execution_cluster_label.value == "label"
        assert spec.raw_output_data_config.output_location_prefix == "s3://bucket/folder"
        assert spec.security_context.run_as.k8s_service_account == "robot"
        assert spec.max_parallelism == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"launches_per_second": 0}, "`launches_per_second` of `Cluster` must be a number above 0, but got 0"),
        ({"patience": "long"}, "`patience` of `Cluster` must be a number above 0, but got 'long'"),
        ({"launches_at_once": 1.5}, "`launches_at_once` of `Cluster` must be an integer above 0, but got 1.5"),
        (
            {"on_sigterm": "wait"},
            "`on_sigterm` of `Cluster` must be one of 'auto', 'terminate', 'leave', but got 'wait'",
        ),
        ({"interruptible": "yes"}, "`interruptible` of `Cluster` must be True, False or None"),
        ({"labels": {"a": 1}}, "`labels` of `Cluster` must map strings to strings"),
        ({"tags": "nightly"}, "`tags` of `Cluster` must be strings"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(InvalidOptionError, match=re.escape(message)):
        Cluster(**options)


def test_options_of_another_type_and_a_remote_that_is_none_are_named(cluster):
    with pytest.raises(InvalidOptionError, match=r"`cluster` must be a Cluster.*but got 3"):
        optimize(quick.train, cluster=3)
    with pytest.raises(InvalidOptionError, match="`on` takes a FlyteRemote, but got 'host'"):
        quick.train.on("host")
    with pytest.raises(InvalidOptionError, match="a default project and domain"):
        quick.train.on(cluster.remote(project=None))
    assert repr(Cluster(interruptible=True)) == "Cluster(interruptible=True)"


def test_a_python_without_a_default_image_is_named_with_the_cure(cluster, monkeypatch):
    def refuse():
        raise ValueError("(3, 99) is not a valid PythonVersion")

    monkeypatch.setattr(ImageConfig, "auto_default_image", refuse)
    with pytest.raises(InvalidOptionError, match=r"no default image for this Python.*image_config=ImageConfig.auto"):
        quick.train.on(cluster.remote()).run_sync()


def test_a_workflow_and_a_launch_plan_are_launched_as_such(cluster):
    for entity in (quick.flow, quick.plan):
        study = there(Optimizer(entity, 2, 2, progress=False), cluster).run_sync(x=suggest.float(0, 1))
        assert states(study) == ["COMPLETE"] * 2
    assert [each.spec.launch_plan.name for each in executions(cluster)] == ["quick.flow"] * 2 + ["quick.plan"] * 2
    bases = [each.inputs.literals["base"].scalar.primitive.float_value for each in executions(cluster)]
    assert bases == [2.0, 2.0, 5.0, 5.0]


def test_references_are_launched_and_nothing_is_registered(cluster):
    remote = cluster.remote()
    settings = SerializationSettings(IMAGES, project="project", domain="development", version="v1")
    remote.register_workflow(quick.flow, settings, "v1")
    created = cluster.counts["CreateTask"] + cluster.counts["CreateWorkflow"]

    @fl.reference_task(project="project", domain="development", name="quick.sync_step", version="v1")
    def task(x: float) -> float: ...

    @fl.reference_workflow(project="project", domain="development", name="quick.flow", version="v1")
    def workflow(x: float) -> float:
        return x

    @fl.reference_launch_plan(project="project", domain="development", name="quick.flow", version="v1")
    def launch_plan(x: float) -> float:
        return x

    for entity in (task, workflow, launch_plan):
        there_too = Optimizer(entity, 2, 2, progress=False).on(remote, image_config=IMAGES)
        study = there_too.run_sync(x=suggest.float(0, 1))
        assert states(study) == ["COMPLETE"] * 2, study.trials[0].user_attrs
    assert cluster.counts["CreateTask"] + cluster.counts["CreateWorkflow"] == created
    assert cluster.counts["CreateUploadLocation"] == 0


def test_a_reference_to_nothing_ends_the_search_with_the_cure(cluster):
    @fl.reference_task(project="project", domain="development", name="nothing", version="v1")
    def task(x: float) -> float: ...

    with pytest.raises(RefusedError, match=r"find.*`nothing`.*NOT_FOUND.*Register what is missing"):
        there(Optimizer(task, 2, 2, progress=False), cluster).run_sync(x=suggest.float(0, 1))


def test_a_callback_launches_several_and_each_has_a_name_of_its_own(cluster):
    study = there(Optimizer(quick.both, 2, 4, progress=False), cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 4
    assert len(cluster.executions) == 8
    assert all(trial.value == 2 * trial.params["x"] for trial in study.trials)


def test_a_callback_in_a_thread_calls_sync_tasks(cluster):
    study = there(Optimizer(quick.blocking, 3, 3, progress=False), cluster).run_sync()
    assert [trial.value for trial in study.trials] == [trial.params["x"] for trial in study.trials]


def test_a_search_inside_of_a_trial_goes_to_the_cluster_too(cluster):
    study = there(Optimizer(quick.nested, 2, 2, progress=False), cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 2
    assert len(cluster.executions) == 12


def test_a_local_file_is_uploaded(cluster, tmp_path):
    (tmp_path / "data.txt").write_text("hello")
    study = there(quick.reads, cluster).run_sync(file=str(tmp_path / "data.txt"))
    assert states(study) == ["COMPLETE"] * 3
    for execution in executions(cluster):
        assert Path(execution.inputs.literals["file"].scalar.blob.uri).read_text() == "hello"


def test_a_task_is_registered_once_and_the_code_is_uploaded_once(cluster):
    objective = there(quick.train, cluster)
    objective.run_sync()
    objective.run_sync()
    assert cluster.counts["CreateTask"] == cluster.counts["CreateUploadLocation"] == 1
    assert len(cluster.executions) == 12
    versions = {version for *_, version in cluster.tasks}
    there(quick.train, cluster).run_sync()  # another process, with the same code
    assert {version for *_, version in cluster.tasks} == versions


# What a pod could not load.


def test_a_task_that_no_pod_can_load_is_refused_before_the_first_launch(cluster):
    @optimize(n_trials=2, progress=False)
    @fl.task
    def test_local(x: Float(0, 1)) -> Minimize:
        return x

    with pytest.raises(UnloadableError, match=r"`test_local` cannot be loaded by the pod.*at the top of its module"):
        there(test_local, cluster).run_sync()
    assert cluster.counts["CreateExecution"] == cluster.counts["CreateTask"] == 0
    assert states(test_local.study) == []

    async def awaits_it(trial: optuna.Trial):
        return await test_async(x=0.5)

    @fl.task
    async def test_async(x: float) -> float:
        return x

    optimizer = Optimizer(awaits_it, 2, 4, progress=False)
    with pytest.raises(UnloadableError):
        there(optimizer, cluster).run_sync()
    assert set(states(optimizer.study)) == {"FAIL"}
    assert cluster.counts["CreateExecution"] == 0


# Executions that fail.


@pytest.mark.parametrize(
    ("outcome", "phase", "code", "kind"),
    [
        (Failed("USER:ValueError", "x" * 500 + " the end"), "FAILED", "USER:ValueError", "USER"),
        (Failed("Evicted", "the node is gone", kind=2), "FAILED", "Evicted", "SYSTEM"),
        (Failed("DeadlineExceeded", "too late", phase=PHASES.TIMED_OUT), "TIMED_OUT", "DeadlineExceeded", "USER"),
    ],
)
def test_a_failed_execution_is_a_failed_trial_that_keeps_what_flyte_says(cluster, outcome, phase, code, kind):
    cluster.instant = lambda execution: outcome
    study = there(quick.train, cluster).run_sync()
    assert states(study) == ["FAIL"] * 6
    for trial in study.trials:
        (execution,) = trial.user_attrs[EXECUTIONS]
        assert trial.user_attrs[EXECUTION_ERROR] == {
            **execution,
            "phase": phase,
            "code": code,
            "kind": kind,
            "message": outcome.message,
        }
        assert trial.user_attrs[ERROR].startswith(f"ExecutionFailedError: The execution {execution['name']}")


def test_an_execution_that_somebody_aborts_is_a_failed_trial(cluster):
    cluster.instant = lambda execution: None  # it runs until it is aborted
    remote = cluster.remote()

    def abort():
        wait_until(lambda: len(cluster.running()) == 2)
        cluster.instant = echo()  # for those that come after them
        for execution in cluster.running():
            remote.client.terminate_execution(remote.fetch_execution(name=execution.name).id, "not needed")

    thread = threading.Thread(target=abort)
    thread.start()
    study = there(quick.train, cluster).run_sync()
    thread.join()
    assert sorted(states(study)) == ["COMPLETE"] * (6 - states(study).count("FAIL")) + ["FAIL"] * states(study).count(
        "FAIL"
    )
    aborted = [trial.user_attrs[EXECUTION_ERROR] for trial in study.trials if trial.state.name == "FAIL"]
    assert aborted
    assert {(each["phase"], each["message"]) for each in aborted} == {("ABORTED", "not needed")}


def test_a_callback_can_catch_the_failure_of_an_execution(cluster):
    cluster.instant = lambda execution: Failed()

    async def catches(trial: optuna.Trial):
        try:
            await quick.step(x=1.0)
        except EagerException as error:
            return 5.0 if isinstance(error, ExecutionFailedError) else 0.0

    study = there(Optimizer(catches, 1, 2, progress=False), cluster).run_sync()
    assert [trial.value for trial in study.trials] == [5.0, 5.0]


# Faults.

PASSING = [
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.INTERNAL,
]
RPCS = ["GetTask", "CreateTask", "CreateExecution", "ListExecutions", "GetExecutionData", "CreateUploadLocation"]


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("code", PASSING, ids=lambda code: code.name)
@pytest.mark.parametrize("rpc", RPCS)
def test_a_passing_fault_of_any_call_is_waited_out(cluster, rpc, code, done):
    cluster.fail(rpc, Fault(code, times=6, done=done))
    study = there(quick.train, cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 6  # a lost answer makes no second one


@fl.task
def length(x: Float(0, 1), text: str) -> float:
    return x + len(text)


def test_a_request_that_is_too_large_is_refused_at_once_with_its_size(cluster):
    search = there(Optimizer(length, 1, 1, progress=False), cluster)
    with pytest.raises(RefusedError, match=r"larger than max \(\d+ vs\. \d+\).*`FlyteFile`"):
        search.run_sync(text="x" * (21 * 2**20))
    assert states(search.study) == ["FAIL"]
    assert cluster.counts["CreateExecution"] <= 1


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("rpc", ["GetLaunchPlan", "GetWorkflow", "CreateWorkflow", "CreateLaunchPlan"])
def test_a_passing_fault_while_a_workflow_is_registered_is_waited_out(cluster, rpc, done):
    cluster.fail(rpc, Fault(times=6, done=done))
    study = there(Optimizer(quick.flow, 2, 2, progress=False), cluster).run_sync(x=suggest.float(0, 1))
    assert states(study) == ["COMPLETE"] * 2
    assert len(cluster.executions) == 2


@pytest.mark.parametrize("code", PASSING, ids=lambda code: code.name)
def test_a_passing_fault_while_a_failure_is_read_is_waited_out(cluster, code):
    cluster.instant = lambda execution: Failed(message="the whole message" * 20)
    cluster.fail("GetExecution", Fault(code, times=6))
    study = there(quick.train, cluster).run_sync()
    assert {trial.user_attrs[EXECUTION_ERROR]["message"] for trial in study.trials} == {"the whole message" * 20}


def test_a_restarted_control_plane_is_waited_out(cluster):
    cluster.instant = echo(seconds=0.5)

    def restart():
        wait_until(lambda: len(cluster.executions) == 2)
        cluster.stop()
        time.sleep(1.0)
        cluster.start()

    thread = threading.Thread(target=restart)
    thread.start()
    study = there(quick.train, cluster).run_sync()
    thread.join()
    assert states(study) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 6


def test_an_outage_that_lasts_too_long_ends_the_search_and_says_what_to_do(cluster):
    objective = there(with_options(quick.train, patience=0.5, grace=0.5), cluster)
    cluster.instant = lambda execution: None
    cluster.fail("ListExecutions", Fault(times=10_000))
    with pytest.raises(ClusterUnavailableError, match=r"has not answered for .* seconds.*`Cluster\(patience=1\)`"):
        objective.run_sync()
    assert set(states(objective.study)) == {"FAIL"}
    assert not cluster.running()


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "the right to do it"),
        (grpc.StatusCode.NOT_FOUND, "Register what is missing"),
        (grpc.StatusCode.INVALID_ARGUMENT, "Correct what it names"),
    ],
)
def test_a_refused_launch_ends_the_search_at_once_and_leaves_nothing_running(cluster, code, cure):
    objective = there(quick.train, cluster)
    launched = itertools.count()

    def outcome(execution):
        if next(launched) == 0:
            return None  # it runs until it is terminated
        cluster.fail("CreateExecution", Fault(code, times=100))
        return echo()(execution)

    cluster.instant = outcome
    with pytest.raises(RefusedError, match=f"Flyte has refused to launch.*{code.name}.*{cure}"):
        objective.run_sync()
    assert sorted(states(objective.study)) == ["COMPLETE", "FAIL", "FAIL"]
    assert [each.phase for each in executions(cluster)] == [PHASES.ABORTED, PHASES.SUCCEEDED]


@pytest.mark.parametrize("error", [None, AccessTokenNotFoundError("no token")])
def test_a_refused_login_ends_the_search(cluster, monkeypatch, error):
    def refresh(self):  # the real one would open a browser
        if error is not None:
            raise error

    monkeypatch.setattr(PKCEAuthenticator, "refresh_credentials", refresh)
    cluster.fail("CreateExecution", Fault(grpc.StatusCode.UNAUTHENTICATED, times=100))
    objective = there(quick.train, cluster)
    with pytest.raises(RefusedError, match=r"UNAUTHENTICATED.*Log in again"):
        objective.run_sync()
    assert set(states(objective.study)) == {"FAIL"}


@pytest.mark.parametrize(
    "away",
    [
        requests.ConnectionError("Connection reset by peer"),
        AuthenticationError("Status Code (503) received from IDP: temporarily_unavailable"),
        AccessTokenNotFoundError("Non-200 returned from refresh token endpoint 429"),
    ],
    ids=repr,
)
def test_an_identity_provider_that_is_away_is_waited_out(cluster, monkeypatch, away):
    renewals = itertools.count()

    def refresh(self):
        if next(renewals) < 4:
            raise away
        cluster.faults.clear()

    monkeypatch.setattr(PKCEAuthenticator, "refresh_credentials", refresh)
    cluster.fail("CreateExecution", Fault(grpc.StatusCode.UNAUTHENTICATED, times=10_000))  # until it is renewed
    assert states(there(quick.train, cluster).run_sync()) == ["COMPLETE"] * 6
    assert next(renewals) > 4


def test_an_identity_provider_that_stays_away_ends_the_search_and_says_so(cluster, monkeypatch):
    def refresh(self):
        raise AuthenticationError("Status Code (503) received from IDP: temporarily_unavailable")

    monkeypatch.setattr(PKCEAuthenticator, "refresh_credentials", refresh)
    cluster.fail("CreateExecution", Fault(grpc.StatusCode.UNAUTHENTICATED, times=10_000))
    objective = there(with_options(quick.train, patience=0.3, grace=0.5), cluster)
    with pytest.raises(ClusterUnavailableError, match=r"identity provider has not answered.*Status Code \(503\)"):
        objective.run_sync()


def test_an_execution_that_kubernetes_has_refused_is_launched_again(cluster):
    """flyteadmin stores it as FAILED, and answers the request as if nothing had happened."""
    refusals = itertools.count()

    def instant(execution):
        if next(refusals) < 5:
            message = "failed to create workflow in propeller etcdserver: leader changed"
            return Failed(code="Internal", message=message, kind=execution_pb2.ExecutionError.SYSTEM)
        return echo()(execution)

    cluster.instant = instant
    assert states(there(quick.train, cluster).run_sync()) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 11


# Names that are taken.


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


# Stopping.


def test_an_execution_of_another_program_is_neither_adopted_nor_believed(cluster, monkeypatch):
    """flyteadmin returns the inputs of the refused request for a name that is taken."""
    monkeypatch.setattr("uuid.uuid4", lambda: type("Fixed", (), {"hex": "0" * 32, "bytes": b"0"})())
    first = there(quick.train, cluster).run_sync()
    for execution in executions(cluster):
        del execution.spec.annotations.values[INPUTS_DIGEST]
    again = there(quick.train, cluster).run_sync()
    assert cluster.counts["TerminateExecution"] == 0
    assert states(first) == states(again) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 12


def test_outputs_that_flyteadmin_leaves_out_for_their_size_are_read_from_their_address(cluster):
    cluster.max_download = 0
    study = there(quick.train, cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 6
    cluster.max_download = 2**20
    assert [trial.value for trial in there(quick.train, cluster).run_sync().trials] == [
        trial.value for trial in study.trials
    ]


def test_an_ingress_that_answers_unimplemented_during_a_rollout_is_waited_out(cluster):
    cluster.fail("GetExecutionData", Fault(grpc.StatusCode.UNIMPLEMENTED, times=3))
    assert states(there(quick.train, cluster).run_sync()) == ["COMPLETE"] * 6


def test_a_flyteadmin_that_has_never_answered_is_no_flyteadmin(cluster):
    cluster.fail("*", Fault(grpc.StatusCode.UNIMPLEMENTED, times=1000))
    with pytest.raises(RefusedError, match="UNIMPLEMENTED"):
        there(quick.train, cluster).run_sync()


def test_links_open_in_the_console_whose_address_the_pod_knows(cluster, monkeypatch):
    own = "https://flyte.example.com/console/projects/project/domains/development/executions/eager/nodeId/n0-0/nodes"
    monkeypatch.setenv("FLYTE_EXECUTION_URL", own)
    study = there(quick.train, cluster).run_sync()
    (entry,) = study.trials[0].user_attrs[EXECUTIONS]
    assert entry["url"] == (
        f"https://flyte.example.com/console/projects/project/domains/development/executions/{entry['name']}"
    )


def test_links_open_in_the_console_that_the_user_names(cluster, monkeypatch):
    monkeypatch.setenv("FLYTE_EXECUTION_URL", "https://inner.example.com/projects/project/domains/development")
    study = there(with_options(quick.train, console_url="https://flyte.example.com/console/"), cluster).run_sync()
    (entry,) = study.trials[0].user_attrs[EXECUTIONS]
    start = "https://flyte.example.com/console/projects/project/domains/development/executions/"
    assert entry["url"] == f"{start}{entry['name']}"


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


def test_the_race_for_the_workflow_around_a_task_is_waited_out(cluster):
    remote = cluster.remote()
    settings = SerializationSettings(IMAGES, project="project", domain="development", version="v1")
    task = remote.register_task(quick.sync_step, settings, "v1")  # it has no launch plan
    cluster.single_task_races = 5
    study = there(Optimizer(task, 2, 6, progress=False), cluster).run_sync(x=suggest.float(0, 1))
    assert states(study) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 6


def kinds_of(admin):
    return {each.spec.launch_plan.resource_type for each in executions(admin)}


def test_trials_launch_a_launch_plan_so_that_their_labels_are_searchable(cluster):
    labelled = with_options(quick.train, labels={"team": "a"})
    there(labelled, cluster).run_sync()
    there(Optimizer(quick.step, 2, 2, progress=False), cluster).run_sync(x=suggest.float(0, 1))
    assert kinds_of(cluster) == {identifier_pb2.LAUNCH_PLAN}
    assert [each.spec.launch_plan.name for each in executions(cluster)] == ["quick.train"] * 6 + ["quick.step"] * 2
    filters = [ValueIn("execution_tag.key", ["team"]), ValueIn("execution_tag.value", ["a"])]
    found, _ = cluster.remote().client.list_executions_paginated("project", "development", limit=100, filters=filters)
    assert len(found) == 6


def test_a_reference_to_a_task_launches_its_launch_plan_if_there_is_one(cluster):
    there(quick.train, cluster).run_sync()
    (version,) = {version for *_, version in cluster.tasks}
    inputs = {"x": float, "base": float, "name": Optional[str]}
    task = ReferenceTask("project", "development", "quick.train", version, inputs, {"o0": float})
    optimizer = Optimizer(task, 2, 2, progress=False)
    there(optimizer, cluster).run_sync(x=suggest.float(0, 1), base=1.0, name=None)
    assert len(executions(cluster)) == 8
    assert kinds_of(cluster) == {identifier_pb2.LAUNCH_PLAN}


def test_a_launch_plan_with_the_tasks_name_that_runs_something_else_is_left_alone(cluster):
    remote = cluster.remote()
    settings = SerializationSettings(IMAGES, project="project", domain="development", version="v1")
    task = remote.register_task(quick.step, settings, "v1")
    other = fl.LaunchPlan("quick.step", quick.one_input, ParameterMap({}), LiteralMap({}))
    remote.register_launch_plan(other, "v1", serialization_settings=settings)
    there(Optimizer(task, 2, 2, progress=False), cluster).run_sync(x=suggest.float(0, 1))
    assert kinds_of(cluster) == {identifier_pb2.TASK}


def test_a_user_who_may_not_register_launch_plans_is_told_what_does_not_hold(cluster, caplog):
    cluster.fail("CreateWorkflow", Fault(grpc.StatusCode.PERMISSION_DENIED, times=100))
    assert states(there(quick.train, cluster).run_sync()) == ["COMPLETE"] * 6
    assert kinds_of(cluster) == {identifier_pb2.TASK}
    assert "its `timeout` and `interruptible` do not hold" in caplog.text


def test_a_task_of_which_flytekit_makes_no_node_is_launched_alone(cluster):
    for task in (quick.names_an_entity, quick.returns_an_id):
        optimizer = Optimizer(task, 1, 1, progress=False)
        there(optimizer, cluster).run_sync(**{name: suggest.float(0, 1) for name in task.python_interface.inputs})
    assert kinds_of(cluster) == {identifier_pb2.TASK}


def test_a_name_says_which_task_and_which_trial_an_execution_runs(cluster):
    study = there(quick.train, cluster).run_sync()
    for trial in study.trials:
        (entry,) = trial.user_attrs[EXECUTIONS]
        assert re.fullmatch(rf"o-train-{trial.number}-[0-9a-f]{{20}}", entry["name"])


def test_a_task_can_be_redefined_as_in_a_notebook(cluster, tmp_path, monkeypatch):
    for names in ("x", "xy"):
        signature = ", ".join(f"{name}: float" for name in names)
        path = tmp_path / f"{names}.py"
        path.write_text(f"import flytekit as fl\n\n\n@fl.task\ndef again({signature}) -> float:\n    return x\n")
        spec = importlib.util.spec_from_file_location("cell", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "cell", module)
        spec.loader.exec_module(module)
        optimizer = Optimizer(module.again, 1, 1, progress=False)
        there(optimizer, cluster).run_sync(**{name: suggest.float(0, 1) for name in names})
    assert [len(each.inputs.literals) for each in executions(cluster)] == [1, 2]
    assert kinds_of(cluster) == {identifier_pb2.LAUNCH_PLAN}


@pytest.mark.newest
def test_a_flyteadmin_that_closes_connections_for_too_many_pings_is_called_again(tmp_path, monkeypatch, pauses):
    """gRPC-Go allows one ping in five minutes on an idle connection; flytekit sends one in 30 seconds, here in one."""
    insecure_channel = grpc.insecure_channel

    def impatient_channel(target, options=(), compression=None):
        options = [(name, 1000 if name == "grpc.keepalive_time_ms" else value) for name, value in options]
        return insecure_channel(target, options, compression)

    monkeypatch.setattr(grpc, "insecure_channel", impatient_channel)
    pauses.poll_shortest = pauses.poll_longest = 5.0
    with FlyteAdmin(tmp_path / "strict", instant=echo(seconds=1.0)) as admin:
        study = there(Optimizer(quick.train.task, 1, 1, progress=False), admin).run_sync()
        assert states(study) == ["COMPLETE"]
        assert len(admin.executions) == 1
        assert len(admin.peers) > 1, "no connection was closed"


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
    assert {each.phase for each in executions(cluster)} == {PHASES.ABORTING}


@pytest.mark.parametrize(("queued", "at_once"), [(0, 50), (49, 50), (50, 1), (500, 1)])
def test_launches_come_in_a_burst_and_then_at_their_pace_unless_many_are_queued(cluster, monkeypatch, queued, at_once):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    traffic = Traffic(Connection(cluster.remote(), None, "identity", "o"), 1.0)
    traffic._poller = type("Seen", (), {"queued": queued})()
    waits = []
    given_up = type("Waits", (), {"wait": lambda self, seconds: waits.append(seconds)})()
    for _ in range(70):
        traffic.wait_to_launch(Cluster(), given_up)
    assert waits[:at_once] == [0.0] * at_once
    assert waits[at_once:] == pytest.approx([0.1 * (k + 1) for k in range(70 - at_once)])
    now[0] += 1000.0
    waits.clear()
    for _ in range(60):
        traffic.wait_to_launch(Cluster(), given_up)
    assert waits.count(0.0) == at_once, "idle time saves up one burst"


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


# Many trials.


@pytest.mark.newest
def test_state_is_read_with_few_calls_however_many_trials_run(cluster, pauses):
    vars(pauses).update(vars(Pauses()))
    cluster.instant = echo(seconds=3.0)
    cluster.single_task_races = 0
    objective = with_options(quick.train, launches_per_second=1000, launches_at_once=16)
    objective.concurrency, objective.n_trials = 500, 600
    study = there(objective, cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 600
    looks = [moment for rpc, moment in cluster.times if rpc == "ListExecutions"]
    most = max(sum(1 for other in looks if moment <= other < moment + 1) for moment in looks)
    assert most <= 10
    assert cluster.counts["CreateExecution"] == cluster.counts["GetExecutionData"] == 600
    assert cluster.counts["GetExecution"] == 0


def test_looks_are_rarer_as_trials_prove_long(monkeypatch, pauses):
    vars(pauses).update(vars(Pauses()))
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


def test_an_execution_that_lists_leave_out_is_asked_for(cluster, monkeypatch):
    hidden = threading.Event()
    listed = poller_module.Poller.find
    monkeypatch.setattr(poller_module.Poller, "find", lambda self, names: {} if hidden else listed(self, names))
    study = there(quick.train, cluster).run_sync()
    assert states(study) == ["COMPLETE"] * 6

    def vanish(execution):
        del cluster.executions[execution.key]
        return echo()(execution)

    cluster.instant = vanish
    study = there(quick.train, cluster).run_sync()
    assert states(study) == ["FAIL"] * 6
    assert study.trials[0].user_attrs[EXECUTION_ERROR]["code"] == "NotFound"


# Where it stands in flytekit.


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


def test_the_parts_of_flytekit_that_are_used_are_where_they_were(cluster):
    assert callable(cluster.remote().fast_package)
    assert isinstance(home_module._homes, collections.abc.MutableMapping)
    assert TrialCalls.add.__name__ == Controller.add.__name__
    assert objectives.container.python_interface.outputs == {"y": float}


# In an eager workflow: what its pod's attempts leave to each other.


def test_a_pod_that_does_not_know_flyteadmins_address_is_told_at_once_what_is_missing(cluster, tmp_path, monkeypatch):
    monkeypatch.delenv("FLYTE_PLATFORM_URL", raising=False)
    pod = Pod(cluster, tmp_path, 0)
    del pod.environment["FLYTE_PLATFORM_URL"]
    with pytest.raises(RefusedError, match=r"FLYTE_PLATFORM_URL for all pods, in `plugins.k8s.default-env-vars`"):
        pod.run(quick.train)
    assert not cluster.counts


def test_trials_inherit_what_the_execution_of_their_workflow_has(cluster, tmp_path):
    eager = eager_execution(cluster)
    eager.spec.security_context.run_as.k8s_service_account = "trainer"
    eager.spec.raw_output_data_config.output_location_prefix = str(tmp_path / "raw")
    eager.spec.envs.values.add(key="REGION", value="north")
    eager.spec.envs.values.add(key="OPTUNA_FLYTE_DSL_TOKEN", value="of the outer trial")
    tuned = with_options(quick.train, raw_output_prefix=str(tmp_path / "own"))

    async def workflow():
        await quick.train()
        await tuned()

    Pod(cluster, tmp_path, 0).run(workflow)
    specs = [each.spec for each in executions(cluster)]
    assert len(specs) == 12
    for spec in specs:
        assert {pair.key: pair.value for pair in spec.envs.values} == {"_F_EE_ROOT": "eager", "REGION": "north"}
    assert {spec.metadata.parent_node_execution.node_id for spec in specs} == {"n0"}
    assert cluster.counts["ListNodeExecutions"] < 12
    assert {spec.security_context.run_as.k8s_service_account for spec in specs} == {"trainer"}
    assert [spec.raw_output_data_config.output_location_prefix for spec in specs] == [str(tmp_path / "raw")] * 6 + [
        str(tmp_path / "own")
    ] * 6


def test_two_searches_at_once_and_an_optimizer_called_twice_go_on_after_a_kill(cluster, tmp_path):
    cluster.instant = echo(seconds=0.2)
    optimizers = []

    async def workflow():
        optimizer = Optimizer(quick.both, 2, 3, progress=False, seed=1)
        optimizers.append(optimizer)
        a, b = await asyncio.gather(quick.train(base=1.0), quick.train(base=2.0))
        await optimizer()
        await optimizer()
        return a, b, optimizer.study

    for attempt, launches in enumerate((3, 9, 14, 20)):
        Pod(cluster, tmp_path, attempt).run(lambda now=launches: killed_after(cluster, now, workflow()))
    a, b, study = Pod(cluster, tmp_path, 4).run(workflow)
    assert states(a) == states(b) == states(study) == ["COMPLETE"] * 6
    names = collections.Counter()
    for each in (a, b, study):
        names.update(entry["name"] for trial in each.trials for entry in trial.user_attrs[EXECUTIONS])
    assert len(cluster.executions) == 6 + 6 + 2 * 6 == len(names)
    assert set(names.values()) == {1}
    assert {each.inputs.literals["base"].scalar.primitive.float_value for each in executions(cluster)} == {
        1.0,
        2.0,
        3.0,
    }


def test_the_time_of_a_trial_goes_on_while_its_second_attempt_waits_for_a_machine(cluster):
    def instant(execution):
        execution.is_second_attempt = True
        return Succeeded(outputs(1.0), seconds=math.inf, queued=math.inf)

    cluster.instant = instant

    async def search(loop):
        limited = Optimizer(quick.train.task, 2, 2, trial_timeout=3600, progress=False)
        running = asyncio.ensure_future(there(limited, cluster)())
        while not running.done():
            loop.skip(3601)
            await asyncio.sleep(0.005)
        return await running

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
        while not search.done():
            loop.skip(3601)
            await asyncio.sleep(0.005)
        return await search

    assert states(in_movable_time(waits_in_a_queue)) == ["COMPLETE"] * 2
    assert states(in_movable_time(runs_for_ever)) == ["FAIL"] * 2
    assert not cluster.running()
    cluster.counts.clear()
    cluster.instant = echo()
    there(Optimizer(quick.train.task, 2, 2, progress=False), cluster).run_sync()
    assert not cluster.counts["ListTaskExecutions"], "nobody needs to know"


@pytest.mark.parametrize("names", [("eager", "eager", "eager"), ("first", "second", "third")])
def test_a_search_in_a_users_storage_goes_on_in_any_pod(cluster, tmp_path, names):
    cluster.instant = echo(seconds=0.2)

    def search():
        path = tmp_path / "study.journal"
        return Optimizer(quick.train.task, 2, 6, storage=path, resume=True, progress=False)()

    for attempt, launches in enumerate((2, 4)):
        pod = Pod(cluster, tmp_path, attempt, names[attempt])
        pod.run(lambda now=launches: killed_after(cluster, now, search()))
    study = Pod(cluster, tmp_path, 2, names[2]).run(search)
    assert states(study) == ["COMPLETE"] * 6, "each was adopted"
    assert len(cluster.executions) == 6, "none was paid for twice"
    assert not cluster.running()


def test_a_trial_without_an_execution_is_closed_and_tried_again(cluster, tmp_path):
    path = tmp_path / "study.journal"
    record = dead_record()
    left = optuna.create_study(storage=open_storage(path), study_name="train")
    left.add_trial(
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.RUNNING,
            params={"x": 0.375},
            distributions={"x": optuna.distributions.FloatDistribution(0, 1)},
            system_attrs={f"{OWNER}other": record},
        )
    )
    study = there(Optimizer(quick.train.task, 2, 3, storage=path, resume=True, progress=False), cluster).run_sync()
    assert states(study) == ["FAIL"] + ["COMPLETE"] * 3
    assert study.trials[1].params == {"x": 0.375}


def test_the_execution_of_an_eager_workflow_tells_whether_it_lives(cluster, tmp_path):
    cluster.instant = lambda execution: None
    there_too = there(Optimizer(quick.train.task, 1, 1, progress=False), cluster)

    async def main():
        home = home_module.current_home()
        task = asyncio.ensure_future(there_too())
        while not cluster.executions:
            await asyncio.sleep(0.005)
        (running,) = executions(cluster)
        thread = Threads(limit=1)
        async with home.start_search(Cluster(), "key", thread) as search:
            mine = search.evidence
            folder = str(pod.node.folder)
            assert mine == {"execution": ["project", "development", "eager"], "node": folder, "attempt": 2}
            other = {"execution": ["project", "development", running.name], "node": "n0", "attempt": 0}
            gone = {"execution": ["project", "development", "gone"], "node": "n0", "attempt": 0}
            lives = [search.life({**mine, "attempt": 1}), search.life(mine), search.life(other), search.life(gone)]
            task.cancel()
            await asyncio.wait([task])
            lives += [search.life(other), search.life({})]
            # Another node of the same execution is no attempt of this one.
            beside = {**mine, "node": str(sibling.node.folder), "attempt": 0}
            lives.append(search.life(beside))
            sibling.node.phase = NODE.FAILED
            lives.append(search.life(beside))
        await thread.close()
        return lives

    pod, sibling = Pod(cluster, tmp_path, 2), Pod(cluster, tmp_path, 0, node="n1")
    sibling.controller.stopping_condition.set()
    lives = pod.run(main)
    assert lives == [Life.DEAD, Life.ALIVE, Life.ALIVE, None, Life.DEAD, None, Life.ALIVE, Life.DEAD]


def test_a_search_whose_executions_were_terminated_tries_their_points_again(cluster, tmp_path):
    cluster.instant = lambda execution: None

    async def ended(search):
        task = asyncio.ensure_future(search)
        while len(cluster.executions) < 2:
            await asyncio.sleep(0.005)
        home = home_module.current_home()
        await asyncio.to_thread(home.sigterm.stop)
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


def test_a_function_that_had_launched_nothing_is_tried_again_as_a_new_trial(cluster, tmp_path):
    started = threading.Event()

    async def slow_to_start(trial: optuna.Trial):
        x = trial.suggest_float("x", 0, 1)
        if not started.is_set():
            started.set()
            await asyncio.Event().wait()
        return x

    async def killed(search):
        task = asyncio.ensure_future(search)
        while not started.is_set():
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        home = home_module.current_home()
        await home.store.commit()
        for each in list(home.sigterm.searches):
            each.end(leave=True)
        with pytest.raises(asyncio.CancelledError):
            await task

    Pod(cluster, tmp_path, 0).run(lambda: killed(Optimizer(slow_to_start, 1, 3, progress=False)()))
    optimizer = Optimizer(slow_to_start, 1, 3, progress=False)
    Pod(cluster, tmp_path, 1).run(optimizer)
    assert states(optimizer.study) == ["FAIL"] + ["COMPLETE"] * 3
    assert optimizer.study.trials[1].params == optimizer.study.trials[0].params


def test_trials_are_found_in_flyte_where_the_checkpoint_is_missing(cluster, tmp_path, warned):
    cluster.instant = echo(seconds=0.3)
    objective = with_options(quick.train)  # with a sampler that does not repeat
    objective._session.options = dataclasses.replace(objective._session.options, seed=None)
    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 4, objective()))
    before = {name: each.inputs for name, each in cluster.executions.items()}
    study = Pod(cluster, tmp_path, 2).run(objective)  # attempt 1 has left nothing
    assert states(study) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 6
    assert before.items() <= {name: each.inputs for name, each in cluster.executions.items()}.items()
    assert f"The checkpoint lacks trials: {len(before)} were found in Flyte." in warned()


async def kill_all():
    """Let the searches of this pod be gone, as a SIGKILL would: nothing is told, nothing is terminated."""
    home = home_module.current_home()
    await home.store.commit()
    for each in list(home.sigterm.searches):
        each.end(leave=True)


def test_overlapping_calls_of_an_optimizer_do_not_touch_each_others_trials(cluster, tmp_path):
    cluster.instant = echo(seconds=0.1)
    for objective in (quick.train.task, quick.both):
        optimizer = Optimizer(objective, 2, 4, progress=False)
        given = {"x": suggest.float(0, 1)} if objective is quick.train.task else {}

        async def workflow(optimizer=optimizer, given=given):
            first = asyncio.ensure_future(optimizer(**given))
            await asyncio.sleep(0.15)
            await asyncio.gather(first, optimizer(**given))

        Pod(cluster, tmp_path / str(objective), 0).run(workflow)
        assert states(optimizer.study) == ["COMPLETE"] * 8


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
        while cluster.counts["ListExecutions"] < 3:
            await asyncio.sleep(0.01)
        for execution in cluster.running():  # the one that is adopted ends now
            if execution.name == optimizer.study.trials[0].user_attrs[EXECUTIONS][0]["name"]:
                execution.finish(Succeeded(outputs(0.5)))
        await search

    cluster.counts.clear()
    Pod(cluster, tmp_path, 1).run(workflow)
    assert states(optimizer.study) == ["COMPLETE"]
    assert not cluster.running()


def test_searches_with_other_fixed_arguments_keep_their_studies_in_any_order(cluster, tmp_path):
    cluster.instant = echo(seconds=0.1)

    async def both(first, second):
        return await asyncio.gather(quick.train(base=first), quick.train(base=second))

    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 6, both(1.0, 2.0)))
    studies = Pod(cluster, tmp_path, 1).run(lambda: both(2.0, 1.0))
    for study, base in zip(studies, (2.0, 1.0), strict=True):
        names = {entry["name"] for trial in study.trials for entry in trial.user_attrs[EXECUTIONS]}
        used = [each for each in executions(cluster) if each.name in names]
        assert {each.inputs.literals["base"].scalar.primitive.float_value for each in used} == {base}
    assert len(cluster.executions) == 12


def test_the_thread_of_flytekits_controller_outlives_the_exit(cluster, tmp_path):
    """See `outlive_exit`."""
    cluster.instant = echo()
    pod = Pod(cluster, tmp_path, 0)
    pod.run(quick.train)
    name = controller_thread(pod.controller).name
    assert isinstance(runner_of(name), _OwnLoop)


def test_all_searches_of_a_pod_have_one_grace_period(cluster, tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(ClusterSearch, "wait", lambda self, deadline: waited.append(deadline) or True)
    cluster.instant = lambda execution: None
    objective = with_options(quick.train, grace=7.0, on_sigterm="terminate")

    async def workflow():
        searches = [asyncio.ensure_future(objective(base=float(base))) for base in range(3)]
        while len(cluster.executions) < 6:
            await asyncio.sleep(0.01)
        home = home_module.current_home()
        started = time.monotonic()
        await asyncio.to_thread(home.sigterm.stop)
        await asyncio.gather(*searches, return_exceptions=True)
        return started

    started = Pod(cluster, tmp_path, 0).run(workflow)
    assert len(waited) == 6
    middle, waited = waited[:3], waited[3:]
    assert max(middle) < started + 7.0, "what runs is terminated in time, if a search does not do it"
    assert max(waited) - min(waited) < 1e-6
    assert waited[0] - started >= 7.0
    assert not cluster.running()


def test_a_study_that_is_looked_at_before_the_call_is_kept_too(cluster, tmp_path):
    cluster.instant = echo(seconds=0.1)

    def search():
        optimizer = Optimizer(quick.both, 1, 4, progress=False)
        optimizer.study.set_user_attr("note", "mine")
        return optimizer, optimizer()

    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 4, search()[1]))
    found = []

    async def again():
        optimizer, running = search()
        found.append(optimizer)
        await running

    Pod(cluster, tmp_path, 1).run(again)
    assert states(found[0].study) == ["COMPLETE"] * 4
    assert len(cluster.executions) == 8


def test_searches_inside_of_trials_share_the_looks_of_their_pod(cluster, monkeypatch):
    made = []
    init = poller_module.Poller.__init__
    monkeypatch.setattr(poller_module.Poller, "__init__", lambda self, *args: made.append(self) or init(self, *args))
    cluster.instant = echo(seconds=0.1)
    there(Optimizer(quick.nested, 4, 4, progress=False), cluster).run_sync()
    assert len(made) == 1


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


@pytest.mark.parametrize("kind", ["map", "conditional"])
def test_a_task_that_no_pod_can_load_is_found_inside_of_a_workflow(cluster, kind):
    @fl.task
    def test_inner(x: float) -> float:
        return x

    if kind == "map":

        @fl.workflow
        def flow(xs: list[float]) -> list[float]:
            return fl.map_task(test_inner)(x=xs)

        given = {"xs": [suggest.float(0, 1)]}
    else:

        @fl.workflow
        def flow(x: float) -> float:
            return fl.conditional("c").if_(x > 0.5).then(test_inner(x=x)).else_().then(test_inner(x=1.0))

        given = {"x": suggest.float(0, 1)}
    with pytest.raises(UnloadableError, match="`test_inner` cannot be loaded"):
        there(Optimizer(with_float(flow), 1, 1, progress=False, direction="minimize"), cluster).run_sync(**given)
    assert cluster.counts["CreateExecution"] == 0


def with_float(flow):
    set_python_outputs(flow, {"o0": float})  # a list is no objective
    return flow


def test_numbers_of_numpy_are_kept_as_attributes(cluster, tmp_path):
    async def notes(trial: optuna.Trial):
        trial.set_user_attr("accuracy", np.float32(0.5))
        return await quick.step(x=trial.suggest_float("x", 0, 1))

    optimizer = Optimizer(notes, 1, 2, progress=False)
    Pod(cluster, tmp_path, 0).run(optimizer)
    assert states(optimizer.study) == ["COMPLETE"] * 2
    again = Optimizer(notes, 1, 2, progress=False)
    Pod(cluster, tmp_path, 1).run(again)
    assert [trial.user_attrs["accuracy"] for trial in again.study.trials] == [0.5, 0.5]


def test_a_search_that_was_stopped_is_not_gone_on_with(cluster, tmp_path):
    def stop(study, trial):
        if trial.number == 2:
            study.stop()

    def search():
        return optimize(quick.train, concurrency=1, n_trials=9, callbacks=[stop], progress=False)()

    assert len(Pod(cluster, tmp_path, 0).run(search).trials) == 3
    assert len(Pod(cluster, tmp_path, 1).run(search).trials) == 3


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


# Several nodes and several attempts.


def test_two_nodes_of_one_execution_do_not_take_each_others_executions(cluster, tmp_path):
    """Each node's eager workflow begins with the same points, and is killed and started again."""
    cluster.instant = echo(seconds=0.1)
    found = {}
    for node, launches in (("n0", 3), ("n1", 9)):
        pod = Pod(cluster, tmp_path / node, 0, node=node)
        pod.run(lambda now=launches: killed_after(cluster, now, quick.train()))
        found[node] = Pod(cluster, tmp_path / node, 1, node=node).run(quick.train)
    for study in found.values():
        assert states(study) == ["COMPLETE"] * 6
    first, second = ([trial.params for trial in study.trials[:2]] for study in found.values())
    assert first == second, "they would have the same names and inputs"
    names = [
        {entry["name"] for trial in each.trials for entry in trial.user_attrs[EXECUTIONS]} for each in found.values()
    ]
    assert not names[0] & names[1]
    assert len(cluster.executions) == 12, "nothing was terminated or run twice"
    assert not cluster.counts["TerminateExecution"]


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
        await asyncio.to_thread(home_module.current_home().sigterm.stop)
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
        await asyncio.to_thread(home_module.current_home().sigterm.stop)
        with pytest.raises(asyncio.CancelledError):
            await task

    Pod(cluster, tmp_path, 0).run(adopted_meanwhile)
    left = optuna.load_study(study_name="train", storage=open_storage(path)).trials
    assert [trial.state.name for trial in left] == ["RUNNING"] * 2
    assert not any("optuna_flyte_dsl:lost" in trial.user_attrs for trial in left)


def test_a_pod_that_meets_an_execution_of_its_successor_leaves_the_search_to_it(cluster, tmp_path, warned):
    cluster.instant = echo(seconds=math.inf)

    async def meets_a_successor():
        task = await until_two_run(cluster, quick.train())
        # The successor runs trial 2 with another point, under the name that this pod would give it.
        first = next(iter(cluster.executions.values()))
        home = home_module.current_home()
        (search,) = home.sigterm.searches
        theirs = dataclasses.replace(first, name=search.launcher.names.name(2, "quick.train", "0", 0), ends=math.inf)
        theirs.spec = type(first.spec)()
        theirs.spec.CopyFrom(first.spec)
        theirs.spec.annotations.values[ATTEMPT] = "1"
        cluster.executions[theirs.key] = theirs
        first.finish(echo()(first))
        with pytest.raises(asyncio.CancelledError):
            await task
        return theirs

    theirs = Pod(cluster, tmp_path, 0).run(meets_a_successor)
    assert any("A later attempt of this pod runs the search" in line for line in warned())
    assert theirs.running
    assert not cluster.counts["TerminateExecution"]


@pytest.mark.parametrize("content", ["the same", "another"])
def test_a_trial_with_a_file_is_adopted_if_the_files_content_is_the_same(cluster, tmp_path, content):
    cluster.instant = echo(seconds=0.2)
    (tmp_path / "data").write_text("the same")

    def search():
        return quick.reads_prepared(prepared=quick.Prepared(file=FlyteFile(str(tmp_path / "data"))))

    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2, search()))
    (tmp_path / "data").write_text(content)
    forget_uploads()
    study = Pod(cluster, tmp_path, 1).run(search)
    assert states(study) == ["COMPLETE"] * 2
    assert len(cluster.executions) == (2 if content == "the same" else 4)


@pytest.mark.parametrize("name", ["outer_flow", "branching_flow", "launching_flow"])
def test_the_time_of_a_trial_begins_though_its_pod_is_inside_of_other_nodes(cluster, name):
    cluster.instant = lambda execution: Succeeded(outputs(1.0), seconds=math.inf)
    limited = Optimizer(getattr(quick, name), 2, 2, trial_timeout=3600, progress=False)

    async def search(loop):
        running = asyncio.ensure_future(there(limited, cluster)(x=suggest.float(0, 1)))
        while not running.done():
            loop.skip(3601)
            await asyncio.sleep(0.005)
        return await running

    assert states(in_movable_time(search)) == ["FAIL"] * 2


@pytest.mark.newest
def test_requests_keep_to_their_pace_though_many_pods_wait_for_a_machine(cluster):
    cluster.instant = lambda execution: Succeeded(outputs(1.0), seconds=2.0, queued=math.inf)
    limited = Optimizer(quick.train.task, 100, 100, trial_timeout=3600, progress=False)
    started = time.monotonic()
    there(limited, cluster).run_sync()
    # A request may come late on a busy machine, but never before its turn: a burst, and then the rate.
    # To register a task, flytekit sends several requests in the turn of one.
    registering = {"CreateTask", "CreateWorkflow", "CreateLaunchPlan", "GetTask", "GetWorkflow", "GetLaunchPlan"}
    paced = [moment for rpc, moment in cluster.times if rpc not in registering]
    for number, moment in enumerate(paced, 1):
        assert number <= 50 + 50 * (moment - started) + 1
    asks = [moment for rpc, moment in cluster.times if rpc in ("ListNodeExecutions", "ListTaskExecutions")]
    assert asks
    for number, moment in enumerate(asks, 1):
        assert number <= 2 * (5 + 5 * (moment - started)) + 1


def test_a_name_is_looked_up_before_a_launch_whose_answer_was_lost_is_sent_again(cluster):
    cluster.fail("CreateExecution", Fault(done=True, times=3))
    assert states(there(quick.train, cluster).run_sync()) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 6
    assert cluster.counts["CreateExecution"] == 6, "none was sent twice"
    assert cluster.counts["GetExecution"] == 3


def test_outputs_that_are_left_out_without_an_address_are_refused_with_the_cure(cluster, monkeypatch):
    cluster.max_download = 0
    monkeypatch.setattr(Execution, "outputs_uri", property(lambda self: "", lambda self, value: None), raising=False)
    with pytest.raises(RefusedError, match=r"lacks the outputs of the execution .*maxDownloadMBs.*FlyteFile"):
        there(quick.train, cluster).run_sync()


def test_a_frozen_flyteadmin_is_asked_no_more_when_the_grace_period_is_over(cluster, tmp_path):
    cluster.fail("TerminateExecution", Fault(grpc.StatusCode.UNAVAILABLE, times=10_000))
    options = Cluster(grace=0.2)
    home = home_module.Home(Connection(cluster.remote(), None, "identity", "o"))
    search = ClusterSearch(home, options, "key", Threads(limit=1))
    deadline = time.monotonic() - 1.0
    for number in range(50):
        search.launcher.terminate(f"e{number}", "is over", deadline)
    assert cluster.counts["TerminateExecution"] == 1
    asyncio.run(search.launcher.close())


def test_a_pod_whose_login_would_wait_for_a_browser_is_told_at_once_what_to_set(cluster, tmp_path):
    cluster.fail("*", Fault(grpc.StatusCode.UNAUTHENTICATED, times=10_000))
    with pytest.raises(RefusedError, match=r"FLYTE_CREDENTIALS_AUTH_MODE=client_credentials"):
        Pod(cluster, tmp_path, 0).run(quick.train)
    assert sum(cluster.counts.values()) == 1


def test_the_cache_of_literals_that_all_threads_share_has_a_lock_on_a_cluster_too(cluster):
    there(quick.train, cluster).run_sync()
    wrap_literal_cache(lambda inner: pytest.fail("it must be wrapped already"), LockedLiteralCache)


# What a killed pod leaves, and what its next attempt makes of it.


async def ended_there(cluster, search, value=1.0):
    """Run a search, and let all that runs end once the search has had time to adopt it."""
    task = asyncio.ensure_future(search)
    await asyncio.sleep(0.5)
    for execution in cluster.running():
        execution.finish(Succeeded(outputs(value)))
    return await task


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


def test_executions_of_a_search_inside_a_trial_do_not_outlive_a_kill(cluster, tmp_path, monkeypatch):
    cluster.instant = lambda execution: None

    def search():
        return Optimizer(quick.nested, 1, 2, progress=False)()

    with monkeypatch.context() as killed:
        killed.setattr(Launcher, "terminate", lambda *_: None)
        Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2, search()))
    left = executions(cluster)
    assert all(each.running for each in left)
    cluster.instant = echo()
    Pod(cluster, tmp_path, 1).run(search)
    assert {each.phase for each in left} == {PHASES.ABORTED}
    assert not cluster.running()


def test_what_earlier_attempts_have_left_is_terminated_though_the_search_cannot_begin(cluster, tmp_path):
    cluster.instant = lambda execution: None
    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 2, quick.train()))
    left = executions(cluster)
    cluster.fail("GetExecutionData", Fault(grpc.StatusCode.PERMISSION_DENIED, times=1000))
    with pytest.raises(RefusedError, match=r"PERMISSION_DENIED.*Give the eager workflow's service account"):
        Pod(cluster, tmp_path, 2).run(quick.train)  # attempt 1 has left nothing, so the inputs of its trials are read
    assert {each.phase for each in left} == {PHASES.ABORTED}
    assert not cluster.running()


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


def test_an_execution_whose_data_is_gone_is_a_failed_trial(cluster):
    cluster.fail("GetExecutionData", Fault(grpc.StatusCode.NOT_FOUND, times=1))
    study = there(quick.train, cluster).run_sync()
    assert sorted(states(study)) == ["COMPLETE"] * 5 + ["FAIL"]
    (failed,) = (trial for trial in study.trials if trial.state.name == "FAIL")
    assert failed.user_attrs[EXECUTION_ERROR]["code"] == "NotFound"


def test_running_trials_that_an_old_checkpoint_lacks_are_found_in_flyte(cluster, tmp_path, monkeypatch, pauses):
    pauses.checkpoint_retries = (0.01,)
    cluster.instant = lambda _: Succeeded(outputs(1.0), 0.2 if len(cluster.executions) <= 4 else math.inf)
    save = SyncCheckpoint.save

    def failing(self, path):
        if len(cluster.executions) >= 3:
            raise OSError("503 SlowDown")
        return save(self, path)

    objective = with_options(quick.train)
    objective._session.options = dataclasses.replace(objective._session.options, seed=None)
    with monkeypatch.context() as throttled:
        throttled.setattr(SyncCheckpoint, "save", failing)
        Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 6, objective()))
    cluster.instant = echo()
    study = Pod(cluster, tmp_path, 1).run(lambda: ended_there(cluster, objective()))
    assert states(study) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 6


def test_inputs_that_flyteadmin_leaves_out_do_not_stop_a_recovery(cluster, tmp_path, monkeypatch):
    cluster.instant = echo(seconds=0.2)
    Pod(cluster, tmp_path, 0).run(lambda: killed_after(cluster, 4, quick.train()))
    call = Admin.call

    def without_inputs(self, rpc, request, **limits):
        answer = call(self, rpc, request, **limits)
        if rpc == "GetExecutionData":
            answer.ClearField("full_inputs")
            answer.ClearField("inputs")
        return answer

    monkeypatch.setattr(Admin, "call", without_inputs)
    assert states(Pod(cluster, tmp_path, 2).run(quick.train)) == ["COMPLETE"] * 6
    assert not cluster.running()


def test_trials_keep_the_service_account_though_nodes_cannot_be_listed(cluster, tmp_path):
    eager_execution(cluster).spec.security_context.run_as.k8s_service_account = "trainer"
    cluster.fail("ListNodeExecutions", Fault(grpc.StatusCode.PERMISSION_DENIED, times=10**6))
    Pod(cluster, tmp_path, 0).run(quick.train)
    accounts = {each.spec.security_context.run_as.k8s_service_account for each in executions(cluster)}
    assert accounts == {"trainer"}


def test_a_deck_that_cannot_be_written_holds_up_no_trial(cluster, tmp_path, monkeypatch, pauses):
    pauses.deck = 0.0
    release = threading.Event()
    begun = []
    monkeypatch.setattr(Deck, "publish", staticmethod(lambda: begun.append(1) or release.wait(60)))

    async def search():
        enable_deck(FlyteContextManager.current_context().user_space_params)
        return await quick.train()

    try:
        assert states(Pod(cluster, tmp_path, 0).run(search)) == ["COMPLETE"] * 6
        assert begun == [1], "one write at a time"
    finally:
        release.set()


@pytest.mark.parametrize("endpoint", ["127.0.0.1:81", "dns:///127.0.0.1:81", "https://127.0.0.1", "dns:127.0.0.1"])
def test_the_address_for_pods_is_found_from_each_form_of_an_endpoint(endpoint):
    platform = types.SimpleNamespace(endpoint=endpoint)
    remote = types.SimpleNamespace(config=types.SimpleNamespace(platform=platform))
    launcher = types.SimpleNamespace(connection=types.SimpleNamespace(remote=remote))
    if endpoint.startswith("dns:127"):
        pytest.skip("gRPC takes it, flytekit does not")
    assert Launcher._own_address(launcher) == "127.0.0.1"


def test_without_a_route_to_flyte_the_address_is_asked_for(monkeypatch):
    def no_route(*_):
        raise OSError("Network is unreachable")

    platform = types.SimpleNamespace(endpoint="dns:///flyte.example.com:443")
    remote = types.SimpleNamespace(config=types.SimpleNamespace(platform=platform))
    launcher = types.SimpleNamespace(connection=types.SimpleNamespace(remote=remote))
    monkeypatch.setattr(socket, "socket", no_route)
    with pytest.raises(RefusedError, match="trials_host"):
        Launcher._own_address(launcher)


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_at_sigterm_executions_are_left_while_flyte_starts_the_pod_again(cluster, tmp_path, failures):
    """Flyte gives up after three failures of the system's, whatever the retries of the task are."""
    cluster.instant = lambda execution: None

    async def ended(search):
        task = await until_two_run(cluster, search)
        home = home_module.current_home()
        await asyncio.to_thread(home.sigterm.stop)
        with pytest.raises(asyncio.CancelledError):
            await task

    pod = Pod(cluster, tmp_path, 3)
    pod.node.errors = [execution_pb2.ExecutionError.USER] * (3 - failures)
    pod.node.errors += [execution_pb2.ExecutionError.SYSTEM] * failures
    pod.run(lambda: ended(quick.train()))
    assert [each.running for each in executions(cluster)] == [failures < 2] * 2


@pytest.mark.parametrize("begins_before", [True, False])
def test_a_pod_that_ends_leaves_its_executions_to_a_successor_whatever_it_is_told(cluster, tmp_path, begins_before):
    cluster.instant = lambda execution: None
    pod = Pod(cluster, tmp_path, 0)

    async def ended(search):
        task = await until_two_run(cluster, search)
        home = home_module.current_home()
        (running,) = home.sigterm.searches
        begin = running.end

        def end(*, leave):
            assert leave is begins_before
            if not begins_before:
                pod.node.tasks.append(TASK.RUNNING)
            begin(leave=leave)

        running.end = end
        if begins_before:
            pod.node.tasks.append(TASK.RUNNING)
        await asyncio.to_thread(home.sigterm.stop)
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

    def stop(home):
        wait_until(lambda: len(cluster.running()) == 2)
        home.sigterm.stop()
        left.extend(cluster.running())
        release.set()

    async def main():
        options = Cluster(grace=2.0, on_sigterm="terminate")
        search = asyncio.ensure_future(Optimizer(prepares, 2, 2, cluster=options, progress=False)())
        await asyncio.sleep(0)
        thread = threading.Thread(target=stop, args=(home_module.current_home(),))
        thread.start()
        await asyncio.wait([search])
        await asyncio.to_thread(thread.join)

    left = []
    Pod(cluster, tmp_path, 0).run(main)
    assert not left


@pytest.mark.parametrize(
    ("message", "launches"),
    [
        ("failed to create workflow in propeller etcdserver: request is too large", 1),
        ("failed to create workflow in propeller admission webhook denied the request", 1),
        ("failed to create workflow in propeller Timeout: request did not complete within requested timeout", 2),
        ("failed to create workflow in propeller etcdserver: leader changed", 2),
    ],
)
def test_only_what_may_pass_is_launched_again_where_kubernetes_refuses(cluster, message, launches):
    def outcome(_):
        refused = Failed(code="Internal", message=message, kind=execution_pb2.ExecutionError.SYSTEM)
        return refused if len(cluster.executions) == 1 else Succeeded(outputs(1.0))

    cluster.instant = outcome
    study = there(Optimizer(quick.train.task, 1, 1, progress=False), cluster).run_sync()
    assert len(cluster.executions) == launches
    assert states(study) == ["COMPLETE" if launches == 2 else "FAIL"]
    if "too large" in message:
        assert "FlyteFile" in study.trials[0].user_attrs[ERROR]
