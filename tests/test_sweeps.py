"""Every so many steps of the sweeps, in searches of three trials; `make soak` takes all steps, in searches of ten."""

import contextlib

import pytest

from tests import sweeps
from tests.support.postgres import Postgres


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(sweeps, "N_TRIALS", 3)
    monkeypatch.setenv("SWEEP_TRIALS", "3")  # for the processes that a sweep starts
    with sweeps.quick():
        yield


@pytest.fixture(scope="module")
def server():
    with contextlib.closing(Postgres()) as server:
        yield server


@pytest.mark.newest
@pytest.mark.parametrize(("searches", "processes", "stride"), [(1, 1, 127), (2, 1, 167), (1, 2, 241)])
def test_a_cut_of_the_connection_to_postgresql_loses_no_trial(server, searches, processes, stride):
    assert sweeps.sweep_postgresql(server, searches, processes=processes, stride=stride, first=9) >= 4


@pytest.mark.newest
@pytest.mark.parametrize(
    ("kind", "searches", "stride"), [("journal", 1, 3), ("journal", 2, 5), ("sqlite", 1, 101), ("sqlite", 2, 149)]
)
def test_a_write_that_fails_loses_no_trial(kind, searches, stride):
    assert sweeps.sweep_file(kind, searches, stride=stride) >= 4


@pytest.mark.newest
@pytest.mark.parametrize(("on_cluster", "n_trials", "stride", "first"), [(False, 2, 2, 2), (True, 1, 4, 1)])
def test_a_call_of_a_storage_that_fails_loses_no_trial(on_cluster, n_trials, stride, first, monkeypatch):
    monkeypatch.setattr(sweeps, "N_TRIALS", n_trials)
    assert sweeps.sweep_file("calls", stride=stride, first=first, on_cluster=on_cluster) >= 12


@pytest.mark.newest
@pytest.mark.parametrize(("kind", "stride"), [("journal", 2), ("sqlite", 61)])
def test_an_error_that_does_not_pass_leaves_no_trial_running(kind, stride):
    assert sweeps.sweep_final_errors(kind, stride=stride) >= 6


@pytest.mark.newest
@pytest.mark.parametrize(
    ("kind", "searches", "stride", "first"),
    [("journal", 1, 7, 3), ("journal", 2, 11, 2), ("sqlite", 1, 1000, 90), ("sqlite", 2, 1000, 40)],
)
def test_a_kill_at_a_write_loses_no_trial(kind, searches, stride, first):
    assert sweeps.sweep_kills(kind, searches, stride=stride, first=first) >= 2


@pytest.mark.newest
def test_a_request_that_is_lost_or_doubled_loses_no_trial_and_runs_none_twice():
    assert sweeps.sweep_requests(stride=11) >= 6


@pytest.mark.newest
def test_a_request_of_a_pod_that_continues_a_search_may_be_lost_or_doubled_too():
    assert sweeps.sweep_pod_requests(stride=11) >= 6
