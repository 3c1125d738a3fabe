"""Runs trials on this machine, in threads, with as many at once as the search asks for.

In a local eager workflow, flytekit runs awaited entities one at a time: its handler falls into the synchronous path,
which blocks the caller's event loop. In the mode of an eager workflow on a cluster, the same handler awaits
`context.worker_queue.add(entity, input_kwargs)`. `LocalController` is what stands there during a search: it runs the
entity in a thread, under a context stack of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import copy
import datetime
import functools
import os
import threading
from collections.abc import Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

import wrapt
from flytekit.core import local_cache
from flytekit.core.array_node_map_task import ArrayNodeMapTask
from flytekit.core.base_task import PythonTask, Task
from flytekit.core.context_manager import (
    ExecutionState,
    FlyteContext,
    FlyteContextManager,
    flyte_context_Var,
)
from flytekit.core.launch_plan import LaunchPlan
from flytekit.core.promise import flyte_entity_call_handler
from flytekit.core.python_function_task import EagerAsyncPythonFunctionTask, PythonFunctionTask
from flytekit.core.reference_entity import ReferenceEntity
from flytekit.core.type_engine import TypeEngine
from flytekit.exceptions.base import FlyteRecoverableException
from flytekit.utils.asyn import _TaskRunner, loop_manager

from optuna_flyte_dsl.errors import TrialTimeoutError
from optuna_flyte_dsl.flyte.entities import entity_name, note_retries_used, retries_are_used
from optuna_flyte_dsl.log import logger
from optuna_flyte_dsl.threads import StillRunningError, Threads

T = TypeVar("T")
_Mode = ExecutionState.Mode
_Behavior = PythonFunctionTask.ExecutionBehavior


class LocalController:
    """Stands where flytekit's `Controller` stands in the context of an eager workflow on a cluster.

    Args:
        threads: Where entities run.
        context: The context that the search was called in.
    """

    def __init__(self, threads: Threads, context: FlyteContext) -> None:
        self._threads = threads
        state = context.execution_state or context.new_execution_state()
        self._context = context.with_execution_state(state.with_params(mode=_Mode.EAGER_LOCAL_EXECUTION)).build()
        _prepare_flytekit()

    async def add(self, entity: Any, input_kwargs: dict[str, Any]) -> Any:
        """Run an entity in a thread, and return its outputs as Python values."""
        if _may_cache(entity):
            _prepare_cache()
        call = _Call(self._threads)
        try:
            return await unstoppable(self._threads.run(self._call, entity, input_kwargs, call))
        finally:
            call.over.set()

    def _call(self, entity: Any, input_kwargs: dict[str, Any], call: _Call) -> Any:
        use_own_loop()
        flyte_context_Var.set([self._context.with_worker_queue(call).build()])  # type: ignore[arg-type]
        if isinstance(entity, LaunchPlan) and not isinstance(entity, ReferenceEntity):
            # As `LaunchPlan.__call__` does it: locally, a launch plan is its workflow with some inputs given.
            entity, input_kwargs = entity.workflow, {**entity.saved_inputs, **input_kwargs}
        return flyte_entity_call_handler(_awaiting_here(_without_deck(entity), self), **input_kwargs)

    def context(self) -> FlyteContext:
        """Return the current context, with this controller in it: what is awaited there goes through `add`."""
        context = FlyteContextManager.current_context()
        state = context.execution_state or context.new_execution_state()
        eager = context.with_execution_state(state.with_params(mode=_Mode.EAGER_EXECUTION))
        return eager.with_worker_queue(self).build()  # type: ignore[arg-type]


_warned = threading.Event()


async def unstoppable(running: asyncio.Future[Any]) -> Any:
    """Await what a thread does. Where that is given up, say once that nothing can stop it."""
    try:
        return await running
    except asyncio.CancelledError:
        if running.cancelled():
            _warn_unstoppable()
        raise


def leave_unsaid() -> None:
    """Warn of no thread that cannot be stopped: this process is."""
    _warned.set()


def _warn_unstoppable() -> None:
    if not _warned.is_set():
        _warned.set()
        logger.warning(
            "A trial was given up, but a thread cannot be stopped: its function runs on until it returns. "
            'Write `executor="process"` where that matters.'
        )


def _seconds(timeout: Any) -> float | None:
    """Return a task's `timeout` in seconds; `None` for none."""
    seconds = timeout.total_seconds() if isinstance(timeout, datetime.timedelta) else timeout
    return float(seconds) if seconds else None


def _may_cache(entity: Any) -> bool:
    """Tell whether an entity, or one inside of it, may look into Flyte's cache: a plain task without one does not."""
    plain = isinstance(entity, PythonFunctionTask) and entity.execution_mode is entity.ExecutionBehavior.DEFAULT
    return not plain or bool(entity.metadata.cache)


def _without_deck(entity: Any) -> Any:
    """Return a task that writes no Deck: nobody sees a local trial's, and flytekit runs `pip` twice to make one."""
    if getattr(entity, "_disable_deck", True):
        return entity
    entity = copy.copy(entity)
    entity._disable_deck = True
    entity._deck_fields = []
    return entity


def _awaiting_here(entity: Any, controller: LocalController) -> Any:
    """Return an eager workflow in which what is awaited is concurrent, as it is on a cluster."""
    if not isinstance(entity, EagerAsyncPythonFunctionTask):
        return entity
    entity = copy.copy(entity)
    function = entity._task_function

    @functools.wraps(function)
    async def concurrent(*args: Any, **kwargs: Any) -> Any:
        flyte_context_Var.set([*flyte_context_Var.get(), controller.context()])
        return await function(*args, **kwargs)

    entity._task_function = concurrent
    return entity


_preparing = threading.Lock()


class _LockedCache:
    """Flytekit's cache of literals, for many threads: a reader of its own can lose an entry between test and read.

    Args:
        cache: The cache that flytekit made.
    """

    def __init__(self, cache: MutableMapping[Any, Any]) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._found = threading.local()

    def __contains__(self, key: object) -> bool:
        with self._lock:
            if key not in self._cache:
                return False
            # Kept for this thread: flytekit reads it next, and another thread may have it evicted before.
            self._found.entry = (key, self._cache[key])
            return True

    def __getitem__(self, key: Any) -> Any:
        found, value = getattr(self._found, "entry", (None, None))
        if found != key:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        with self._lock:
            self._cache[key] = value


class _Call:
    """One awaited call of an entity. On a cluster, the tasks in it are executions with limits of their own.

    Args:
        threads: Where what has a limit runs.
        outer: The call that it is an attempt of.
    """

    def __init__(self, threads: Threads, outer: _Call | None = None) -> None:
        self._threads = threads
        self._outer = outer
        self.over = threading.Event()

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.over.is_set() or self._threads.closed or (self._outer is not None and self._outer.given_up)

    def attempt(self, task: PythonTask[Any], run: Callable[[_Call], T], *, plain: bool) -> T:
        """Run a task as long, and as often, as its own metadata say, as Flyte does on a cluster.

        There, what is tried again is an attempt that has raised a FlyteRecoverableException, or taken too long; see
        `isTimeoutExpired` in https://github.com/flyteorg/flyte, flytepropeller/pkg/controller/nodes/executor.go.

        Args:
            task: The task.
            run: Runs it once, as a part of a call.
            plain: Whether no other task with limits runs in it.

        Raises:
            TrialTimeoutError: If the last attempt has taken too long.
            asyncio.CancelledError: If the trial was given up before.
        """
        retries, seconds = task.metadata.retries or 0, _seconds(task.metadata.timeout)
        for left in range(retries, -1, -1):
            if self.given_up:
                raise asyncio.CancelledError("The trial was given up.")
            try:
                return run(self) if seconds is None else self._in_time(task, run, seconds)
            except (FlyteRecoverableException, TrialTimeoutError) as error:
                if plain:
                    note_retries_used(error, used=False)  # it may be an instance that was raised before
                if left and not retries_are_used(error):
                    continue
                if retries:
                    note_retries_used(error)
                raise
        raise AssertionError  # not reached

    def _in_time(self, task: PythonTask[Any], run: Callable[[_Call], T], seconds: float) -> T:
        attempt = _Call(self._threads, self)

        def job() -> T:
            use_own_loop()
            flyte_context_Var.set(list(flyte_context_Var.get()))
            return run(attempt)

        try:
            return self._threads.call(job, seconds)
        except StillRunningError:
            attempt.over.set()
            _warn_unstoppable()
            what = f"`{entity_name(task)}` ran for longer than its `timeout`, {seconds:g} s."
            raise TrialTimeoutError(what) from None


class _Element(wrapt.BaseObjectProxy):  # type: ignore[type-arg, misc, unused-ignore]
    """The task of a map task. The limits are those of each element, as on a cluster.

    Args:
        task: The task.
        attempt: Runs an element within its limits.
    """

    def __init__(self, task: Any, attempt: Callable[[Callable[[_Call], Any]], Any]) -> None:
        super().__init__(task)
        self._self_attempt = attempt

    def execute(self, **kwargs: Any) -> Any:
        """Run one element; flytekit calls this."""
        return self._self_attempt(lambda _: self.__wrapped__.execute(**kwargs))


def _sandbox_execute(run: Any, task: PythonTask[Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    """Stand before flytekit's own: on this machine it looks at no task's `retries` and `timeout`."""
    context: FlyteContext = args[0]
    call = context.worker_queue
    if not isinstance(call, _Call):
        return run(*args, **kwargs)
    plain = getattr(task, "execution_mode", None) not in (_Behavior.DYNAMIC, _Behavior.EAGER)

    def once(call: _Call) -> Any:
        inside = FlyteContextManager.current_context().new_builder()
        # On a cluster, what a plain task calls is a part of it.
        queue: Any = None if plain else call
        inside.worker_queue = queue
        with FlyteContextManager.with_context(inside):
            return run(*args, **kwargs)

    if isinstance(task, ArrayNodeMapTask):
        mapped = copy.copy(task)
        element: Any = _Element(task._run_task, functools.partial(call.attempt, task, plain=True))
        mapped._run_task = element
        run = functools.partial(run.__func__, mapped)
        return once(call)
    return call.attempt(task, once, plain=plain)


def _prepare_flytekit() -> None:
    """Make flytekit's one shared cache of literals safe for threads, and let a search's tasks have their limits."""
    with _preparing:
        if not isinstance(vars(Task)["sandbox_execute"], wrapt.FunctionWrapper):
            wrapt.wrap_function_wrapper(Task, "sandbox_execute", _sandbox_execute)
        cache = getattr(TypeEngine, "_LITERAL_CACHE", None)  # the first releases of 1.16 have none
        if cache is not None and not isinstance(cache, _LockedCache):
            TypeEngine._LITERAL_CACHE = _LockedCache(cache)  # type: ignore[assignment]


def _prepare_cache() -> None:
    """Open flytekit's local cache before threads do: they race in its lazy import and in its initialization."""
    with _preparing:
        if not local_cache.LocalTaskCache._initialized:
            local_cache.joblib.hash(b"")
            local_cache.LocalTaskCache.initialize()


class _OwnLoop:
    """Runs flytekit's coroutines in the thread that waits for them.

    Flytekit runs them in an event loop in yet another thread, one for each thread name and for ever. That costs three
    changes of thread for each call of a task, and leaves a thread and a loop behind.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._nested: _TaskRunner | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine and return its result; flytekit calls this."""
        loop = self._runner.get_loop()
        if not loop.is_running():
            return loop.run_until_complete(coroutine)
        # A coroutine has called something synchronous, which waits for another coroutine.
        self._nested = self._nested or _TaskRunner()
        return self._nested.run(coroutine)

    def close(self) -> None:
        """Cancel what a task has left in the loop, and close it."""
        if self._nested is not None:
            _close_runner(self._nested)
        self._runner.close()


def _key(thread_name: str) -> str:
    """Return the key under which flytekit looks up the runner of a thread."""
    return f"{thread_name}PID:{os.getpid()}"


def use_own_loop() -> None:
    """Let flytekit run this thread's coroutines in this thread."""
    key = _key(threading.current_thread().name)
    if key not in loop_manager._runner_map:
        loop_manager._runner_map[key] = _OwnLoop()  # type: ignore[assignment]


def outlive_exit(thread: threading.Thread) -> None:
    """Let a thread of flytekit's run its coroutines by itself too, when Python exits.

    Flytekit stops the loops that it keeps for threads, and then joins the thread of its `Controller`: if that is just
    publishing the Deck, it waits for ever for a loop that has stopped, and the pod of a finished workflow never ends.
    """
    key = _key(thread.name)
    if not isinstance(loop_manager._runner_map.get(key), _OwnLoop):
        loop_manager._runner_map[key] = _OwnLoop()  # type: ignore[assignment]


def close_loops(thread_name: str) -> None:
    """Close the event loops that were made for a thread, and for the threads of flytekit's that stand behind it."""
    if local_cache.LocalTaskCache._initialized and hasattr(local_cache.LocalTaskCache._cache, "close"):
        local_cache.LocalTaskCache._cache.close()  # this thread's connection: it is opened anew where it is needed
    runners = loop_manager._runner_map
    own = runners.pop(_key(thread_name), None)
    for key in [key for key in list(runners) if key.startswith(f"{thread_name} : loop-runner")]:
        _close_runner(runners.pop(key))
    if isinstance(own, _OwnLoop):
        own.close()
    elif own is not None:
        _close_runner(own)


def _close_runner(runner: _TaskRunner) -> None:
    """Stop a runner of flytekit's; its thread closes the loop."""
    atexit.unregister(runner._close)
    loop: asyncio.AbstractEventLoop | None = runner._TaskRunner__loop  # type: ignore[attr-defined]
    thread: threading.Thread | None = runner._TaskRunner__runner_thread  # type: ignore[attr-defined]
    if loop is not None and thread is not None and thread is not threading.current_thread():
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
