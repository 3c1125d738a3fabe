"""Trials elsewhere: what goes there, who is answered to, and what is refused."""

import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import pickle
import socket
import struct
import tempfile
import threading

import conformance
import flytekit as fl
import grpc
import optuna
import psutil
import pytest
import trustme
from flytekit.configuration import Image, ImageConfig
from flytekit.core.context_manager import FlyteContextManager
from flytekit.core.type_engine import TypeEngine

from optuna_flyte_dsl import Cluster, Float, InvalidOptionError, Minimize, OptunaFlyteError, RefusedError, optimize
from optuna_flyte_dsl import _pauses as pauses_module
from optuna_flyte_dsl._compat.optuna import storage_of, trial_id
from optuna_flyte_dsl.engines.remote_trial import connection_guard as guard_module
from optuna_flyte_dsl.engines.remote_trial import server as server_module
from optuna_flyte_dsl.engines.remote_trial.client import TOKEN_METADATA, TRIALS_SERVICE
from optuna_flyte_dsl.engines.remote_trial.endpoint import ALL_INTERFACES, Endpoint
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV, TrialHandle, using_pruner
from optuna_flyte_dsl.engines.remote_trial.server import TrialServer
from optuna_flyte_dsl.study.attributes import ERROR, EXECUTIONS, LOST, OUTCOME, OWNER
from tests.support import wait_until
from tests.support._compat import api_pb2, api_pb2_grpc
from tests.support.cluster_searches import outputs, states, with_options
from tests.support.flyteadmin import FlyteAdmin
from tests.support.flyteadmin.executions import Failed, Succeeded

IMAGES = ImageConfig(Image("default", "example.com/image", "1"))


@pytest.fixture
def study():
    return optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=1), pruner=optuna.pruners.ThresholdPruner(upper=0.5)
    )


@pytest.fixture
def server(study, monkeypatch, request):
    """Return a server of the study's trials, at the endpoint that a test may give."""
    server = TrialServer(storage_of(study), study.study_name, endpoint=getattr(request, "param", None))
    serve = server.serve

    def serve_and_show(trial):
        monkeypatch.setenv(TOKEN_ENV, server.token_of(trial_id(trial)))
        return serve(trial)

    server.serve = serve_and_show
    yield server
    server.close()


def test_a_trial_elsewhere_samples_reports_and_is_pruned_as_here(study, server):
    trial = study.ask()
    there = server.serve(trial).open()
    assert there.number == trial.number
    x = there.suggest_float("x", 0, 1)
    kind = there.suggest_categorical("kind", ["a", None, 3])
    assert there.suggest_float("x", 0, 1) == x
    there.report(0.25, 0)
    assert not there.should_prune()
    there.report(0.75, 1)
    assert there.should_prune()
    there.set_user_attr("note", {"a": [1]})
    stored = study.trials[0]
    assert stored.params == {"x": x, "kind": kind}
    assert stored.intermediate_values == {0: 0.25, 1: 0.75}
    assert stored.user_attrs == {"note": {"a": [1]}}
    assert there.study.direction is study.direction


class SlowStorage(optuna.storages.InMemoryStorage):
    """Writes reports slowly, and tells how many writes have begun."""

    def __init__(self):
        super().__init__()
        self.begun = 0
        self.go_on = threading.Event()

    def set_trial_intermediate_value(self, *args):
        super().set_trial_intermediate_value(*args)
        self.begun += 1
        self.go_on.wait(30)


@pytest.fixture
def slow(monkeypatch):
    """Return a study in a slow storage, the storage, the server of its trials, and a trial elsewhere."""
    storage = SlowStorage()
    study = optuna.create_study(storage=storage, pruner=optuna.pruners.NopPruner())
    server = TrialServer(storage, study.study_name)
    trial = study.ask()
    monkeypatch.setenv(TOKEN_ENV, server.token_of(trial_id(trial)))
    yield study, storage, server, server.serve(trial).open()
    server.close()


def cut_all(server):
    """Reset all connections of a server's clients."""
    for pipe in list(server._guard._clients):
        server._guard._loop.call_soon_threadsafe(pipe.close)


def cut_all_and_wait_for_the_repeated_call(server):
    """Cut the connections during a call, until the call is repeated over another connection."""
    repeated = threading.Event()
    run_once = server._gate._run_once

    def noting(*args):
        repeated.set()
        return run_once(*args)

    server._gate._run_once = noting
    cut_all(server)
    assert repeated.wait(60)


def test_a_write_that_is_repeated_overwrites_nothing_that_was_written_since(slow, monkeypatch):
    study, storage, server, there = slow
    late = threading.Event()
    write = storage.set_trial_user_attr

    def write_late(trial, key, value):
        if value == "old":
            late.wait(30)
        write(trial, key, value)

    monkeypatch.setattr(storage, "set_trial_user_attr", write_late)

    def write_twice():
        there.set_user_attr("best", "old")
        there.set_user_attr("best", "new")

    thread = threading.Thread(target=write_twice)
    thread.start()
    wait_until(lambda: server._gate._running)
    cut_all_and_wait_for_the_repeated_call(server)
    late.set()
    thread.join()
    assert study.trials[0].user_attrs["best"] == "new"


def test_a_report_whose_connection_is_lost_is_made_again(slow):
    study, storage, server, there = slow
    thread = threading.Thread(target=there.report, args=(0.5, 3))
    thread.start()
    wait_until(lambda: storage.begun == 1)
    cut_all_and_wait_for_the_repeated_call(server)
    storage.go_on.set()
    thread.join()
    there.set_user_attr("after", 1)
    assert study.trials[0].intermediate_values == {3: 0.5}
    assert study.trials[0].user_attrs == {"after": 1}
    assert storage.begun == 1, "the repeated report waits for the response of the first one"


def test_a_suggestion_whose_connection_is_lost_while_it_is_drawn_is_drawn_once(study, server):
    drawn, go_on = [], threading.Event()

    class Slow(optuna.samplers.RandomSampler):
        def sample_independent(self, *args):
            drawn.append(super().sample_independent(*args))
            go_on.wait(30)
            return drawn[-1]

    study.sampler = Slow()
    there = server.serve(study.ask()).open()
    got = []
    thread = threading.Thread(target=lambda: got.append(there.suggest_float("x", 0, 1)))
    thread.start()
    wait_until(lambda: drawn)
    cut_all_and_wait_for_the_repeated_call(server)
    go_on.set()
    thread.join()
    assert got == drawn
    assert study.trials[0].params == {"x": drawn[0]}


@pytest.mark.newest
def test_a_trial_may_make_more_calls_at_once_than_are_served(slow):
    study, storage, _, there = slow
    steps = range(server_module._CALLS_OF_A_TRIAL + 6)
    with concurrent.futures.ThreadPoolExecutor(len(steps)) as pool:
        reports = [pool.submit(there.report, 0.5, step) for step in steps]
        wait_until(lambda: storage.begun == server_module._CALLS_OF_A_TRIAL)
        assert not any(report.done() for report in reports)
        storage.go_on.set()
        for report in reports:
            report.result()
    assert len(study.trials[0].intermediate_values) == len(steps)


def test_a_call_may_last_as_long_as_an_outage_of_the_storage():
    assert pauses_module.pauses.server_call > pauses_module.pauses.storage_patience


def test_an_attribute_that_is_too_large_to_be_sent_is_refused_with_its_size_and_the_cure(study, server):
    there = server.serve(study.ask()).open()
    with pytest.raises(OptunaFlyteError, match=r"too large to be sent.*5000\d\d\d vs. 4194304.*store the file's path"):
        there.set_user_attr("weights", "x" * 5_000_000)
    there.set_user_attr("weights", "x")

    @optimize(n_trials=2, executor="process", progress=False)
    def train(trial: optuna.Trial, x: Float(0, 1)):
        if trial.number == 0:
            trial.set_user_attr("weights", "x" * 5_000_000)
        return x

    failed, complete = train.run_sync().trials
    assert "Write it to a file" in failed.user_attrs[ERROR]
    assert complete.state.name == "COMPLETE"


def test_enqueued_parameters_hold_elsewhere_too(study, server):
    study.enqueue_trial({"x": 0.125})
    assert server.serve(study.ask()).open().suggest_float("x", 0, 1) == 0.125


def test_nobody_without_the_token_is_answered_to(study, server, monkeypatch):
    handle = server.serve(study.ask())
    with grpc.insecure_channel(handle.address) as channel:
        for metadata in ((), ((TOKEN_METADATA, "wrong"),)):
            with pytest.raises(grpc.RpcError) as error:
                api_pb2_grpc.StorageServiceStub(channel).GetTrial(
                    api_pb2.GetTrialRequest(trial_id=handle.trial), metadata=metadata
                )
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary("/optuna_flyte_dsl.Trials/Prune")(b'{"trial": 0}', metadata=metadata)
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    monkeypatch.delenv(TOKEN_ENV)
    with pytest.raises(OptunaFlyteError, match=f"'{TOKEN_ENV}' must hold the token of the trial, but it is not set"):
        handle.open()


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("DeleteStudy", api_pb2.DeleteStudyRequest(study_id=0)),
        ("CreateNewTrial", api_pb2.CreateNewTrialRequest(study_id=0, template_trial_is_none=True)),
        ("SetTrialStateValues", api_pb2.SetTrialStateValuesRequest(trial_id=0, state=1)),
        ("GetAllStudies", api_pb2.GetAllStudiesRequest()),
    ],
)
def test_a_trial_can_do_no_more_than_it_needs(study, server, method, request_):
    handle = server.serve(study.ask())
    metadata = ((TOKEN_METADATA, f"{handle.trial}:{server.token_of(handle.trial)}"),)
    with grpc.insecure_channel(server.address) as channel:
        call = getattr(api_pb2_grpc.StorageServiceStub(channel), method)
        with pytest.raises(grpc.RpcError) as error:
            call(request_, metadata=metadata)
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert len(study.trials) == 1


def calls_of(channel):
    stub = api_pb2_grpc.StorageServiceStub(channel)
    raw = channel.unary_unary
    value = json.dumps({"state": "COMPLETE", "values": [0.0]})
    return {
        "read a trial": lambda trial, study: (stub.GetTrial, api_pb2.GetTrialRequest(trial_id=trial)),
        "report": lambda trial, study: (
            stub.SetTrialIntermediateValue,
            api_pb2.SetTrialIntermediateValueRequest(trial_id=trial, step=0, intermediate_value=1.0),
        ),
        "note": lambda trial, study: (
            stub.SetTrialUserAttribute,
            api_pb2.SetTrialUserAttributeRequest(trial_id=trial, key="note", value=value),
        ),
        "read a study": lambda trial, study: (
            stub.GetStudyUserAttributes,
            api_pb2.GetStudyUserAttributesRequest(study_id=study),
        ),
        "suggest": lambda trial, study: (
            raw("/optuna_flyte_dsl.Trials/Suggest"),
            json.dumps(
                {
                    "trial": trial,
                    "name": "x",
                    "distribution": optuna.distributions.distribution_to_json(
                        optuna.distributions.FloatDistribution(0, 1)
                    ),
                }
            ).encode(),
        ),
        "prune": lambda trial, study: (raw("/optuna_flyte_dsl.Trials/Prune"), json.dumps({"trial": trial}).encode()),
    }


@pytest.mark.parametrize("what", list(calls_of(grpc.insecure_channel("127.0.0.1:1"))))
def test_a_token_is_good_for_its_own_trial_and_study_only(study, server, what):
    own, other = server.serve(study.ask()).trial, server.serve(study.ask()).trial
    storage = storage_of(study)
    study_id = storage.get_study_id_from_name(study.study_name)
    foreign = storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], "foreign")
    metadata = ((TOKEN_METADATA, f"{own}:{server.token_of(own)}"),)
    with grpc.insecure_channel(server.address) as channel:
        call = calls_of(channel)[what]
        method, message = call(own, study_id)
        method(message, metadata=metadata)
        before = study.trials[1]
        method, message = call(other, foreign)
        with pytest.raises(grpc.RpcError) as error:
            method(message, metadata=metadata)
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
        # Nor does the token open another trial under this trial's name.
        with pytest.raises(grpc.RpcError) as error:
            method(message, metadata=((TOKEN_METADATA, f"{other}:{server.token_of(own)}"),))
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert study.trials[1] == before


@pytest.mark.parametrize("key", [ERROR, OUTCOME, EXECUTIONS, f"{OWNER}other", LOST])
def test_the_attributes_of_the_library_cannot_be_forged(study, server, key):
    there = server.serve(study.ask()).open()
    with pytest.raises(grpc.RpcError) as error:
        there.set_user_attr(key, {"state": "COMPLETE", "values": [0.0]})
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.RpcError):
        there.storage.set_trial_system_attr(trial_id(there), key, True)
    assert not study.trials[0].user_attrs
    assert not study.trials[0].system_attrs


def test_the_study_of_a_trial_in_another_process_is_refused_with_the_cure(study, server):
    there = server.serve(study.ask()).open()
    with pytest.raises(grpc.RpcError, match="Pass what it needs as an argument"):
        _ = there.study.trials


@pytest.mark.parametrize("key", ["cma:optimizer:0", "fixed_params", "grid_id", "mine"])
def test_a_trials_process_cannot_write_what_the_searching_process_believes(study, server, key):
    there = server.serve(study.ask()).open()
    with pytest.raises(grpc.RpcError, match="set_user_attr") as error:
        there.storage.set_trial_system_attr(trial_id(there), key, "80049500")
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert not study.trials[0].system_attrs


@pytest.mark.parametrize("key", ["constraints:memory", "artifacts:1", "terminator:cv_scores"])
def test_a_trials_process_writes_the_attributes_that_optuna_writes_where_an_objective_runs(study, server, key):
    there = server.serve(study.ask()).open()
    there.storage.set_trial_system_attr(trial_id(there), key, 1.0)
    assert study.trials[0].system_attrs == {key: 1.0}


def open_calls(address, count, metadata):
    """Open calls that send their headers, and never a message."""
    channels = [grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(count)]
    release = threading.Event()

    def silent():
        release.wait(60)
        yield from ()

    calls = [
        channel.stream_unary("/optuna_flyte_dsl.Trials/Prune").future(silent(), metadata=metadata)
        for channel in channels
        for _ in range(5)
    ]
    return channels, calls, release


def test_calls_without_a_token_hold_up_nobody(study, server):
    there = server.serve(study.ask()).open()
    channels, calls, release = open_calls(server.address, 40, ())
    try:
        wait_until(lambda: sum(call.done() for call in calls) == len(calls))
        codes = {call.code() for call in calls}
        assert grpc.StatusCode.UNAUTHENTICATED in codes
        # A connection is closed a second after its first refusal.
        assert codes <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE}
        there.report(0.5, 0)
    finally:
        release.set()
        for channel in channels:
            channel.close()
    assert study.trials[0].intermediate_values == {0: 0.5}


def test_a_trial_that_sends_no_messages_holds_up_no_other_trial(study, server, pauses):
    pauses.server_check, pauses.server_silence = 0.05, 0.2
    bad = server.serve(study.ask()).trial
    there = server.serve(study.ask()).open()
    channels, calls, release = open_calls(server.address, 10, ((TOKEN_METADATA, f"{bad}:{server.token_of(bad)}"),))
    try:
        there.report(0.5, 0)
        wait_until(lambda: sum(call.done() for call in calls) == len(calls))
        assert {call.code() for call in calls} <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}
    finally:
        release.set()
        for channel in channels:
            channel.close()


def test_a_pod_that_cannot_reach_its_search_says_so(pauses, monkeypatch):
    pauses.server_reach = 0.1
    monkeypatch.setenv(TOKEN_ENV, "token")
    with pytest.raises(OptunaFlyteError, match=r"cannot reach its search at 127\.0\.0\.1:1\. Let a network policy"):
        TrialHandle("127.0.0.1:1", 0, "s").open()


def test_a_trial_that_is_over_is_answered_to_no_more(study, server):
    trial = study.ask()
    there = server.serve(trial).open()
    server.forget(trial)
    with pytest.raises(grpc.RpcError) as error:
        there.suggest_float("x", 0, 1)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_what_flyte_carries_holds_no_secret(server, study):
    handle = server.serve(study.ask())
    context = FlyteContextManager.current_context()
    kind = TypeEngine.to_literal_type(optuna.Trial)
    text = TypeEngine.to_literal(context, handle, optuna.Trial, kind).scalar.primitive.string_value
    public = {"address", "trial", "study", "token", "search", "shares_secret", "certificate", "certificate_name"}
    assert set(json.loads(text)) == public
    assert server.token_of(handle.trial) not in text + repr(handle) + str(pickle.dumps(handle))
    assert json.loads(text)["token"] == TOKEN_ENV, "the name of the variable"


def test_a_trial_of_this_process_stays_itself(study):
    seen = []

    @fl.task
    def test_looks(trial: optuna.Trial, x: float) -> float:
        seen.append(trial)
        return x

    trial = study.ask()
    assert test_looks(trial=trial, x=1.0) == 1.0
    assert seen == [trial]
    fixed = optuna.trial.FixedTrial({"x": 0.5})
    assert conformance.prunes.task.task_function.__name__ == "prunes"

    @fl.task
    def test_reads(trial: optuna.trial.BaseTrial) -> float:
        return trial.suggest_float("x", 0, 1)

    assert test_reads(trial=fixed) == 0.5
    with pytest.raises(Exception, match=r"An `optuna.Trial` is needed, but got 3"):
        test_looks(trial=3, x=1.0)


def test_a_trial_may_reach_its_storage_by_itself(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=url, study_name="s")
    trial = study.ask()
    handle = TrialHandle("env:THE_STORAGE", trial_id(trial), "s")
    with pytest.raises(OptunaFlyteError, match="'THE_STORAGE' must hold the storage's URL, but it is not set here"):
        handle.open()
    monkeypatch.setenv("THE_STORAGE", url)
    assert "sqlite" not in handle.to_text()
    with using_pruner(lambda: optuna.pruners.ThresholdPruner(upper=0.5)):
        there = handle.open()
    there.report(0.75, 0)
    assert there.should_prune()
    assert study.trials[0].intermediate_values == {0: 0.75}


@optimize(concurrency=2, n_trials=3, progress=False)
@fl.task
def takes(trial: optuna.Trial, x: Float(0, 1)) -> Minimize:
    return x


@pytest.fixture
def admin(tmp_path):
    def reports(execution):
        handle = TrialHandle.from_text(execution.inputs.literals["trial"].scalar.primitive.string_value)
        variables = {pair.key: pair.value for pair in execution.spec.envs.values}
        with _environment(variables):
            trial = handle.open()
            trial.report(trial.number, 0)
            trial.set_user_attr("pod", True)
        return Succeeded(outputs(execution.inputs.literals["x"].scalar.primitive.float_value))

    with FlyteAdmin(tmp_path / "flyte", instant=reports) as admin:
        yield admin


_lock = threading.Lock()


class _environment:
    def __init__(self, variables):
        self.variables = variables

    def __enter__(self):
        _lock.acquire()
        os.environ.update(self.variables)

    def __exit__(self, *_):
        for name in self.variables:
            os.environ.pop(name, None)
        _lock.release()


def test_pods_report_to_the_process_that_searches(admin, caplog):
    caplog.set_level(logging.DEBUG, logger="optuna_flyte_dsl")
    optuna.logging.set_verbosity(optuna.logging.INFO)
    study = run_on(admin, takes)
    assert states(study) == ["COMPLETE"] * 3
    assert [trial.intermediate_values for trial in study.trials] == [{0: number} for number in range(3)]
    assert all(trial.user_attrs["pod"] for trial in study.trials)
    tokens = {
        pair.value for each in admin.executions.values() for pair in each.spec.envs.values if pair.key == TOKEN_ENV
    }
    assert len(tokens) == 3, "each trial has its own"
    said = "".join(record.getMessage() for record in caplog.records)
    for token in tokens:
        assert token not in said + "".join(map(str, study.trials))
    assert "the connection is not encrypted" in said
    address = TrialHandle.from_text(
        next(iter(admin.executions.values())).inputs.literals["trial"].scalar.primitive.string_value
    )
    with grpc.insecure_channel(address.address) as channel, pytest.raises(grpc.FutureTimeoutError):
        grpc.channel_ready_future(channel).result(timeout=0.5)  # it is closed with the search


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
    before = len(os.listdir("/proc/self/fd"))
    connections = open_connections(server.address, 100)
    wait_until(lambda: len(server._guard._strangers) == limit)
    trial.report(0.5, 0)
    # Each has an end here, one to the guard, and two between the guard and gRPC.
    assert len(os.listdir("/proc/self/fd")) <= before + 100 + 3 * limit + 10
    other = server.serve(study.ask()).open()
    other.report(0.5, 0)
    trial.report(0.5, 1)
    assert [list(each.intermediate_values) for each in study.trials] == [[0, 1], [0]]
    for connection in connections:
        connection.close()
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


def calls_without_a_token(count):
    """Return the bytes of a client of gRPC that begins so many calls on one connection."""

    def frame(kind, flags, stream, payload):
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

    def header(name, value):
        return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()

    path = header(":path", f"/{TRIALS_SERVICE}/Suggest")
    headers = header(":method", "POST") + header(":scheme", "http") + path + header(":authority", "x")
    headers += header("content-type", "application/grpc") + header("te", "trailers")
    greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
    return greeting + b"".join(frame(1, 4, 1 + 2 * number, headers) for number in range(count))


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


@pytest.fixture
def certificate(tmp_path):
    """Make a certificate for the name "search.example.com"; return the paths of it, of its key, and of another one."""
    authority = trustme.CA()
    made = authority.issue_cert("search.example.com")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    with (tmp_path / "certificate.pem").open("wb") as file:
        file.writelines(blob.bytes() for blob in made.cert_chain_pems)
    authority.issue_cert("search.example.com").private_key_pem.write_to_path(tmp_path / "other.pem")
    return {name: str(tmp_path / f"{name}.pem") for name in ("certificate", "key", "other")}


def test_with_a_certificate_what_a_trial_sends_is_encrypted(admin, certificate, caplog):
    caplog.set_level(logging.DEBUG, logger="optuna_flyte_dsl")
    optuna.logging.set_verbosity(optuna.logging.INFO)
    options = {"trials_certificate": certificate["certificate"], "trials_key": certificate["key"]}
    study = run_on(admin, takes, **options, trials_certificate_name="search.example.com")
    assert states(study) == ["COMPLETE"] * 3
    assert [trial.intermediate_values for trial in study.trials] == [{0: number} for number in range(3)]
    assert "the connection is encrypted" in "".join(record.getMessage() for record in caplog.records)


def test_a_trial_trusts_the_searchs_certificate_alone(study, certificate, monkeypatch, pauses):
    pauses.server_reach = 1.0
    files = {name: pathlib.Path(path).read_bytes() for name, path in certificate.items()}
    encrypted = Endpoint(certificate=files["certificate"], key=files["key"], certificate_name="search.example.com")
    server = TrialServer(storage_of(study), study.study_name, endpoint=encrypted)
    trial = study.ask()
    handle = server.serve(trial)
    monkeypatch.setenv(TOKEN_ENV, server.token_of(trial_id(trial)))
    assert handle.open().number == 0
    other = trustme.CA().issue_cert("search.example.com").cert_chain_pems[0].bytes().decode()
    for wrong in ({"certificate": ""}, {"certificate": other}, {"certificate_name": "other.example.com"}):
        with pytest.raises(OptunaFlyteError, match=r"cannot reach its search.*certificate must be valid"):
            dataclasses.replace(handle, **wrong).open()
    server.close()


def test_wrong_certificates_and_taken_ports_are_named(admin, certificate, tmp_path):
    options = {"trials_certificate": str(tmp_path / "missing.pem"), "trials_key": certificate["key"]}
    with pytest.raises(RefusedError, match=r"`trials_certificate` of `Cluster` must be a file that this process can"):
        run_on(admin, takes, **options)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RefusedError, match="Choose another `Cluster"):
        run_on(admin, takes, trials_host="127.0.0.1", trials_port=taken.getsockname()[1])
    options = {"trials_certificate": certificate["certificate"], "trials_key": certificate["other"]}
    with pytest.raises(RefusedError, match=r"cannot use its certificate\. Check that `trials_key` is the key"):
        run_on(admin, takes, **options)


def test_a_server_listens_only_where_pods_reach_it(study):
    here = {"127.0.0.1", "127.0.0.2", "127.0.0.3", "::1"}
    assert listening(study, Endpoint(), here) == {"127.0.0.1"}
    assert listening(study, Endpoint("127.0.0.2", interface="127.0.0.2"), here) == {"127.0.0.2"}
    assert listening(study, Endpoint("::1", interface="::1"), here) == {"::1"}
    assert listening(study, Endpoint("vpn.example.com", interface=ALL_INTERFACES), here) == here


def listening(study, endpoint, addresses):
    """Return the addresses at which a server takes connections, by the one port that it opens; and close it."""
    before = ports_of_this_process()
    server = TrialServer(storage_of(study), study.study_name, endpoint=endpoint)
    try:
        assert ports_of_this_process() - before == {int(server.address.rpartition(":")[2])}
        return {each for each in addresses if takes_connections(each, int(server.address.rpartition(":")[2]))}
    finally:
        server.close()


def ports_of_this_process():
    connections = psutil.Process().net_connections("tcp")
    return {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}


def takes_connections(host, port):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
        client.settimeout(1)
        return client.connect_ex((host, port)) == 0


@pytest.mark.parametrize("server", [Endpoint("::1", interface="::1")], indirect=True)
def test_a_trial_reports_over_ipv6(study, server):
    assert server.address.startswith("[::1]:")
    server.serve(study.ask()).open().report(0.5, 3)
    assert study.trials[0].intermediate_values == {3: 0.5}


@pytest.mark.parametrize("temporary", ["short", "long" * 30])
def test_a_server_makes_a_folder_of_its_own_and_removes_it(study, monkeypatch, tmp_path, temporary):
    """The path of a Unix socket may have a hundred characters only."""
    made, mkdtemp = [], tempfile.mkdtemp
    (tmp_path / temporary).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / temporary))
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **kwargs: made.append(mkdtemp(**kwargs)) or made[-1])
    server = TrialServer(storage_of(study), study.study_name)
    (folder,) = map(pathlib.Path, made)
    monkeypatch.setenv(TOKEN_ENV, server.token_of(0))
    server.serve(study.ask()).open().report(0.5, 0)
    assert folder.stat().st_mode & 0o77 == 0
    assert [each.name for each in folder.iterdir()] == ["server"]
    server.close()
    assert not folder.exists()


def test_a_server_without_a_temporary_folder_says_so(study, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(RefusedError, match=r"cannot make one: .*Read-only file system. Set the .* TMPDIR"):
        TrialServer(storage_of(study), study.study_name)


def run_on(admin, objective, **options):
    return with_options(objective, **options).on(admin.remote(), image_config=IMAGES).run_sync()


def test_the_token_may_come_from_a_secret_of_the_user(admin, monkeypatch):
    with pytest.raises(RefusedError, match="'MY_TOKEN' must hold the token that pods show, but it is not set here"):
        run_on(admin, takes, trials_token_env="MY_TOKEN")
    monkeypatch.setenv("MY_TOKEN", "a-secret-of-the-users")
    admin.executions.clear()
    study = run_on(admin, takes, trials_token_env="MY_TOKEN", trials_host="127.0.0.1")
    assert states(study) == ["COMPLETE"] * 3
    for execution in admin.executions.values():
        assert not [pair for pair in execution.spec.envs.values if pair.value == "a-secret-of-the-users"]


def test_a_bare_tasks_pruning_shows_as_pruned_in_the_study(admin):
    admin.instant = lambda execution: Failed(
        "USER:Unknown", "Traceback\n\nMessage:\n\n    TrialPruned: at step 3\n\nUser error."
    )
    assert set(states(run_on(admin, takes))) == {"PRUNED"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials_port": 70000}, "a port from 0 to 65535"),
        ({"trials_host": 3}, "`trials_host` of `Cluster` must be a string"),
        ({"trials_key": "a"}, r"`trials_key` of `Cluster` needs `trials_certificate` too: .* Write `Cluster\("),
        ({"trials_certificate": "a"}, "`trials_certificate` of `Cluster` needs `trials_key` too"),
        ({"trials_certificate_name": "a"}, "`trials_certificate_name` of `Cluster` needs `trials_certificate`"),
        ({"console_url": "flyte.example.com"}, "`console_url` of `Cluster` must be an address, such as 'https://"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InvalidOptionError, match=message):
        Cluster(**options)


def test_the_calls_that_a_trial_may_make_are_calls_of_optunas_storage_proxy():
    """A new version that moves one must fail here, and say so."""
    service = api_pb2.DESCRIPTOR.services_by_name["StorageService"]
    assert {method.name for method in service.methods} >= server_module._ALLOWED


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
