"""Trade accuracy for speed: the Pareto front of a random forest that reads handwritten digits.

pyflyte run examples/multi_objective.py search --n_trials 40
python examples/multi_objective.py
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

import flytekit as fl
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

from optuna_flyte_dsl import Integer, Maximize, Minimize, optimize


class Quality(NamedTuple):
    """The objectives. The field names are the study's metric names; the field types declare its directions."""

    accuracy: Maximize
    microseconds: Minimize


@optimize(concurrency=2, n_trials=40, seed=7)
@fl.task
def train(n_estimators: Integer(1, 100, log=True), max_depth: Integer(2, 16)) -> Quality:
    """Return a forest's accuracy on digits it has not seen, and its prediction time for one digit."""
    features, digits = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(features, digits, random_state=0)
    forest = RandomForestClassifier(n_estimators=n_estimators, max_depth=max_depth, random_state=0).fit(
        train_x, train_y
    )
    start = time.perf_counter()
    accuracy = float(forest.score(test_x, test_y))
    return Quality(accuracy, (time.perf_counter() - start) / len(test_x) * 1e6)


@fl.eager
async def search(n_trials: int = 40) -> int:
    """Search, show the Pareto front, and return how many forests are on it."""
    train.n_trials = n_trials
    study = await train()
    front = sorted(study.best_trials, key=lambda trial: trial.values[1])
    print(f"\nOf {len(study.trials)} forests, {len(front)} are not beaten in both {study.metric_names}:")
    for trial in front:
        accuracy, microseconds = trial.values
        print(f"    accuracy {accuracy:.4f}   {microseconds:7.1f} us a digit   {trial.params}")
    return len(front)


if __name__ == "__main__":
    asyncio.run(search())
