"""For how long slots are idle because a slow sampler samples."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optuna_flyte_dsl.sampling import time_budget
from optuna_flyte_dsl.sampling.time_budget import LARGEST_LOAD, TimeBudget


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


clock = Clock()


@pytest.fixture(autouse=True, scope="module")
def clock_of_the_budget():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_budget, "time", clock)
        yield


def run(budget, n_slots, seconds, cost, *, seed=0, n_trials=200):
    """Run trials, each in the slot that is free first. One ask follows the other, and a slow ask takes `cost` seconds.

    Returns:
        The makespan; the time for which slots waited for their ask, summed over the slots; and the number of slow asks.
    """
    clock.now, idle, n_slow = 0.0, 0.0, 0
    generator = random.Random(seed)
    free = [0.0] * n_slots
    running: list[float] = []
    for _ in range(n_trials):
        free.sort()
        since = free.pop(0)
        asked = max(clock.now, since)
        for end in sorted(running):
            if end <= asked:
                clock.now = max(clock.now, end)
                budget.pass_time(len(running))
                running.remove(end)
        clock.now = asked
        budget.begin_ask(len(running))
        if budget.allows(cost):
            with budget.spent():
                clock.now += cost
            n_slow += 1
        idle += clock.now - since
        free.append(clock.now + seconds * generator.uniform(0.5, 1.5))
        running.append(free[-1])
    return max(free), idle, n_slow


@given(
    n_slots=st.integers(1, 64),
    seconds=st.floats(0.01, 100),
    cost=st.floats(0.02, 1),
    seed=st.integers(0, 99),
    share=st.floats(0, 0.1),
)
def test_slots_are_idle_for_their_share_of_the_time_and_no_more(n_slots, seconds, cost, seed, share):
    makespan, idle, n_slow = run(TimeBudget(share), n_slots, seconds, cost, seed=seed)
    assert idle <= 1.5 * share * n_slots * makespan
    assert n_slow * cost <= LARGEST_LOAD * makespan


@pytest.mark.parametrize(
    ("n_slots", "seconds", "expected"),
    [(1, 60.0, 1.0), (1, 1.0, 0.4), (1, 0.01, 0.0), (16, 10.0, 1.0), (16, 1.0, 0.2), (64, 60.0, 0.68)],
)
def test_the_slow_sampler_is_used_as_often_as_there_is_time(n_slots, seconds, expected):
    """There is no time for the trials that begin at once: a third of all trials with 64 slots."""
    _, _, n_slow = run(TimeBudget(0.04), n_slots, seconds, 0.1)
    assert n_slow / 200 == pytest.approx(expected, abs=0.12)


@pytest.mark.parametrize(
    ("n_slots", "seconds", "expected"), [(1, 60.0, 6.0), (1, 1.0, 0.1), (16, 4.0, 0.25), (16, 1.0, 0.03)]
)
def test_the_share_of_points_for_which_there_is_time_is_known(n_slots, seconds, expected):
    budget = TimeBudget(0.03)
    assert budget.affordable(0.3) == 1.0
    clock.now = 0.0
    for _ in range(400):  # no ask takes time
        budget.begin_ask(n_slots - 1)
        clock.now += seconds / n_slots
        budget.pass_time(n_slots)
    assert budget.affordable(0.3) == pytest.approx(expected, rel=0.1)
    assert TimeBudget(None).affordable(0.3) == 1.0


def test_without_a_limit_there_is_always_time():
    assert run(TimeBudget(None), 16, 0.01, 1.0)[2] == 200


@pytest.mark.parametrize(("n_slots", "seconds", "expected"), [(1, 60.0, 60.0), (1, 0.1, 0.1), (16, 1.0, 0.0625)])
def test_the_time_between_two_asks_is_known(n_slots, seconds, expected):
    budget = TimeBudget(0.03)
    assert budget.seconds_per_ask == 0
    clock.now = 0.0
    for _ in range(400):
        budget.begin_ask(n_slots - 1)
        clock.now += seconds / n_slots
        budget.pass_time(n_slots)
    assert budget.seconds_per_ask == pytest.approx(expected, rel=0.1)


def test_time_in_which_no_trial_runs_is_no_time_of_slots():
    budget = TimeBudget(1.0)
    clock.now = 0.0
    budget.begin_ask(0)
    clock.now += 1.0
    budget.pass_time(1)
    clock.now += 3600.0  # until the next search with the same sampler
    budget.begin_ask(0)
    assert budget.elapsed == 1.0
    assert not budget.allows(1.1)


def test_time_before_the_first_ask_is_no_time_of_slots():
    budget = TimeBudget(1.0)
    clock.now = 1e6  # the clock does not begin with the process
    budget.begin_ask(3)  # trials of an earlier process
    assert budget.elapsed == 0
