"""Measure the cost of a distant PostgreSQL, and the cost of `deterministic=True` with trials of unequal duration."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator

import optuna
from optuna.samplers import RandomSampler

from benchmarks.far import far
from benchmarks.results import show
from optuna_flyte_dsl import Float, Optimizer
from tests.support.postgres import Postgres

LATENCY = 0.05
"""Seconds that each answer of the database takes, besides its own time."""


@contextlib.contextmanager
def far_away() -> Iterator[str]:
    """Yield the URL of a database whose answers take `LATENCY`."""
    server = Postgres()
    try:
        with far(server.port, LATENCY) as port:
            yield server.url.replace(f":{server.port}/", f":{port}/")
    finally:
        server.close()


async def stalls(search: Optimizer, beat: float = 0.005) -> tuple[float, float]:
    """Run a search beside a heartbeat. Return the longest stall of the event loop, and the search's duration."""
    longest = 0.0
    task = asyncio.ensure_future(search())
    started = last = time.perf_counter()
    while not task.done():
        await asyncio.sleep(beat)
        now = time.perf_counter()
        longest, last = max(longest, now - last - beat), now
    task.result()
    return longest, last - started


async def short(x: Float(0, 1)) -> float:
    await asyncio.sleep(0.1)
    return x


async def reports(trial: optuna.Trial, x: Float(0, 1)) -> float:
    for step in range(2):
        trial.report(x, step)
        await asyncio.sleep(0.05)
        if trial.should_prune():
            raise optuna.TrialPruned
    return x


def heartbeat() -> dict[str, float]:
    """Return the longest stall of the event loop, in milliseconds, with a database far away."""
    rows = {}
    kinds = {
        "a search, the first of its process": (short, {}),
        "a search with resume=True": (short, {"resume": True, "study_name": "s"}),
        "a search whose trials report, and may be pruned": (reports, {}),
    }
    with far_away() as url:
        options = {"storage": url, "progress": False, "sampler": RandomSampler(seed=1)}
        for name, (objective, more) in kinds.items():
            search = Optimizer(objective, concurrency=4, n_trials=6, **options, **more)
            longest, _ = asyncio.run(stalls(search))
            rows[name] = longest * 1000
    return rows


def order(ratio: float) -> float:
    """Return the makespan of a search with `deterministic=True`, divided by the makespan without it.

    Args:
        ratio: The longest possible duration of a trial divided by the shortest. Durations are drawn uniformly.
    """
    rng = random.Random(1)
    durations = [0.05 * rng.uniform(1.0, ratio) for _ in range(96)]

    async def objective(trial: optuna.Trial, x: Float(0, 1)) -> float:
        await asyncio.sleep(durations[trial.number])
        return x

    taken = {}
    for deterministic in (False, True):
        search = Optimizer(objective, 8, 96, seed=1, sampler=RandomSampler, progress=False, deterministic=deterministic)
        start = time.perf_counter()
        search.run_sync()
        taken[deterministic] = time.perf_counter() - start
    return taken[True] / taken[False]


def main() -> None:
    """Show the makespans of deterministic searches, and the longest stalls of the event loop."""
    rows = {}
    for ratio in (1.0, 2.0, 10.0):
        rows[f"the longest takes {ratio:.0f} times the shortest" if ratio > 1 else "all take the same time"] = order(
            ratio
        )
    show("deterministic=True, 96 trials, 8 at once: the makespan, as a ratio to the makespan without it", rows)
    stalled = heartbeat()
    limit = dict.fromkeys(stalled, 50.0)
    show("PostgreSQL behind 50 ms of latency: the longest stall of the event loop", stalled, " ms", limit=limit)
