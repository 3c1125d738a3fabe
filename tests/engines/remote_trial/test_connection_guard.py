"""How many connections a trial server keeps, and for how long."""

import contextlib
import os
import socket

import grpc
import pytest

from optuna_flyte_dsl._compat.optuna import storage_of, trial_id
from optuna_flyte_dsl.engines.remote_trial import connection_guard as guard_module
from optuna_flyte_dsl.engines.remote_trial import server as server_module
from optuna_flyte_dsl.engines.remote_trial.client import TOKEN_METADATA
from optuna_flyte_dsl.engines.remote_trial.server import TrialServer
from tests.support import wait_until
from tests.support._compat import api_pb2, api_pb2_grpc
from tests.support.strangers import calls_without_a_token


def open_connections(address, count):
    host, _, port = address.rpartition(":")
    return [socket.create_connection((host, int(port)), timeout=10) for _ in range(count)]


def is_closed(connection):
    connection.settimeout(10)
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(4096):  # gRPC's greeting may come first
            pass
    return True


def test_connections_without_a_token_use_a_bounded_number_of_files(study, server, monkeypatch):
    trial = server.serve(study.ask()).open()
    limit = server._guard._limit = 20
    accepted = []
    connect = server._guard._connect
    monkeypatch.setattr(server._guard, "_connect", lambda name: accepted.append(name) or connect(name))

    def n_files():
        return len(os.listdir("/proc/self/fd"))

    before = n_files()
    with contextlib.ExitStack() as connections:
        for connection in open_connections(server.address, 100):
            connections.enter_context(connection)
        wait_until(lambda: len(accepted) == 100 and len(server._guard._strangers) == limit)
        trial.report(0.5, 0)
        # Each has an end here, one to the guard, and two between the guard and gRPC. gRPC closes its end of a
        # connection a moment after the guard.
        wait_until(lambda: n_files() <= before + 100 + 3 * limit + 10)
        other = server.serve(study.ask()).open()
        other.report(0.5, 0)
        trial.report(0.5, 1)
        assert [list(each.intermediate_values) for each in study.trials] == [[0, 1], [0]]
    wait_until(lambda: len(server._guard._clients) <= 2)


def test_a_connection_that_shows_no_token_is_closed_in_time(study, server, pauses):
    pauses.server_stranger = 0.5
    (connection,) = open_connections(server.address, 1)
    trial = server.serve(study.ask()).open()
    trial.report(0.5, 0)
    assert is_closed(connection)
    connection.close()
    wait_until(lambda: not server._guard._strangers)
    wait_until(lambda: len(server._guard._clients) == 1)  # the trial's own
    trial.report(0.5, 1)


def test_the_guard_passes_on_what_is_larger_than_a_sockets_buffer(study, server):
    trial = server.serve(study.ask()).open()
    note = "x" * 3_000_000
    trial.set_user_attr("note", note)
    assert study.trials[0].user_attrs["note"] == note
    assert trial.user_attrs["note"] == note


def test_the_guard_closes_all_connections_with_the_server(study):
    server = TrialServer(storage_of(study), study.study_name)
    connections = open_connections(server.address, 3)
    wait_until(lambda: len(server._guard._clients) == 3)
    server.close()
    server.close()
    assert all(is_closed(connection) for connection in connections)
    for connection in connections:
        connection.close()


def test_a_connection_without_a_token_has_few_calls_judged_and_is_closed(study, server, monkeypatch):
    judged = []
    refusal = server_module._Gate._refusal
    monkeypatch.setattr(server_module._Gate, "_refusal", lambda *given: judged.append(1) or refusal(*given))
    (connection,) = open_connections(server.address, 1)
    connection.settimeout(0.5)
    with contextlib.suppress(TimeoutError, ConnectionError):  # nobody reads what is left, or the connection is closed
        connection.sendall(calls_without_a_token(50_000))
    assert is_closed(connection)
    assert 1 <= len(judged) < 100
    connection.close()
    server.serve(study.ask()).open().report(0.5, 0)


@pytest.mark.newest
def test_a_trial_has_a_bounded_number_of_connections(study, server):
    trial = study.ask()
    handle = server.serve(trial)
    token = ((TOKEN_METADATA, f"{trial_id(trial)}:{server.token_of(trial_id(trial))}"),)
    channels = []
    first = handle.open()
    oldest = set(server._guard._clients)
    assert len(oldest) == 1
    try:
        for _ in range(60):  # these connections are closed at once, and count no more
            with grpc.insecure_channel(handle.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                request = api_pb2.GetTrialRequest(trial_id=trial_id(trial))
                api_pb2_grpc.StorageServiceStub(channel).GetTrial(request, metadata=token, timeout=30)
        first.report(0.5, 0)
        assert set(server._guard._clients) >= oldest
        for _ in range(60):
            channel = grpc.insecure_channel(
                handle.address, options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
            )
            channels.append(channel)
            stub = api_pb2_grpc.StorageServiceStub(channel)
            request = api_pb2.GetTrialRequest(trial_id=trial_id(trial))
            stub.GetTrial(request, metadata=token, timeout=30)
        wait_until(lambda: len(server._guard._clients) <= guard_module._CONNECTIONS_OF_A_TRIAL)
    finally:
        for channel in channels:
            channel.close()
