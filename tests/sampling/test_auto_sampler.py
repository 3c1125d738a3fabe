"""Which sampler an `AutoSampler` takes, and what it keeps."""

import copy
import itertools
import logging
import math
import pickle
import sys
import threading
import types
import warnings
from typing import ClassVar

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from optuna_flyte_dsl import AutoSampler, Float, Minimize, optimize
from optuna_flyte_dsl.sampling import auto_sampler, time_budget
from optuna_flyte_dsl.sampling.auto_sampler import START, has_gp
from optuna_flyte_dsl.study.attributes import SAMPLERS

needs_torch = pytest.mark.skipif(not has_gp(), reason="torch is not installed")


class GPSampler(RandomSampler):
    """Stands for Optuna's GPSampler, where torch is not installed."""

    asks = 0
    duration = 0.0
    error = None

    def __init__(self, *, seed=None, n_startup_trials, constraints_func=None, warn_independent_sampling):
        super().__init__(seed=seed)
        self.space = optuna.search_space.IntersectionSearchSpace()

    def infer_relative_search_space(self, study, trial):
        return self.space.calculate(study)

    def sample_relative(self, study, trial, search_space):
        GPSampler.asks += 1
        clock.now += self.duration
        if self.error is not None:
            raise self.error
        return {name: self.sample_independent(study, trial, name, each) for name, each in search_space.items()}


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


clock = Clock()


class ThreadsThatRunAtOnce:
    """Stands for the module `threading`. A thread ends before `start` returns."""

    RLock = threading.RLock
    started: ClassVar[list[str]] = []

    class Thread:
        def __init__(self, *, target, name):
            self.target, self.name = target, name

        def start(self):
            ThreadsThatRunAtOnce.started.append(self.name)
            self.target()

        def is_alive(self):
            return False


@pytest.fixture(autouse=True)
def gp(monkeypatch):
    """Put a stand-in in the place of the GPSampler, and a clock that only it and the tests move."""
    GPSampler.asks = 0
    monkeypatch.setattr(auto_sampler, "has_gp", lambda: True)
    monkeypatch.setattr(auto_sampler, "threading", ThreadsThatRunAtOnce)
    monkeypatch.setattr(auto_sampler, "gp_knows_running_trials", lambda: True)
    monkeypatch.setattr(auto_sampler, "GPSampler", GPSampler)
    monkeypatch.setattr(time_budget, "time", clock)
    monkeypatch.setattr(GPSampler, "duration", 0.0)
    monkeypatch.setattr(GPSampler, "error", None)
    return GPSampler


def samplers_of(study, n_trials, objective=lambda trial: trial.suggest_float("x", 0, 1), seconds=1.0):
    """Run a search. Return the name of each trial's sampler."""
    names = []

    def run(trial):
        clock.now += seconds
        value = objective(trial)
        names.append(study.sampler.latest)
        return value

    study.optimize(run, n_trials=n_trials)
    return names


def test_it_begins_with_spread_points_and_goes_on_with_a_model():
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    assert samplers_of(study, 14) == [START] * 10 + ["GPSampler"] * 4
    assert study.user_attrs[SAMPLERS] == [START, "GPSampler"]
    first = [trial.params["x"] for trial in study.trials[:8]]
    assert sorted(int(8 * x) for x in first) == list(range(8))


def test_with_many_trials_at_once_each_of_the_first_points_is_one_of_the_sequence():
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    running = [study.ask() for _ in range(64)]
    assert sorted(int(64 * trial.suggest_float("x", 0, 1)) for trial in running) == list(range(64))
    for count, trial in enumerate(running, 1):
        study.tell(trial, 0.0)
        asked = study.ask()
        asked.suggest_float("x", 0, 1)
        assert study.sampler.latest == (START if count < 5 else "GPSampler")


def test_failed_trials_are_no_results():
    study = optuna.create_study(sampler=AutoSampler(seed=1))

    def fails(trial):
        trial.suggest_float("x", 0, 1)
        raise ZeroDivisionError

    study.optimize(fails, n_trials=20, catch=ZeroDivisionError)
    assert study.user_attrs[SAMPLERS] == [START]
    assert len({trial.params["x"] for trial in study.trials}) == 20


@pytest.mark.parametrize("seed", range(5))
def test_the_points_of_a_small_space_are_all_different(seed):
    study = optuna.create_study(sampler=AutoSampler(seed=seed))
    points = []
    for _ in range(10):
        trial = study.ask()
        points.append((trial.suggest_int("n", 1, 3), trial.suggest_categorical("c", ["a", "b", "c", "d"])))
    assert len(set(points)) == 10


def test_points_repeat_when_there_are_no_others():
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    assert {study.ask().suggest_categorical("c", [1, 2]) for _ in range(10)} == {1, 2}


def conditional(trial):
    return trial.suggest_float("x", 0, 1) if trial.suggest_categorical("c", ["a", "b"]) == "a" else 0.0


def wide(trial):
    return sum(trial.suggest_float(f"x{index}", 0, 1) for index in range(21))


def many_choices(trial):
    return trial.suggest_categorical("c", list(range(21)))


@pytest.mark.parametrize("objective", [conditional, wide, many_choices])
def test_a_space_that_does_not_suit_a_gp_gets_a_tpe(objective):
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    assert samplers_of(study, 30, objective)[12:] == ["TPESampler"] * 18
    assert GPSampler.asks == 0


def test_after_many_results_a_tpe_follows(monkeypatch):
    monkeypatch.setattr(auto_sampler, "_MOST_RESULTS", 15)
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    assert samplers_of(study, 20) == [START] * 10 + ["GPSampler"] * 6 + ["TPESampler"] * 4
    assert study.user_attrs[SAMPLERS] == [START, "GPSampler", "TPESampler"]


def test_a_gp_learns_nothing_of_pruned_trials():
    study = optuna.create_study(sampler=AutoSampler(seed=1))

    def pruned(trial):
        if trial.number > 5 and trial.suggest_float("x", 0, 1) < 2:
            raise optuna.TrialPruned
        return trial.suggest_float("x", 0, 1)

    study.optimize(pruned, n_trials=30)
    assert study.sampler.latest == "TPESampler"


@pytest.mark.parametrize(("n", "model"), [(2, "GPSampler"), (3, "GPSampler"), (4, "TPESampler")])
def test_several_objectives(n, model):
    study = optuna.create_study(directions=["minimize"] * n, sampler=AutoSampler(seed=1))
    names = samplers_of(study, 12, lambda trial: [trial.suggest_float("x", 0, 1)] * n)
    assert names[10:] == [model] * 2


def test_without_torch_a_tpe_models(monkeypatch):
    monkeypatch.setattr(auto_sampler, "has_gp", lambda: False)
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    assert samplers_of(study, 12)[10:] == ["TPESampler"] * 2


def test_where_the_gp_does_not_know_of_running_trials_it_is_taken_for_one_at_a_time(monkeypatch):
    monkeypatch.setattr(auto_sampler, "gp_knows_running_trials", lambda: False)
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    assert samplers_of(study, 12)[10:] == ["GPSampler"] * 2
    running = study.ask()
    running.suggest_float("x", 0, 1)
    study.ask().suggest_float("x", 0, 1)
    assert study.sampler.latest == "TPESampler"


def test_a_quick_search_does_not_import_torch(monkeypatch):
    monkeypatch.setattr(auto_sampler, "sys", types.SimpleNamespace(modules={}))
    for seconds, n_imports in ((0.02, 0), (0.5, 0), (2.0, 1)):  # 4 s in all; time for few points; 400 s
        ThreadsThatRunAtOnce.started.clear()
        clock.now = 0.0
        samplers_of(optuna.create_study(sampler=AutoSampler()), 200, seconds=seconds)
        assert len(ThreadsThatRunAtOnce.started) == n_imports


def test_optuna_4_imports_torch_for_one_trial_at_a_time_only(monkeypatch):
    monkeypatch.setattr(auto_sampler, "sys", types.SimpleNamespace(modules={}))
    ThreadsThatRunAtOnce.started.clear()
    study = optuna.create_study(sampler=AutoSampler())
    running = [study.ask()]
    for _ in range(30):
        clock.now += 60.0
        trial = study.ask()
        running.append(trial)
        trial.suggest_float("x", 0, 1)
        running[0].suggest_float("x", 0, 1)
        study.tell(running.pop(0), 0.5)
    assert len(ThreadsThatRunAtOnce.started) == (0 if auto_sampler.IS_OPTUNA_4 else 1)


def test_a_search_that_suits_no_gp_does_not_import_torch():
    ThreadsThatRunAtOnce.started.clear()

    def conditional(trial):
        return trial.suggest_float("x" if trial.number % 2 else "y", 0, 1)

    samplers_of(optuna.create_study(sampler=AutoSampler()), 30, conditional, seconds=60)
    assert ThreadsThatRunAtOnce.started == []


def test_trials_are_asked_for_while_torch_is_imported(monkeypatch):
    imported = threading.Event()
    monkeypatch.setattr(auto_sampler, "threading", threading)
    monkeypatch.setattr(auto_sampler, "_import_gp", imported.wait)
    study = optuna.create_study(sampler=AutoSampler())
    assert samplers_of(study, 20, seconds=60)[10:] == ["TPESampler"] * 10
    imported.set()
    study.sampler._import.join()
    assert samplers_of(study, 5, seconds=60) == ["GPSampler"] * 5


@pytest.mark.parametrize("error", [None, RuntimeError("singular")])
def test_torch_computes_in_one_thread_during_an_ask(error, monkeypatch):
    threads, seen = [8], []
    torch = types.SimpleNamespace(get_num_threads=lambda: threads[-1], set_num_threads=threads.append)
    monkeypatch.setitem(sys.modules, "torch", torch)
    sample = GPSampler.sample_relative
    monkeypatch.setattr(
        GPSampler, "sample_relative", lambda self, *args: seen.append(threads[-1]) or sample(self, *args)
    )
    monkeypatch.setattr(GPSampler, "error", error)
    samplers_of(optuna.create_study(sampler=AutoSampler(seed=1)), 11)
    assert seen == [1]
    assert threads == [8, 1, 8]


def test_a_share_can_be_given(monkeypatch):
    monkeypatch.setattr(GPSampler, "duration", 0.5)
    for share, model in ((0.0, "TPESampler"), (1.0, "GPSampler"), (None, "GPSampler")):
        study = optuna.create_study(sampler=AutoSampler(seed=1, time_share=share))
        assert samplers_of(study, 12, seconds=1.0)[-1] == model
    for wrong in (-0.1, 1.5, "all"):
        with pytest.raises(ValueError, match="`time_share` must be None or a number from 0 to 1, but got"):
            AutoSampler(time_share=wrong)


def test_a_gp_that_fails_is_replaced(monkeypatch, caplog):
    monkeypatch.setattr(GPSampler, "error", RuntimeError("singular"))
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    with caplog.at_level(logging.WARNING):
        samplers_of(study, 15)
    assert GPSampler.asks == 1
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 15
    assert caplog.messages == ["The GPSampler fails, and a TPESampler replaces it: RuntimeError('singular')"]


def test_a_seed_repeats_a_study():
    def points(seed):
        study = optuna.create_study(sampler=AutoSampler(seed=seed))
        samplers_of(study, 20)
        return [trial.params for trial in study.trials]

    assert points(1) == points(1) != points(2)
    assert points(None) != points(None)


def test_it_can_be_copied_and_pickled():
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    samplers_of(study, 15)
    nexts = []
    for sampler in (copy.deepcopy(study.sampler), pickle.loads(pickle.dumps(study.sampler)), study.sampler):
        again = optuna.create_study(sampler=sampler)
        again.add_trials(study.trials)
        nexts.append(again.ask().suggest_float("x", 0, 1))
    assert nexts[0] == nexts[1] == nexts[2]


def test_it_can_be_given_to_another_study():
    sampler = AutoSampler(seed=1)
    first, second = (optuna.create_study(sampler=sampler) for _ in range(2))
    assert samplers_of(first, 12)[10:] == ["GPSampler"] * 2
    assert samplers_of(second, 12) == [START] * 10 + ["GPSampler"] * 2
    assert second.user_attrs[SAMPLERS] == [START, "GPSampler"]


def test_threads_of_optuna_share_it(monkeypatch):
    monkeypatch.setattr(auto_sampler, "has_gp", lambda: False)
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=100, n_jobs=8)
    assert len(study.get_trials(states=[TrialState.COMPLETE])) == 100


def test_threads_of_optuna_get_spread_points(monkeypatch):
    """Optuna calls `reseed_rng` before each trial of another thread."""
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=8, n_jobs=4)
    assert sorted(int(8 * trial.params["x"]) for trial in study.trials) == list(range(8))


def test_a_torch_that_cannot_be_imported_is_replaced(monkeypatch, caplog):
    def broken():
        raise OSError("libcudart.so.12")

    monkeypatch.setattr(auto_sampler, "gp_knows_running_trials", broken)
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    with caplog.at_level(logging.WARNING):
        assert samplers_of(study, 14)[10:] == ["TPESampler"] * 4
    assert caplog.messages == ["The GPSampler fails, and a TPESampler replaces it: OSError('libcudart.so.12')"]


def test_trials_with_a_sampler_each_share_the_first_points():
    def objective(trial) -> float:
        return trial.suggest_float("x", 0, 1)

    study = optimize(objective, n_trials=8, concurrency=4, seed=1, deterministic=True).run_sync()
    assert sorted(int(8 * trial.params["x"]) for trial in study.trials) == list(range(8))


def test_hyperband_prunes_beside_it():
    study = optuna.create_study(sampler=AutoSampler(seed=1), pruner=optuna.pruners.HyperbandPruner(1, 4))

    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        for step in range(4):
            trial.report(x, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return x

    study.optimize(objective, n_trials=40)
    assert study.user_attrs[SAMPLERS][0] == START


def test_a_search_names_its_samplers(tmp_path, monkeypatch):
    monkeypatch.setattr(auto_sampler, "has_gp", lambda: False)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "s.journal")))

    @optimize(n_trials=15, concurrency=2, storage=storage)
    def objective(x: Float(0, 1)) -> Minimize:
        return x

    assert objective.run_sync().user_attrs[SAMPLERS] == [START, "TPESampler"]


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 0.03),
        ({"seed": 1}, 0.03),
        ({"seed": 1, "concurrency": 1}, None),
        ({"seed": 1, "deterministic": True}, None),
    ],
    ids=str,
)
def test_a_search_that_repeats_exactly_measures_no_time(options, limit, monkeypatch):
    given = []

    class Spy(AutoSampler):
        def __init__(self, *args, **kwargs):
            given.append(kwargs["time_share"])
            super().__init__(*args, **kwargs)

    monkeypatch.setattr("optuna_flyte_dsl.study.opening.AutoSampler", Spy)

    def objective(x: Float(0, 1)) -> float:
        return x

    optimize(objective, **{"n_trials": 2, "concurrency": 2, **options}).run_sync()
    assert given == [limit]


def test_both_models_are_told_of_constraints(monkeypatch):
    given = []

    class Spy(TPESampler):
        def __init__(self, **options):
            given.append(options.get("constraints_func"))
            options.pop("constraints_func", None)
            super().__init__(**options)

    Spy.__name__ = "TPESampler"
    monkeypatch.setattr(auto_sampler, "TPESampler", Spy)
    make = GPSampler.__init__
    monkeypatch.setattr(
        GPSampler, "__init__", lambda self, **each: given.append(each["constraints_func"]) or make(self, **each)
    )

    def constraints(trial):
        return (trial.params["x"] - 0.5,)

    study = optuna.create_study(sampler=AutoSampler(seed=1, constraints_func=constraints))
    samplers_of(study, 12)
    assert given == [constraints] * 2


# With Optuna's own samplers.


def branin(trial):
    x, y = trial.suggest_float("x", -5, 10), trial.suggest_float("y", 0, 15)
    return (y - 0.129 * x * x + 1.592 * x - 6) ** 2 + 9.602 * math.cos(x) + 10


@needs_torch
@pytest.mark.parametrize("at_once", [1, 8])
def test_optunas_gp_finds_what_a_tpe_does_not(at_once, monkeypatch):
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        best = {}
        for sampler in (AutoSampler(seed=1), TPESampler(seed=1)):
            study = optuna.create_study(sampler=sampler)
            running = []
            for _ in itertools.repeat(None, 40):
                trial = study.ask()
                running.append((trial, branin(trial)))
                if len(running) == at_once:
                    study.tell(*running.pop(0))
            best[type(sampler)] = min(
                value for trial, value in running + [(t, t.value) for t in study.trials if t.value]
            )
    assert best[AutoSampler] < best[TPESampler]
    assert best[AutoSampler] < 0.45


def test_with_many_running_trials_a_tpe_takes_fewer_trials_for_good_ones(monkeypatch):
    made = []
    monkeypatch.setattr(auto_sampler, "set_number_of_good_trials", lambda _, number: made.append(number))
    study = optuna.create_study(sampler=AutoSampler(seed=1, time_share=0.0))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=20)
    found = []
    for _ in range(15):
        study.ask().suggest_float("x", 0, 1)
        found.append(made[0](100))
    assert found == [10] * 12 + [8] * 3
