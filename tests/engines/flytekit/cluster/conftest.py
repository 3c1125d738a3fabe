"""A cluster that makes outputs at once, without waiting."""

import pytest

from tests.support import own_threads, wait_until
from tests.support.cluster_searches import echo
from tests.support.flyteadmin import FlyteAdmin


@pytest.fixture(autouse=True)
def _hurried(pauses):
    """Nothing here is worth waiting for."""
    pauses.poll_shortest = 0.02
    pauses.list_call = 0.02
    pauses.replica_lag = 0.1
    pauses.checkpoint_idle = 0.05
    pauses.admin_first = 0.01
    pauses.admin_longest = 0.05


@pytest.fixture
def cluster(tmp_path):
    """Make a cluster; its instant outcome can be changed."""
    with FlyteAdmin(tmp_path / "flyte", instant=echo()) as admin:
        yield admin
    wait_until(lambda: not own_threads())
