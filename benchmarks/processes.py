"""Measure worker processes: from a cold start and from the second search on, beside loky."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from loky import ProcessPoolExecutor
from optuna.samplers import RandomSampler

from benchmarks.functions import computes, sleeps
from benchmarks.results import show
from optuna_flyte_dsl import Optimizer

COLD = "from benchmarks.processes import search; from benchmarks.functions import {name}; print(search({name}, {args}))"


def search(objective: Callable[..., float], at_once: int, n_trials: int) -> float:
    """Return the seconds of a search in worker processes."""
    options: dict[str, Any] = {"executor": "process", "sampler": RandomSampler, "progress": False}
    begun = time.perf_counter()
    Optimizer(objective, at_once, n_trials, **options).run_sync()
    return time.perf_counter() - begun


def cold(objective: Callable[..., float], *args: int) -> float:
    """Return the seconds of the first search of a process."""
    code = COLD.format(name=objective.__name__, args=", ".join(map(str, args)))
    return float(
        subprocess.run([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, check=True).stdout
    )


def plain_loky(n_calls: int) -> float:
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(computes, [0.0] * 2))
        begun = time.perf_counter()
        for call in [pool.submit(computes, 0.0) for _ in range(n_calls)]:
            call.result()
        return time.perf_counter() - begun


def main() -> None:
    """Show makespans of short trials, and the throughput of CPU-bound trials."""
    ideal = 64 / 16 * 0.1
    rows = {"the first search": cold(sleeps, 16, 64) / ideal}
    search(sleeps, 16, 16)
    rows["the next searches"] = min(search(sleeps, 16, 64) for _ in range(3)) / ideal
    title = "Worker processes: makespan of 64 trials of 0.1 s, 16 at once, as a ratio to the ideal"
    show(title, rows, limit={"the first search": 5.0, "the next searches": 1.5})
    search(computes, 2, 4)
    loky = min(plain_loky(600) for _ in range(2))
    rows = {"optuna_flyte_dsl": min(search(computes, 2, 600) for _ in range(2)) / loky}
    title = "Worker processes: time of 600 trials of 13 ms of CPU on two cores, as a ratio to loky's"
    show(title, rows, limit={"optuna_flyte_dsl": 1 / 0.9})
