"""Every so many steps of the sweeps; `make soak` takes all steps."""

import contextlib

import pytest

from tests import sweeps
from tests.support.postgres import Postgres


@pytest.fixture(autouse=True)
def _quick():
    with sweeps.quick():
        yield


@pytest.fixture(scope="module")
def server():
    with contextlib.closing(Postgres()) as server:
        yield server


@pytest.mark.newest
@pytest.mark.parametrize(("searches", "processes", "stride"), [(1, 1, 1201), (2, 1, 1301), (1, 2, 1301)])
def test_a_cut_of_the_connection_to_postgresql_loses_no_trial(server, searches, processes, stride):
    assert sweeps.sweep_postgresql(server, searches, processes=processes, stride=stride, first=9) >= 2


@pytest.mark.newest
@pytest.mark.parametrize(("kind", "stride"), [("journal", 3), ("sqlite", 1049)])
def test_a_write_that_fails_loses_no_trial(kind, stride):
    assert sweeps.sweep_file(kind, stride=stride) >= 2


@pytest.mark.newest
@pytest.mark.parametrize(("kind", "stride"), [("journal", 3), ("sqlite", 661)])
def test_an_error_that_does_not_pass_leaves_no_trial_running(kind, stride):
    assert sweeps.sweep_final_errors(kind, stride=stride) >= 2


@pytest.mark.newest
@pytest.mark.parametrize(("kind", "stride"), [("journal", 17), ("sqlite", 1049)])
def test_a_kill_at_a_write_loses_no_trial(kind, stride):
    assert sweeps.sweep_kills(kind, stride=stride) >= 2


@pytest.mark.newest
def test_a_request_that_is_lost_or_doubled_loses_no_trial_and_runs_none_twice():
    assert sweeps.sweep_requests(stride=19) >= 3


@pytest.mark.newest
def test_a_request_of_a_pod_that_continues_a_search_may_be_lost_or_doubled_too():
    assert sweeps.sweep_pod_requests(stride=23) >= 3
