"""Points that were tried already: which searches share them, and what becomes of a repeated one."""

import os
import subprocess
import sys
import threading
from typing import Annotated

import flytekit as fl
import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler, TPESampler

from optuna_flyte_dsl import Category, Float, Integer, InvalidOptionError, Optimizer, When, optimize, suggest
from optuna_flyte_dsl._compat.optuna import storage_of, trial_id
from optuna_flyte_dsl.study.attributes import SAME_AS
from optuna_flyte_dsl.study.content_hash import content_hash
from optuna_flyte_dsl.study.storages import open_storage
from tests.support.small_searches import plain, search, states


class Data:
    """Its text does not tell what it holds."""

    def __init__(self, values):
        self.values = values

    def __repr__(self):
        return "Data(...)"


def middle_changed():
    other = np.zeros(2000)
    other[1000] = 1.0
    return other


def objective(tmp_path):
    @optimize(n_trials=2, storage=tmp_path / "study.journal", study_name="s", duplicates="reuse", progress=False)
    def total(kind: Category(["only"]), data) -> float:
        return float(sum(data.values if isinstance(data, Data) else data))

    return total


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.zeros(2000), middle_changed()),
        (Data([1.0]), Data([2.0])),
        ([0.1] * 30, [0.1] * 29 + [0.2]),
    ],
)
def test_values_are_reused_for_arguments_of_the_same_content_only(tmp_path, first, second):
    search = objective(tmp_path)
    for data in (first, second, first):
        study = search.run_sync(data=data)
        expected = float(sum(data.values if isinstance(data, Data) else data))
        assert [trial.value for trial in study.trials[-2:]] == [expected] * 2
    assert [trial.user_attrs.get(SAME_AS) for trial in study.trials] == [None, 0, None, 2, 0, 0]


def test_an_argument_that_cannot_be_told_apart_is_refused(tmp_path):
    search = objective(tmp_path)
    with pytest.raises(InvalidOptionError, match=r"the fixed argument `data` cannot be told apart.*the path of a file"):
        search.run_sync(data=threading.Lock())


@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_points_outside_of_the_space_are_not_taken_for_one_another(tmp_path):
    storage = tmp_path / "study.journal"

    def square(x: Float(0, 10, step=1)) -> float:
        return x * x

    def narrow(x: Float(0, 2, step=1)) -> float:
        return x * x

    options = {"storage": storage, "study_name": "s", "progress": False, "concurrency": 1, "duplicates": "reuse"}
    points = [{"x": 8.0}, {"x": 9.0}]
    optimize(square, n_trials=2, initial_points=points, **options).run_sync()
    study = optuna.load_study(study_name="s", storage=open_storage(storage))
    for x in (7.0, 6.0):
        study.enqueue_trial({"x": x})
    study = optimize(narrow, n_trials=4, **options).run_sync()
    assert [trial.value for trial in study.trials if trial.state.name == "COMPLETE"][:2] == [64.0, 81.0]
    for trial in study.trials[2:]:
        assert trial.value in (None, trial.params.get("x", 0.0) ** 2)


@pytest.mark.newest
def test_the_hash_of_a_set_is_the_same_in_each_process_and_that_of_a_masked_array_knows_the_mask():
    program = "from optuna_flyte_dsl.study.content_hash import content_hash; print(content_hash(frozenset('abcdefgh')))"
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(hashes) == 1
    first, second = np.ma.array([1.0, 2.0], mask=[0, 1]), np.ma.array([1.0, 2.0], mask=[1, 0])
    assert content_hash(first) == content_hash(first.copy()) != content_hash(second)


def small(i: Integer(1, 3), kind: Category(["a", "b"])) -> float:
    return i + (kind == "a")


def keys(study):
    return [tuple(sorted(trial.params.items())) for trial in study.trials]


@pytest.mark.parametrize("sampler", [RandomSampler(seed=1), TPESampler(seed=1, n_startup_trials=2)])
@pytest.mark.parametrize("concurrency", [1, 3])
def test_resampled_points_are_new_until_none_is_left(sampler, concurrency, warned):
    study = search(small, n_trials=6, duplicates="resample", sampler=sampler, concurrency=concurrency).run_sync()
    assert len(set(keys(study))) == 6
    assert set(states(study)) == {"COMPLETE"}
    assert all(trial.value == small(**trial.params) for trial in study.trials)
    more = search(small, n_trials=9, duplicates="resample", seed=1, concurrency=concurrency).run_sync()
    assert len(more.trials) == 9
    assert any("trial 6 of `small` runs a point again, because no other one is left" in line for line in warned())
    assert len(set(keys(more))) == 6


@pytest.mark.parametrize("duplicates", ["allow", "reuse", "resample"])
def test_a_search_ends_when_its_space_is_exhausted_if_asked_to(duplicates):
    options = {"duplicates": duplicates, "stop_when_exhausted": True, "seed": 1}
    study = search(small, n_trials=500, concurrency=2, **options).run_sync()
    assert len(set(keys(study))) == 6
    assert len(study.trials) < 500
    if duplicates == "resample":
        assert len(study.trials) == 6


class Stubborn(RandomSampler):
    """Always suggests the first value, and counts how often it is asked for a point."""

    def __init__(self):
        super().__init__(seed=1)
        self.asked = 0

    def sample_independent(self, study, trial, name, distribution):
        self.asked += name == "a"
        return distribution.low


async def wide(a: Integer(0, 9), b: Integer(0, 9), c: Integer(0, 9)) -> float:
    return a


def test_in_place_of_a_taken_point_a_near_one_is_tried_after_few_questions():
    sampler = Stubborn()
    study = search(wide, n_trials=12, duplicates="resample", sampler=sampler, concurrency=1).run_sync()
    points = [tuple(trial.params.values()) for trial in study.trials]
    assert points[0] == (0, 0, 0)
    assert len(set(points)) == 12
    assert all(sum(value > 0 for value in point) == 1 for point in points[1:])
    assert sampler.asked == 1 + 11 * 4  # a trial whose point is set before does not ask


def test_where_all_points_are_taken_the_sampler_is_asked_once():
    sampler = Stubborn()
    search(small_in_a, n_trials=8, duplicates="resample", sampler=sampler, concurrency=1).run_sync()
    assert sampler.asked == 1 + 4 + 6


def test_points_that_the_constraints_forbid_now_do_not_count_as_taken(warned):
    study = optuna.create_study(sampler=RandomSampler(seed=1))
    options = {"study": study, "n_trials": 5, "duplicates": "resample", "concurrency": 1}
    search(small_in_ten, initial_points=[{"a": each} for each in range(5)], **options).run_sync()
    search(small_in_ten, constraints=[lambda a: 5 - a], **options).run_sync()
    assert {trial.params["a"] for trial in study.trials[5:]} == {5, 6, 7, 8, 9}
    assert not warned()


def test_a_partly_enqueued_point_that_is_taken_is_run_again_with_a_warning(warned):
    study = optuna.create_study(sampler=RandomSampler(seed=1))
    for _ in range(3):
        study.enqueue_trial({"i": 2})
    search(small, study=study, n_trials=3, duplicates="resample", concurrency=1).run_sync()
    assert [trial.params["i"] for trial in study.trials] == [2] * 3
    assert len({trial.params["kind"] for trial in study.trials}) == 2
    assert any("trial 2 of `small` runs a point again" in line for line in warned())


class Curious(RandomSampler):
    """Reads the first trial from the storage."""

    def sample_independent(self, study, trial, name, distribution):
        assert storage_of(study).get_trial(trial_id(study.trials[0])).number == 0
        return super().sample_independent(study, trial, name, distribution)


def test_a_sampler_that_reads_other_trials_gets_them():
    study = search(wide, n_trials=4, duplicates="resample", sampler=Curious(seed=1), concurrency=1).run_sync()
    assert states(study) == ["COMPLETE"] * 4


@pytest.mark.parametrize("is_constrained", [True, False])
def test_a_spent_point_of_a_huge_space_takes_no_time(is_constrained):
    async def huge(a: Integer(1, 10**6), b: Integer(1, 10**6)) -> float:
        return a

    study = optuna.create_study(sampler=RandomSampler(seed=1))
    for _ in range(3):
        study.enqueue_trial({"a": 1, "b": 1} if not is_constrained else {"a": 1})
    options = {"constraints": [lambda a, b: a >= 1]} if is_constrained else {}
    search(huge, study=study, n_trials=3, duplicates="resample", **options).run_sync()
    assert states(study) == ["FAIL" if is_constrained else "COMPLETE"] * 3


def test_with_constraints_a_near_point_is_tried_too():
    options = {"constraints": [lambda a: a > 9], "duplicates": "resample", "concurrency": 1}
    study = search(wide, n_trials=12, sampler=Stubborn(), **options).run_sync()
    assert all(sum(value > 0 for value in trial.params.values()) == 1 for trial in study.trials[1:])


def test_an_enqueued_value_that_switches_a_parameter_off_leaves_all_points_to_try():
    async def conditional(
        kernel: Category(["lin", "rbf"]), c: Integer(1, 30), g: Annotated[int, Integer(1, 2), When("kernel", "rbf")] = 0
    ) -> float:
        return c

    study = optuna.create_study(sampler=RandomSampler(seed=1))
    for _ in range(29):
        study.enqueue_trial({"kernel": "lin"})
    search(conditional, study=study, n_trials=29, duplicates="resample", concurrency=1).run_sync()
    assert len(set(keys(study))) == 29


@pytest.mark.filterwarnings("ignore:Fixed parameter")
def test_an_enqueued_infinity_fails_its_trial_only():
    study = optuna.create_study(sampler=RandomSampler(seed=1))
    study.enqueue_trial({"a": float("inf")})
    search(small_in_ten, study=study, n_trials=2, concurrency=1).run_sync()
    assert states(study) == ["FAIL", "COMPLETE"]


async def small_in_ten(a: Integer(0, 9)) -> float:
    return a


async def small_in_a(a: Integer(0, 1)) -> float:
    return a


def test_a_space_without_end_cannot_be_exhausted():
    with pytest.raises(InvalidOptionError, match=r"`x` has values without end. Give it a `step`"):
        search(plain, stop_when_exhausted=True)()


def test_repeated_points_are_answered_from_the_finished_trial():
    calls = []

    def counts(i: Integer(1, 3)) -> float:
        calls.append(i)
        return float(i)

    study = search(counts, n_trials=30, duplicates="reuse", seed=1).run_sync()
    assert len(calls) == 3
    assert states(study) == ["COMPLETE"] * 30
    for trial in study.trials:
        assert trial.value == trial.params["i"]
        if SAME_AS in trial.user_attrs:
            assert study.trials[trial.user_attrs[SAME_AS]].params == trial.params


def test_points_of_the_user_are_not_resampled():
    points = [{"i": 2, "kind": "a"}] * 1
    study = search(small, n_trials=3, duplicates="resample", initial_points=points, seed=1).run_sync()
    assert study.trials[0].params == {"i": 2, "kind": "a"}
    part = search(small, n_trials=3, duplicates="resample", initial_points=[{"i": 3}], seed=1).run_sync()
    assert part.trials[0].params["i"] == 3


@pytest.mark.newest
@given(
    st.integers(-5, 5),
    st.integers(0, 4),
    st.integers(1, 3),
    st.sampled_from([0.25, 0.5]),
    st.integers(1, 4),
)
@settings(max_examples=6)
def test_every_point_of_a_finite_space_is_found(low, steps, step, fraction, n_choices):
    space = {
        "i": Integer(low, low + steps * step, step=step) if steps else Integer(low, low + 1),
        "f": Float(0, 1, step=fraction),
        "c": Category(list("abcd")[:n_choices]),
    }

    def objective(i: int, f: float, c: str) -> float:
        return 0.0

    size = ((steps or 1) + 1) * (round(1 / fraction) + 1) * n_choices
    optimizer = Optimizer(
        _taking(objective),
        concurrency=2,
        n_trials=size + 5,
        seed=1,
        duplicates="resample",
        stop_when_exhausted=True,
        progress=False,
    )
    study = optimizer.run_sync(**space)
    assert len(study.trials) == len(set(keys(study))) == size


def _taking(function):
    def marked(i: Integer(0, 1), f: Float(0, 1), c: Category(["a"])) -> float:
        return function(i, f, c)

    return marked


def test_the_same_point_with_other_fixed_arguments_is_another():
    def scaled(i: Integer(1, 3), scale: float = 1.0) -> float:
        return i * scale

    optimizer = Optimizer(scaled, 1, 6, duplicates="reuse", seed=1, progress=False)
    optimizer.run_sync(scale=1.0)
    study = optimizer.run_sync(scale=100.0)
    assert [trial.value for trial in study.trials[6:]] == [trial.params["i"] * 100 for trial in study.trials[6:]]
    both = Optimizer(scaled, 1, 9, duplicates="resample", stop_when_exhausted=True, seed=1, progress=False)
    assert len(both.run_sync(scale=1.0).trials) == 3
    assert len(both.run_sync(scale=2.0).trials) == 6
    assert len(both.run_sync(i=Integer(1, 2), scale=1.0).trials) == 6
    assert len(both.run_sync(i=Integer(2, 4), scale=1.0).trials) == 7


def test_points_with_parameters_that_a_task_samples_itself_are_not_compared_and_it_says_so(caplog):
    @fl.task
    def objective(trial: optuna.Trial, d: Integer(1, 3)) -> float:
        trial.suggest_float("extra", 0, 1)
        return float(d)

    study = search(objective, n_trials=8, concurrency=1, duplicates="reuse").run_sync()
    assert not any(SAME_AS in trial.user_attrs for trial in study.trials)
    assert caplog.text.count("has also sampled `extra`") == 1


def test_a_space_of_any_size_can_be_counted():
    def objective(mask, x: Float(0, 1)) -> float:
        return float(sum(mask))

    mask = [suggest.category([True, False]) for _ in range(1100)]
    assert len(search(objective, n_trials=2, duplicates="resample").run_sync(mask=mask).trials) == 2

    def finite(mask, n: Integer(0, 1)) -> float:
        return float(sum(mask))

    assert len(search(finite, n_trials=2, stop_when_exhausted=True).run_sync(mask=mask).trials) == 2
