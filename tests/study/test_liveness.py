"""Whose a trial is, and whether its owner is alive."""

import asyncio
import os
import threading

import optuna
import pytest
from optuna.trial import TrialState

from optuna_flyte_dsl import Float, SearchRunningError, optimize
from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl.study import resuming
from optuna_flyte_dsl.study.durable_storage import DurableStorage
from optuna_flyte_dsl.study.liveness import Owner
from optuna_flyte_dsl.study.storages import open_storage
from tests.support.sessions import dead_record, living_process
from tests.support.studies import ALL, left_running, objective, on, states


@on(*ALL)
def test_of_what_nothing_is_known_the_user_says_that_it_is_dead(storage, name, warned):
    record = {**dead_record(), "host": "elsewhere", "folder": "/nowhere"}
    left_running(storage, name, record, x=0.375)
    search = objective(storage=storage, study_name=name, resume=True)
    study = search.run_sync()
    assert states(study) == {"RUNNING": 1, "COMPLETE": 5}, "it counts as running"
    assert any("process" in line and "on elsewhere" in line and "takeover=True" in line for line in warned())
    study = objective(storage=storage, study_name=name, resume=True, takeover=True).run_sync()
    assert states(study) == {"FAIL": 1, "COMPLETE": 6}
    assert study.trials[-1].params == {"x": 0.375}


def test_a_process_that_lives_keeps_its_trials_and_is_waited_for(tmp_path):
    storage = str(tmp_path / "study.journal")
    with living_process() as (other, record):
        left_running(storage, "s", record, x=0.375)

        def die(study, trial):
            if len(study.trials) == 6:
                threading.Timer(0.3, other.kill).start()

        search = objective(storage=storage, study_name="s", resume=True, takeover=True, callbacks=[die])
        study = search.run_sync()
    assert states(study) == {"FAIL": 1, "COMPLETE": 6}
    assert study.trials[-1].params == {"x": 0.375}, "what it had left is done when it has died"


def test_a_deterministic_search_goes_on_beside_a_trial_of_which_nothing_is_known(tmp_path, name):
    path = tmp_path / "s.journal"
    left_running(path, name, {"host": "elsewhere", "pid": 1, "process": "p", "session": "unknown"}, x=0.5)
    search = objective(storage=path, study_name=name, resume=True, n_trials=4, deterministic=True, seed=1)
    assert states(search.run_sync())["COMPLETE"] == 3, "the trial that runs elsewhere counts"


def test_what_was_taken_for_dead_and_lives_keeps_its_value(tmp_path):
    """The retry is taken where nobody has begun it; else the value stands beside it."""
    path = tmp_path / "study.journal"

    @optimize(concurrency=2, n_trials=4, storage=path, study_name="s", resume=True, progress=False)
    def search(trial, x: Float(0, 1)) -> float:
        if trial.number < 2:
            there = optuna.load_study(study_name="s", storage=open_storage(path))
            resuming.close_lost(there, there.trials[trial.number])
            if trial.number == 0:
                resuming.retry_lost(there)
        return x

    study = search.run_sync()
    assert sum(resuming.counts(trial) for trial in study.trials) == 4
    values = [trial.value for trial in study.trials if trial.state is TrialState.COMPLETE]
    assert {study.trials[number].params["x"] for number in (0, 1)} <= set(values)


def test_a_trial_that_somebody_else_has_told_ends_nothing(tmp_path):
    @optimize(concurrency=1, n_trials=3, storage=tmp_path / "s.journal", study_name="s", progress=False)
    def search(trial, x: Float(0, 1)) -> float:
        if trial.number == 0:
            there = optuna.load_study(study_name="s", storage=open_storage(tmp_path / "s.journal"))
            there.tell(0, 7.0)
            raise ValueError("it has failed here")
        return x

    study = search.run_sync()
    assert (study.trials[0].value, states(study)) == (7.0, {"COMPLETE": 3})


def test_a_trial_has_an_owner_from_its_first_moment_on(tmp_path):
    inner = open_storage(tmp_path / "study.journal")
    owner = Owner(inner).open()
    storage = DurableStorage(inner, owner, "it")
    study = optuna.create_study(storage=inner)
    seen = []
    create = inner.create_new_trial
    inner.create_new_trial = lambda study_id, template_trial=None: (
        seen.append(template_trial) or create(study_id, template_trial)
    )
    number = storage.create_new_trial(inner.get_study_id_from_name(study.study_name))
    assert seen[0].system_attrs[owner.key]["pid"] == os.getpid()
    assert owner.owns(inner.get_trial(number))
    study.enqueue_trial({"x": 1.0})
    waiting = trial_id(study.trials[-1])
    assert storage.set_trial_state_values(waiting, TrialState.RUNNING)
    assert owner.owns(inner.get_trial(waiting))
    rival = Owner(inner).open()
    assert not DurableStorage(inner, rival, "it").set_trial_state_values(waiting, TrialState.RUNNING)
    assert not rival.owns(inner.get_trial(waiting)), "who comes second leaves no trace"
    owner.close()
    rival.close()


@on("journal", "sqlite")
@pytest.mark.parametrize("deterministic", [True, False])
def test_a_search_that_another_one_disturbs_is_not_deterministic_and_ends(storage, name, deterministic):
    """The second search is deterministic; the first one may be, and may not."""
    begun, second_ended = threading.Event(), threading.Event()

    def search(is_deterministic):
        @optimize(
            concurrency=2,
            n_trials=8,
            storage=storage,
            study_name=name,
            resume=True,
            deterministic=is_deterministic,
            seed=1,
            progress=False,
        )
        def objective(x: Float(0, 1)):
            begun.set()
            second_ended.wait(60)
            return x

        return objective

    async def both():
        first = asyncio.create_task(search(deterministic)())
        await asyncio.to_thread(begun.wait)
        with pytest.raises(SearchRunningError, match=r"another search works on the study of `objective`.*Wait for"):
            await search(True)()
        second_ended.set()
        return await first

    study = asyncio.run(both())
    assert states(study) == {"COMPLETE": 8}, "the refused search has asked for nothing"


@on("journal")
def test_a_deterministic_search_ends_when_another_one_begins_beside_it(storage, name):
    def join(study, trial):
        if trial.number == 2:
            objective(storage=storage, study_name=name, n_trials=1).run_sync()

    with pytest.raises(SearchRunningError, match="another search works on the study"):
        objective(
            storage=storage, study_name=name, n_trials=8, deterministic=True, seed=1, resume=True, callbacks=[join]
        ).run_sync()
    study = optuna.load_study(study_name=name, storage=open_storage(storage))
    assert "RUNNING" not in states(study)
    assert len(study.trials) < 8
