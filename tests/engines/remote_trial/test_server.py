"""Which calls of trials in other processes are answered, and which are refused."""

import json
import pathlib
import tempfile
import threading

import grpc
import optuna
import pytest

from optuna_flyte_dsl import OptunaFlyteError, RefusedError
from optuna_flyte_dsl._compat.optuna import storage_of, trial_id
from optuna_flyte_dsl.engines.remote_trial import server as server_module
from optuna_flyte_dsl.engines.remote_trial.client import TOKEN_METADATA
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV
from optuna_flyte_dsl.engines.remote_trial.server import TrialServer
from optuna_flyte_dsl.study.attributes import ERROR, EXECUTIONS, LOST, OUTCOME, OWNER
from tests.support import wait_until
from tests.support._compat import api_pb2, api_pb2_grpc


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


def test_a_trial_that_is_over_is_answered_to_no_more(study, server):
    trial = study.ask()
    there = server.serve(trial).open()
    server.forget(trial)
    with pytest.raises(grpc.RpcError) as error:
        there.suggest_float("x", 0, 1)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


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


def test_the_calls_that_a_trial_may_make_are_calls_of_optunas_storage_proxy():
    """A new version that moves one must fail here, and say so."""
    service = api_pb2.DESCRIPTOR.services_by_name["StorageService"]
    assert {method.name for method in service.methods} >= server_module._ALLOWED
