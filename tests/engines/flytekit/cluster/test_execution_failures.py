"""Executions that fail."""

import itertools
import threading

import grpc
import pytest
import quick
from flyteidl.core import execution_pb2

from optuna_flyte_dsl import Optimizer
from optuna_flyte_dsl.study.attributes import ERROR, EXECUTION_ERROR, EXECUTIONS
from tests.support import wait_until
from tests.support.cluster_searches import PASSING, echo, outputs, there
from tests.support.flyteadmin import Failed, Fault, Succeeded
from tests.support.flyteadmin.executions import PHASES
from tests.support.small_searches import states


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


@pytest.mark.parametrize("reads", [1, 10_000])
def test_a_failure_that_a_replica_of_the_database_does_not_show_yet_is_read_again(cluster, reads):
    cluster.stale_reads = reads
    cluster.instant = lambda execution: Failed("USER:ValueError", "x" * 500)
    (trial,) = there(Optimizer(quick.train.task, 1, 1, progress=False), cluster).run_sync().trials
    found = trial.user_attrs[EXECUTION_ERROR]
    # What the list has shown is kept, if nothing newer can be read.
    assert (found["phase"], found["message"]) == ("FAILED", "x" * (500 if reads == 1 else 100))


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


@pytest.mark.parametrize("code", PASSING, ids=lambda code: code.name)
def test_a_passing_fault_while_a_failure_is_read_is_waited_out(cluster, code):
    cluster.instant = lambda execution: Failed(message="the whole message" * 20)
    cluster.fail("GetExecution", Fault(code, times=6))
    study = there(quick.train, cluster).run_sync()
    assert {trial.user_attrs[EXECUTION_ERROR]["message"] for trial in study.trials} == {"the whole message" * 20}


POST = 'Post "https://10.96.0.1:443/apis/flyte.lyft.com/v1alpha1/namespaces/project-development/flyteworkflows"'
"""How a failed request of client-go begins: longer than what flyteadmin lists of a message."""


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
    assert len(cluster.executions) == cluster.counts["CreateExecution"] == 11
    assert cluster.overwritten == [], "no name is asked for that is known to be taken"
    assert not cluster.counts["TerminateExecution"]


def test_an_execution_whose_data_is_gone_is_a_failed_trial(cluster):
    cluster.fail("GetExecutionData", Fault(grpc.StatusCode.NOT_FOUND, times=1))
    study = there(quick.train, cluster).run_sync()
    assert sorted(states(study)) == ["COMPLETE"] * 5 + ["FAIL"]
    (failed,) = (trial for trial in study.trials if trial.state.name == "FAIL")
    assert failed.user_attrs[EXECUTION_ERROR]["code"] == "NotFound"


@pytest.mark.parametrize(
    ("message", "launches"),
    [
        ("failed to create workflow in propeller etcdserver: request is too large", 1),
        ("failed to create workflow in propeller admission webhook denied the request", 1),
        ("failed to create workflow in propeller Timeout: request did not complete within requested timeout", 2),
        ("failed to create workflow in propeller etcdserver: leader changed", 2),
        (f"failed to create workflow in propeller {POST}: dial tcp 10.96.0.1:443: connect: connection refused", 2),
        (f"failed to create workflow in propeller {POST}: unexpected EOF", 2),
        (f"failed to create workflow in propeller {POST}: x509: certificate signed by unknown authority", 1),
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
