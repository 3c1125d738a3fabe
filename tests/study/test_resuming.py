"""What a search takes over from earlier ones."""

import asyncio
import contextlib
import logging
import math
import random
import subprocess
import sys
import threading

import optuna
import pytest
from optuna.trial import TrialState

from optuna_flyte_dsl import Float, InvalidOptionError, Minimize, Optimizer, optimize
from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl.study import liveness
from optuna_flyte_dsl.study.attributes import ERROR, LOST, OWNER, RETRY_OF
from optuna_flyte_dsl.study.durable_storage import DurableStorage
from optuna_flyte_dsl.study.liveness import Owner
from optuna_flyte_dsl.study.storages import open_storage
from tests.soak import campaign
from tests.support.sessions import dead_record
from tests.support.small_searches import search
from tests.support.studies import ALL, left_running, objective, on, states


def rows():
    journal, given = {"storage": "JOURNAL"}, {"study": "STUDY"}
    named, resumed = {"study_name": "named"}, {"resume": True}
    return [
        ({}, ("decorated", "new", 6), ("decorated", "new", 6)),
        ({}, ("optimizer", "new", 6), ("optimizer", "same", 12)),
        (named, ("decorated", "new", 6), ("decorated", "new", 6)),
        (journal, ("decorated", "new", 6), ("decorated", "new", 6)),
        (journal, ("optimizer", "new", 6), ("optimizer", "same", 12)),
        ({**journal, **named}, ("decorated", "new", 6), ("decorated", "same", 12)),
        ({**journal, **named}, ("optimizer", "new", 6), ("optimizer", "same", 12)),
        ({**journal, **resumed}, ("decorated", "new", 6), ("decorated", "same", 6)),
        ({**journal, **resumed}, ("optimizer", "new", 6), ("optimizer", "same", 6)),
        ({**journal, **named, **resumed}, ("decorated", "new", 6), ("decorated", "same", 6)),
        (given, ("decorated", "given", 6), ("decorated", "given", 12)),
        (given, ("optimizer", "given", 6), ("optimizer", "given", 12)),
        ({**given, **resumed}, ("decorated", "given", 6), ("decorated", "given", 6)),
        ({**given, **resumed}, ("optimizer", "given", 6), ("optimizer", "given", 6)),
    ]


@pytest.mark.parametrize(("given", "first", "second"), rows())
def test_what_each_combination_means_at_the_first_and_the_second_call(given, first, second, tmp_path):
    options = dict(given)
    if "storage" in options:
        options["storage"] = tmp_path / "study.journal"
    if "study" in options:
        options["study"] = optuna.create_study()
    plain = objective().task
    if first[0] == "optimizer":
        search = Optimizer(plain, concurrency=2, n_trials=6, progress=False, **options)
    else:
        search = objective(**options)
    one = search.run_sync()
    before = one.study_name
    assert len(one.trials) == first[2]
    two = search.run_sync()
    assert len(two.trials) == second[2]
    same = two is one if options.get("storage") is None else two.study_name == before
    assert same == (second[1] != "new")
    if "study" in options:
        assert two is options["study"]
    if "study_name" in options:
        assert two.study_name == "named"
    if options.get("resume") and "study" not in options and "study_name" not in options:
        assert two.study_name == "objective"


@on(*ALL)
def test_calls_total_what_was_asked_for(storage, name):
    search = objective(storage=storage, study_name=name, resume=True)
    assert states(search.run_sync()) == {"COMPLETE": 6}
    search.n_trials = 9
    study = search.run_sync()
    assert states(study) == {"COMPLETE": 9}
    study.enqueue_trial({"x": 0.125})
    search.n_trials = 10
    assert search.run_sync().trials[9].params == {"x": 0.125}, "an enqueued trial is honoured, and counts"


@on(*ALL)
def test_two_searches_at_the_same_time_split_the_total(storage, name):
    begun, both_run = set(), threading.Event()

    def search(number):
        @optimize(storage=storage, study_name=name, resume=True, n_trials=15, concurrency=3, progress=False)
        def objective(x: Float(0, 1)) -> Minimize:
            begun.add(number)
            if len(begun) == 2:
                both_run.set()
            assert both_run.wait(60), "one search has begun no trial"
            return x

        return objective

    searches = [search(number) for number in range(2)]

    async def both():
        return await asyncio.gather(*(search() for search in searches))

    studies = asyncio.run(both())
    for study in studies:
        assert sum(trial.state is TrialState.COMPLETE for trial in study.trials) == 15
        assert callable(storage) or len(study.trials) == 15, "only Optuna's proxy has no lock"
    trials = optuna.load_study(study_name=name, storage=open_storage(storage)).trials
    assert all(trial.state.is_finished() for trial in trials)
    assert sum(LOST not in trial.user_attrs for trial in trials) == 15
    owners = {next(key for key in t.system_attrs if key.startswith(OWNER)) for t in study.trials}
    assert len(owners) == 2, "one has done all of it"


@on(*ALL)
def test_what_a_dead_process_has_left_running_is_closed_and_tried_again_first(storage, name):
    left_running(storage, name, dead_record(), x=0.375)
    study = objective(storage=storage, study_name=name, resume=True, concurrency=1).run_sync()
    lost, retry = study.trials[:2]
    assert (lost.state, lost.user_attrs[LOST]) == (TrialState.FAIL, True)
    assert lost.user_attrs[ERROR] == "The process that ran this trial has died."
    assert (retry.params, retry.user_attrs[RETRY_OF]) == ({"x": 0.375}, 0)
    assert states(study) == {"FAIL": 1, "COMPLETE": 6}, "the lost one does not count"


def test_a_search_that_has_failed_already_says_why_it_runs_nothing(tmp_path, name, warned):
    def breaks(x: Float(0, 1)) -> float:
        raise ValueError("a bug")

    options = {"n_trials": 4, "storage": tmp_path / "s.journal", "study_name": name, "resume": True, "progress": False}
    optimize(breaks, **options).run_sync()
    assert warned()[-1] == "All 4 trials of `breaks` failed; the first: ValueError: a bug"
    study = optimize(breaks, **options).run_sync()
    assert len(study.trials) == 4
    assert warned()[-2].startswith(f"The study '{name}' has its 4 trials already, and all have failed: nothing is run")
    assert warned()[-1] == "All 4 trials of `breaks` failed; the first: ValueError: a bug"


@pytest.mark.newest
@pytest.mark.parametrize(("kind", "executor"), [("journal", "thread"), ("postgresql", "process")])
def test_killed_again_and_again_it_ends_with_just_its_trials(kind, executor):
    result = campaign(kind, kills=2, rng=random.Random(kind), executor=executor, n_trials=24)
    assert result["kills"] <= 2


LEAVING = """
import sys, threading, time
from optuna_flyte_dsl import Float, optimize

kept = dict(study_name="s", resume=True, progress=False)
@optimize(concurrency=2, n_trials=9, executor="process", storage=sys.argv[1], **kept)
def search(x: Float(0, 1)) -> float:
    time.sleep(60)
    return x

threading.Thread(target=search.run_sync, daemon=True).start()
while sum(trial.state.name == "RUNNING" and bool(trial.params) for trial in search.study.trials) < 2:
    time.sleep(0.01)
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.newest
@pytest.mark.parametrize("later", [0.0, 0.5, 3.0])  # seconds: the workers start, or run the trials
def test_python_may_exit_while_processes_work(tmp_path, later):
    """As a program does that was interrupted and whose search runs in a daemon thread: that of `pyflyte run`."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "leaving.py"), str(tmp_path / "s.journal"), str(later)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name="s", storage=open_storage(tmp_path / "s.journal"))
    assert {(trial.state.name, trial.user_attrs.get(LOST)) for trial in study.trials} == {("FAIL", True)}
    assert len(study.trials) == 2


def test_a_resumed_study_with_other_arguments_is_warned_of(tmp_path, warned):
    search = objective(storage=tmp_path / "study.journal", resume=True)
    search.run_sync(base=1.0)
    search.n_trials = 7
    search.run_sync(base=2.0)
    assert any("base=2.0, but its trials so far had 1.0" in line for line in warned())


def test_an_argument_that_a_study_has_seen_first_later_is_warned_of_too(tmp_path, warned):
    options = {"storage": tmp_path / "study.journal", "study_name": "s", "resume": True, "n_trials": 2}

    def grown(x: Float(0, 1), kind: str, scale: float) -> float:
        return x

    objective(**options).run_sync()
    search = optimize(grown, progress=False, **options)
    said = []
    for kind in ("a", "a", "b"):
        search.run_sync(kind=kind, scale=math.nan)
        said.append([line for line in warned() if "but its trials so far had" in line])
    assert [len(lines) for lines in said] == [2, 2, 3], "NaN is the same argument as NaN"
    assert "kind='a', but its trials so far had no such argument" in said[0][0] + said[0][1]
    assert "kind='b', but its trials so far had 'a'" in said[2][2]


def test_an_adopted_trial_is_no_trial_whose_response_was_lost(tmp_path):
    inner = open_storage(tmp_path / "study.journal")
    study = optuna.create_study(storage=inner)
    left = trial_id(study.ask())
    inner.set_trial_system_attr(left, f"{OWNER}before", {"session": "before"})
    with contextlib.closing(Owner(inner).open()) as owner:
        storage = DurableStorage(inner, owner, "it")
        storage.adopt(inner.get_trial(left))
        assert liveness.owner_keys(inner.get_trial(left)) == (owner.key,)
        assert storage.create_new_trial(inner.get_study_id_from_name(study.study_name)) != left
        assert storage.spares == []


def test_a_study_of_another_search_with_the_same_name_is_refused_with_the_cure(tmp_path):
    """Two scripts may have functions of one name."""

    def made(signature):
        names = {"Float": Float, "Minimize": Minimize}
        exec(f"def objective({signature}) -> Minimize:\n    return 1.0", names)
        return optimize(n_trials=2, storage=tmp_path / "s.journal", resume=True, progress=False)(names["objective"])

    made("x: Float(0, 1), y: Float(0, 1)").run_sync()
    with pytest.raises(
        InvalidOptionError, match=r"parameters are `x`, `y`, and this search has `depth`. Give another `study_name`"
    ):
        made("depth: Float(0, 9)").run_sync()
    assert len(made("x: Float(0, 1), z: Float(0, 1)").run_sync().trials) == 2  # a parameter more, and one less


def test_a_lambda_needs_a_name_to_be_resumed(tmp_path):
    options = {"n_trials": 1, "storage": tmp_path / "s.journal", "resume": True, "progress": False}
    with pytest.raises(InvalidOptionError, match="needs `study_name` for a lambda"):
        optimize(lambda trial: trial.suggest_float("x", 0, 1), **options)
    optimize(lambda trial: trial.suggest_float("x", 0, 1), **options, study_name="named").run_sync()


def test_a_search_that_finds_its_study_complete_says_that_it_runs_nothing(tmp_path, caplog):
    optuna.logging.set_verbosity(optuna.logging.INFO)
    caplog.set_level(logging.INFO, logger="optuna_flyte_dsl")
    search = objective(storage=tmp_path / "s.journal", resume=True, progress=True)
    search.run_sync()
    assert "objective: search over, 6 of 6 trials finished" in caplog.text
    caplog.clear()
    search.run_sync()
    assert "objective: no trial was run, 6 of 6 trials finished" in caplog.text


def test_a_retry_of_a_lost_trial_lies_within_the_bounds_of_today(tmp_path):
    async def never(x: Float(5, 10)) -> float:
        running.set()
        await asyncio.Event().wait()

    async def today(x: Float(0, 1)) -> float:
        assert 0 <= x <= 1
        return x

    async def interrupted():
        nonlocal running
        running = asyncio.Event()
        task = asyncio.create_task(search(never, **options)())
        await running.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    running = None
    options = {"n_trials": 2, "storage": tmp_path / "study.journal", "study_name": "s", "resume": True}
    asyncio.run(interrupted())
    study = search(today, **options).run_sync()
    assert [trial.state.name for trial in study.trials[-2:]] == ["COMPLETE"] * 2
