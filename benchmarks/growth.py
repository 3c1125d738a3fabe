"""Measure what a trial costs in studies of 100 and of 5,000 trials, on each storage."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import os
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from benchmarks.results import show
from optuna_flyte_dsl import Float, Integer, Optimizer
from tests.support.postgres import Postgres

SIZES = (100, 5_000)
ROUNDS = 5
# The trials of a search between whose starts the time is taken. What a search costs once is before.
FIRST, LAST = 20, 120
NAME = "growth"
SPACE = {"x": IntDistribution(1, 10**6), "y": FloatDistribution(0, 1)}
BARE = "optuna, ask and tell"
OPTIONS: dict[str, dict[str, Any]] = {
    "optuna_flyte_dsl": {},
    'optuna_flyte_dsl duplicates="resample"': {"duplicates": "resample"},
    'optuna_flyte_dsl duplicates="reuse"': {"duplicates": "reuse"},
    "optuna_flyte_dsl resume=True": {"resume": True},
}


class Moments:
    """The CPU times at which two trials of a search start."""

    def __init__(self) -> None:
        self._n_calls = 0
        self._at: list[float] = []

    def note(self) -> None:
        """Note that a trial starts."""
        if self._n_calls in (FIRST, LAST):
            self._at.append(time.process_time())
        self._n_calls += 1

    def milliseconds(self) -> float:
        """Return the CPU time of a trial."""
        first, last = self._at
        return (last - first) / (LAST - FIRST) * 1000


def bare(study: optuna.Study) -> float:
    moments = Moments()
    for _ in range(LAST + 1):
        trial = study.ask()
        x, y = trial.suggest_int("x", 1, 10**6), trial.suggest_float("y", 0, 1)
        moments.note()
        study.tell(trial, x + y)
    return moments.milliseconds()


def ours(study: optuna.Study, options: dict[str, Any]) -> float:
    moments = Moments()

    async def objective(x: Integer(1, 10**6), y: Float(0, 1)) -> float:
        moments.note()
        return x + y

    total = LAST + 1 + (len(study.trials) if options.get("resume") else 0)
    Optimizer(objective, 1, total, study, progress=False, **options).run_sync()
    return moments.milliseconds()


class Original:
    """A study with some trials, of which copies are made."""

    def __init__(self, kind: str, size: int, server: Postgres) -> None:
        self._kind = kind
        # In memory, if the system can: SQLite would wait for the disk for minutes. The time of the CPU is the same.
        self._folder = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        self._url, _, database = server.url.rpartition("/")
        self._admin = sqlalchemy.create_engine(f"{self._url}/{database}", isolation_level="AUTOCOMMIT")
        self._name = f"original_{size}"
        if kind == "postgresql":
            self._execute(f"CREATE DATABASE {self._name}")
        self._storage = self._open(self._name)
        self._study = optuna.create_study(storage=self._storage, study_name=NAME)
        rng = random.Random(1)
        for _ in range(size):
            params = {"x": rng.randint(1, 10**6), "y": rng.random()}
            self._study.add_trial(optuna.trial.create_trial(params=params, distributions=SPACE, value=rng.random()))

    @contextlib.contextmanager
    def copied(self) -> Iterator[optuna.Study]:
        """Yield a copy of the study, in a storage of its own, which is removed at last."""
        name = f"copy_{uuid.uuid4().hex}"
        storage = copy.deepcopy(self._storage) if self._kind == "memory" else None
        if self._kind in ("journal", "sqlite"):
            shutil.copy(self._folder / self._name, self._folder / name)
        elif self._kind == "postgresql":
            self._storage.engine.dispose()  # a database that is in use cannot be copied
            self._execute(f"CREATE DATABASE {name} TEMPLATE {self._name}")
        storage = storage or self._open(name)
        yield optuna.load_study(storage=storage, study_name=NAME, sampler=RandomSampler(seed=1))
        if isinstance(storage, RDBStorage):
            storage.engine.dispose()
        if self._kind == "postgresql":
            self._execute(f"DROP DATABASE {name} WITH (FORCE)")
        (self._folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the study."""
        self._admin.dispose()
        shutil.rmtree(self._folder)

    def _execute(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(sqlalchemy.text(statement))

    def _open(self, name: str) -> Any:
        storages: dict[str, Callable[[], Any]] = {
            "memory": InMemoryStorage,
            "journal": lambda: JournalStorage(JournalFileBackend(str(self._folder / name))),
            "sqlite": lambda: RDBStorage(f"sqlite:///{self._folder / name}"),
            "postgresql": lambda: RDBStorage(f"{self._url}/{name}"),
        }
        return storages[self._kind]()


def measured(measure: Callable[[optuna.Study], float], originals: Sequence[Original]) -> list[float]:
    """Return the milliseconds of a trial in a copy of each study."""
    milliseconds = []
    for original in originals:
        with original.copied() as study:
            gc.collect()
            gc.freeze()
            milliseconds.append(measure(study))
            gc.unfreeze()
    return milliseconds


def show_growth(kind: str, server: Postgres) -> None:
    """Show what a trial costs in both studies, and how much of the cost is not Optuna's own."""
    originals = [Original(kind, size, server) for size in SIZES]
    contestants: dict[str, Callable[[optuna.Study], float]] = {BARE: bare}
    for name, options in OPTIONS.items():
        if kind != "memory" or "resume" not in options:
            contestants[name] = functools.partial(ours, options=options)
    rounds: dict[str, list[list[float]]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, measure in contestants.items():
            rounds[name].append(measured(measure, originals))
    for original in originals:
        original.close()
    costs = {name: [min(each) for each in zip(*of_all, strict=True)] for name, of_all in rounds.items()}
    floor = costs[BARE]
    notes = {name: ", ".join(f"{cost:.2f} ms" for cost in each) for name, each in costs.items()}
    # A smaller share is lost in the noise, and a search that is cheaper than ask and tell has none: there, the limit is
    # that of the whole time.
    shares = {
        name: (large - floor[1]) / (small - floor[0])
        for name, (small, large) in costs.items()
        if small > 1.25 * floor[0]
    }
    title = f"CPU time of a trial, study on {kind}: with 5,000 trials, as a ratio to the time with 100"
    limit = {name: 1.5 for name in costs if name != BARE and name not in shares}
    show(title, {name: large / small for name, (small, large) in costs.items()}, notes=notes, limit=limit)
    if shares:
        title = f"The part of it that is not Optuna's, study on {kind}: with 5,000 trials, as a ratio to that with 100"
        show(title, shares, limit=dict.fromkeys(shares, 1.5))


def main(argv: Sequence[str] = ()) -> None:
    """Show the growth of a trial's cost on each storage, or on the named ones."""
    server = Postgres()
    try:
        for kind in argv or ("memory", "journal", "sqlite", "postgresql"):
            show_growth(kind, server)
    finally:
        server.close()
