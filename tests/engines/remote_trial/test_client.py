"""A trial in another process: what it does there, and what becomes of a call whose connection is lost."""

import concurrent.futures
import threading

import grpc
import optuna
import pytest

from optuna_flyte_dsl import Float, OptunaFlyteError, optimize
from optuna_flyte_dsl import _pauses as pauses_module
from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl.engines.remote_trial import server as server_module
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV, TrialHandle
from optuna_flyte_dsl.engines.remote_trial.server import TrialServer
from optuna_flyte_dsl.study.attributes import ERROR
from tests.support import wait_until


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


@pytest.mark.newest
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


def test_the_study_of_a_trial_in_another_process_is_refused_with_the_cure(study, server):
    there = server.serve(study.ask()).open()
    with pytest.raises(grpc.RpcError, match="Pass what it needs as an argument"):
        _ = there.study.trials


def test_a_pod_that_cannot_reach_its_search_says_so(pauses, monkeypatch):
    pauses.server_reach = 0.1
    monkeypatch.setenv(TOKEN_ENV, "token")
    with pytest.raises(OptunaFlyteError, match=r"cannot reach its search at 127\.0\.0\.1:1\. Let a network policy"):
        TrialHandle("127.0.0.1:1", 0, "s").open()
