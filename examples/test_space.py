"""Test a search space before a search costs money: check properties that must hold at each point of the space.

python -m pytest examples/test_space.py
"""

from __future__ import annotations

import flytekit as fl
from hypothesis import given, settings

from optuna_flyte_dsl import Category, Float, Integer, optimize, suggest
from optuna_flyte_dsl.testing.strategies import params

MEMORY_LIMIT = 24 * 2**30
"""Bytes of memory that a trial's machine has."""


@optimize(concurrency=8, n_trials=200)
@fl.task
def train(
    learning_rate: Float(1e-5, 1e-1, log=True),
    width: Integer(64, 1024, step=64),
    depth: Integer(1, 12),
    optimizer: Category(["sgd", "adam"]),
    batch_size: int = 256,
) -> float:
    """Return the bytes that a network of this shape takes: a stand-in for training it."""
    weights = depth * width * width
    states = {"sgd": 1, "adam": 3}[optimizer]
    return 4.0 * (weights * states + batch_size * width * depth)


@settings(deadline=None)  # this test does not limit the duration of a task
@given(params(train))
def test_no_trial_runs_out_of_memory(drawn):
    """Draw the arguments of a trial, and call the task once."""
    assert train.task(**drawn) < MEMORY_LIMIT


@settings(max_examples=20, deadline=None)
@given(params(train, batch_size=8192, depth=suggest.integer(10, 40)))
def test_nor_with_deeper_networks_and_large_batches(drawn):
    """Draw from the space of a call that gives `batch_size` a value and `depth` another marker."""
    assert 10 <= drawn["depth"] <= 40
    assert train.task(**drawn) < MEMORY_LIMIT
