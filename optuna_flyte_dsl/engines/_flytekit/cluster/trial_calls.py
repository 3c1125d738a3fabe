"""Runs the calls of one trial on a Flyte cluster: each call of a task, workflow or launch plan is an execution.

In an eager workflow on a cluster, flytekit awaits `context.worker_queue.add(entity, input_kwargs)`. A search puts a
`TrialCalls` into the contexts of its own trials as that worker queue. Flytekit handles the workflow's other calls.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from flyteidl.admin.execution_pb2 import Execution
from flyteidl.core.execution_pb2 import WorkflowExecution
from optuna import TrialPruned
from optuna.trial import Trial

from optuna_flyte_dsl._compat.optuna import refresh
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._retry import backoff
from optuna_flyte_dsl._threads import finish
from optuna_flyte_dsl.engines._flytekit.cluster.admin import AdminError, GivenUpError
from optuna_flyte_dsl.engines._flytekit.cluster.execution_failures import EagerExecutionFailedError, has_not_begun
from optuna_flyte_dsl.engines._flytekit.cluster.launcher import CAUSE, Launcher
from optuna_flyte_dsl.engines._flytekit.cluster.trial_execution import FullLaunchPlanError, TrialExecution
from optuna_flyte_dsl.engines._flytekit.output_check import refusal_in
from optuna_flyte_dsl.engines.remote_trial.handle import pruned_in
from optuna_flyte_dsl.study.attributes import EXECUTION_ERROR, EXECUTIONS

if TYPE_CHECKING:
    from optuna_flyte_dsl.engines._flytekit.cluster.cluster_search import ClusterSearch

_END_CHECK = 0.01  # seconds between two looks whether a call has ended its execution


@dataclass(eq=False)
class TrialCalls:
    """The worker queue of one trial.

    As a context manager, `TrialCalls` cancels the calls and searches that the trial leaves running, in whatever event
    loop they run, and terminates their executions.
    """

    launcher: Launcher
    trial: Trial
    attempt: int = 0  # the number of the trial's attempt
    is_task: bool = False  # whether the objective is a task: then a trial is one call
    on_begin: Callable[[], None] | None = None  # called in the event loop when the first execution begins to run

    def __post_init__(self) -> None:
        self._takes_trial = False
        self._equal_calls: collections.Counter[tuple[str, str]] = collections.Counter()  # by entity and inputs
        self._lock = threading.Lock()
        self._executions: list[TrialExecution] = []
        self._tasks: dict[asyncio.Task[Any], asyncio.AbstractEventLoop] = {}  # one for each call that waits
        self._searches: set[ClusterSearch] = set()
        self._closed = False
        earlier = self.trial.user_attrs.get(EXECUTIONS, ()) if self.launcher.adopts or self.attempt else ()
        # Executions that an earlier process has launched for this attempt of the trial. The end of the attempt
        # terminates the earlier executions that the attempt has not adopted.
        self._earlier = dict.fromkeys(entry["name"] for entry in earlier if entry.get("attempt", 0) == self.attempt)
        self._attempts_before = [entry for entry in earlier if entry.get("attempt", 0) != self.attempt]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for execution in self._executions:
                execution.given_up.set()
            tasks = list(self._tasks.items())
            left = [execution for execution in self._executions if not execution.over]
            orphans = self._earlier.keys() - {execution.name for execution in self._executions}
            searches = list(self._searches)
        for task, loop in tasks:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(task.cancel)
        for search in searches:
            search.end(leave=False)  # no later attempt of the trial continues its searches
        if self.launcher.leaves_executions:
            orphans = set()
        self.launcher.forget(self.trial)
        if self._takes_trial:
            await finish(lambda: self._refresh())
        if left or orphans or searches:
            await finish(lambda: self._end_all(left, orphans, searches))

    async def _refresh(self) -> None:
        with contextlib.suppress(Exception):  # the storage's error is raised when the trial is told
            async with asyncio.timeout(pauses.storage_silence):
                await self.launcher.terminators.run(refresh, self.trial)

    async def _end_all(self, left: list[TrialExecution], orphans: set[str], searches: list[ClusterSearch]) -> None:
        deadline = self.launcher.end_of_grace()
        await asyncio.gather(
            *(self._end_once(execution, deadline) for execution in left),
            *(self._terminate(name, "no longer needs this execution", deadline) for name in orphans),
            *(self.launcher.terminators.run(search.wait, deadline) for search in searches),
        )

    async def _end_once(self, execution: TrialExecution, deadline: float) -> None:
        """End an execution, unless its own call ends it; then wait for that."""
        while execution.is_ending and not execution.over and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_END_CHECK)
        if not execution.over:
            await self._end(execution)

    def enter(self, search: ClusterSearch) -> None:
        """Note a search inside of the trial, which the end of the trial ends.

        Raises:
            CancelledError: If the trial has ended.
        """
        with self._lock:
            if self._closed:
                raise asyncio.CancelledError
            self._searches.add(search)

    def leave(self, search: ClusterSearch) -> None:
        """Note that a search inside of the trial has ended."""
        with self._lock:
            self._searches.discard(search)

    async def _end(self, execution: TrialExecution) -> None:
        """Terminate an execution that nobody waits for any longer."""
        deadline = self.launcher.end_of_grace()
        self.launcher.poller.forget(execution.name)
        execution.given_up.set()
        # A request that is under way may launch the execution. A launch request ends at its time limit.
        patience = min(pauses.launch_rpc, self.launcher.options.grace / 2)
        await self.launcher.terminators.run(execution.idle.wait, patience)
        if execution.submitted and not execution.over and not self.launcher.leaves_executions:
            await self._terminate(execution.name, "was given up", deadline)
            self.launcher.running.discard(execution.name)
        execution.over = True

    async def _terminate(self, name: str, why: str, deadline: float) -> None:
        self.launcher.terminated += 1
        cause = f"trial {self.trial.number} {why}"
        await self.launcher.terminators.run(self.launcher.terminate, name, cause, deadline)

    async def add(self, entity: Any, input_kwargs: dict[str, Any]) -> Any:
        """Launch an execution, wait for its end, and return its outputs. Flytekit calls this, in any event loop."""
        execution = TrialExecution(self.launcher, self.trial, entity, input_kwargs)
        with self._lock:
            if self._closed:
                raise asyncio.CancelledError
            self._executions.append(execution)
            # A task of its own, because the end of the trial cancels the call, and not the task that awaits it.
            task = asyncio.ensure_future(self._call(execution))
            self._tasks[task] = asyncio.get_running_loop()
        task.add_done_callback(self._forget_task)
        return await task

    def _forget_task(self, task: asyncio.Task[Any]) -> None:
        with self._lock:
            del self._tasks[task]

    async def _call(self, execution: TrialExecution) -> Any:
        try:
            return await self._outputs_of(execution)
        except asyncio.CancelledError:
            execution.given_up.set()
            with self._lock:  # the end of the trial ends the executions that it finds
                execution.is_ending = not (execution.over or self._closed)
            if execution.is_ending:
                try:
                    await finish(lambda: self._end(execution))
                except RuntimeError:  # the threads are closed
                    if not self._closed:
                        raise
            raise
        except GivenUpError:
            raise asyncio.CancelledError from None
        except Exception as error:
            if execution.given_up.is_set():  # after its end, what the trial needs is closed
                raise asyncio.CancelledError from error
            raise

    async def _outputs_of(self, execution: TrialExecution) -> Any:
        try:
            execution.arguments = {name: await self._to_send(value) for name, value in execution.arguments.items()}
            await self._run(execution, execution.prepare)
            end = await self._end_of(execution)
            execution.over = True
            self.launcher.running.discard(execution.name)
            if end.closure.phase == WorkflowExecution.SUCCEEDED:
                value, text = await self._run(execution, execution.outputs)
                self._show(execution, text)
                if self._takes_trial and await self._is_pruned(execution):
                    raise TrialPruned
                return value
            failure = execution.failure(end)
        except EagerExecutionFailedError as error:
            failure = error
        except AdminError as error:
            raise error.refusal(f"launch or read an execution of `{execution.entity.name}`") from error
        self._show(execution, str(failure))
        await self.launcher.store_attributes(self.trial, lambda: {EXECUTION_ERROR: failure.summary()})
        if failure.stands_for((TrialPruned,)):
            raise TrialPruned
        raise refusal_in(failure.message) or failure

    async def _is_pruned(self, execution: TrialExecution) -> bool:
        """Return whether the task of an execution has raised `TrialPruned`, and not that of another execution.

        A task of the execution may also run in an execution of its own, which a launch plan inside has launched.
        """
        pruned = await self.launcher.workers.run(pruned_in, self.trial)
        with self._lock:
            others = {each.name for each in self._executions} | self._earlier.keys()
            others |= {entry["name"] for entry in self._attempts_before}
        return bool(pruned) and (pruned == execution.name or pruned not in others)

    async def _end_of(self, execution: TrialExecution) -> Execution:
        """Launch an execution, and return its end. An execution that did not begin is launched again."""
        on_running, patience = self._on_running(), self.launcher.options.patience
        waits = backoff(pauses.admin_first, pauses.admin_longest, lambda: patience)
        while True:
            await self._launch(execution)
            end = await asyncio.wrap_future(self.launcher.poller.wait_for(execution.name, on_running, patience))
            if end.closure.phase == WorkflowExecution.SUCCEEDED:
                return end
            end = await self._run(execution, execution.whole, end)
            if has_not_begun(end) and (pause := next(waits, None)) is not None:
                await asyncio.sleep(pause)
            elif not end.closure.abort_metadata.cause.startswith(CAUSE):
                return end
            # A replaced pod has terminated the execution while that pod ended, or the execution has never begun. So
            # the execution is launched again, under another name.
            self.launcher.running.discard(execution.name)
            if await self.launcher.is_taken_over(self.trial):
                raise GivenUpError("Given up: another search runs the trial.")
            execution.collisions += 1

    async def _to_send(self, value: Any) -> Any:
        """Replace a `Trial` input by its `TrialHandle`. Pass other inputs through."""
        if not isinstance(value, Trial):
            return value
        self._takes_trial = True
        return await self.launcher.workers.run(self.launcher.serve, value)

    def _on_running(self) -> Callable[[], None] | None:
        """Return a callback that calls `on_begin` in the event loop.

        Only the trial's first execution gets such a callback.
        """
        on_begin, self.on_begin = self.on_begin, None
        if on_begin is None:
            return None
        loop = asyncio.get_running_loop()

        def begin() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(on_begin)

        return begin

    def _run(self, execution: TrialExecution, step: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run a method of an execution in a worker thread. A termination of the execution waits for its end."""

        def run() -> Any:
            with self._lock:
                if execution.given_up.is_set():
                    raise GivenUpError("Given up: a launch.")
                execution.idle.clear()
            try:
                return step(*args)
            finally:
                execution.idle.set()

        return self.launcher.workers.run(run)

    async def _launch(self, execution: TrialExecution) -> None:
        execution.call = execution.call or self._call_of(execution)
        while True:
            execution.name = self.launcher.names.name(
                self.trial.number, execution.entity.name, execution.call, execution.collisions, attempt=self.attempt
            )
            execution.is_earlier = execution.name in self._earlier
            execution.may_be_taken = execution.is_earlier or self.launcher.connection.attempt > 0
            await self._store_names()
            if await self._create(execution):
                break
            execution.collisions += 1
        self.launcher.taken.add(execution.name)
        self._show(execution, "")

    async def _create(self, execution: TrialExecution) -> bool:
        """Launch or adopt an execution; see `TrialExecution.create`. At a full launch plan, wait for a place.

        Trials wait here and not in worker threads, in which the outputs of other executions are read. One trial at a
        time tries to launch a launch plan that was full.
        """
        name = execution.entity.name
        while True:
            gate = self.launcher.full.get(name)
            if gate is None or gate.acquire(blocking=False):
                try:
                    return bool(await self._run(execution, execution.create))
                except FullLaunchPlanError as full:
                    new = threading.Lock()
                    if self.launcher.full.setdefault(name, new) is new:
                        logger.warning("Trials wait for a place among the executions of `%s`: %s", name, full)
                    await asyncio.sleep(pauses.full_launch_plan)
                finally:
                    if gate is not None:
                        gate.release()
            else:
                await asyncio.sleep(pauses.full_launch_plan)

    def _call_of(self, execution: TrialExecution) -> str:
        """Return the key of a call among the trial's calls, the same in each process that continues the trial.

        The trial of a task is one call. A function may await calls in another order in each process, so its calls are
        told apart by their inputs. Calls of one entity with the same inputs are interchangeable.
        """
        if self.is_task:
            return "0"
        digest = execution.stable_digest
        with self._lock:
            number = self._equal_calls[execution.entity.name, digest]
            self._equal_calls[execution.entity.name, digest] += 1
        return f"{digest}/{number}"

    async def _store_names(self) -> None:
        """Store the names of the trial's executions, before a launch.

        If this process dies, another process must find the executions.
        """
        mark = {"attempt": self.attempt} if self.attempt else {}

        def executions() -> dict[str, Any]:
            with self._lock:
                if self._closed:  # the trial may have begun its next attempt
                    return {}
                names = [*self._earlier, *(each.name for each in self._executions if each.name)]
            own = [{"name": name, "url": self.launcher.names.url(name), **mark} for name in dict.fromkeys(names)]
            return {EXECUTIONS: self._attempts_before + own}

        await self.launcher.store_attributes(self.trial, executions)

    def _show(self, execution: TrialExecution, outputs: str) -> None:
        deck = self.launcher.connection.deck
        if deck is not None:
            deck.show(
                execution.name,
                entity=execution.entity.name,
                kind=execution.kind,
                url=execution.url,
                inputs=execution.shown_inputs,
                outputs=outputs,
            )
