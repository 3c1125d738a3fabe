"""What the next attempt of a pod finds of a study."""

import asyncio
import errno
import threading

import optuna
import pytest
from flytekit.core.checkpointer import SyncCheckpoint
from flytekit.core.context_manager import FlyteContextManager
from flytekit.exceptions.user import FlyteRecoverableException
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from optuna_flyte_dsl._compat.optuna import storage_of
from optuna_flyte_dsl.engines._flytekit.cluster.checkpoint import CheckpointStore
from optuna_flyte_dsl.study.attributes import GOALS, LOST, RETRY_OF
from optuna_flyte_dsl.study.durable_storage import DurableStorage
from optuna_flyte_dsl.study.liveness import Owner
from optuna_flyte_dsl.study.resuming import resume, settle
from optuna_flyte_dsl.study.study_view import view_of
from tests.support import wait_until


def store_at(folder, attempt, **options):
    """Return the store of an attempt, which sees what the one before has left."""
    previous = str(folder / str(attempt - 1)) if attempt else None
    checkpoint = SyncCheckpoint(str(folder / str(attempt)), previous)
    return CheckpointStore(checkpoint, FlyteContextManager.current_context(), **options)


def study_in(store, key="search"):
    return optuna.create_study(storage=store.storage(key), study_name="s", load_if_exists=True)


def seen(study):
    return [(trial.state, trial.params, trial.values, trial.user_attrs) for trial in study.trials]


@pytest.fixture(autouse=True)
def _no_thread_is_left(pauses):
    pauses.checkpoint_idle = 0.05
    yield
    wait_until(lambda: not any(thread.name == "optuna-flyte-checkpoint" for thread in threading.enumerate()))


def tell_some(study, count):
    for _ in range(count):
        trial = study.ask()
        trial.set_user_attr("note", {"nested": [1, "two"]})
        study.tell(trial, trial.suggest_float("x", 0, 1))


def test_what_was_committed_is_there_in_the_next_attempt(tmp_path):
    store = store_at(tmp_path, 0)
    study = study_in(store)
    tell_some(study, 3)
    running = study.ask()
    running.suggest_int("n", 1, 9)
    asyncio.run(store.commit())
    assert seen(study_in(store_at(tmp_path, 1))) == seen(study)


def test_attempts_chain_though_checkpoints_do_not(tmp_path):
    store = store_at(tmp_path, 0)
    tell_some(study_in(store), 3)
    asyncio.run(store.commit())
    second = store_at(tmp_path, 1)
    study_in(second)
    asyncio.run(second.commit())  # all that this attempt does before it is killed
    assert len(study_in(store_at(tmp_path, 2)).trials) == 3


def test_several_searches_share_a_checkpoint_and_do_not_mix(tmp_path):
    store = store_at(tmp_path, 0)
    tell_some(study_in(store, "a"), 2)
    tell_some(study_in(store, "b"), 3)
    asyncio.run(store.commit())
    after = store_at(tmp_path, 1)
    assert [len(study_in(after, key).trials) for key in "abc"] == [2, 3, 0]


@pytest.mark.parametrize("previous", ["0", "nowhere"])
def test_a_missing_checkpoint_is_no_error(tmp_path, previous, warned):
    checkpoint = SyncCheckpoint(str(tmp_path / "1"), str(tmp_path / previous))
    store = CheckpointStore(checkpoint, FlyteContextManager.current_context())
    assert study_in(store).trials == []
    assert not warned()


def test_a_line_that_a_kill_has_cut_short_is_left_out(tmp_path):
    store = store_at(tmp_path, 0)
    tell_some(study_in(store), 3)
    asyncio.run(store.commit())
    (path,) = (tmp_path / "0").iterdir()
    path.write_bytes(path.read_bytes()[:-10])
    trials = study_in(store_at(tmp_path, 1)).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]


@pytest.mark.parametrize("left", [0, 100])
def test_a_kill_in_the_middle_of_a_write_leaves_what_was_committed_before(tmp_path, left):
    store = store_at(tmp_path, 0)
    study = study_in(store)
    for _ in range(4):
        tell_some(study, 1)
        asyncio.run(store.commit())
    latest = max((tmp_path / "0").iterdir(), key=lambda path: path.stat().st_size)
    latest.write_bytes(latest.read_bytes()[:left])
    assert seen(study_in(store_at(tmp_path, 1))) == seen(study)[:3]


@pytest.mark.newest
def test_a_checkpoint_that_cannot_be_written_is_said_and_tried_again(tmp_path, monkeypatch, warned):
    store = store_at(tmp_path, 0)
    tell_some(study_in(store), 1)
    with monkeypatch.context() as broken:
        broken.setattr(SyncCheckpoint, "save", lambda self, path: 1 / 0)
        asyncio.run(store.commit())
    assert "could not be written, and will be tried again: ZeroDivisionError" in warned()[0]
    asyncio.run(store.commit())
    assert len(study_in(store_at(tmp_path, 1)).trials) == 1


def test_a_long_journal_is_written_in_parts_and_only_the_last_is_written_again(tmp_path, monkeypatch):
    written = []
    save = SyncCheckpoint.save
    monkeypatch.setattr(SyncCheckpoint, "save", lambda self, path: (written.append(path.name), save(self, path)))
    store = store_at(tmp_path, 0, segment_bytes=500)
    study = study_in(store)
    tell_some(study, 10)
    asyncio.run(store.commit())
    parts = len(written)
    assert parts > 5
    tell_some(study, 1)
    asyncio.run(store.commit())
    assert len(written) - parts <= 3
    assert seen(study_in(store_at(tmp_path, 1))) == seen(study)


def test_many_commits_at_once_are_few_writes(tmp_path, monkeypatch):
    writes = []
    save = SyncCheckpoint.save
    monkeypatch.setattr(SyncCheckpoint, "save", lambda self, path: (writes.append(path), save(self, path)))
    store = store_at(tmp_path, 0)
    tell_some(study_in(store), 1)

    async def many():
        await asyncio.gather(*(store.commit() for _ in range(100)))

    asyncio.run(many())
    assert len(writes) < 10


# What is left to do.


class Process:
    """A process that works on a study until it dies."""

    def __init__(self, study):
        self.owner = Owner(storage_of(study))
        self.storage = DurableStorage(storage_of(study), self.owner, "it")
        self.study = view_of(study, storage=self.storage)

    def resume(self, n_trials, call, adopts=lambda trial: True):
        return resume(self.study, self.storage, n_trials, call=call, adopts=adopts)

    def die(self):
        self.owner.close()


@settings(max_examples=30)
@given(
    states=st.lists(st.sampled_from(["complete", "fail", "prune", "running", "adoptable"]), max_size=8),
    n_trials=st.integers(1, 10),
    deaths=st.integers(1, 3),
)
def test_a_call_totals_its_trials_over_any_number_of_deaths(states, n_trials, deaths):
    study = optuna.create_study()
    process = Process(study)
    left = process.resume(n_trials, 0)
    assert left.n_trials == n_trials
    for state in states[:n_trials]:
        trial = process.study.ask()
        trial.suggest_float("x", 0, 1)
        if state == "adoptable":
            trial.set_user_attr("adoptable", True)
        elif state != "running":
            told = {"complete": TrialState.COMPLETE, "fail": TrialState.FAIL, "prune": TrialState.PRUNED}[state]
            study.tell(trial, 1.0 if state == "complete" else None, state=told)
    ended = sum(state in ("complete", "fail", "prune") for state in states[:n_trials])
    running = [trial.params for trial in study.trials if trial.state is TrialState.RUNNING]
    adoptable = [trial.number for trial in study.trials if "adoptable" in trial.user_attrs]
    for _ in range(deaths):
        process.die()
        process = Process(study)
        left = process.resume(n_trials, 0, lambda trial: "adoptable" in trial.user_attrs)
        assert left.n_trials == n_trials - ended
        assert len(left.finished) == ended
        assert [trial.number for trial in left.adopted] == adoptable
    waiting = [trial for trial in study.trials if trial.state is TrialState.WAITING]
    assert len(waiting) == len(running) - len(adoptable)  # each lost point is tried again once
    lost = [trial.number for trial in study.trials if LOST in trial.user_attrs]
    assert [trial.user_attrs[RETRY_OF] for trial in waiting] == lost


def test_a_second_call_has_a_goal_of_its_own():
    study = optuna.create_study()
    process = Process(study)
    for call in range(2):
        left = process.resume(3, call)
        assert left.n_trials == 3
        tell_some(study, 3)
    assert study.user_attrs[GOALS] == [3, 6]
    assert process.resume(3, 0).n_trials == 0
    assert process.resume(3, 1).n_trials == 0


def test_a_later_call_does_not_try_again_what_an_earlier_one_has_stopped():
    study = optuna.create_study()
    process = Process(study)
    process.resume(2, 0)
    trial = process.study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr(LOST, True)
    study.tell(trial, state=TrialState.FAIL)
    settle(process.study, 0)
    assert process.resume(2, 1).n_trials == 2
    assert not [each for each in study.trials if each.state is TrialState.WAITING]


def test_running_trials_in_a_checkpoint_are_of_an_earlier_attempt_even_without_evidence():
    study = optuna.create_study()
    study.ask().suggest_float("x", 0, 1)
    assert Process(study).resume(2, 0, lambda trial: False).n_trials == 2
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]


class Away:
    """A checkpoint whose blob store is away for the first reads."""

    def __init__(self, checkpoint, failures, error):
        self._checkpoint, self._failures, self._error = checkpoint, failures, error

    def restore(self, path):
        self._failures -= 1
        if self._failures >= 0:
            raise self._error
        return self._checkpoint.restore(path)


def restored(tmp_path, failures, error):
    store = store_at(tmp_path, 0)
    tell_some(study_in(store), 3)
    asyncio.run(store.commit())
    checkpoint = SyncCheckpoint(str(tmp_path / "1"), str(tmp_path / "0"))
    return CheckpointStore(Away(checkpoint, failures, error), FlyteContextManager.current_context())


def test_an_outage_of_the_blob_store_is_waited_out_before_a_study_starts_anew(tmp_path, pauses):
    pauses.checkpoint_retries, pauses.admin_longest = (0.001,) * 3, 0.002
    store = restored(tmp_path, 30, OSError(errno.EBUSY, "Slow Down"))
    assert len(study_in(store).trials) == 3


def test_after_a_long_outage_of_the_blob_store_flyte_starts_the_pod_again(tmp_path, pauses):
    pauses.checkpoint_retries, pauses.checkpoint_patience = (0.001,) * 3, 0.05
    store = restored(tmp_path, 10**9, ConnectionError("refused"))
    with pytest.raises(FlyteRecoverableException, match=r"could not be read for 0.05 seconds: ConnectionError"):
        study_in(store)


def test_a_checkpoint_that_cannot_be_read_at_all_is_told(tmp_path, pauses, warned):
    pauses.checkpoint_retries = (0.001,) * 3
    assert study_in(restored(tmp_path, 10**9, PermissionError("denied"))).trials == []
    assert any("The search starts anew" in line for line in warned())
