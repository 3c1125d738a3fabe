"""Measure how good the found points are, with many trials at once whose durations are made up.

A trial's duration is drawn from a lognormal distribution. The clock is a number: a search of 100 trials takes as long
as its sampler. Each sampler gets the same seeds and durations, and is compared with Optuna's default by a paired test.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import multiprocessing
import os
import random
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from scipy.stats import wilcoxon

from benchmarks.results import show
from optuna_flyte_dsl import AutoSampler
from optuna_flyte_dsl.sampling.auto_sampler import has_gp

TRIALS = 100
BASE = "TPESampler, Optuna's default"

_A = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_P = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann6(trial: optuna.Trial, _: random.Random) -> float:
    point = np.array([trial.suggest_float(f"x{index}", 0, 1) for index in range(6)])
    weights = np.array([1.0, 1.2, 3.0, 3.2])
    return -float(weights @ np.exp(-np.sum(_A * (point - _P) ** 2, axis=1)))


def noisy_hartmann6(trial: optuna.Trial, noise: random.Random) -> float:
    true = hartmann6(trial, noise)
    trial.set_user_attr("true", true)
    return true + noise.gauss(0, 0.2)


def rosenbrock5(trial: optuna.Trial, _: random.Random) -> float:
    x = [trial.suggest_float(f"x{index}", -5, 10) for index in range(5)]
    steps = itertools.pairwise(x)
    return math.log1p(sum(100 * (after - before**2) ** 2 + (1 - before) ** 2 for before, after in steps))


def mixed(trial: optuna.Trial, _: random.Random) -> float:
    """A learning rate, whose best value depends on a category, and three other parameters."""
    rate = math.log10(trial.suggest_float("rate", 1e-5, 1, log=True))
    depth = trial.suggest_int("depth", 1, 12)
    kind = trial.suggest_categorical("kind", ["a", "b", "c", "d"])
    momentum = trial.suggest_float("momentum", 0, 1)
    width = math.log2(trial.suggest_int("width", 16, 512, log=True))
    offset, best = {"a": (0.0, -2.5), "b": (0.05, -3), "c": (0.15, -2), "d": (0.3, -3.5)}[kind]
    depths = 0.01 * (depth - 7) ** 2 * (1 + 0.5 * (momentum - 0.5))
    return offset + 0.1 * (rate - best) ** 2 + depths + 0.5 * (momentum - 0.8) ** 2 + 0.05 * (width - 7) ** 2


def branin(trial: optuna.Trial, _: random.Random) -> float:
    x, y = trial.suggest_float("x", -5, 10), trial.suggest_float("y", 0, 15)
    bent = y - 5.1 / (4 * math.pi**2) * x * x + 5 / math.pi * x - 6
    return bent**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10


def zdt1(trial: optuna.Trial, _: random.Random) -> tuple[float, float]:
    x = [trial.suggest_float(f"x{index}", 0, 1) for index in range(6)]
    g = 1 + 9 * sum(x[1:]) / 5
    return x[0], g * (1 - math.sqrt(x[0] / g))


def lowest(study: optuna.Study) -> float:
    return study.best_value


def true_value(study: optuna.Study) -> float:
    return study.best_trial.user_attrs["true"]


def log_regret(study: optuna.Study) -> float:
    return math.log10(study.best_value - 0.397887 + 1e-4)


def minus_hypervolume(study: optuna.Study) -> float:
    """Return minus the area that the front dominates, up to the point (1.1, 7)."""
    points = sorted(tuple(trial.values) for trial in study.best_trials)
    area, height = 0.0, 7.0
    for x, y in points:
        if x < 1.1 and y < height:
            area += (1.1 - x) * (height - y)
            height = y
    return -area


class Problem(NamedTuple):
    """An objective, and what of a study is compared: smaller is better."""

    objective: Callable[[optuna.Trial, random.Random], Any]
    score: Callable[[optuna.Study], float]
    n_objectives: int = 1


PROBLEMS = {
    "hartmann6": Problem(hartmann6, lowest),
    "rosenbrock5, log1p": Problem(rosenbrock5, lowest),
    "mixed": Problem(mixed, lowest),
    "branin, log10 of the regret": Problem(branin, log_regret),
    "noisy hartmann6, true value": Problem(noisy_hartmann6, true_value),
    "zdt1, minus the hypervolume": Problem(zdt1, minus_hypervolume, 2),
}


class WithoutGP(AutoSampler):
    """An AutoSampler where torch is not installed."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, time_share=0.0)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "RandomSampler": lambda seed: RandomSampler(seed=seed),
    BASE: lambda seed: TPESampler(seed=seed),
    "AutoSampler, without torch": WithoutGP,
}
if has_gp():
    SAMPLERS["GPSampler"] = lambda seed: GPSampler(seed=seed)
    SAMPLERS["AutoSampler"] = lambda seed: AutoSampler(seed=seed)


def search(problem: Problem, sampler: BaseSampler, at_once: int, seed: int) -> float:
    """Run a search on a clock that is a number. Return its score."""
    durations, noise = random.Random(f"durations {seed}"), random.Random(f"noise {seed}")
    study = optuna.create_study(directions=["minimize"] * problem.n_objectives, sampler=sampler)
    running: list[tuple[float, int, optuna.Trial, Any]] = []
    now, n_asked = 0.0, 0
    while running or n_asked < TRIALS:
        while n_asked < TRIALS and len(running) < at_once:
            trial = study.ask()
            value = problem.objective(trial, noise)
            heapq.heappush(running, (now + math.exp(durations.gauss(0, 0.5)), trial.number, trial, value))
            n_asked += 1
        now, _, trial, value = heapq.heappop(running)
        study.tell(trial, value)
    return problem.score(study)


def job(task: tuple[str, str, int, int]) -> float:
    name, sampler, at_once, seed = task
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return search(PROBLEMS[name], SAMPLERS[sampler](seed), at_once, seed)


def note(scores: Sequence[float], base: Sequence[float]) -> str:
    """Return how some scores compare with those of the base, over the same seeds."""
    differences = [one - other for one, other in zip(scores, base, strict=True)]
    if not any(differences):
        return ""
    better = sum(difference < 0 for difference in differences)
    return f"better for {better} of {len(scores)} seeds, p = {wilcoxon(differences).pvalue:.3f}"


def main(argv: Sequence[str] = ()) -> None:
    """Print the mean score of each sampler for each problem, and how many trials run at once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks quality")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    parser.add_argument("--seeds", type=int, default=20)
    given = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes below
    samplers = list(dict.fromkeys([BASE, *given.samplers]))
    with multiprocessing.get_context("spawn").Pool() as pool:
        for at_once in given.at_once:
            for problem in given.problems:
                tasks = [(problem, sampler, at_once, seed) for sampler in samplers for seed in range(given.seeds)]
                scores = pool.map(job, tasks, chunksize=1)
                by_sampler = {name: scores[i * given.seeds : (i + 1) * given.seeds] for i, name in enumerate(samplers)}
                show(
                    f"Quality of {problem}: mean after {TRIALS} trials, {at_once} at once, optuna {optuna.__version__}",
                    {name: statistics.mean(each) for name, each in by_sampler.items()},
                    "",
                    notes={name: note(each, by_sampler[BASE]) for name, each in by_sampler.items()},
                )
