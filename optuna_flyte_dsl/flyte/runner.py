"""Runs trials where the caller's Flyte context says: on this machine, or on a cluster."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from flytekit.core.context_manager import ExecutionState, FlyteContext, FlyteContextManager, flyte_context_Var
from flytekit.core.promise import async_flyte_entity_call_handler
from optuna.trial import Trial

from optuna_flyte_dsl.flyte.cluster import ClusterController
from optuna_flyte_dsl.flyte.local import LocalController, close_loops
from optuna_flyte_dsl.objective import TRIAL, Kind, Objective
from optuna_flyte_dsl.threads import Threads


class FlyteRunner:
    """Runs the trials of one search; see `optuna_flyte_dsl.search.Runner`.

    Args:
        objective: What to run.
        cluster: The cluster that its calls go to; `None` to run them on this machine, or by a controller in the
            context that is not known.
    """

    def __init__(self, objective: Objective, cluster: ClusterController | None = None) -> None:
        self._objective = objective
        self._cluster = cluster
        self._threads = Threads(at_exit=close_loops)
        FlyteContextManager.current_context()  # a new thread has no stack before this
        self._stack = list(flyte_context_Var.get())
        if cluster is None:
            self._stack.append(_awaiting_context(self._threads))

    async def run(self, trial: Trial, arguments: Mapping[str, Any]) -> Any:
        """Run one trial; see `optuna_flyte_dsl.search.Runner`."""
        # A new list: the stack is mutable, and the copies of a context share it. It is set in the trial's own task, so
        # that the caller's stays as it is.
        if self._cluster is None:
            flyte_context_Var.set(list(self._stack))
            return await self._call(trial, arguments)
        async with self._cluster.queue(trial) as queue:
            flyte_context_Var.set([*self._stack, self._cluster.context(queue)])
            return await self._call(trial, arguments)

    async def _call(self, trial: Trial, arguments: Mapping[str, Any]) -> Any:
        target = self._objective.target
        if self._objective.kind is Kind.ENTITY:
            return await async_flyte_entity_call_handler(target, **arguments)
        if self._objective.takes_trial:
            arguments = {**arguments, TRIAL: trial}
        if self._objective.kind is Kind.COROUTINE:
            returned = await target(**arguments)
        else:
            returned = await self._threads.run(lambda: target(**arguments))
        return await returned if inspect.isawaitable(returned) else returned

    async def close(self) -> None:
        """End the threads; see `optuna_flyte_dsl.search.Runner`."""
        await self._threads.close()
        if self._cluster is not None:
            await self._cluster.close()


def _awaiting_context(threads: Threads) -> FlyteContext:
    """Return a context in which `await task(...)` goes through a controller: the one that is there, or a local one."""
    context = FlyteContextManager.current_context()
    state = context.execution_state or context.new_execution_state()
    if state.mode is ExecutionState.Mode.EAGER_EXECUTION and context.worker_queue is not None:
        return context
    eager = context.with_execution_state(state.with_params(mode=ExecutionState.Mode.EAGER_EXECUTION))
    return eager.with_worker_queue(LocalController(threads, context)).build()  # type: ignore[arg-type]
