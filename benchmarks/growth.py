"""Measure what a trial costs in studies of 100 and of 5,000 trials, on each storage."""

from __future__ import annotations

import random
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks.results import show
from optuna_flyte_dsl import Float, Integer, Optimizer
from tests.support.postgres import Postgres

SIZES = (100, 5_000)
FEW, MANY = 50, 250  # trials of the two searches whose difference is measured: what a search costs once falls out
SPACE = {"x": IntDistribution(1, 10**6), "y": FloatDistribution(0, 1)}
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    'duplicates="resample"': {"duplicates": "resample"},
    'duplicates="reuse"': {"duplicates": "reuse"},
    "resume=True": {"resume": True},
}


def marked(x: Integer(1, 10**6), y: Float(0, 1)) -> float:
    return x + y


def filled(kind: str, size: int, server: Postgres) -> optuna.Study:
    """Return a study with some trials."""
    folder = Path(tempfile.mkdtemp())
    storages: dict[str, Callable[[], Any]] = {
        "memory": lambda: None,
        "journal": lambda: JournalStorage(JournalFileBackend(str(folder / "study.journal"))),
        "sqlite": lambda: f"sqlite:///{folder}/study.db",
        "postgresql": lambda: server.url,
    }
    name = uuid.uuid4().hex
    study = optuna.create_study(storage=storages[kind](), study_name=name, sampler=RandomSampler(seed=1))
    rng = random.Random(1)
    for _ in range(size):
        params = {"x": rng.randint(1, 10**6), "y": rng.random()}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=SPACE, value=rng.random()))
    return study


def bare(study: optuna.Study, count: int) -> None:
    for _ in range(count):
        trial = study.ask()
        trial.suggest_int("x", 1, 10**6)
        study.tell(trial, trial.suggest_float("y", 0, 1))


def ours(study: optuna.Study, count: int, **options: Any) -> None:
    total = count + len(study.trials) if options.get("resume") else count
    Optimizer(marked, 1, total, study, progress=False, **options).run_sync()


def milliseconds(run: Callable[..., None], kind: str, size: int, server: Postgres, **options: Any) -> float:
    """Return the CPU time of one more trial, without that of a server."""
    taken = []
    for count in (FEW, MANY):
        study = filled(kind, size, server)
        begun = time.process_time()
        run(study, count, **options)
        taken.append(time.process_time() - begun)
    return (taken[1] - taken[0]) / (MANY - FEW) * 1000


def main() -> None:
    """Show the growth of a trial's cost on each storage."""
    server = Postgres()
    try:
        for kind in ("memory", "journal", "sqlite", "postgresql"):
            show_growth(kind, server)
    finally:
        server.close()


def show_growth(kind: str, server: Postgres) -> None:
    rows, notes = {}, {}
    for name, options in OPTIONS.items():
        if kind == "memory" and "resume" in options:
            continue
        small, large = (milliseconds(ours, kind, size, server, **options) for size in SIZES)
        rows[f"optuna_flyte_dsl {name}".strip()] = large / small
        notes[f"optuna_flyte_dsl {name}".strip()] = f"{small:.2f} ms, {large:.2f} ms"
    small, large = (milliseconds(bare, kind, size, server) for size in SIZES)
    rows["optuna, ask and tell"], notes["optuna, ask and tell"] = large / small, f"{small:.2f} ms, {large:.2f} ms"
    title = f"CPU time of a trial, study on {kind}: with 5,000 trials, as a ratio to the time with 100"
    show(title, rows, notes=notes)
