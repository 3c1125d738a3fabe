"""Where pods reach the search: the address is found for each form of an endpoint, with IPv4 and IPv6."""

import socket

import pytest

from optuna_flyte_dsl import Cluster, RefusedError
from optuna_flyte_dsl.engines._flytekit.cluster.search_address import search_address
from optuna_flyte_dsl.engines.remote_trial.endpoint import ALL_INTERFACES, Endpoint


@pytest.mark.parametrize("endpoint", ["127.0.0.1:81", "dns:///127.0.0.1:81", "https://127.0.0.1"])
def test_the_address_for_pods_is_found_from_each_form_of_an_endpoint(endpoint):
    assert search_address(Cluster(), endpoint) == Endpoint("127.0.0.1", interface="127.0.0.1")


@pytest.mark.parametrize("endpoint", ["[::1]:81", "dns:///[::1]:81", "https://[::1]"])
def test_the_address_for_pods_is_found_where_there_is_only_ipv6(endpoint):
    found = search_address(Cluster(), endpoint)
    assert found == Endpoint("::1", interface="::1")
    assert found.address(4711) == "[::1]:4711"


def test_a_given_host_may_be_a_gateway_so_the_server_listens_everywhere():
    found = search_address(Cluster(trials_host="vpn.example.com", trials_port=13000), "127.0.0.1:81")
    assert found == Endpoint("vpn.example.com", 13000, ALL_INTERFACES)
    assert search_address(Cluster(trials_host="::1"), "127.0.0.1:81").interface == "::1"


def test_without_a_route_to_flyte_the_address_is_asked_for(monkeypatch):
    def no_route(*_):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "socket", no_route)
    with pytest.raises(RefusedError, match="trials_host"):
        search_address(Cluster(), "dns:///flyte.example.com:443")


def test_a_certificate_that_cannot_be_read_is_named(tmp_path):
    options = Cluster(trials_certificate=str(tmp_path / "missing.pem"), trials_key=str(tmp_path / "key.pem"))
    with pytest.raises(RefusedError, match=r"`trials_certificate` of `Cluster` must be a file that this process can"):
        search_address(options, "127.0.0.1:81")
