"""When failures in a row end a search."""

import contextlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optuna_flyte_dsl import Float, TooManyFailuresError
from tests.support.small_searches import search, states


def test_by_default_a_search_ends_when_nothing_works():
    def fails(x: Float(0, 1)) -> float:
        raise ValueError("nothing works")

    with pytest.raises(TooManyFailuresError, match="10 trials of `fails` have failed in a row") as error:
        search(fails, n_trials=1000).run_sync()
    assert states(error.value.study) == ["FAIL"] * 10
    assert isinstance(error.value.__cause__, ValueError)
    with pytest.raises(TooManyFailuresError) as error:
        search(fails, n_trials=1000, concurrency=16).run_sync()
    assert 32 <= len(error.value.study.trials) < 32 + 16
    assert set(states(error.value.study)) == {"FAIL"}
    assert len(search(fails, n_trials=30, max_consecutive_failures=None).run_sync().trials) == 30
    for n_trials, failures in ((11, 5), (20, 5), (32, 8), (60, 10)):
        with pytest.raises(TooManyFailuresError) as error:
            search(fails, n_trials=n_trials).run_sync()
        assert len(error.value.study.trials) == failures
    assert states(search(fails, n_trials=10).run_sync()) == ["FAIL"] * 10


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 6))
@settings(max_examples=50)
def test_failures_count_in_a_row_only(plan, limit):
    def follows(trial) -> float:
        if not plan[trial.number]:
            raise ValueError("planned")
        return 0.0

    runs = [(works, len(list(group))) for works, group in itertools.groupby(plan)]
    ends = any(not works and length >= limit for works, length in runs)
    run = search(follows, n_trials=len(plan), max_consecutive_failures=limit).run_sync
    with pytest.raises(TooManyFailuresError) if ends else contextlib.nullcontext():
        assert len(run().trials) == len(plan)


def test_after_a_success_more_failures_are_borne():
    def fails_later(trial) -> float:
        if trial.number:
            raise ValueError("later")
        return 0.0

    with pytest.raises(TooManyFailuresError, match="50 trials"):
        search(fails_later, n_trials=1000).run_sync()
