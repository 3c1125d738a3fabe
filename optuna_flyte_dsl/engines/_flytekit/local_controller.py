"""Runs the entities that local trials await, in threads, as many at the same time as the search asks for.

In a local eager workflow, flytekit runs awaited entities one at a time, and blocks the caller's event loop. In an eager
workflow on a cluster, flytekit awaits `context.worker_queue.add(entity, input_kwargs)`. During a search, the
`LocalController` is that worker queue. The local controller runs each entity in a thread, under a context stack of its
own.
"""

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

from flytekit.core.context_manager import ExecutionState, FlyteContext, FlyteContextManager, flyte_context_Var
from flytekit.core.launch_plan import LaunchPlan
from flytekit.core.promise import flyte_entity_call_handler
from flytekit.core.python_function_task import EagerAsyncPythonFunctionTask, PythonFunctionTask
from flytekit.core.reference_entity import ReferenceEntity

from optuna_flyte_dsl._compat import flytekit as compat
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.engines._flytekit.literal_cache import lock_literal_cache
from optuna_flyte_dsl.engines._flytekit.plain_call import PlainCall, plain_call
from optuna_flyte_dsl.engines._flytekit.sandbox import CallParameters
from optuna_flyte_dsl.engines._flytekit.task_limits import EntityCall, apply_task_limits
from optuna_flyte_dsl.engines.functions import await_thread

_Mode = ExecutionState.Mode


class LocalController:
    """The worker queue of local trials."""

    def __init__(self, threads: Threads, context: FlyteContext) -> None:
        self._threads = threads
        state = context.execution_state or context.new_execution_state()
        parameters = None if context.user_space_params is None else CallParameters(context.user_space_params)
        state = state.with_params(mode=_Mode.EAGER_LOCAL_EXECUTION, user_space_params=parameters)
        self._context = context.with_execution_state(state).build()
        self._plain_calls: dict[int, tuple[Any, PlainCall | None]] = {}  # by the id of the entity beside it
        lock_literal_cache()
        compat.find_stack_frames_fast()
        apply_task_limits()

    async def add(self, entity: Any, input_kwargs: dict[str, Any]) -> Any:
        """Run an entity in a thread, and return its outputs as Python values; flytekit calls this."""
        return await self.run_in_thread(entity, functools.partial(self.run, entity, input_kwargs))

    async def run_in_thread(self, entity: Any, run: Callable[[EntityCall], Any]) -> Any:
        """Call a function in a thread, in which it calls an entity by `run`. Return what the function has returned."""
        # A plain task without `cache=True` does not use the local cache; any other entity may contain a cached task.
        is_plain = isinstance(entity, PythonFunctionTask) and entity.execution_mode is entity.ExecutionBehavior.DEFAULT
        if not is_plain or entity.metadata.cache:
            with _lock:
                compat.open_local_cache()
        call = EntityCall(self._threads)
        try:
            return await await_thread(self._threads.run(run, call))
        finally:
            call.over = True

    def run(self, entity: Any, input_kwargs: Mapping[str, Any], call: EntityCall) -> Any:
        """Run an entity in this thread, and return its outputs as Python values."""
        context = self._context.with_worker_queue(call).build()  # type: ignore[arg-type]
        flyte_context_Var.set([context])
        plain = self._plain_call(entity)
        if plain is not None and (values := plain.values(input_kwargs)) is not None:
            return call.run_attempts(entity, lambda _: plain.run(values, context), is_plain=True)
        if isinstance(entity, LaunchPlan) and not isinstance(entity, ReferenceEntity):
            # `LaunchPlan.__call__` does the same: locally, a launch plan runs its workflow with the saved inputs.
            entity, input_kwargs = entity.workflow, {**entity.saved_inputs, **input_kwargs}
        return flyte_entity_call_handler(self._eager_as_on_cluster(compat.without_deck(entity)), **input_kwargs)

    def _plain_call(self, entity: Any) -> PlainCall | None:
        found = self._plain_calls.get(id(entity))
        if found is None:
            found = self._plain_calls[id(entity)] = (entity, plain_call(entity))
        return found[1]

    def context(self) -> FlyteContext:
        """Return the current context with this worker queue, so that flytekit calls `add` for each awaited entity."""
        context = FlyteContextManager.current_context()
        state = context.execution_state or context.new_execution_state()
        eager = context.with_execution_state(state.with_params(mode=_Mode.EAGER_EXECUTION))
        return eager.with_worker_queue(self).build()  # type: ignore[arg-type]

    def _eager_as_on_cluster(self, entity: Any) -> Any:
        """Return an eager workflow in which awaited entities run at the same time, as they do on a cluster."""
        function = compat.task_function(entity)
        if not isinstance(entity, EagerAsyncPythonFunctionTask) or function is None:
            return entity

        @functools.wraps(function)
        async def with_controller(*args: Any, **kwargs: Any) -> Any:
            flyte_context_Var.set([*flyte_context_Var.get(), self.context()])
            return await function(*args, **kwargs)

        return compat.with_task_function(entity, with_controller)


_lock = threading.Lock()
