"""Where trials in pods reach their search, and whom they trust."""

import dataclasses
import logging
import os
import pathlib
import socket
import threading

import flytekit as fl
import grpc
import optuna
import psutil
import pytest
import trustme
from flytekit.configuration import Image, ImageConfig

from optuna_flyte_dsl import Float, Minimize, OptunaFlyteError, RefusedError, optimize
from optuna_flyte_dsl._compat.optuna import storage_of, trial_id
from optuna_flyte_dsl.engines.remote_trial.endpoint import ALL_INTERFACES, Endpoint
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV, TrialHandle
from optuna_flyte_dsl.engines.remote_trial.server import TrialServer
from tests.support.cluster_searches import outputs, with_options
from tests.support.flyteadmin import FlyteAdmin
from tests.support.flyteadmin.executions import Succeeded
from tests.support.small_searches import states

IMAGES = ImageConfig(Image("default", "example.com/image", "1"))


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


@pytest.mark.newest
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


def run_on(admin, objective, **options):
    return with_options(objective, **options).on(admin.remote(), image_config=IMAGES).run_sync()


@pytest.mark.newest
def test_the_token_may_come_from_a_secret_of_the_user(admin, monkeypatch):
    with pytest.raises(RefusedError, match="'MY_TOKEN' must hold the token that pods show, but it is not set here"):
        run_on(admin, takes, trials_token_env="MY_TOKEN")
    monkeypatch.setenv("MY_TOKEN", "a-secret-of-the-users")
    admin.executions.clear()
    study = run_on(admin, takes, trials_token_env="MY_TOKEN", trials_host="127.0.0.1")
    assert states(study) == ["COMPLETE"] * 3
    for execution in admin.executions.values():
        assert not [pair for pair in execution.spec.envs.values if pair.value == "a-secret-of-the-users"]
