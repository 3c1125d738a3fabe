"""The pace of launches, and what searches share."""

import time

import pytest
import quick

from optuna_flyte_dsl import Cluster, Optimizer
from optuna_flyte_dsl.engines._flytekit.cluster import poller as poller_module
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_connection import Connection
from optuna_flyte_dsl.engines._flytekit.cluster.traffic import Traffic
from tests.support.cluster_searches import echo, there


@pytest.mark.parametrize(("queued", "at_once"), [(0, 50), (49, 50), (50, 1), (500, 1)])
def test_launches_come_in_a_burst_and_then_at_their_pace_unless_many_are_queued(cluster, monkeypatch, queued, at_once):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    traffic = Traffic(Connection(cluster.remote(), None, "identity", "o"), 1.0)
    traffic._poller = type("Seen", (), {"queued": queued})()
    waits = []
    given_up = type("Waits", (), {"wait": lambda self, seconds: waits.append(seconds)})()
    for _ in range(70):
        traffic.wait_to_launch(Cluster(), given_up)
    assert waits[:at_once] == [0.0] * at_once
    assert waits[at_once:] == pytest.approx([0.1 * (k + 1) for k in range(70 - at_once)])
    now[0] += 1000.0
    waits.clear()
    for _ in range(60):
        traffic.wait_to_launch(Cluster(), given_up)
    assert waits.count(0.0) == at_once, "idle time saves up one burst"


def test_searches_inside_of_trials_share_the_looks_of_their_pod(cluster, monkeypatch):
    made = []
    init = poller_module.Poller.__init__
    monkeypatch.setattr(poller_module.Poller, "__init__", lambda self, *args: made.append(self) or init(self, *args))
    cluster.instant = echo(seconds=0.1)
    there(Optimizer(quick.nested, 4, 4, progress=False), cluster).run_sync()
    assert len(made) == 1
