"""What a search logs of trials that fail in the same way."""

import pytest

from optuna_flyte_dsl import Category, Float, Maximize, Minimize, optimize


def test_failures_at_one_place_are_counted_and_others_are_shown(warned):
    @optimize(n_trials=12, concurrency=1, progress=False, max_consecutive_failures=None)
    def objective(trial, x: Float(0, 1)) -> float:
        if trial.number == 5:
            raise LookupError("another one")
        raise ValueError(f"with {x}")

    objective.run_sync()
    first, other, *counts, whole = warned()
    assert first.startswith("Trial 0 of `objective` failed: ValueError: with 0.")
    assert first.endswith('in objective: raise ValueError(f"with {x}"))')
    assert other.startswith("Trial 5 of `objective` failed: LookupError: another one (test_failure_log.py:")
    assert [line.partition(" with ")[0] for line in counts] == [
        "10 trials of `objective` have failed in the same way, trial 0 first: ValueError:",
        "11 trials of `objective` have failed in the same way, trial 0 first: ValueError:",
    ]
    assert whole.startswith("All 12 trials of `objective` failed; the first: ValueError: with 0.")


def test_a_kind_that_came_once_is_told_once(warned):
    @optimize(n_trials=3, concurrency=1, progress=False)
    def objective(trial, x: Float(0, 1)) -> float:
        return x if trial.number else float("nan")

    objective.run_sync()
    assert warned() == ["Trial 0 of `objective` failed: The objective returned NaN: nan"]


def test_values_that_are_nan_are_of_one_kind(warned):
    @optimize(n_trials=9, concurrency=1, progress=False, max_consecutive_failures=None)
    def objective(trial, x: Float(0, 1)) -> tuple[Minimize, Maximize]:
        return x, float("nan") if trial.number < 8 else 1e-3 * x

    objective.run_sync()
    first, count = warned()
    assert first.startswith("Trial 0 of `objective` failed: The objective returned NaN as value 2 of 2: (0.")
    assert count.startswith("8 trials of `objective` have failed in the same way, trial 0 first: ")


def test_points_that_are_refused_are_of_one_kind(warned):
    @optimize(n_trials=4, concurrency=1, progress=False, constraints=[lambda x, kind: 1.0])
    def objective(x: Float(0, 1), kind: Category(["a", "b"])) -> float:
        return x

    objective.run_sync()
    assert len([line for line in warned() if line.startswith("Trial")]) == 1


def test_failures_that_end_the_search_are_counted_too(warned):
    @optimize(n_trials=100, concurrency=1, progress=False, max_consecutive_failures=3)
    def objective(x: Float(0, 1)) -> float:
        raise ValueError("always")

    with pytest.raises(RuntimeError, match=r"3 trials .* in a row.*in objective: raise ValueError\(\"always\"\)"):
        objective.run_sync()
    assert warned()[1] == "3 trials of `objective` have failed in the same way, trial 0 first: ValueError: always"
