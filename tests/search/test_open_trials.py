"""How the trials that are open end with their search."""

import threading
import types

import optuna
import pytest

from optuna_flyte_dsl import Float, StorageUnavailableError
from optuna_flyte_dsl.options import Options
from optuna_flyte_dsl.search.ask_tell import AskTell
from optuna_flyte_dsl.search.outcome import Outcome
from optuna_flyte_dsl.space.objective import Objective

COMPLETE = optuna.trial.TrialState.COMPLETE


def objective(x: Float(0, 1)) -> float:
    return x


def asking():
    described = Objective.of(objective)
    return AskTell(optuna.create_study(), described, described.space, Options(1, 3))


def queued(call):
    """Return a call that is made later."""
    return call


def test_a_call_for_which_no_thread_starts_is_not_waited_for():
    def no_thread(call):
        raise RuntimeError("can't start new thread")

    trials = asking()
    asked = trials.ask()
    with pytest.raises(RuntimeError, match="new thread"):
        trials.promise(no_thread, trials.tell, asked, Outcome(COMPLETE, (0.5,)))
    closing = threading.Thread(target=trials.close_open, args=("The search ended.",), daemon=True)
    closing.start()
    closing.join(30)
    assert trials.study.trials[0].value == 0.5


def test_the_end_of_a_search_waits_for_each_tell_that_was_promised():
    told = []
    trials = asking()
    trials.observer = lambda _, trial: told.append(trial.number)
    promised = trials.promise(queued, trials.tell, trials.ask(), Outcome(COMPLETE, (0.5,)))
    closing = threading.Thread(target=trials.close_open, args=("The search ended.",))
    closing.start()  # the promised call may be queued for a busy thread
    assert trials.study.trials[0].state is optuna.trial.TrialState.RUNNING
    promised()
    closing.join()
    assert trials.study.trials[0].value == 0.5
    assert told == [0]


def test_an_interrupted_end_tells_the_outcome_that_was_promised_to_be_told():
    trials = asking()
    promised = trials.promise(queued, trials.tell, trials.ask(), Outcome(COMPLETE, (0.5,)))
    trials.close_open("The search was interrupted.", waits=False)
    assert trials.study.trials[0].value == 0.5
    with pytest.raises(ValueError, match="COMPLETE"):
        promised()
    assert len(trials.study.trials) == 1


def test_the_end_of_a_search_without_open_trials_leaves_the_storage_its_patience():
    hurried = []
    trials = asking()
    trials.storage = types.SimpleNamespace(silence=0.0, hurry=lambda: hurried.append("storage"))
    trials.close_open("The search was interrupted.", waits=False)  # each search calls this at its end
    assert hurried == []


def test_an_outcome_that_was_promised_to_be_told_is_saved_when_the_storage_is_given_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trials = asking()
    trials.promise(queued, trials.tell, trials.ask(), Outcome(COMPLETE, (0.5,)))
    error = trials.give_up()
    assert isinstance(error, StorageUnavailableError)
    (saved,) = tmp_path.glob("optuna-flyte-untold-*.jsonl")
    assert "0.5" in saved.read_text()
