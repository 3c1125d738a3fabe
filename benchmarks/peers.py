"""Measure the library beside the peers that run each trial in a process, and that have environments of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import RandomSampler

from benchmarks.functions import waits
from benchmarks.objectives import waits as task_that_waits
from benchmarks.results import show
from optuna_flyte_dsl import Float, Optimizer

WORK = ((32, 4, 0.1), (16, 4, 1.0))
"""The number of trials, the number of trials at once, and the seconds of a trial."""

SCRIPTS = Path(__file__).parent / "peer_scripts"
PEERS = {
    "optuna-distributed, processes": ("optuna-distributed", "optuna_distributed_processes.py"),
    "optuna-distributed, Dask's threads": ("optuna-distributed", "optuna_distributed_dask.py"),
    "Ray Tune": ("ray-tune", "ray_tune.py"),
    "Syne Tune": ("syne-tune", "syne_tune_python.py"),
}
"""The environment and the program of each peer."""
REQUIREMENTS = Path(__file__).parents[1] / "requirements" / "peers"


def ours(objective: Callable[..., Any], **options: Any) -> Callable[[int, int, float], float]:
    """Return a function that measures a search of this library."""

    def measure(n_trials: int, at_once: int, seconds: float) -> float:
        def search(count: int, each: float) -> None:
            optimizer = Optimizer(objective, at_once, count, sampler=RandomSampler, progress=False, **options)
            optimizer.run_sync(x=Float(0, 1), seconds=each)

        search(at_once, 0.0)  # the programs of the peers do so too
        begun = time.perf_counter()
        search(n_trials, seconds)
        return time.perf_counter() - begun

    return measure


def optunas(n_trials: int, at_once: int, seconds: float) -> float:
    """Measure a search of Optuna's own threads."""

    def objective(trial: optuna.Trial) -> float:
        return waits(trial.suggest_float("x", 0, 1), seconds)

    optuna.create_study(sampler=RandomSampler()).optimize(objective, n_trials=1)  # the others have a search before, too
    study = optuna.create_study(sampler=RandomSampler())
    begun = time.perf_counter()
    study.optimize(objective, n_trials=n_trials, n_jobs=at_once)
    return time.perf_counter() - begun


def peers(environment: str, script: str) -> Callable[[int, int, float], float]:
    """Return a function that measures a search of a peer, in the peer's environment."""

    def measure(*work: float) -> float:
        python = Path(sys.prefix).parent / environment / "bin" / "python"
        if not python.exists():
            sys.exit(f"There is no {python}: `make bench ROWS=peers` makes the environments of the peers.")
        with tempfile.TemporaryDirectory() as folder:
            command = [python, "-W", "ignore", SCRIPTS / script, *map(str, work)]
            home = {**os.environ, "HOME": folder}  # Ray and Syne Tune leave files there
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=home)
        return float(done.stdout.rsplit("SECONDS", 1)[1].split()[0])  # Ray prints warnings behind it

    return measure


def versions(environment: str) -> str:
    """Return the versions in a peer's environment of what is measured."""
    lines = (REQUIREMENTS / f"{environment}.txt").read_text().splitlines()
    shown = ("optuna==", "optuna-distributed==", "ray==", "syne-tune==")
    return ", ".join(line.replace("==", " ") for line in lines if line.startswith(shown))


def main() -> None:
    """Show the makespans of all, as ratios to the ideal."""
    contestants = {
        "optuna_flyte_dsl, task": ours(task_that_waits),
        "optuna_flyte_dsl, function": ours(waits),
        "optuna_flyte_dsl, function in worker processes": ours(waits, executor="process"),
        "optuna, n_jobs": optunas,
        **{name: peers(*where) for name, where in PEERS.items()},
    }
    for n_trials, at_once, seconds in WORK:
        ideal = n_trials / at_once * seconds
        rows = {name: measure(n_trials, at_once, seconds) / ideal for name, measure in contestants.items()}
        show(
            f"Makespan beside the peers, {n_trials} trials of {seconds} s, {at_once} at once, as a ratio to the ideal",
            rows,
            notes={name: versions(environment) for name, (environment, _) in PEERS.items()},
        )
