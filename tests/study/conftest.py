"""Storages and names for the tests of studies."""

import contextlib

import optuna
import pytest

from tests.soak import Proxy
from tests.support import own_threads, wait_until
from tests.support.postgres import Postgres


@pytest.fixture(scope="module")
def server():
    with contextlib.closing(Postgres()) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(server):
    with contextlib.closing(Proxy(server.url)) as proxy:
        yield proxy


@pytest.fixture
def storage(request, tmp_path):
    """Return what is given as `storage`."""
    kind = request.param
    if kind == "journal":
        return str(tmp_path / "study.journal")
    if kind == "sqlite":
        return f"sqlite:///{tmp_path}/study.db"
    if kind == "postgresql":
        return request.getfixturevalue("server").url
    port = request.getfixturevalue("proxy").port
    return lambda: optuna.storages.GrpcStorageProxy(host="127.0.0.1", port=port)


@pytest.fixture
def name(request):
    """Return a name that no other test has for a study."""
    return request.node.name


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    yield
    wait_until(lambda: not own_threads())


@pytest.fixture
def _hurried(pauses):
    pauses.storage_longest = 0.1
    pauses.storage_patience_at_end = 0.3
