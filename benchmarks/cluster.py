"""Measure searches on a cluster: a stand-in flyteadmin on loopback that makes outputs after a given time."""

from __future__ import annotations

import asyncio
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import optuna
from flyteidl.core import literals_pb2
from flytekit.configuration import Image, ImageConfig, SerializationSettings
from flytekit.core.context_manager import ExecutionState, FlyteContextManager
from flytekit.core.worker_queue import Controller
from flytekitplugins.optuna import Optimizer as Peer
from flytekitplugins.optuna import suggest as peer_suggest

from benchmarks.objectives import async_task
from benchmarks.results import show
from optuna_flyte_dsl import Cluster, Float, Optimizer
from tests.support.flyteadmin import FlyteAdmin, Succeeded

LATENCY = 0.01
WORK = ((128, 5.0, 32, 1.2), (8, 1.0, 4, 1.4))
"""Number of trials, seconds per trial, concurrency, and the largest accepted ratio to the ideal makespan."""

Search = Callable[[int, int, optuna.Study], Any]


def ours(n_trials: int, concurrency: int, study: optuna.Study) -> Any:
    return Optimizer(async_task, concurrency, n_trials, study, progress=False)(x=Float(0, 1))


def peer(n_trials: int, concurrency: int, study: optuna.Study) -> Any:
    return Peer(async_task, concurrency, n_trials, study)(x=peer_suggest.float(0, 1))


def measure(search: Search, n_trials: int, seconds: float, concurrency: int) -> tuple[float, float, float]:
    """Return the makespan as a ratio to the ideal, the calls of flyteadmin per trial, and state reads per minute."""

    def outcome(execution):
        outputs = literals_pb2.LiteralMap()
        outputs.literals["o0"].CopyFrom(execution.inputs.literals["x"])
        return Succeeded(outputs, seconds)

    with tempfile.TemporaryDirectory() as folder, FlyteAdmin(folder, instant=outcome, latency=LATENCY) as admin:
        settings = SerializationSettings(
            ImageConfig(Image("default", "image", "1")), project="project", domain="development", version="v"
        )
        remote = admin.remote()
        remote.register_task(async_task, settings, "v")
        admin.counts.clear()
        controller = Controller(remote, settings, "eager", "eager", "e")
        context = FlyteContextManager.current_context()
        state = context.new_execution_state().with_params(mode=ExecutionState.Mode.EAGER_EXECUTION)
        builder = context.with_execution_state(state).with_worker_queue(controller)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))

        async def main() -> None:
            with FlyteContextManager.with_context(builder):
                await search(n_trials, concurrency, study)

        start = time.perf_counter()
        asyncio.run(main())
        makespan = time.perf_counter() - start
        controller.stopping_condition.set()
        assert all(trial.state.name == "COMPLETE" for trial in study.trials)
        reads = admin.counts["ListExecutions"] + admin.counts["GetExecution"]
        ideal = n_trials * seconds / concurrency
        return makespan / ideal, sum(admin.counts.values()) / n_trials, reads / makespan * 60


def many() -> None:
    """Measure the peak memory of a search with high concurrency, and how often it reads the state of executions."""

    def outcome(execution):
        outputs = literals_pb2.LiteralMap()
        outputs.literals["o0"].CopyFrom(execution.inputs.literals["x"])
        return Succeeded(outputs, 5.0)

    for n_trials, concurrency in ((500, 500), (1_000, 500)):
        with tempfile.TemporaryDirectory() as folder, FlyteAdmin(folder, instant=outcome) as admin:
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
            options = Cluster(launches_per_second=500)
            optimizer = Optimizer(async_task, concurrency, n_trials, study, progress=False, cluster=options)
            settings = {"version": "v", "image_config": ImageConfig(Image("default", "image", "1"))}
            there = optimizer.on(admin.remote(), **settings)
            tracemalloc.start()
            start = time.perf_counter()
            there.run_sync(x=Float(0, 1))
            makespan = time.perf_counter() - start
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        title = f"On a cluster: {n_trials} trials, {concurrency} at once"
        show(
            f"{title}: reads of state in a second", {"optuna_flyte_dsl": admin.counts["ListExecutions"] / makespan}, ""
        )
        show(f"{title}: peak memory, with the stand-in's", {"optuna_flyte_dsl": peak / 1e6}, " MB")


def main() -> None:
    many()
    for n_trials, seconds, concurrency, limit in WORK:
        ideal = n_trials * seconds / concurrency
        rows, notes = {}, {}
        for name, search in (("optuna_flyte_dsl", ours), ("flytekitplugins.optuna", peer)):
            rows[name], calls, reads = measure(search, n_trials, seconds, concurrency)
            notes[name] = f"{calls:.1f} calls of flyteadmin for each trial, {reads:.0f} reads of state in a minute"
        title = (
            f"On a cluster: {n_trials} trials of {seconds:.0f} s, {concurrency} at once, {LATENCY * 1e3:.0f} ms a call,"
            f" as a ratio to the ideal {ideal:.0f} s"
        )
        show(title, rows, limit={"optuna_flyte_dsl": limit}, notes=notes)
