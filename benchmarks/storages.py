"""Measure how fast a search stores its trials in a PostgreSQL, near or far away, beside Optuna's threads."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from benchmarks.far import far
from benchmarks.results import show, turns
from optuna_flyte_dsl import Float, Optimizer
from tests.support.postgres import Postgres

TRIALS, CONCURRENCY = 200, 32
LATENCIES = (0.0, 0.001, 0.005)


async def marked(x: Float(0, 1), y: Float(0, 1)) -> float:
    return x + y


def suggested(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1)


def ours(url: str, sampler: type[BaseSampler], *, resume: bool) -> float:
    """Return the trials a second."""
    name = uuid.uuid4().hex
    options = {"storage": url, "study_name": name, "sampler": sampler, "resume": resume, "progress": False}
    search = Optimizer(marked, CONCURRENCY, TRIALS, **options)
    begun = time.perf_counter()
    search.run_sync()
    return TRIALS / (time.perf_counter() - begun)


def optunas(url: str, sampler: type[BaseSampler]) -> float:
    """Return the trials a second of Optuna's own threads."""
    study = optuna.create_study(storage=url, study_name=uuid.uuid4().hex, sampler=sampler())
    begun = time.perf_counter()
    study.optimize(suggested, n_trials=TRIALS, n_jobs=CONCURRENCY)
    return TRIALS / (time.perf_counter() - begun)


def main() -> None:
    """Show the rates as ratios to those of Optuna's threads."""
    server = Postgres()
    try:
        for sampler in (RandomSampler, TPESampler):
            for latency in LATENCIES:
                with far(server.port, latency) as port:
                    url = server.url.replace(f":{server.port}/", f":{port}/")
                    contestants: dict[str, Callable[[], float]] = {
                        "optuna, n_jobs": lambda url=url, sampler=sampler: optunas(url, sampler),
                        "optuna_flyte_dsl": lambda url=url, sampler=sampler: ours(url, sampler, resume=False),
                        "optuna_flyte_dsl resume=True": lambda url=url, sampler=sampler: ours(
                            url, sampler, resume=True
                        ),
                    }
                    rates = turns(contestants, rounds=3)
                floor = rates["optuna, n_jobs"]
                show(
                    f"Time of {TRIALS} trials, {CONCURRENCY} at once, {sampler.__name__}, PostgreSQL behind "
                    f"{latency * 1e3:.0f} ms, as a ratio to Optuna's threads",
                    {name: floor / rate for name, rate in rates.items()},
                    limit={name: 1.0 for name in rates if name.startswith("optuna_flyte_dsl")},
                    notes={name: f"{rate:.1f} a second" for name, rate in rates.items()},
                )
    finally:
        server.close()
