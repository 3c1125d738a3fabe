"""Measure how much of their time slots are idle because of the sampler, in real time: a GPSampler needs torch."""

from __future__ import annotations

import asyncio
import collections
import random
import time
from collections.abc import Callable
from typing import Any

from optuna.samplers import BaseSampler, GPSampler, RandomSampler

from benchmarks.results import show
from optuna_flyte_dsl import AutoSampler, Float, Optimizer
from optuna_flyte_dsl.sampling.auto_sampler import has_gp

AT_ONCE = 16
LIMIT = 1 / 0.95  # slots are to be in use for 95 % of the time


class CountingSampler(AutoSampler):
    """An AutoSampler that counts the points of each of its samplers."""

    def __init__(self) -> None:
        super().__init__()
        self.points: collections.Counter[str] = collections.Counter()

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        """Count the point of a trial; Optuna calls this."""
        params = super().sample_relative(study, trial, search_space)
        self.points[self.latest] += 1
        return params


def durations(seconds: float, n_trials: int) -> list[float]:
    rng = random.Random(1)
    return [seconds * rng.uniform(0.5, 1.5) for _ in range(n_trials)]


def ideal(seconds: float, n_trials: int) -> float:
    """Return the makespan if each trial starts as soon as a slot is free."""
    free = [0.0] * AT_ONCE
    for duration in durations(seconds, n_trials):
        free.sort()
        free[0] += duration
    return max(free)


def makespan(seconds: float, n_trials: int, sampler: BaseSampler) -> float:
    left = durations(seconds, n_trials)[::-1]

    async def objective(a: Float(0, 1), b: Float(0, 1), c: Float(0, 1), d: Float(0, 1)) -> float:
        await asyncio.sleep(left.pop())
        return (a - 0.3) ** 2 + (b - a) ** 2 + (c - b) ** 2 + abs(d - 0.7)

    begun = time.perf_counter()
    Optimizer(objective, AT_ONCE, n_trials, sampler=sampler, progress=False).run_sync()
    return time.perf_counter() - begun


def main() -> None:
    """Print the makespan of each sampler, as a ratio to the ideal."""
    makers: dict[str, Callable[[], BaseSampler]] = {"RandomSampler": RandomSampler, "AutoSampler": CountingSampler}
    if has_gp():
        makers["GPSampler"] = GPSampler
    makespan(0.01, AT_ONCE, RandomSampler())  # what is done once in a process
    for seconds, n_trials in ((1.0, 160), (4.0, 100), (10.0, 100)):
        ratios, notes = {}, {}
        for name, make in makers.items():
            if name == "GPSampler" and seconds < 4:
                continue  # it asks for one point after the other: the search takes as long as that
            sampler = make()
            ratios[name] = makespan(seconds, n_trials, sampler) / ideal(seconds, n_trials)
            if isinstance(sampler, CountingSampler):
                notes[name] = ", ".join(f"{number} points by {each}" for each, number in sampler.points.items())
        title = f"Makespan of {n_trials} trials of {seconds:g} s, {AT_ONCE} at once, as a ratio to the ideal"
        show(title, ratios, limit={"AutoSampler": LIMIT}, notes=notes)
