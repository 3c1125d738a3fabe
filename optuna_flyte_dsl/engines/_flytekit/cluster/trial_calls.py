"""Runs the calls of one trial on a Flyte cluster: each call of a task, workflow or launch plan is an execution.

In an eager workflow on a cluster, flytekit awaits `context.worker_queue.add(entity, input_kwargs)`. A search puts a
`TrialCalls` into the contexts of its own trials as that worker queue. Flytekit handles the workflow's other calls.
"""

import asyncio
import collections
import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from flyteidl.admin.execution_pb2 import (
    Execution,
    ExecutionCreateRequest,
    WorkflowExecutionGetDataRequest,
    WorkflowExecutionGetRequest,
)
from flyteidl.core.execution_pb2 import WorkflowExecution
from flytekit.core.python_function_task import AsyncPythonFunctionTask, EagerAsyncPythonFunctionTask
from flytekit.core.workflow import WorkflowBase
from optuna import TrialPruned
from optuna.trial import Trial

from optuna_flyte_dsl._compat.optuna import refresh
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._retry import backoff, retry
from optuna_flyte_dsl._threads import finish
from optuna_flyte_dsl.engines._flytekit.cluster.admin import AdminError, GivenUpError
from optuna_flyte_dsl.engines._flytekit.cluster.execution_failures import (
    EagerExecutionFailedError,
    failure_of,
    has_not_begun,
    read_closure,
    vanished,
)
from optuna_flyte_dsl.engines._flytekit.cluster.executions import ATTEMPT, INPUTS_DIGEST
from optuna_flyte_dsl.engines._flytekit.cluster.launcher import CAUSE, Launcher
from optuna_flyte_dsl.engines._flytekit.cluster.registry import Launchable
from optuna_flyte_dsl.engines._flytekit.output_check import refusal_in
from optuna_flyte_dsl.engines.remote_trial.handle import is_pruned
from optuna_flyte_dsl.errors import RefusedError
from optuna_flyte_dsl.study.attributes import EXECUTION_ERROR, EXECUTIONS


@dataclass(eq=False)
class Launch:
    """One execution of a trial, from the call to the end of the execution."""

    entity: Any
    inputs: Mapping[str, Any]
    call: str = ""  # the key of the call among the trial's calls; see `TrialCalls._call_of`
    name: str = ""
    target: Launchable | None = None
    request: ExecutionCreateRequest | None = None
    submitted: bool = False  # whether Flyte may have the execution
    over: bool = False  # whether the execution has ended, or was refused
    given_up: threading.Event = field(default_factory=threading.Event)
    idle: threading.Event = field(default_factory=threading.Event)  # set while no thread runs a step of the launch

    def __post_init__(self) -> None:
        self.idle.set()


@dataclass(eq=False)
class TrialCalls:
    """The worker queue of one trial.

    As a context manager, `TrialCalls` terminates the executions that the trial leaves running.
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
        self._launches: list[Launch] = []
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
            for launch in self._launches:
                launch.given_up.set()
            left = [launch for launch in self._launches if not launch.over]
            orphans = self._earlier.keys() - {launch.name for launch in self._launches}
        if self.launcher.leaves_executions:
            orphans = set()
        self.launcher.forget(self.trial)
        if self._takes_trial:
            await finish(lambda: self._refresh())
        if left or orphans:
            await finish(lambda: self._end_all(left, orphans))

    async def _refresh(self) -> None:
        with contextlib.suppress(Exception):  # the storage's error is raised when the trial is told
            await self.launcher.terminators.run(refresh, self.trial)

    async def _end_all(self, launches: list[Launch], orphans: set[str]) -> None:
        deadline = self.launcher.end_of_grace()
        await asyncio.gather(
            *(self._end(launch) for launch in launches),
            *(self._terminate(name, "no longer needs this execution", deadline) for name in orphans),
        )

    async def _end(self, launch: Launch) -> None:
        """Terminate an execution that nobody waits for any longer."""
        deadline = self.launcher.end_of_grace()
        self.launcher.poller.forget(launch.name)
        launch.given_up.set()
        # A request that is under way may launch the execution. A launch request ends at its time limit.
        patience = min(pauses.launch_rpc, self.launcher.options.grace / 2)
        await self.launcher.terminators.run(launch.idle.wait, patience)
        if launch.submitted and not launch.over and not self.launcher.leaves_executions:
            await self._terminate(launch.name, "was given up", deadline)
            self.launcher.running.discard(launch.name)
            launch.over = True

    async def _terminate(self, name: str, why: str, deadline: float) -> None:
        self.launcher.terminated += 1
        cause = f"trial {self.trial.number} {why}"
        await self.launcher.terminators.run(self.launcher.terminate, name, cause, deadline)

    async def add(self, entity: Any, input_kwargs: dict[str, Any]) -> Any:
        """Launch an execution, wait for its end, and return its outputs. Flytekit calls this, in any event loop."""
        inputs = {name: await self._to_send(value) for name, value in input_kwargs.items()}
        launch = Launch(entity, inputs)
        with self._lock:
            if self._closed:
                raise asyncio.CancelledError
            self._launches.append(launch)
        try:
            on_running = self._on_running()
            waits = backoff(pauses.admin_first, pauses.admin_longest, lambda: self.launcher.options.patience)
            while True:
                await self._launch(launch)
                end = await asyncio.wrap_future(self.launcher.poller.wait_for(launch.name, on_running))
                if has_not_begun(end) and (pause := next(waits, None)) is not None:
                    await asyncio.sleep(pause)
                elif not end.closure.abort_metadata.cause.startswith(CAUSE):
                    break
                # A replaced pod has terminated the execution while that pod ended, or the execution has never begun. So
                # the execution is launched again, under another name.
            launch.over = True
            self.launcher.running.discard(launch.name)
            if end.closure.phase == WorkflowExecution.SUCCEEDED:
                value = await self._run(launch, self._outputs)
                self._show(launch, value)
                if self._takes_trial and await self.launcher.workers.run(is_pruned, self.trial):
                    raise TrialPruned
                return value
            failure: EagerExecutionFailedError = await self._run(launch, self._failure, end)
        except EagerExecutionFailedError as error:
            failure = error
        except asyncio.CancelledError:
            launch.given_up.set()
            if not launch.over:
                await finish(lambda: self._end(launch))
            raise
        except GivenUpError:
            raise asyncio.CancelledError from None
        except AdminError as error:
            raise error.refusal(f"launch or read an execution of `{entity.name}`") from error
        self._show(launch, failure)
        await self.launcher.store_attributes(self.trial, {EXECUTION_ERROR: failure.summary()})
        if failure.stands_for((TrialPruned,)):
            raise TrialPruned
        raise refusal_in(failure.message) or failure

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

    def _run(self, launch: Launch, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run a step in a worker thread. A termination of the execution waits until the step is done."""

        def step() -> Any:
            with self._lock:
                if launch.given_up.is_set():
                    raise GivenUpError("Given up: a launch.")
                launch.idle.clear()
            try:
                return function(launch, *args)
            finally:
                launch.idle.set()

        return self.launcher.workers.run(step)

    async def _launch(self, launch: Launch) -> None:
        await self._run(launch, self._prepare)
        launch.call = launch.call or self._call_of(launch)
        for collision in itertools.count():
            launch.name = self.launcher.names.name(
                self.trial.number, launch.entity.name, launch.call, collision, attempt=self.attempt
            )
            await self._store_names()
            if await self._run(launch, self._create):
                break
        self.launcher.taken.add(launch.name)
        self._show(launch, "")

    def _call_of(self, launch: Launch) -> str:
        """Return the key of a call among the trial's calls, the same in each process that continues the trial.

        The trial of a task is one call. A function may await calls in another order in each process, so its calls are
        told apart by their inputs. Calls of one entity with the same inputs are interchangeable.
        """
        if self.is_task:
            return "0"
        assert launch.request is not None
        digest = launch.request.spec.annotations.values[INPUTS_DIGEST]
        with self._lock:
            number = self._equal_calls[launch.entity.name, digest]
            self._equal_calls[launch.entity.name, digest] += 1
        return f"{digest}/{number}"

    async def _store_names(self) -> None:
        """Store the names of the trial's executions, before a launch.

        If this process dies, another process must find the executions.
        """
        mark = {"attempt": self.attempt} if self.attempt else {}
        with self._lock:
            names = [*self._earlier, *(launch.name for launch in self._launches if launch.name)]
        executions = [{"name": name, "url": self.launcher.names.url(name), **mark} for name in dict.fromkeys(names)]
        await self.launcher.store_attributes(self.trial, {EXECUTIONS: self._attempts_before + executions})

    def _prepare(self, launch: Launch) -> None:
        launch.target = self.launcher.registry.find(launch.entity, launch.given_up)
        inputs, digest = self.launcher.converter.inputs(launch.entity.name, launch.target, launch.inputs)
        launch.request = self.launcher.request(self.trial, launch.target, inputs, digest)

    def _create(self, launch: Launch) -> bool:
        """Launch or adopt the execution; return False if another execution has the name."""
        launcher, request = self.launcher, launch.request
        assert request is not None
        request.name = launch.name
        # Look the name up first if it may be taken, because even a refused CreateExecution overwrites stored inputs.
        launch.submitted = launch.name in self._earlier or launcher.connection.attempt > 0

        def create() -> bool:
            there = self._find(launch) if launch.submitted else None
            # The name is added in this thread, because the event loop may be blocked when the pod ends.
            launcher.running.add(launch.name)
            if there is not None:
                return self._take(launch, there)
            launcher.traffic.wait_to_launch(launcher.options, launch.given_up)
            launch.submitted = True  # from now on, a lost response may hide that the name is taken
            launcher.admin.send("CreateExecution", request, seconds=pauses.launch_rpc)
            return True

        def may_pass(error: Exception) -> bool:
            # For the first execution of a task, flyteadmin makes a workflow around the task. If several requests
            # need that workflow at once, flyteadmin refuses all requests but one.
            return isinstance(error, AdminError) and error.code is grpc.StatusCode.ALREADY_EXISTS

        def wait(seconds: float) -> None:
            if launch.given_up.wait(seconds):
                raise GivenUpError("Given up: a launch.")

        waits = backoff(pauses.admin_first, pauses.admin_longest, lambda: launcher.options.patience)
        try:
            outage_proof = functools.partial(
                launcher.admin.retry, create, "call CreateExecution", given_up=launch.given_up
            )
            return retry(outage_proof, waits, may_pass=may_pass, wait=wait)
        except AdminError as error:
            launch.over, launch.submitted = True, False
            launcher.running.discard(launch.name)
            raise error.refusal(f"launch an execution of `{launch.entity.name}`") from error

    def _find(self, launch: Launch, patience: float | None = 0.0) -> Execution | None:
        """Return the execution that has a launch's name; `None` if no execution has it.

        Args:
            patience: The seconds for which an outage is waited out; `None` for the search's patience.
        """
        request = WorkflowExecutionGetRequest(id=self.launcher.names.identifier(launch.name))
        try:
            found: Execution = self.launcher.admin.call(
                "GetExecution", request, given_up=launch.given_up, patience=patience
            )
        except AdminError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return found

    def _take(self, launch: Launch, there: Execution) -> bool:
        """Adopt an execution with the launch's name if it has the launch's inputs too; return whether it was adopted.

        Either the response to this launch was lost, or an earlier attempt has launched the execution.
        """
        assert launch.request is not None
        ours, theirs = launch.request.spec, there.spec
        same = theirs.annotations.values.get(INPUTS_DIGEST) == ours.annotations.values[INPUTS_DIGEST]
        # An execution with this cause was terminated by the process that had launched it.
        is_aborted = there.closure.abort_metadata.cause.startswith(CAUSE)
        is_void = is_aborted or has_not_begun(there)
        launch.submitted = same and theirs.launch_plan == ours.launch_plan and not is_void
        if not launch.submitted and INPUTS_DIGEST in theirs.annotations.values:
            attempt = int(theirs.annotations.values.get(ATTEMPT, "0"))
            if self.launcher.names.study is None and attempt > self.launcher.connection.attempt:
                logger.warning("A later attempt of this pod runs the search: this attempt leaves all executions to it.")
                self.launcher.on_successor()
                raise GivenUpError("Given up: a launch.")
            # An earlier process of this search has launched the execution, and that process is gone.
            deadline = self.launcher.end_of_grace()
            self.launcher.terminate(launch.name, f"trial {self.trial.number} asks for something else now", deadline)
        return launch.submitted

    def _data(self, launch: Launch) -> Any:
        identifier = self.launcher.names.identifier(launch.name)
        request = WorkflowExecutionGetDataRequest(id=identifier)
        try:
            return self.launcher.admin.call("GetExecutionData", request, given_up=launch.given_up)
        except AdminError as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise
            closure = vanished(identifier).closure
            raise failure_of(launch.entity.name, launch.name, self.launcher.names.url(launch.name), closure) from error

    def _outputs(self, launch: Launch) -> Any:
        assert launch.target is not None

        def uri() -> str:
            there = self._find(launch, None)
            if there is None or not there.closure.outputs.uri:
                raise RefusedError(
                    f"Flyte's answer lacks the outputs of the execution {launch.name} of `{launch.entity.name}`, and "
                    "their address. Outputs that are larger than flyteadmin's `maxDownloadMBs` are left out: return "
                    "what is large as a file (`FlyteFile`), or let the operator raise that limit."
                )
            return str(there.closure.outputs.uri)

        return self.launcher.converter.outputs(launch.target, self._data(launch), uri)

    def _failure(self, launch: Launch, seen: Execution) -> EagerExecutionFailedError:
        identifier = self.launcher.names.identifier(launch.name)
        closure = read_closure(self.launcher.admin, identifier, seen.closure, launch.given_up)
        return failure_of(launch.entity.name, launch.name, self.launcher.names.url(launch.name), closure)

    def _show(self, launch: Launch, outputs: Any) -> None:
        deck = self.launcher.connection.deck
        if deck is not None:
            deck.show(
                launch.name,
                entity=launch.entity.name,
                kind=_kind(launch.entity),
                url=self.launcher.names.url(launch.name),
                inputs=launch.inputs,
                outputs=outputs,
            )


def _kind(entity: Any) -> str:
    """Return the kind of an entity, in the words of flytekit's Deck."""
    if isinstance(entity, EagerAsyncPythonFunctionTask):
        return "Eager Workflow"
    if isinstance(entity, AsyncPythonFunctionTask):
        return "Async Task"
    return "Workflow" if isinstance(entity, WorkflowBase) else "Task"
