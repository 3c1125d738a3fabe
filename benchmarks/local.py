"""Measure searches on this machine beside Optuna and flytekitplugins.optuna, as ratios.

Each figure is the median of a few rounds, in which all contestants take turns, so that a machine that slows down slows
all of them. The overhead of a trial is the smallest of the rounds instead.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable

import optuna
from flytekitplugins.optuna import Optimizer as Peer
from flytekitplugins.optuna import suggest as peer_suggest
from optuna.samplers import RandomSampler

from benchmarks import structure
from benchmarks.objectives import SECONDS, async_task, blocking, callback, instant, marked, nothing, sync_task, waits
from benchmarks.results import show, turns
from optuna_flyte_dsl import Float, Optimizer, optimize

TRIALS = 64
OVERHEAD_TRIALS = 2_000


def study() -> optuna.Study:
    return optuna.create_study(sampler=RandomSampler(seed=1))


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def makespan() -> None:
    for concurrency, limit in ((4, 1.10), (16, 1.15)):
        ideal = TRIALS / concurrency * SECONDS

        def ours(objective, *, sampler=RandomSampler, concurrency=concurrency, ideal=ideal):
            given = {} if objective in (callback, blocking) else {"x": Float(0, 1)}

            def measure() -> float:
                optimizer = Optimizer(objective, concurrency, TRIALS, sampler=sampler, progress=False)
                return seconds(lambda: optimizer.run_sync(**given)) / ideal

            return measure

        def peer(objective, concurrency=concurrency, ideal=ideal):
            given = {} if objective is callback else {"x": peer_suggest.float(0, 1)}

            def measure() -> float:
                optimizer = Peer(objective, concurrency, TRIALS, study())
                return seconds(lambda: asyncio.run(optimizer(**given))) / ideal

            return measure

        def threads(concurrency=concurrency, ideal=ideal) -> float:
            return seconds(lambda: study().optimize(blocking, n_trials=TRIALS, n_jobs=concurrency)) / ideal

        rows = turns(
            {
                "optuna_flyte_dsl, async task": ours(async_task),
                "optuna_flyte_dsl, sync task": ours(sync_task),
                "optuna_flyte_dsl, async task, default sampler": ours(async_task, sampler=None),
                "optuna_flyte_dsl, async function": ours(callback),
                "flytekitplugins.optuna, async function": peer(callback),
                "optuna, n_jobs, function in threads": threads,
            }
        )
        rows |= turns({"flytekitplugins.optuna, async task": peer(async_task)}, rounds=1)
        show(
            f"Makespan of {TRIALS} trials of {SECONDS} s, {concurrency} at once, as a ratio to the ideal {ideal:.1f} s",
            rows,
            limit={"optuna_flyte_dsl, async task": limit, "optuna_flyte_dsl, sync task": limit},
        )


def bare() -> float:
    def run() -> None:
        plain = study()
        for _ in range(OVERHEAD_TRIALS):
            trial = plain.ask()
            plain.tell(trial, trial.suggest_float("x", 0, 1))

    return seconds(run) / OVERHEAD_TRIALS


def overhead() -> None:
    """Measure what a trial costs beside its objective.

    Each figure is the smallest of the rounds, because whatever else runs on the machine only makes a round longer.
    """

    def ours(objective) -> Callable[[], float]:
        def measure() -> float:
            optimizer = Optimizer(objective, 4, OVERHEAD_TRIALS, study(), progress=False)
            return seconds(optimizer.run_sync) / OVERHEAD_TRIALS

        return measure

    def peer() -> float:
        optimizer = Peer(instant, 4, OVERHEAD_TRIALS, study())
        return seconds(lambda: asyncio.run(optimizer())) / OVERHEAD_TRIALS

    rows = turns(
        {
            "optuna, ask and tell": bare,
            "optuna_flyte_dsl, function with trial": ours(instant),
            "optuna_flyte_dsl, function with a marker": ours(marked),
            "flytekitplugins.optuna, function with trial": peer,
        },
        rounds=15,
        summary=min,
    )
    floor = rows.pop("optuna, ask and tell")
    show(
        f"Time per trial, {OVERHEAD_TRIALS} trials that do nothing, random sampler, as a ratio to ask and tell",
        {"optuna, ask and tell": 1.0, **{name: value / floor for name, value in rows.items()}},
        notes={"optuna, ask and tell": f"{floor * 1e3:.3f} ms"},
        limit={name: 1.25 for name in rows if name.startswith("optuna_flyte_dsl")},
    )


def start() -> None:
    """Measure the seconds until the first of a million trials starts, and the memory allocated by then."""
    seen: list[tuple[float, int]] = []

    async def first(trial: optuna.Trial) -> float:
        if not seen:
            seen.append((time.perf_counter(), tracemalloc.get_traced_memory()[0]))
        trial.study.stop()
        return 1.0

    objective = optimize(first, concurrency=16, n_trials=1_000_000, progress=False)
    tracemalloc.start()
    before, called = tracemalloc.get_traced_memory()[0], time.perf_counter()
    objective.run_sync()
    tracemalloc.stop()
    moment, memory = seen[0]
    title = "n_trials=1_000_000, before the first trial starts"
    show(f"{title}: seconds", {"optuna_flyte_dsl": moment - called}, " s", limit={"optuna_flyte_dsl": 0.2})
    show(f"{title}: memory", {"optuna_flyte_dsl": (memory - before) / 1e6}, " MB", limit={"optuna_flyte_dsl": 20.0})


def nested_classes() -> None:
    decoration, trial = structure.measure()
    title = "50 marked fields in nested classes"
    show(f"{title}: decoration", {"optuna_flyte_dsl": decoration}, " ms", limit={"optuna_flyte_dsl": 10.0})
    show(
        f"{title}: a trial, above Optuna's suggestions",
        {"optuna_flyte_dsl": trial},
        " ms",
        limit={"optuna_flyte_dsl": 0.3},
    )


def cpu() -> None:
    """Measure the CPU time of a trial of a task that does nothing, beside flytekit's own local call of the task."""
    n_trials = 500

    def ours() -> float:
        optimizer = Optimizer(nothing, 4, n_trials, sampler=RandomSampler, progress=False)
        begun = time.process_time()
        optimizer.run_sync(x=Float(0, 1))
        return time.process_time() - begun

    def flytekits() -> float:
        begun = time.process_time()
        for _ in range(n_trials):
            nothing(x=0.5)
        return time.process_time() - begun

    rows = turns({"optuna_flyte_dsl, a trial": ours, "flytekit": flytekits})
    name = "optuna_flyte_dsl, a trial"
    title = "CPU time of a task that does nothing, as a ratio to flytekit's local call"
    show(title, {name: rows[name] / rows["flytekit"]}, limit={name: 0.5})


def imports() -> None:
    """Measure the CPU time of an interpreter that imports the library, beside one that imports what it needs.

    One interpreter measures both, because two of them differ by more than the library takes. The ratio is that of an
    interpreter which imports flytekit, optuna and then the library, to the same one before it imports the library.
    """
    # Without this variable, Python keeps the compiled modules of an editable package, as pip does for a wheel.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    program = (
        "import time, flytekit, optuna; before = time.process_time(); import optuna_flyte_dsl; "
        "print(time.process_time() / before)"
    )

    def ratio() -> float:
        command = [sys.executable, "-W", "ignore", "-c", program]
        return float(subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout)

    name = "flytekit, optuna and optuna_flyte_dsl"
    rows = turns({name: ratio}, rounds=25)
    show("CPU time of an import, as a ratio to flytekit and optuna", rows, limit={name: 1.05})


def short_trials() -> None:
    """Measure the makespan of short trials of a sync task, as a ratio to the ideal.

    The ideal is a second, so that the trials count for more than the start of the search. In the last row, which has no
    limit, the start counts too.
    """
    for seconds_each, concurrency, n_waves, limit in (
        (0.01, 4, 100, 1.15),
        (0.01, 16, 100, 1.6),
        (0.1, 16, 10, 1.06),
        (0.1, 64, 10, 1.3),
        (0.1, 16, 2, None),
    ):
        n_trials = concurrency * n_waves

        def ours(seconds_each=seconds_each, concurrency=concurrency, n_trials=n_trials) -> float:
            optimizer = Optimizer(waits, concurrency, n_trials, sampler=RandomSampler, progress=False)
            ideal = n_trials / concurrency * seconds_each
            return seconds(lambda: optimizer.run_sync(x=Float(0, 1), seconds=seconds_each)) / ideal

        title = f"Makespan of {n_trials} tasks of {seconds_each} s, {concurrency} at once, as a ratio to the ideal"
        limits = {} if limit is None else {"optuna_flyte_dsl": limit}
        show(title, turns({"optuna_flyte_dsl": ours}), limit=limits)


def main() -> None:
    """Measure all of it."""
    # Otherwise a full garbage collection of what flytekit has imported, about 70 ms, would slow one contestant's turn.
    gc.collect()
    gc.freeze()
    start()
    imports()
    nested_classes()
    overhead()
    cpu()
    short_trials()
    makespan()
