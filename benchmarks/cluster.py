"""Measure searches on a cluster: a stand-in flyteadmin on loopback that makes outputs after a given time."""

from __future__ import annotations

import asyncio
import tempfile
import time
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
from optuna_flyte_dsl import Float, Optimizer
from tests.flyteadmin import FlyteAdmin, Succeeded

LATENCY = 0.01
WORK = ((128, 5.0, 32, 1.2), (8, 1.0, 4, 1.4))
"""Trials, seconds of each, how many at once, and the ratio to the ideal that is asked for."""

Search = Callable[[int, int, optuna.Study], Any]


def ours(n_trials: int, concurrency: int, study: optuna.Study) -> Any:
    return Optimizer(async_task, concurrency, n_trials, study, progress=False)(x=Float(0, 1))


def peer(n_trials: int, concurrency: int, study: optuna.Study) -> Any:
    return Peer(async_task, concurrency, n_trials, study)(x=peer_suggest.float(0, 1))


def measure(search: Search, n_trials: int, seconds: float, concurrency: int) -> tuple[float, float, float]:
    """Return the makespan as a ratio to the ideal, the calls for each trial, and those in a minute of waiting."""

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


def main() -> None:
    for n_trials, seconds, concurrency, limit in WORK:
        ideal = n_trials * seconds / concurrency
        print(
            f"\nOn a cluster: {n_trials} trials of {seconds:.0f} s, {concurrency} at once, {LATENCY * 1e3:.0f} ms a "
            f"call, as a ratio to the ideal {ideal:.0f} s; calls of flyteadmin for each trial; reads of state in a "
            "minute"
        )
        for name, search in (("optuna_flyte_dsl", ours), ("flytekitplugins.optuna", peer)):
            ratio, calls, reads = measure(search, n_trials, seconds, concurrency)
            asked = f"   (asked for: at most {limit:.2f})" if search is ours else ""
            print(f"  {name:<52}{ratio:8.2f}x {calls:8.1f} {reads:8.0f}{asked}")
