"""A task's own `retries` and `timeout` in local runs, which flytekit ignores on this machine.

Each local call of a task goes through `Task.sandbox_execute`, also inside a workflow. During a search, and only then,
`Task.sandbox_execute` applies the limits of the task.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import wrapt
from flytekit.core.array_node_map_task import ArrayNodeMapTask
from flytekit.core.base_task import PythonTask, Task
from flytekit.core.context_manager import FlyteContext, FlyteContextManager, flyte_context_Var
from flytekit.core.python_function_task import PythonFunctionTask
from flytekit.exceptions.base import FlyteRecoverableException

from optuna_flyte_dsl._compat.flytekit import with_element_task
from optuna_flyte_dsl._proxy import Proxy
from optuna_flyte_dsl._threads import StillRunningError, Threads
from optuna_flyte_dsl.engines._flytekit.entities import entity_name
from optuna_flyte_dsl.engines._flytekit.sandbox import current_sandboxes
from optuna_flyte_dsl.engines.functions import warn_of_running_thread
from optuna_flyte_dsl.errors import TrialTimeoutError
from optuna_flyte_dsl.search.outcome import mark_retries_used, retries_are_used

T = TypeVar("T")
_Behavior = PythonFunctionTask.ExecutionBehavior
_patching = threading.Lock()


@dataclasses.dataclass(eq=False)
class EntityCall:
    """One awaited call of an entity.

    The call is put into the Flyte context as the worker queue.
    """

    threads: Threads
    outer: EntityCall | None = None
    over: bool = False  # whether nobody waits for the result any longer

    @property
    def given_up(self) -> bool:
        """Whether the caller has stopped waiting for the result, for example because its trial was cancelled."""
        return self.over or self.threads.closed or (self.outer is not None and self.outer.given_up)

    def run_attempts(self, task: PythonTask[Any], run: Callable[[EntityCall], T], *, is_plain: bool) -> T:
        """Run a task within its own `retries` and `timeout`, as Flyte does on a cluster.

        Flyte repeats an attempt that has raised a FlyteRecoverableException or exceeded its timeout: see
        `isTimeoutExpired` in https://github.com/flyteorg/flyte, flytepropeller/pkg/controller/nodes/executor.go.

        Args:
            is_plain: Whether the task is neither dynamic nor eager, so that no other task with limits runs in it.
        """
        retries, timeout = task.metadata.retries or 0, task.metadata.timeout
        seconds = timeout.total_seconds() if isinstance(timeout, datetime.timedelta) else timeout
        for left in range(retries, -1, -1):
            if self.given_up:
                raise asyncio.CancelledError("The trial was given up.")
            try:
                if seconds:
                    return self._run_in_time(task, run, float(seconds))
                with current_sandboxes():
                    return run(self)
            except (FlyteRecoverableException, TrialTimeoutError) as error:
                if is_plain:
                    mark_retries_used(error, used=False)  # the task may raise the same instance again
                if left and not retries_are_used(error):
                    continue
                if retries:
                    mark_retries_used(error)
                raise
        raise AssertionError  # not reached

    def _run_in_time(self, task: PythonTask[Any], run: Callable[[EntityCall], T], seconds: float) -> T:
        attempt = EntityCall(self.threads, self)

        def job() -> T:
            flyte_context_Var.set(list(flyte_context_Var.get()))
            with current_sandboxes():
                return run(attempt)

        try:
            return self.threads.call(job, seconds)
        except StillRunningError:
            attempt.over = True
            warn_of_running_thread()
            what = f"`{entity_name(task)}` ran for longer than its `timeout`, {seconds:g} s."
            raise TrialTimeoutError(what) from None


class _LimitedElement(Proxy):
    """A proxy of the task inside a map task, which the map task runs once for each element of its list.

    The task's retries and timeout hold for each element, as on a cluster.
    """

    def __init__(self, task: Any, run_attempts: Callable[[Callable[[EntityCall], Any]], Any]) -> None:
        super().__init__(task)
        self._self_run_attempts = run_attempts

    def execute(self, **kwargs: Any) -> Any:
        return self._self_run_attempts(lambda _: self.__wrapped__.execute(**kwargs))


def apply_task_limits() -> None:
    """Wrap `Task.sandbox_execute`. The limits apply in searches only; a second call changes nothing."""
    with _patching:
        if not isinstance(vars(Task)["sandbox_execute"], wrapt.FunctionWrapper):
            wrapt.wrap_function_wrapper(Task, "sandbox_execute", _sandbox_execute)


def _sandbox_execute(execute: Any, task: PythonTask[Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    context: FlyteContext = args[0]
    call = context.worker_queue
    if not isinstance(call, EntityCall):
        return execute(*args, **kwargs)
    is_plain = getattr(task, "execution_mode", None) not in (_Behavior.DYNAMIC, _Behavior.EAGER)

    def once(call: EntityCall) -> Any:
        inside = FlyteContextManager.current_context().new_builder()
        # On a cluster, the tasks that a plain task calls run in the plain task's pod, without limits of their own.
        queue: Any = None if is_plain else call
        inside.worker_queue = queue
        with FlyteContextManager.with_context(inside):
            return execute(*args, **kwargs)

    if isinstance(task, ArrayNodeMapTask):
        run_attempts = functools.partial(call.run_attempts, task, is_plain=True)
        mapped = with_element_task(task, lambda element: _LimitedElement(element, run_attempts))
        execute = functools.partial(execute.__func__, mapped)
        return once(call)
    return call.run_attempts(task, once, is_plain=is_plain)
