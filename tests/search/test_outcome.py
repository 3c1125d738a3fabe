"""How a trial's run is judged: attempts, errors that end the search, and reports that Optuna refuses."""

import asyncio
import functools
import pathlib
import signal
import sys

import flytekit as fl
import optuna
import pytest
from optuna.trial import TrialState

from optuna_flyte_dsl import (
    Float,
    InvalidObjectiveError,
    InvalidOptionError,
    Maximize,
    Minimize,
    ObjectiveValueError,
    Optimizer,
    optimize,
    suggest,
)
from optuna_flyte_dsl.search.outcome import Judge
from optuna_flyte_dsl.study.attributes import ATTEMPTS, ERROR
from tests.support.marks import newest
from tests.support.small_searches import search, states


def exit_of(raise_it):
    with pytest.raises(SystemExit) as caught:
        raise_it()
    return caught.value


def test_the_exit_of_a_signals_handler_is_no_failure_of_the_objective(monkeypatch):
    """As flytekit's handler of Ctrl-C exits, in the middle of an async objective."""

    class Handler:
        def __call__(self, *_):
            sys.exit(3)

        def method(self, *_):
            sys.exit(3)

    def function(*_):
        sys.exit(3)

    judge = Judge("train", 1, (Exception,))
    for handler in (function, Handler().method, functools.partial(function, 1), Handler()):
        before = signal.signal(signal.SIGUSR1, handler)
        try:
            outcome = judge.raised(exit_of(lambda: signal.raise_signal(signal.SIGUSR1)))
            own = judge.raised(exit_of(lambda: sys.exit(3)))
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert outcome.lost
        assert isinstance(outcome.fatal, SystemExit)
        assert not own.lost
    assert judge.raised(KeyboardInterrupt()).lost
    assert not Judge("train", 1, (Exception, KeyboardInterrupt)).raised(KeyboardInterrupt()).lost


@pytest.mark.parametrize("wrong", [None, "text", (1.0, 2.0)])
def test_an_objective_that_is_mended_gets_all_its_trials(wrong, tmp_path):
    results = [1.0, wrong]
    options = {"storage": str(tmp_path / "study.journal"), "study_name": "mended", "resume": True}

    async def objective(x: Float(0, 1)) -> float:
        return results.pop(0) if results else x

    with pytest.raises(ObjectiveValueError):
        optimize(objective, n_trials=4, concurrency=1, **options).run_sync()
    study = optimize(objective, n_trials=4, concurrency=1, **options).run_sync()
    assert sorted(states(study)) == ["COMPLETE"] * 4 + ["FAIL"]
    failed, retry = (trial for trial in study.trials if trial.number in (1, 2))
    assert failed.state is TrialState.FAIL
    assert retry.params == failed.params


def test_pruning_with_several_objectives_is_refused_before_the_first_trial():
    def two(trial: optuna.Trial, x: Float(0, 1)) -> tuple[Minimize, Maximize]:
        return x, x

    def unknown(trial: optuna.Trial, x: Float(0, 1)):
        raise AssertionError("it ran")

    with pytest.raises(InvalidOptionError, match=r"`two` has 2 objectives, and Optuna prunes for one only"):
        search(two, pruner=optuna.pruners.MedianPruner())
    study = optuna.create_study(directions=["minimize"] * 2, pruner=optuna.pruners.HyperbandPruner())
    with pytest.raises(InvalidOptionError, match="Optuna prunes for one only"):
        search(unknown, study=study).run_sync()
    with pytest.raises(InvalidOptionError, match="Optuna prunes for one only"):
        search(unknown, directions=["minimize"] * 2, pruner=optuna.pruners.MedianPruner)
    assert len(search(two).run_sync().trials) == 4, "each study has a MedianPruner, asked for or not"


@pytest.mark.parametrize("executor", ["thread", newest("process")])
@pytest.mark.parametrize("call", ["report", "should_prune"])
def test_a_report_to_several_objectives_ends_the_search_at_once(executor, call):
    def two(trial: optuna.Trial, x: Float(0, 1)) -> tuple[Minimize, Maximize]:
        trial.report(x, 0) if call == "report" else trial.should_prune()
        return x, x

    optimizer = Optimizer(two, 1, 5, executor=executor, progress=False)
    with pytest.raises(InvalidObjectiveError, match=r"`two` has 2 objectives, and Optuna takes `trial.report`"):
        optimizer.run_sync()
    assert states(optimizer.study) == ["FAIL"]


@fl.task
def task_that_reports(trial: optuna.Trial, x: Float(0, 1)) -> tuple[Minimize, Maximize]:
    trial.report(x, 0)
    return x, x


@pytest.mark.parametrize("executor", ["thread", newest("process")])
def test_a_report_to_several_objectives_of_a_task_ends_the_search_too(executor):
    optimizer = Optimizer(task_that_reports, 1, 5, executor=executor, progress=False)
    with pytest.raises(InvalidObjectiveError, match=r"has 2 objectives, and Optuna takes `trial.report`"):
        optimizer.run_sync()
    assert states(optimizer.study) == ["FAIL"]


def test_another_studys_refusal_of_reports_is_a_failure_as_any():
    def two(trial: optuna.Trial, x: Float(0, 1)) -> tuple[Minimize, Maximize]:
        raise NotImplementedError("not for multi-objective work")

    def one(trial: optuna.Trial, x: Float(0, 1)) -> float:
        optuna.create_study(directions=["minimize"] * 2).ask().report(x, 0)
        return x

    for objective in (two, one):
        assert states(search(objective, n_trials=2).run_sync()) == ["FAIL"] * 2


def test_what_is_not_caught_ends_the_search(warned):
    def raises(trial, x: Float(0, 1)) -> float:
        raise ValueError("caught") if trial.number < 2 else KeyError("not caught")

    optimizer = Optimizer(raises, 1, 10, catch=ValueError, progress=False)
    with pytest.raises(KeyError, match="not caught"):
        optimizer.run_sync()
    assert states(optimizer.study) == ["FAIL"] * 3

    def stops(x: Float(0, 1)) -> float:
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        search(stops).run_sync()
    assert "Trial 0 of `stops` ends the search: SystemExit: 1" in warned()
    assert states(search(stops, catch=(SystemExit,), max_consecutive_failures=None).run_sync()) == ["FAIL"] * 4


def test_attempts_are_kept_and_the_last_one_counts():
    calls = []

    def raises(trial, x: Float(0, 1)) -> float:
        calls.append(x)
        if len(calls) < 3:
            raise ValueError(f"attempt {len(calls)}")
        return x

    study = search(raises, n_trials=1, retries=5).run_sync()
    assert study.trials[0].user_attrs == {ATTEMPTS: ["ValueError: attempt 1", "ValueError: attempt 2"]}
    assert calls == [study.best_params["x"]] * 3

    def always(x: Float(0, 1)) -> float:
        raise ValueError("always")

    (trial,) = search(always, n_trials=1, retries=2).run_sync().trials
    assert (trial.state, len(trial.user_attrs[ATTEMPTS])) == (TrialState.FAIL, 2)


def test_pruning_and_wrong_values_are_not_tried_again():
    calls = []

    def prunes(x: Float(0, 1)) -> float:
        calls.append(x)
        raise optuna.TrialPruned

    assert states(search(prunes, retries=3).run_sync()) == ["PRUNED"] * 4
    assert len(calls) == 4


class Hostile(Exception):
    """An error of which nothing can be asked."""

    def __getattr__(self, name):
        raise KeyError(name)

    def __str__(self):
        raise ValueError("no text")


@pytest.mark.parametrize("is_async", [False, True])
def test_an_error_that_raises_when_it_is_asked_for_anything_is_a_failed_trial(is_async):
    def fails(x: Float(0, 1)) -> float:
        raise Hostile

    async def fails_later(x: Float(0, 1)) -> float:
        await asyncio.sleep(0)
        raise Hostile

    study = optuna.create_study()
    search = optimize(n_trials=3, concurrency=2, progress=False, study=study)(fails_later if is_async else fails)
    search.run_sync()
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 3
    assert {trial.user_attrs[ERROR].split(":")[0] for trial in study.trials} == {"Hostile"}


@pytest.mark.parametrize("executor", ["thread", newest("process")])
def test_a_second_attempt_does_not_see_what_the_first_has_changed(executor, tmp_path):
    def objective(x: Float(0, 1), p, seen, path) -> float:
        rate = p["rate"]
        p["rate"] *= 10
        seen.add(rate)
        if not pathlib.Path(path).exists():
            pathlib.Path(path).touch()
            raise MemoryError
        return rate + len(seen)

    given = {"p": {"rate": suggest.float(0, 1)}, "seen": set(), "path": str(tmp_path / "tried")}
    study = search(objective, n_trials=3, concurrency=1, retries=1, executor=executor).run_sync(**given)
    assert [trial.value for trial in study.trials] == [trial.params["p.rate"] + 1 for trial in study.trials]
