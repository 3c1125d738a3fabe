"""Measure what `duplicates="resample"` does for the best value that is found in small spaces.

The trials pass on a virtual clock. Each contestant gets the same seeds, problems and durations.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import random
import statistics
import warnings
from collections.abc import Callable, Sequence

import optuna

from benchmarks.quality import WithoutGP, note
from benchmarks.results import show
from optuna_flyte_dsl import Category, Integer, Minimize, Optimizer
from optuna_flyte_dsl.testing import simulate

SEEDS = 40
KINDS = list("abcde")


def kinds(seed: int, noise: float) -> tuple[Callable[..., float], Callable[..., float]]:
    """Return an objective with 120 points, which is drawn at random, and its true value."""
    rng = random.Random(f"kinds {seed}")
    worse = {kind: rng.uniform(0, 0.3) for kind in KINDS}
    best = {kind: (rng.randint(1, 6), rng.randint(0, 3)) for kind in KINDS}

    def true(kind: str, depth: int, width: int) -> float:
        best_depth, best_width = best[kind]
        return worse[kind] + 0.02 * (depth - best_depth) ** 2 + 0.05 * abs(width - best_width)

    def objective(kind: Category(KINDS), depth: Integer(1, 6), width: Integer(0, 3)) -> Minimize:
        return true(kind, depth, width) + rng.gauss(0, noise)

    return objective, true


def valley(seed: int, _: float) -> tuple[Callable[..., float], Callable[..., float]]:
    """Return an objective with 1,000 points, which is drawn at random, and its true value."""
    rng = random.Random(f"valley {seed}")
    best, weights = [rng.randint(1, 10) for _ in range(3)], [rng.uniform(0.2, 1) for _ in range(3)]

    def objective(a: Integer(1, 10), b: Integer(1, 10), c: Integer(1, 10)) -> Minimize:
        x, y, z = (value - middle for value, middle in zip((a, b, c), best, strict=True))
        bowl = sum(weight * each**2 for weight, each in zip(weights, (x, y, z), strict=True))
        return bowl + x * y / 4 + 2 * (1 - math.cos(2 * z))

    return objective, objective


PROBLEMS: dict[str, tuple[Callable[..., tuple[Callable[..., float], Callable[..., float]]], float, int]] = {
    "50 trials of 120 points": (kinds, 0.0, 50),
    "100 trials of 1,000 points": (valley, 0.0, 100),
    "100 trials of 120 points, noise of 0.1": (kinds, 0.1, 100),
}
"""How an objective is made, its noise, and the number of trials."""


def job(task: tuple[str, str, int, int]) -> float:
    """Run a search. Return the true value of its best point."""
    problem, duplicates, at_once, seed = task
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna_flyte_dsl").setLevel(logging.ERROR)
    make, noise, n_trials = PROBLEMS[problem]
    objective, true = make(seed, noise)
    durations = random.Random(seed)
    search = Optimizer(objective, at_once, n_trials, sampler=WithoutGP(seed), duplicates=duplicates, progress=False)
    simulation = simulate(search, durations=lambda: math.exp(durations.gauss(0, 0.5)))
    return true(**simulation.study.best_params)


def main(argv: Sequence[str] = ()) -> None:
    """Show the mean true value of the best points."""
    with multiprocessing.get_context("spawn").Pool() as pool:
        for problem in PROBLEMS:
            for at_once in map(int, argv or ("1", "16")):
                scores = {
                    each: pool.map(job, [(problem, each, at_once, seed) for seed in range(SEEDS)], chunksize=1)
                    for each in ("allow", "resample")
                }
                show(
                    f"Small spaces: mean true value of the best of {problem}, {at_once} at once",
                    {f'duplicates="{name}"': statistics.mean(found) for name, found in scores.items()},
                    "",
                    notes={f'duplicates="{name}"': note(found, scores["allow"]) for name, found in scores.items()},
                )
