"""How often an ask reads the trials of a study, and what it sees of other searches."""

import itertools
import threading

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from optuna_flyte_dsl import AutoSampler, Float, Integer, optimize
from optuna_flyte_dsl._compat.optuna_journal import GatheringJournalStorage
from optuna_flyte_dsl.study.recalled_trials import RecalledTrials


def reads_of(study):
    """Return a study's trials, and a list with an entry for each call that reads them."""
    calls = []

    def read():
        calls.append(None)
        return study.get_trials(deepcopy=False)

    return read, calls


@pytest.fixture
def study():
    return optuna.create_study()


def numbers(trials):
    return [trial.number for trial in trials]


def test_trials_are_read_once_in_a_body(study):
    for state in (TrialState.WAITING, TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING):
        study.add_trial(optuna.trial.create_trial(state=state, value=1.0 if state is TrialState.COMPLETE else None))
    read, calls = reads_of(study)
    recalled = RecalledTrials()
    assert recalled.find(0, None, read) is None
    for _ in range(2):
        with recalled.kept():
            assert numbers(recalled.find(0, (TrialState.WAITING,), read)) == [0, 3]
            assert numbers(recalled.find(0, (TrialState.COMPLETE, TrialState.RUNNING), read)) == [1, 2]
            assert numbers(recalled.find(0, None, read)) == [0, 1, 2, 3]
    assert len(calls) == 2
    with recalled.kept():
        recalled.find(0, None, read)
        recalled.forget()
        recalled.find(0, None, read)
        recalled.find(1, None, read)  # another study
    assert len(calls) == 5


def test_a_trial_that_is_read_by_itself_is_known(study):
    study.enqueue_trial({})
    read, calls = reads_of(study)
    recalled = RecalledTrials()
    with recalled.kept():
        (before,) = recalled.find(0, None, read)
        assert before.state is TrialState.WAITING
        study.ask()
        recalled.note(study.trials[0])
        assert recalled.find(0, (TrialState.WAITING,), read) == []
        assert numbers(recalled.find(0, (TrialState.RUNNING,), read)) == [0]
        study.ask()
        recalled.note(study.trials[1])
        assert numbers(recalled.find(0, None, read)) == [0, 1]
        assert len(calls) == 1
        study.ask()  # by another search
        study.ask()
        recalled.note(study.trials[3])
        assert numbers(recalled.find(0, None, read)) == [0, 1, 2, 3]
        assert len(calls) == 2


def test_a_list_with_a_gap_is_read_again():
    """The number of the second trial is given, but another search has not stored it yet."""
    trials = [optuna.trial.create_trial(state=TrialState.WAITING) for _ in range(3)]
    for trial, number in zip(trials, (0, 2, 2), strict=True):
        trial.number = number
    recalled, calls = RecalledTrials(), []

    def read():
        calls.append(None)
        return trials[:2]

    with recalled.kept():
        recalled.find(0, None, read)
        recalled.note(trials[2])
        recalled.find(0, None, read)
    assert len(calls) == 2


def test_another_thread_recalls_nothing(study):
    read, _ = reads_of(study)
    recalled, found = RecalledTrials(), []
    with recalled.kept():
        recalled.find(0, None, read)
        thread = threading.Thread(target=lambda: found.append(recalled.find(0, None, read)))
        thread.start()
        thread.join()
    assert found == [None]


@pytest.mark.parametrize("sampler", [RandomSampler, TPESampler, AutoSampler])
@pytest.mark.parametrize(
    "options", [{}, {"duplicates": "resample"}, {"duplicates": "reuse"}, {"stop_when_exhausted": True}], ids=str
)
@pytest.mark.parametrize("resume", [False, True])
def test_an_ask_reads_the_trials_once(sampler, options, resume, tmp_path, monkeypatch):
    reads = []
    read = JournalStorage.get_all_trials
    monkeypatch.setattr(
        JournalStorage,
        "get_all_trials",
        lambda self, *args, **kwargs: reads.append(kwargs) or read(self, *args, **kwargs),
    )
    storage = GatheringJournalStorage(JournalFileBackend(str(tmp_path / "study.log")))

    def objective(x: Float(0, 1, step=0.01), n: Integer(1, 10)) -> float:
        return x * n

    at = []
    search = optimize(
        objective,
        n_trials=20,
        concurrency=1,
        storage=storage,
        study_name="reads",
        resume=resume,
        sampler=sampler,
        callbacks=[lambda *_: at.append(len(reads))],
        **options,
    )
    search.run_sync()
    per_trial = {after - before for before, after in itertools.pairwise(at[12:])}
    # Under its lock, a search that resumes reads again whether points are left.
    assert per_trial == {2 if resume and "stop_when_exhausted" in options else 1}
