"""Which sampler an `AutoSampler` takes, and what it keeps."""

import collections
import concurrent.futures
import copy
import functools
import itertools
import logging
import math
import pickle
import sys
import types
import warnings

import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from optuna_flyte_dsl import AutoSampler, Float, Minimize, optimize
from optuna_flyte_dsl.sampling import auto_sampler, gp_points, time_budget
from optuna_flyte_dsl.sampling.auto_sampler import START, has_gp
from optuna_flyte_dsl.sampling.sampler_process import Memory, SampledPoint, SamplerProcessError, sample
from optuna_flyte_dsl.study.attributes import SAMPLERS

needs_torch = pytest.mark.skipif(not has_gp(), reason="torch is not installed")


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


clock = Clock()


class SamplesHere:
    """Stands for a `SamplerProcess`: random points, at once, in this process."""

    is_busy = False
    is_ready = True

    def __init__(self):
        self.requests = []
        self.is_late = False
        self.seconds = 0.0
        self.error = None

    def submit(self, request):
        self.requests.append(request)
        clock.now += self.seconds
        answer = concurrent.futures.Future()
        if self.is_late:
            return answer
        if self.error is not None:
            answer.set_exception(self.error)
        else:
            # As if the sampler were made anew for each point, from the same seed.
            seed = request.make_sampler.args[0]
            random_points = request._replace(make_sampler=functools.partial(RandomSampler, seed=seed), search=None)
            answer.set_result(SampledPoint(sample(random_points, Memory()), self.seconds))
        return answer


@pytest.fixture(autouse=True)
def gp(monkeypatch):
    """Put a stand-in in the place of the process that samples, and a clock that only it and the tests move."""
    process = SamplesHere()
    monkeypatch.setattr(auto_sampler, "has_gp", lambda: True)
    monkeypatch.setattr(auto_sampler, "gp_knows_running_trials", lambda: True)
    monkeypatch.setattr(gp_points, "gp_knows_running_trials", lambda: True)
    monkeypatch.setattr(gp_points, "sampler_process", lambda **_: process)
    monkeypatch.setattr(time_budget, "time", clock)
    return process


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


def without_choice(trial):
    return trial.suggest_float("x", 1, 1)


@pytest.mark.parametrize("objective", [conditional, wide, many_choices, without_choice])
def test_a_space_that_does_not_suit_a_gp_gets_a_tpe(objective, gp):
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    assert samplers_of(study, 30, objective)[12:] == ["TPESampler"] * 18
    assert gp.requests == []


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


def test_a_quick_search_starts_no_process(gp):
    for seconds, is_started in ((0.01, False), (0.02, False), (2.0, True)):  # 2 s in all; time for few points; 400 s
        gp.requests.clear()
        clock.now = 0.0
        samplers_of(optuna.create_study(sampler=AutoSampler()), 200, seconds=seconds)
        assert bool(gp.requests) is is_started


@pytest.mark.parametrize("knows_running", [True, False])
def test_a_gp_that_does_not_know_of_running_trials_starts_a_process_for_one_trial_at_a_time(
    knows_running, gp, monkeypatch
):
    for module in (auto_sampler, gp_points):
        monkeypatch.setattr(module, "gp_knows_running_trials", lambda: knows_running)
    for n_at_once, is_started in ((1, True), (2, knows_running)):
        gp.requests.clear()
        study = optuna.create_study(sampler=AutoSampler())
        running = []
        for _ in range(30):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            running.append(trial)
            clock.now += 60.0
            if len(running) == n_at_once:
                study.tell(running.pop(0), 0.5)
        assert bool(gp.requests) is is_started


def test_a_search_that_suits_no_gp_starts_no_process(gp):
    def conditional(trial):
        return trial.suggest_float("x" if trial.number % 2 else "y", 0, 1)

    samplers_of(optuna.create_study(sampler=AutoSampler()), 30, conditional, seconds=60)
    assert gp.requests == []


def test_a_share_can_be_given(gp):
    gp.seconds = 0.5
    for share, model in ((0.0, "TPESampler"), (1.0, "GPSampler"), (None, "GPSampler")):
        study = optuna.create_study(sampler=AutoSampler(seed=1, time_share=share))
        assert samplers_of(study, 12, seconds=1.0)[-1] == model
    for wrong in (-0.1, 1.5, "all"):
        with pytest.raises(ValueError, match="`time_share` must be None or a number from 0 to 1, but got"):
            AutoSampler(time_share=wrong)


def test_a_gp_that_fails_is_replaced(gp, caplog):
    gp.error = SamplerProcessError("RuntimeError('singular')")
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    with caplog.at_level(logging.WARNING):
        samplers_of(study, 15)
    assert len(gp.requests) == 1
    assert study.sampler.latest == "TPESampler"
    assert study.user_attrs[SAMPLERS] == [START, "TPESampler"]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 15
    assert caplog.messages == ["The GPSampler fails, and a TPESampler replaces it: RuntimeError('singular')."]


def test_points_are_sampled_ahead_and_known_to_the_study(gp, monkeypatch):
    stored = []
    monkeypatch.setattr(gp_points, "store_point", lambda _, trial, params: stored.append((trial.number, params)))
    study = optuna.create_study(sampler=AutoSampler())
    names = samplers_of(study, 40, seconds=0.5)
    with_gp = [number for number, name in enumerate(names) if name == "GPSampler"]
    assert len(with_gp) > 20
    assert [number for number, _ in stored] == with_gp
    assert [params["x"] for _, params in stored] == [study.trials[number].params["x"] for number in with_gp]
    ahead = [request for request in gp.requests if request.rows[-1].state is TrialState.RUNNING]
    assert ahead != []
    for request in ahead:
        number = sum(row.state is TrialState.COMPLETE for row in request.rows)
        assert request.rows[-1].point == (study.trials[number].params["x"],)


def test_the_points_of_another_study_are_not_taken(gp):
    sampler = AutoSampler()
    for _ in range(2):
        study = optuna.create_study(sampler=sampler)
        samplers_of(study, 40, seconds=0.5)
        known = {request.id: request.rows for request in gp.requests}
        for request in gp.requests:
            assert all(len(known[each]) <= len(request.rows) for each in request.earlier)
        gp.requests.clear()


def test_a_point_that_comes_too_late_is_a_tpes(gp, monkeypatch):
    monkeypatch.setattr(gp_points.Patience, "wait", lambda _, future, __: future.done())
    gp.is_late = True
    study = optuna.create_study(sampler=AutoSampler(time_share=1.0))
    assert samplers_of(study, 20, seconds=60.0)[10:] == ["TPESampler"] * 10
    assert study.user_attrs[SAMPLERS] == [START, "TPESampler"]


def test_a_trial_that_takes_no_point_gives_it_back(gp):
    study = optuna.create_study(sampler=AutoSampler())
    samplers_of(study, 30, seconds=0.5)
    for _ in range(20):
        study.enqueue_trial({"x": 0.5})
    samplers_of(study, 60, seconds=0.5)
    assert study.sampler._points._coming == {}
    assert all(len(request.earlier) <= 2 for request in gp.requests)


def test_without_specs_of_its_packages_there_is_no_gp(monkeypatch):
    monkeypatch.undo()
    has_gp.cache_clear()
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))  # as tests of users do
    assert not has_gp()
    has_gp.cache_clear()


def test_a_gp_that_fails_while_it_samples_ahead_is_replaced(gp, caplog, monkeypatch):
    def fails(*_):
        raise ValueError("by design")

    monkeypatch.setattr(gp_points.GPPoints, "ask_ahead", fails)
    study = optuna.create_study(sampler=AutoSampler())
    with caplog.at_level(logging.WARNING):
        samplers_of(study, 15)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 15
    assert caplog.messages == ["The GPSampler fails, and a TPESampler replaces it: ValueError('by design')."]


def test_a_seed_repeats_a_study(gp):
    def points(seed):
        study = optuna.create_study(sampler=AutoSampler(seed=seed))
        samplers_of(study, 20)
        return [trial.params for trial in study.trials]

    def gp_seeds(seed):
        gp.requests.clear()
        points(seed)
        return [request.make_sampler.args for request in gp.requests]

    assert points(1) == points(1) != points(2)
    assert gp_seeds(1) == gp_seeds(1) != gp_seeds(2)
    assert len(set(gp_seeds(1))) == 10
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


def points_of(study, space, n_trials):
    """Run trials of a space of floats; return their points."""
    for _ in range(n_trials):
        trial = study.ask()
        study.tell(trial, sum(trial.suggest_float(name, 0, 1) for name in space))
    return [trial.params for trial in study.trials]


def test_it_can_be_given_to_studies_of_one_storage(monkeypatch):
    """A search space of several parameters that all trials of a study have is kept for that study alone."""
    monkeypatch.setattr(auto_sampler, "has_gp", lambda: False)
    storage, sampler = optuna.storages.InMemoryStorage(), AutoSampler(seed=1)
    first, second = (optuna.create_study(storage=storage, sampler=sampler) for _ in range(2))
    points_of(first, "uv", 20)
    assert len(points_of(second, "x", 20)) == 20
    # They take turns: a point must not be drawn again and again.
    for _ in range(5):
        points_of(first, "uv", 1)
        points_of(second, "x", 1)
    for study in (first, second):
        assert len({str(trial.params) for trial in study.trials}) == 25


def test_the_joint_space_of_an_earlier_study_is_forgotten(monkeypatch):
    monkeypatch.setattr(auto_sampler, "has_gp", lambda: False)
    sampler, seen = AutoSampler(seed=1), []
    points_of(optuna.create_study(sampler=sampler), "uv", 40)
    monkeypatch.setattr(
        TPESampler,
        "sample_relative",
        lambda self, study, trial, space: seen.append(set(space)) or {},
    )
    points_of(optuna.create_study(sampler=sampler), "xyz", 20)
    assert seen
    assert all(space <= set("xyz") for space in seen)


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

    monkeypatch.setattr("optuna_flyte_dsl.sampling.auto_sampler.AutoSampler", Spy)

    def objective(x: Float(0, 1)) -> float:
        return x

    optimize(objective, **{"n_trials": 2, "concurrency": 2, **options}).run_sync()
    assert given == [limit]


def test_both_models_are_told_of_constraints(gp, monkeypatch):
    given = []

    class Spy(TPESampler):
        def __init__(self, **options):
            given.append(options.get("constraints_func"))
            options.pop("constraints_func", None)
            super().__init__(**options)

    Spy.__name__ = "TPESampler"
    monkeypatch.setattr(auto_sampler, "TPESampler", Spy)

    def constraints(trial):
        return (trial.params["x"] - 0.5,)

    study = optuna.create_study(sampler=AutoSampler(seed=1, constraints_func=constraints))
    samplers_of(study, 12)
    assert given == [constraints]
    assert gp.requests[0].make_sampler.keywords == {"has_constraints": True, "expects_lengthscales": False}


# With Optuna's own samplers.


def branin(trial):
    x, y = trial.suggest_float("x", -5, 10), trial.suggest_float("y", 0, 15)
    return (y - 0.129 * x * x + 1.592 * x - 6) ** 2 + 9.602 * math.cos(x) + 10


@needs_torch
@pytest.mark.parametrize("at_once", [1, 8])
def test_optunas_gp_finds_what_a_tpe_does_not(at_once, monkeypatch):
    monkeypatch.undo()
    if at_once > 1 and not auto_sampler.gp_knows_running_trials():
        pytest.skip("this Optuna's GPSampler does not know of running trials")
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


@needs_torch
def test_optunas_gp_takes_a_prior_for_many_running_trials(monkeypatch):
    monkeypatch.undo()
    if not auto_sampler.gp_knows_running_trials():
        pytest.skip("this Optuna's GPSampler does not know of running trials")
    study = optuna.create_study(sampler=AutoSampler(seed=1))
    running = []
    for _ in itertools.repeat(None, 40):
        trial = study.ask()
        running.append((trial, branin(trial)))
        if len(running) == 16:
            study.tell(*running.pop(0))
    # Had the GPSampler failed, a TPESampler would have replaced it.
    assert study.user_attrs[SAMPLERS] == ["quasi-random", "GPSampler"]


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


def test_it_counts_for_how_many_trials_each_sampler_was_chosen(gp):
    study = optuna.create_study(sampler=AutoSampler())
    used = samplers_of(study, 30, seconds=0.5)
    assert study.sampler.counts == collections.Counter(used)
    assert len(study.sampler.counts) == 3


@pytest.mark.parametrize("seed", ["a", 1.5, -1, 2**32])
def test_a_wrong_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"`seed` must be None or an integer from 0 to 2\*\*32 - 1, but got"):
        AutoSampler(seed)
