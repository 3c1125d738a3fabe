"""Simulated searches: their schedules, their points, and what their faults do."""

import asyncio
import datetime
import heapq
import itertools
import math
import pickle
import time

import flytekit as fl
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from optuna_flyte_dsl import (
    Constraint,
    Float,
    Integer,
    InvalidOptionError,
    Maximize,
    Minimize,
    Optimizer,
    OptunaFlyteError,
    TooManyFailuresError,
    optimize,
)
from optuna_flyte_dsl.testing import Faults, simulate

pytestmark = pytest.mark.newest


@optimize(n_trials=20, concurrency=3, sampler=optuna.samplers.RandomSampler, progress=False)
def train(x: Float(0, 1), depth: Integer(1, 5) = 3) -> Minimize: ...


def list_schedule(durations, slots):
    """Return the makespan of a list of jobs, each of which begins as soon as a slot is free."""
    free = [0.0] * slots
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=40), st.integers(1, 8))
@settings(max_examples=50)
def test_the_makespan_is_that_of_an_independent_schedule(durations, slots):
    simulation = simulate(
        train,
        durations=lambda number: durations[number],
        outcomes=lambda x: x,
        n_trials=len(durations),
        concurrency=slots,
        max_consecutive_failures=None,
    )
    assert simulation.makespan == pytest.approx(list_schedule(durations, slots))
    assert simulation.use_of_slots == pytest.approx(sum(durations) / (slots * simulation.makespan))
    assert [run.seconds for run in simulation.schedule] == pytest.approx(durations)
    for slot in range(slots):  # no slot runs two trials at once
        runs = [run for run in simulation.schedule if run.slot == slot]
        assert all(one.end <= other.start for one, other in itertools.pairwise(runs))


def test_a_delay_lies_between_the_starts():
    simulation = simulate(train, durations=5, outcomes=lambda x: x, delay=60, concurrency=20)
    assert [run.start for run in simulation.schedule] == pytest.approx([60 * index for index in range(20)])
    assert simulation.makespan == pytest.approx(19 * 60 + 5)


def durations_of(trial_number):
    return 0.05 + 0.011 * (trial_number * 7 % 10)


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler, optuna.samplers.TPESampler])
def test_a_simulated_search_tries_the_points_of_a_real_one(sampler):
    n_trials, concurrency = 16, 3
    started, n_started = iter(range(100)), 0

    async def in_turn(number):
        """Wait until the trials that end before this one have ended, and those in their slots have started."""
        nonlocal n_started
        n_started += 1
        while n_started < min(n_trials, concurrency + ends.index(number)):
            await asyncio.sleep(0.001)

    @optimize(n_trials=n_trials, concurrency=concurrency, sampler=sampler, seed=7, progress=False)
    async def real(x: Float(-5, 5), y: Integer(1, 9)) -> Minimize:
        await wait(next(started))
        return x * x + y

    def points(study):
        return [trial.params for trial in study.trials]

    simulated = simulate(real, durations=durations_of_number, outcomes=lambda x, y: x * x + y)
    ends = [run.trial for run in sorted(simulated.schedule, key=lambda run: run.end)]
    wait = in_turn  # a real clock could let the trials of a busy machine end in another order
    assert points(asyncio.run(real())) == points(simulated.study)
    started, wait = iter(range(100)), lambda number: asyncio.sleep(durations_of(number))
    # the objective itself, on the virtual clock
    assert points(simulate(real, durations=0).study) == points(simulated.study)


def durations_of_number(number):
    return durations_of(number)


def test_a_thousand_hours_pass_in_seconds_and_repeat_exactly():
    def run():
        return simulate(
            train,
            n_trials=1000,
            concurrency=50,
            durations=lambda random: 3600 * random.lognormvariate(0, 0.5),
            outcomes=lambda x, depth, random: x + depth + random.gauss(0, 0.1),
            faults=Faults(crash=0.05, hang=0.02, nan=0.02, straggler=0.05),
            trial_timeout=6 * 3600,
            retries=1,
            max_consecutive_failures=None,
            seed=3,
        )

    one, other = run(), run()
    assert one.schedule == other.schedule
    assert [trial.params for trial in one.study.trials] == [trial.params for trial in other.study.trials]
    assert len(one.study.trials) == 1000
    assert one.makespan > 15 * 3600
    assert set(one.faults) == {"crash", "hang", "nan", "straggler"}


def test_each_fault_does_what_it_does_in_reality():
    simulation = simulate(
        train,
        n_trials=6,
        concurrency=6,
        durations=100,
        outcomes=lambda x: x,
        faults={0: "crash", 1: "hang", 2: "nan", 3: "straggler"},
        trial_timeout=500,
        retries=1,
    )
    runs = {(run.trial, run.attempt): run for run in simulation.schedule}
    failed = [trial.number for trial in simulation.study.trials if trial.state is TrialState.FAIL]
    assert failed == [1, 2, 3]  # the crash was tried again
    assert 0 <= runs[0, 0].seconds <= 100
    assert runs[0, 1].seconds == pytest.approx(100)
    assert runs[1, 0].seconds == pytest.approx(500)
    assert runs[3, 0].seconds == pytest.approx(500)  # ten times 100 s, but for the limit
    assert runs[4, 0].seconds == pytest.approx(100)
    assert simulation.faults["hang"] == {"attempts": 1, "seconds": pytest.approx(500), "failed": 1}
    assert simulation.faults["crash"]["failed"] == 0
    assert simulation.makespan == pytest.approx(500)


def test_failures_end_a_search_as_in_reality():
    with pytest.raises(TooManyFailuresError):
        simulate(train, faults=Faults(crash=1.0), n_trials=100)


def test_pruning_is_simulated():
    @optimize(
        n_trials=30, concurrency=2, seed=1, pruner=optuna.pruners.MedianPruner(n_startup_trials=3), progress=False
    )
    def learn(x: Float(0, 1), trial: optuna.Trial) -> Maximize: ...

    def curve(x):
        for epoch in range(10):
            yield x * (epoch + 1) / 10

    simulation = simulate(learn, durations=100, outcomes=curve)
    pruned = [trial for trial in simulation.study.trials if trial.state is TrialState.PRUNED]
    assert pruned
    for run in simulation.schedule:
        reported = simulation.study.trials[run.trial].intermediate_values
        assert run.seconds == pytest.approx(10 * len(reported))
    completed = [trial for trial in simulation.study.trials if trial.state is TrialState.COMPLETE]
    assert all(trial.value == pytest.approx(trial.params["x"]) for trial in completed)


def test_the_study_has_virtual_times():
    simulation = simulate(train, durations=datetime.timedelta(hours=1), outcomes=lambda x: x, n_trials=4, concurrency=2)
    begun = [trial.datetime_start for trial in simulation.study.trials]
    day = datetime.datetime(2000, 1, 1)
    assert begun == [day, day, day + datetime.timedelta(hours=1), day + datetime.timedelta(hours=1)]
    assert all(trial.duration == datetime.timedelta(hours=1) for trial in simulation.study.trials)
    values = [trial.value for trial in simulation.study.trials]
    assert simulation.best_after(3600) == min(values[:2])
    assert simulation.best_after(7200) == min(values) == simulation.study.best_value
    assert simulation.best_after(datetime.timedelta(seconds=1)) is None
    assert str(simulation) == "4 trials (4 COMPLETE) in 2:00:00, with 100% of 2 slots in use"
    pickle.loads(pickle.dumps(simulation.study))


def test_a_task_runs_itself_without_taking_time():
    @optimize(n_trials=6, concurrency=2, progress=False, seed=1)
    @fl.task
    def task(x: Float(0, 1)) -> Minimize:
        time.sleep(0.01)
        return x

    simulation = simulate(task, durations=60)
    assert simulation.makespan == 180
    assert [trial.value for trial in simulation.study.trials] == [
        trial.params["x"] for trial in simulation.study.trials
    ]


def test_a_function_that_samples_by_itself_can_be_simulated():
    def own(trial, center: float):
        return (trial.suggest_float("x", 0, 1) - center) ** 2

    simulation = simulate(
        Optimizer(own, concurrency=2, n_trials=10, progress=False), 0.5, durations=lambda center: center
    )
    assert simulation.makespan == pytest.approx(2.5)
    assert len(simulation.study.trials) == 10


def test_neither_the_user_s_study_nor_the_sampler_is_changed(tmp_path):
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))

    @optimize(study=study, n_trials=5, progress=False)
    def own(x: Float(0, 1)): ...

    first = simulate(own, outcomes=lambda x: x)
    assert first.study.direction.name == "MAXIMIZE"
    assert study.trials == []
    assert simulate(own, outcomes=lambda x: x).study.best_params == first.study.best_params
    simulate(train, outcomes=lambda x: x, storage=str(tmp_path / "study.journal"), resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_function_that_makes_a_study_is_asked_for_its_directions():
    def make():
        return optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))

    @optimize(study=make, n_trials=5, progress=False)
    def own(x: Float(0, 1)): ...

    simulation = simulate(own, outcomes=lambda x: x)
    assert simulation.best_after(100) == max(trial.value for trial in simulation.study.trials)
    assert type(simulation.study.sampler) is optuna.samplers.RandomSampler
    simulate(train, outcomes=lambda x: x, sampler=lambda: optuna.samplers.RandomSampler())


def test_hyperband_gives_the_same_result_each_time():
    @optimize(n_trials=27, pruner=optuna.pruners.HyperbandPruner(1, 9), progress=False)
    def learn(x: Float(0, 1), trial: optuna.Trial) -> Minimize: ...

    def curve(x):
        for epoch in range(9):
            yield x + 1 / (epoch + 1)

    assert len({simulate(learn, durations=9, outcomes=curve).makespan for _ in range(3)}) == 1


def test_several_objectives_and_constraints_are_simulated():
    @optimize(n_trials=20, concurrency=4, progress=False, seed=1, max_consecutive_failures=None)
    def limited(x: Float(0, 1)) -> tuple[Minimize, Constraint]: ...

    simulation = simulate(limited, outcomes=lambda x: (x, 0.5 - x), faults=Faults(nan=0.3))
    assert simulation.best_after(100) == simulation.study.best_value >= 0.5
    assert simulation.faults["nan"]["failed"] == simulation.faults["nan"]["attempts"] > 0


def test_failed_trials_are_counted_once():
    options = {"retries": 1, "max_consecutive_failures": None, "n_trials": 10}
    simulation = simulate(train, outcomes=lambda x: x, faults=Faults(crash=1.0), **options)
    assert simulation.faults["crash"] == {"attempts": 20, "seconds": pytest.approx(10, abs=10), "failed": 10}


def test_trials_that_are_not_run_have_their_times():
    earlier = simulate(train, outcomes=lambda x: x).study
    warm = simulate(train, outcomes=lambda x: x + 5, warm_start=earlier, durations=10)
    assert warm.best_after(0) == earlier.best_value
    assert len(warm.study.trials) == 40

    @optimize(n_trials=30, duplicates="reuse", progress=False, seed=1)
    def small(n: Integer(1, 3)) -> Minimize: ...

    simulation = simulate(small, outcomes=lambda n: n, durations=10)
    assert len(simulation.schedule) == 3
    ended = [trial.datetime_complete for trial in simulation.study.trials]
    assert ended == sorted(ended)
    assert len(set(ended)) == 3


def test_an_async_outcome_is_awaited():
    async def outcome(x):
        return x

    assert simulate(train, outcomes=outcome).best_after(100) is not None


def test_an_objective_that_waits_for_a_thread_is_refused():
    @optimize(n_trials=2, progress=False)
    async def own(x: Float(0, 1)) -> Minimize:
        return await asyncio.to_thread(time.sleep, 1) or x

    with pytest.raises(OptunaFlyteError, match="Give `outcomes`, in place of an objective that waits"):
        simulate(own)


def test_a_plain_function_is_refused():
    with pytest.raises(InvalidOptionError, match="takes an objective under `@optimize`, or an `Optimizer`, but got"):
        simulate(train.task)


def test_a_simulation_runs_inside_an_event_loop():
    async def main():
        return simulate(train, outcomes=lambda x: x)

    assert len(asyncio.run(main()).study.trials) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"durations": lambda lr: lr}, "`durations` takes `lr`, which is no argument of `train`"),
        ({"outcomes": lambda dept: dept}, "Did you mean `depth`"),
        ({"outcomes": 5}, "`outcomes` must be a function of the arguments, but got 5"),
        ({"faults": "crash"}, "`faults` must be `Faults.crash=0.05.`, or a dict such as .* but got 'crash'"),
        ({"durations": -1}, "`durations` must give seconds of 0 or more, or a timedelta, but got -1"),
        ({"durations": "1h"}, "`durations` must give seconds of 0 or more, or a timedelta, but got '1h'"),
        ({"durations": lambda: math.inf}, "must give seconds of 0 or more, or a timedelta, but got inf"),
        ({"durations": lambda: "1h"}, "must give seconds of 0 or more, or a timedelta, but got '1h'"),
        ({"faults": Faults(hang=0.1)}, "would never end. Give `trial_timeout`"),
        ({"faults": {"crash": 0.1}}, "the number of a trial, but got 'crash'.*write `Faults.crash=0.1.`"),
        ({"faults": {3: "hnag"}}, "the fault of trial 3 must be one of .* Did you mean `hang`"),
        ({"outcomes": lambda x: iter([x])}, "cannot report: it does not take `trial`"),
    ],
)
def test_what_cannot_be_simulated_is_refused(options, message):
    with pytest.raises(InvalidOptionError, match=message):
        simulate(train, **{"outcomes": lambda x: x, **options})


def test_an_error_of_a_made_up_duration_is_raised_and_one_of_an_outcome_is_the_trial_s():
    with pytest.raises(ZeroDivisionError):
        simulate(train, durations=lambda: 1 / 0)
    study = simulate(train, outcomes=lambda: 1 / 0, n_trials=3).study
    assert [trial.state for trial in study.trials] == [TrialState.FAIL] * 3


def test_a_long_search_over_an_async_function_is_quick_too():
    @optimize(n_trials=4, concurrency=2, progress=False)
    async def own(x: Float(0, 1)) -> Minimize:
        await asyncio.sleep(10**7)
        return x

    assert simulate(own, durations=0).makespan == pytest.approx(2 * 10**7)


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"crash": 1.5}, "`crash` must be a probability"),
        ({"crash": 0.6, "nan": 0.6}, "must add up to at most 1"),
        ({"crash": "0.1"}, "`crash` must be a probability, from 0 to 1, but got '0.1'"),
        ({"slowdown": 0}, "`slowdown` must be a number greater than 0"),
        ({"slowdown": math.inf}, "`slowdown` must be a number greater than 0"),
    ],
)
def test_faults_are_checked(faults, message):
    with pytest.raises(InvalidOptionError, match=message):
        Faults(**faults)


def test_a_misspelt_fault_is_refused():
    with pytest.raises(InvalidOptionError, match=r"`Faults` has no option `crsh`\. Did you mean `crash`"):
        Faults(crsh=0.1)
    assert pickle.loads(pickle.dumps(Faults(crash=0.5))) == Faults(0.5)
