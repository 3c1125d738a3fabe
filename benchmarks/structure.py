"""What 50 marked fields in nested classes cost: the decoration, and each trial beside Optuna's suggestions."""

import dataclasses
import statistics
import time
from typing import Annotated

import optuna
from optuna.samplers import RandomSampler

from optuna_flyte_dsl import Float, Integer, Minimize, SearchSpace, optimize

TRIALS = 300
ROUNDS = 9


@dataclasses.dataclass
class Leaf:
    """Five searched fields."""

    a: Annotated[float, Float(1e-5, 1, log=True)]
    b: Annotated[int, Integer(1, 9)]
    c: Annotated[float, Float(0, 1)]
    d: Annotated[float, Float(0, 1)]
    e: Annotated[int, Integer(1, 99)]


@dataclasses.dataclass
class Middle:
    """Five objects with searched fields."""

    one: Leaf
    two: Leaf
    three: Leaf
    four: Leaf
    five: Leaf


def objective(left: Middle, right: Middle) -> Minimize:
    return left.one.a + right.one.a


def milliseconds(function) -> float:
    start = time.perf_counter()
    function()
    return (time.perf_counter() - start) * 1000


def measure() -> tuple[float, float]:
    """Return the milliseconds of one decoration, and of one trial above Optuna's own suggestions: medians."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    decoration = [milliseconds(lambda: optimize(objective, n_trials=10)) for _ in range(ROUNDS)]
    space = SearchSpace.of(objective)
    distributions = space.distributions()
    assert len(distributions) == 50

    def bare(trial: optuna.Trial) -> None:
        for name, each in distributions.items():
            if isinstance(each, optuna.distributions.IntDistribution):
                trial.suggest_int(name, each.low, each.high)
            else:
                trial.suggest_float(name, each.low, each.high, log=each.log)

    above = []
    for _ in range(ROUNDS):
        per_trial = []
        for suggest in (space.suggest, bare):
            study = optuna.create_study(sampler=RandomSampler(seed=0))
            trials = [study.ask() for _ in range(TRIALS)]
            per_trial.append(milliseconds(lambda: [suggest(trial) for trial in trials]) / TRIALS)  # noqa: B023
        above.append(per_trial[0] - per_trial[1])
    return statistics.median(decoration), statistics.median(above)
