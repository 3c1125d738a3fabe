"""Faults of flyteadmin."""

import itertools
import math
import threading
import time

import flytekit as fl
import grpc
import pytest
import quick
import requests
from flytekit.clients.auth.authenticator import PKCEAuthenticator
from flytekit.clients.auth.exceptions import AccessTokenNotFoundError, AuthenticationError

from optuna_flyte_dsl import ClusterUnavailableError, Float, Optimizer, RefusedError
from optuna_flyte_dsl.study.attributes import EXECUTION_ERROR
from tests.support import wait_until
from tests.support.cluster_searches import PASSING, echo, executions, outputs, there, with_options
from tests.support.eager_pod import Pod
from tests.support.flyteadmin import Failed, Fault, FlyteAdmin, Succeeded
from tests.support.flyteadmin.executions import PHASES
from tests.support.small_searches import states

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


@pytest.mark.newest
def test_a_request_that_is_too_large_is_refused_at_once_with_its_size(cluster):
    search = there(Optimizer(length, 1, 1, progress=False), cluster)
    with pytest.raises(RefusedError, match=r"larger than max \(\d+ vs\. \d+\).*`FlyteFile`"):
        search.run_sync(text="x" * (21 * 2**20))
    assert states(search.study) == ["FAIL"]
    assert cluster.counts["CreateExecution"] <= 1


@pytest.mark.newest
def test_an_error_that_is_too_large_to_be_read_is_told_as_far_as_a_list_shows_it(cluster):
    cluster.instant = lambda execution: Failed("USER:Unknown", "Traceback\n" + "x" * (50 * 2**20))
    study = there(Optimizer(length, 1, 1, progress=False), cluster).run_sync(text="")
    assert states(study) == ["FAIL"]
    assert study.trials[0].user_attrs[EXECUTION_ERROR]["message"] == "Traceback\n" + "x" * 90
    assert cluster.counts["GetExecution"] == 1, "it is no outage that is waited out"


@pytest.mark.newest
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


def test_an_ingress_that_answers_unimplemented_during_a_rollout_is_waited_out(cluster):
    cluster.fail("GetExecutionData", Fault(grpc.StatusCode.UNIMPLEMENTED, times=3))
    assert states(there(quick.train, cluster).run_sync()) == ["COMPLETE"] * 6


def test_a_flyteadmin_that_has_never_answered_is_no_flyteadmin(cluster):
    cluster.fail("*", Fault(grpc.StatusCode.UNIMPLEMENTED, times=1000))
    with pytest.raises(RefusedError, match="UNIMPLEMENTED"):
        there(quick.train, cluster).run_sync()


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


@pytest.mark.parametrize("outage", [0, 2])
def test_a_pod_whose_login_would_wait_for_a_browser_is_told_at_once_what_to_set(cluster, tmp_path, outage):
    faults = [Fault(times=outage)] if outage else []
    cluster.fail("*", *faults, Fault(grpc.StatusCode.UNAUTHENTICATED, times=10_000))
    with pytest.raises(RefusedError, match=r"FLYTE_CREDENTIALS_AUTH_MODE=client_credentials"):
        Pod(cluster, tmp_path, 0).run(quick.train)
    assert sum(cluster.counts.values()) == outage + 1
