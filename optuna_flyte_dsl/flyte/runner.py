"""Runs trials where the caller's Flyte context says: on this machine, or on a cluster."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from flytekit.core.base_task import PythonTask
from flytekit.core.context_manager import ExecutionState, FlyteContextManager, flyte_context_Var
from flytekit.core.promise import async_flyte_entity_call_handler
from optuna.trial import Trial

from optuna_flyte_dsl.flyte.cluster import ClusterController
from optuna_flyte_dsl.flyte.judge import watched
from optuna_flyte_dsl.flyte.local import LocalController, close_loops, unstoppable
from optuna_flyte_dsl.flyte.trial import TrialQueue
from optuna_flyte_dsl.objective import TRIAL, Kind, Objective
from optuna_flyte_dsl.storage import KeptStorage
from optuna_flyte_dsl.threads import Threads
from optuna_flyte_dsl.waiting import Patient


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
        self._local = False
        if cluster is None:
            context = FlyteContextManager.current_context()
            state = context.execution_state
            known = state is not None and state.mode is ExecutionState.Mode.EAGER_EXECUTION
            if known and context.worker_queue is not None:
                self._stack.append(context)  # a controller that is there already
            else:
                self._stack.append(LocalController(self._threads, context).context())
            self._local = isinstance(self._stack[-1].worker_queue, LocalController)

    async def run(
        self, trial: Trial, arguments: Mapping[str, Any], *, attempt: int, begun: Callable[[], None] | None
    ) -> Any:
        """Run one trial; see `optuna_flyte_dsl.search.Runner`."""
        # A new list: the stack is mutable, and the copies of a context share it. It is set in the trial's own task, so
        # that the caller's stays as it is.
        if self._objective.takes_trial:
            arguments = {**arguments, TRIAL: trial}
        entity = self._objective.kind is Kind.ENTITY
        if self._cluster is None:
            flyte_context_Var.set(list(self._stack))
            _tell(begun)
            return await self._call(arguments)
        async with TrialQueue(self._cluster, trial, attempt, begun if entity else None) as queue:
            flyte_context_Var.set([*self._stack, self._cluster.context(queue)])
            if not entity:
                _tell(begun)
            return await self._call(arguments)

    async def _call(self, arguments: Mapping[str, Any]) -> Any:
        target = self._objective.target
        if self._objective.kind is Kind.ENTITY:
            return await self._call_entity(arguments)
        if self._objective.kind is Kind.COROUTINE:
            returned = target(**arguments)
        else:
            returned = await unstoppable(self._threads.run(lambda: target(**arguments)))
        if inspect.iscoroutine(returned) and isinstance(getattr(arguments.get(TRIAL), "storage", None), KeptStorage):
            returned = Patient(returned, self._threads)
        while inspect.isawaitable(returned):
            returned = await returned
        return returned

    async def _call_entity(self, arguments: Mapping[str, Any]) -> Any:
        """Call a Flyte entity. What a task returns is judged before Flyte, which says less of what is wrong."""
        target = self._objective.target
        if not (self._local and isinstance(target, PythonTask)):
            return await async_flyte_entity_call_handler(target, **arguments)
        returned: list[Any] = []
        try:
            return await async_flyte_entity_call_handler(watched(target, returned.append), **arguments)
        except Exception as error:
            wrong = self._objective.refusal(returned[-1], by_flyte=True) if returned else None
            if wrong is None:
                raise
            raise wrong from error

    @property
    def busy(self) -> bool:
        """Whether what was given up runs on in a thread."""
        return self._threads.busy

    async def close(self) -> None:
        """End the threads; see `optuna_flyte_dsl.search.Runner`."""
        await self._threads.close()


def _tell(begun: Callable[[], None] | None) -> None:
    if begun is not None:
        begun()
