"""What a search that waits for other processes does with the trials of one that dies."""

import contextlib

import optuna
import pytest
from optuna.trial import TrialState

from optuna_flyte_dsl._compat.optuna import storage_of
from optuna_flyte_dsl.study.attributes import LOST, RETRY_OF
from optuna_flyte_dsl.study.durable_storage import DurableStorage
from optuna_flyte_dsl.study.liveness import Life, Owner
from optuna_flyte_dsl.study.storages import open_storage
from optuna_flyte_dsl.study.study_view import view_of
from optuna_flyte_dsl.study.trial_quota import ASK_LATER, Quota
from tests.support.studies import ALL, on


@contextlib.contextmanager
def search(storage, name, total, adopts):
    """Return the quota of a search, and the study as the search sees it."""
    study = optuna.create_study(study_name=name, storage=open_storage(storage), load_if_exists=True)
    owner = Owner(storage_of(study)).open()
    durable = DurableStorage(storage_of(study), owner, name)
    view = view_of(study, storage=durable)
    try:
        yield Quota(view, durable, total, adopts), view
    finally:
        owner.close()


@on(*ALL)
@pytest.mark.parametrize("adopts", [True, False])
def test_a_trial_of_a_process_that_dies_is_continued_if_it_can_be(storage, name, adopts):
    with search(storage, name, 1, lambda _: adopts) as (quota, study):
        with search(storage, name, 1, lambda _: adopts) as (theirs, their_study):
            begun = theirs.ask(their_study.ask)
            begun.suggest_float("x", 0, 1)
            assert quota.ask(study.ask) is ASK_LATER
        asked = quota.ask(study.ask)
        excludes = quota.storage.owner.excludes
        assert (asked.number == begun.number) is (adopts and excludes)
        assert asked.params == begun.params or asked.suggest_float("x", 0, 1) == begun.params["x"]
        study.tell(asked, 1.0)
        assert quota.ask(study.ask) is None
        states = [trial.state for trial in study.trials]
        if adopts and excludes:
            assert states == [TrialState.COMPLETE]
        else:
            assert states == [TrialState.FAIL, TrialState.COMPLETE]
            assert study.trials[0].user_attrs[LOST]
            assert study.trials[1].user_attrs[RETRY_OF] == 0


@on("journal", "sqlite", "postgresql")
def test_only_one_of_two_searches_continues_a_trial(storage, name):
    with search(storage, name, 2, lambda _: True) as (one, study), search(storage, name, 2, lambda _: True) as (two, _):
        with search(storage, name, 2, lambda _: True) as (theirs, their_study):
            for _ in range(2):
                theirs.ask(their_study.ask)
        adopted = [one.ask(study.ask), two.ask(study.ask), one.ask(study.ask), two.ask(study.ask)]
        numbers = [each.number for each in adopted if each is not ASK_LATER]
        assert sorted(numbers) == [0, 1]


@on("journal", "sqlite", "postgresql")
def test_a_retry_that_another_search_has_enqueued_is_not_enqueued_again(storage, name, monkeypatch):
    """A search looks at the study, asks whether a process is alive, which takes a while, and enqueues the retry."""
    with search(storage, name, 1, lambda _: False) as (one, study), search(storage, name, 1, lambda _: False) as two:
        with search(storage, name, 1, lambda _: False) as (theirs, their_study):
            begun = theirs.ask(their_study.ask)
            begun.suggest_float("x", 0, 1)
        answer = one.storage.life

        def life(trial):
            quota, same_study = two
            retry = quota.ask(same_study.ask)
            assert retry.user_attrs[RETRY_OF] == begun.number
            same_study.tell(retry, 1.0)
            return answer(trial)

        monkeypatch.setattr(
            type(one.storage), "life", lambda self, trial: life(trial) if self is one.storage else Life.DEAD
        )
        with one.storage.reads_once():
            assert one.ask(study.ask) is None
        assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]


@on(*ALL)
def test_a_search_of_an_exhausted_space_waits_for_the_trials_of_other_processes(storage, name):
    with search(storage, name, 3, lambda _: False) as (quota, study):
        with search(storage, name, 3, lambda _: False) as (theirs, their_study):
            begun = theirs.ask(their_study.ask)
            begun.suggest_float("x", 0, 1)
            assert quota.ask(study.ask, is_exhausted=True) is ASK_LATER
        assert quota.ask(study.ask, is_exhausted=True) is ASK_LATER, "the other process has died"
        asked = quota.ask(study.ask)
        assert asked.user_attrs[RETRY_OF] == begun.number
        study.tell(asked, 1.0)
        assert quota.ask(study.ask, is_exhausted=True) is None
