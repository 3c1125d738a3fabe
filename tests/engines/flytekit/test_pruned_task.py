"""What marks a trial as pruned."""

import asyncio
import math

import optuna
import pytest

from optuna_flyte_dsl.engines._flytekit.pruned_task import marking_pruned
from optuna_flyte_dsl.engines.remote_trial.handle import pruned_in


def run(function, trial, kinds=(float,)):
    value = marking_pruned(function, kinds)(trial=trial)
    return asyncio.run(value) if asyncio.iscoroutine(value) else value


async def prunes(trial):
    raise optuna.TrialPruned


def prunes_at_once(trial):
    raise optuna.TrialPruned


def returns(trial):
    return 0.25


@pytest.fixture
def trial(monkeypatch):
    monkeypatch.setenv("FLYTE_INTERNAL_EXECUTION_ID", "execution")
    monkeypatch.setenv("FLYTE_ATTEMPT_NUMBER", "0")
    return optuna.create_study().ask()


@pytest.mark.parametrize("function", [prunes, prunes_at_once])
def test_a_pruned_task_succeeds_and_its_trial_names_the_execution(trial, function):
    assert math.isnan(run(function, trial))
    assert pruned_in(trial) == "execution"
    assert run(function, trial, (int, int)) == (0, 0)


def test_a_later_attempt_that_returns_a_value_removes_the_mark_of_an_attempt_that_died(trial, monkeypatch):
    run(prunes, trial)
    monkeypatch.setenv("FLYTE_ATTEMPT_NUMBER", "1")
    assert run(returns, trial) == 0.25
    assert pruned_in(trial) == ""


def test_a_trial_that_was_never_pruned_has_no_mark(trial):
    assert run(returns, trial) == 0.25
    assert pruned_in(trial) == ""
