"""Tune a classifier on real data: the chemical analysis of 178 wines, from three growers.

Run the example with Flyte, or with plain Python:

    pyflyte run examples/quickstart.py search --n_trials 30
    python examples/quickstart.py
"""

from __future__ import annotations

import asyncio

import flytekit as fl
import optuna
from sklearn.datasets import load_wine
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler

from optuna_flyte_dsl import Category, Float, Integer, Maximize, optimize

SCALERS = {"standard": StandardScaler, "minmax": MinMaxScaler, "robust": RobustScaler}


@optimize(concurrency=4, n_trials=30, seed=7)
@fl.task
def train(
    n_neighbors: Integer(1, 50, log=True),
    p: Float(1, 5),
    weights: Category(["uniform", "distance"]),
    scaler: Category(["standard", "minmax", "robust"]),
    folds: int = 5,
) -> Maximize:
    """Return the mean accuracy of a nearest-neighbors classifier, by cross-validation."""
    classifier = KNeighborsClassifier(n_neighbors, weights=weights, p=p)
    return accuracy(make_pipeline(SCALERS[scaler](), classifier), folds)


@fl.task
def default_score(folds: int = 5) -> float:
    """Return the mean accuracy of the same classifier with scikit-learn's defaults."""
    return accuracy(make_pipeline(StandardScaler(), KNeighborsClassifier()), folds)


@fl.eager
async def search(n_trials: int = 30, folds: int = 5) -> float:
    """Search, and return the best accuracy found."""
    train.n_trials = n_trials
    study = await train(folds=folds)
    print(report(study, default_score(folds=folds)))
    return study.best_value


def accuracy(model: Pipeline, folds: int) -> float:
    """Return a model's mean accuracy over the folds of the data."""
    features, growers = load_wine(return_X_y=True)
    return float(cross_val_score(model, features, growers, cv=folds).mean())


def report(study: optuna.Study, default: float) -> str:
    """Describe what a search found."""
    failed = len(study.get_trials(states=(optuna.trial.TrialState.FAIL,)))
    lines = [
        "",
        f"{len(study.trials)} trials, {failed} failed. The best is number {study.best_trial.number}:",
        *(f"    {name} = {value}" for name, value in study.best_params.items()),
        f"Accuracy with these: {study.best_value:.4f}",
        f"Accuracy with scikit-learn's defaults: {default:.4f}",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    asyncio.run(search())
