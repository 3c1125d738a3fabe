"""Runs the calls of one trial on a Flyte cluster: each task, workflow or launch plan is an execution of its own.

In an eager workflow on a cluster, flytekit awaits `context.worker_queue.add(entity, input_kwargs)`. A search puts a
`TrialQueue` there, in the contexts of its trials only: other calls of the same eager workflow stay flytekit's.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import itertools
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import grpc
from flyteidl.admin.execution_pb2 import (
    Execution,
    ExecutionCreateRequest,
    WorkflowExecutionGetDataRequest,
    WorkflowExecutionGetRequest,
)
from flyteidl.core.execution_pb2 import ExecutionError, WorkflowExecution
from flytekit.core.python_function_task import AsyncPythonFunctionTask, EagerAsyncPythonFunctionTask
from flytekit.core.workflow import WorkflowBase
from flytekit.exceptions.eager import EagerException
from optuna import TrialPruned
from optuna.trial import Trial

from optuna_flyte_dsl.errors import OptunaFlyteError
from optuna_flyte_dsl.flyte.admin import AdminError, GivenUpError
from optuna_flyte_dsl.flyte.cluster import CAUSE, LAUNCH_SECONDS, ClusterController
from optuna_flyte_dsl.flyte.handles import is_pruned, refresh
from optuna_flyte_dsl.flyte.judge import refusal_in
from optuna_flyte_dsl.flyte.registry import Launchable
from optuna_flyte_dsl.log import logger
from optuna_flyte_dsl.threads import insist

EXECUTIONS_ATTRIBUTE = "optuna_flyte_dsl:executions"
"""The user attribute of a trial that holds the name and console page of each of its executions, in launching order."""

EXECUTION_ERROR_ATTRIBUTE = "optuna_flyte_dsl:execution_error"
"""The user attribute of a trial, one of whose executions has failed, that holds what Flyte says of it."""

_MESSAGE_LIMIT = 2_000


class ExecutionFailedError(OptunaFlyteError, EagerException):
    """Raised where a trial awaits an execution that has failed, was aborted, or took too long.

    Attributes:
        name: The execution's name.
        url: Its page in Flyte's console.
        phase: How it ended: "FAILED", "ABORTED" or "TIMED_OUT".
        code: Flyte's error code.
        kind: Whose error Flyte says it is: "USER", "SYSTEM" or "UNKNOWN".
        message: Flyte's message, whole.
    """

    def __init__(self, entity: str, *, name: str, url: str, phase: str, code: str, kind: str, message: str) -> None:
        # Flyte's message is a traceback, and then what was raised.
        last = message.rpartition("Message:\n")[2].strip() or message
        said = f"[{code}] {last}" if code else last
        super().__init__(f"The execution {name} of `{entity}` is {phase}: {said} (see {url})")
        self.name = name
        self.url = url
        self.phase = phase
        self.code = code
        self.kind = kind
        self.message = message

    def is_raised(self, *kinds: type[BaseException]) -> bool:
        """Tell whether what was raised in the pod is of one of these kinds, as far as its name tells."""
        names = re.findall(r"^\s*(?:[\w]+\.)*([A-Za-z_]\w*)(?::|$)", self.message, flags=re.MULTILINE)
        raised = names[-1] if names else ""
        known = getattr(builtins, raised, None)
        if isinstance(known, type) and issubclass(known, BaseException):
            return issubclass(known, kinds)
        return any(raised in _names(kind) for kind in kinds)

    def stands_for(self, kinds: Sequence[type[BaseException]]) -> bool:
        """Tell whether it stands for an error of one of these kinds; see `catch` of `optimize`."""
        return self.is_raised(*kinds)

    def summary(self) -> dict[str, str]:
        """Return what a trial's attribute keeps."""
        return {
            "name": self.name,
            "url": self.url,
            "phase": self.phase,
            "code": self.code,
            "kind": self.kind,
            "message": self.message[-_MESSAGE_LIMIT:],
        }


def _names(kind: type[BaseException]) -> set[str]:
    return {kind.__name__, *(name for each in kind.__subclasses__() for name in _names(each))}


class Launch:
    """One execution of a trial, from the call to its end."""

    def __init__(self, entity: Any, inputs: Mapping[str, Any], index: int) -> None:
        self.entity = entity
        self.inputs = inputs
        self.index = index
        self.name = ""
        self.target: Launchable | None = None
        self.request: ExecutionCreateRequest | None = None
        self.submitted = False  # Flyte may have the execution
        self.over = False  # it has ended, or was refused
        self.given_up = threading.Event()
        self.idle = threading.Event()  # no thread asks for it now
        self.idle.set()


class TrialQueue:
    """Stands where flytekit's `Controller` stands, in the context of one trial.

    As a context manager, it terminates at its end what the trial has left running.

    Args:
        cluster: The search's controller.
        trial: The trial.
        attempt: Which attempt of the trial it is.
        begun: Called in the event loop when its first execution begins to run.
    """

    def __init__(
        self,
        cluster: ClusterController,
        trial: Trial,
        attempt: int = 0,
        begun: Callable[[], None] | None = None,
    ) -> None:
        self._attempt = attempt
        self._begun = begun
        self._takes_trial = False
        self.cluster = cluster
        self.trial = trial
        self._calls = itertools.count()
        self._lock = threading.Lock()
        self._launches: list[Launch] = []
        self._closed = False
        # What an earlier process has launched for this trial; what is not asked for again is nobody's.
        earlier = trial.user_attrs.get(EXECUTIONS_ATTRIBUTE, ()) if cluster.adopts else ()
        self._earlier = {entry["name"] for entry in earlier}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            for launch in self._launches:
                launch.given_up.set()
            left = [launch for launch in self._launches if not launch.over]
            orphans = self._earlier - {launch.name for launch in self._launches}
        if self.cluster.leaving:
            orphans = set()
        self.cluster.forget(self.trial)
        if self._takes_trial:
            await insist(lambda: self._refresh())
        if left or orphans:
            await insist(lambda: self._end_all(left, orphans))

    async def _refresh(self) -> None:
        with contextlib.suppress(Exception):  # told when the trial is told
            await self.cluster.terminators.run(refresh, self.trial)

    async def _end_all(self, launches: list[Launch], orphans: set[str]) -> None:
        await asyncio.gather(
            *(self._end(launch) for launch in launches),
            *(self._terminate(name, "does without it") for name in orphans),
        )

    async def _end(self, launch: Launch) -> None:
        """End an execution that nobody waits for any more."""
        self.cluster.watch.forget(launch.name)
        launch.given_up.set()
        await self.cluster.terminators.run(launch.idle.wait, LAUNCH_SECONDS)  # a call under way ends by its deadline
        if launch.submitted and not launch.over and not self.cluster.leaving:
            await self._terminate(launch.name, "was given up")
            launch.over = True

    async def _terminate(self, name: str, why: str) -> None:
        self.cluster.terminated += 1
        cause = f"trial {self.trial.number} {why}"
        await self.cluster.terminators.run(self.cluster.terminate_by_name, name, cause)

    async def add(self, entity: Any, input_kwargs: dict[str, Any]) -> Any:
        """Launch an execution, wait for its end, and return its outputs; flytekit calls this, in any event loop.

        Args:
            entity: What to launch.
            input_kwargs: Its inputs.

        Raises:
            ExecutionFailedError: If the execution fails.
            ClusterError: If the search cannot go on.
        """
        inputs = {name: await self._carried(value) for name, value in input_kwargs.items()}
        launch = Launch(entity, inputs, next(self._calls))
        with self._lock:
            if self._closed:
                raise asyncio.CancelledError
            self._launches.append(launch)
        try:
            await self._launch(launch)
            ended = self.cluster.watch.wait_for(launch.name, self._on_running())
            end = await asyncio.wrap_future(ended)
            launch.over = True
            if end.closure.phase == WorkflowExecution.SUCCEEDED:
                value = await self._run(launch, self._outputs)
                self._show(launch, value)
                if self._takes_trial and await self.cluster.workers.run(is_pruned, self.trial):
                    raise TrialPruned
                return value
            failure: ExecutionFailedError = await self._run(launch, self._failure, end)
        except asyncio.CancelledError:
            launch.given_up.set()
            if not launch.over:
                await insist(lambda: self._end(launch))
            raise
        except GivenUpError:
            raise asyncio.CancelledError from None
        except AdminError as error:
            raise error.refusal(f"launch or read an execution of `{entity.name}`") from error
        self._show(launch, failure)
        await self.cluster.record(self.trial, {EXECUTION_ERROR_ATTRIBUTE: failure.summary()})
        if failure.is_raised(TrialPruned):
            raise TrialPruned
        raise refusal_in(failure.message) or failure

    async def _carried(self, value: Any) -> Any:
        """Return what an execution is given for an input: for a trial, what stands for it elsewhere."""
        if not isinstance(value, Trial):
            return value
        self._takes_trial = True
        return await self.cluster.workers.run(self.cluster.handle, value)

    def _on_running(self) -> Callable[[], None] | None:
        """Return what tells, from any thread, that the trial begins to run; it is told once."""
        begun, self._begun = self._begun, None
        if begun is None:
            return None
        loop = asyncio.get_running_loop()
        return lambda: _call_soon(loop, begun)

    def _run(self, launch: Launch, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Run a step in a worker. Whoever terminates the execution waits until the step is done."""

        def step() -> Any:
            with self._lock:
                if launch.given_up.is_set():
                    raise GivenUpError("Given up: a launch.")
                launch.idle.clear()
            try:
                return function(launch, *args)
            finally:
                launch.idle.set()

        return self.cluster.workers.run(step)

    async def _launch(self, launch: Launch) -> None:
        await self._run(launch, self._prepare)
        for attempt in itertools.count():
            launch.name = self.cluster.name(
                self.trial.number, launch.entity.name, launch.index, attempt, retry=self._attempt
            )
            # Before the launch: whoever finds the trial after this process has died must know what it has started.
            await self.cluster.record(self.trial, {EXECUTIONS_ATTRIBUTE: self._executions()})
            if await self._run(launch, self._create):
                break
        self._show(launch, "")

    def _executions(self) -> list[dict[str, str]]:
        with self._lock:
            names = [launch.name for launch in self._launches if launch.name]
        return [{"name": name, "url": self.cluster.url(name)} for name in names]

    def _prepare(self, launch: Launch) -> None:
        launch.target = self.cluster.registry.find(launch.entity, launch.given_up)
        inputs = self.cluster.converter.inputs(launch.entity.name, launch.target, launch.inputs)
        launch.request = self.cluster.request(launch.target, inputs)

    def _create(self, launch: Launch) -> bool:
        """Launch the execution. Return whether that name is its own: another may have it, with other inputs."""
        cluster, request = self.cluster, launch.request
        assert request is not None
        request.name = launch.name
        cluster.traffic.keep_pace(cluster.options.launches_per_second, launch.given_up)
        launch.submitted = True
        try:
            cluster.admin.call("CreateExecution", request, given_up=launch.given_up, seconds=LAUNCH_SECONDS)
        except AdminError as error:
            if error.code is grpc.StatusCode.ALREADY_EXISTS and self._is_ours(launch):
                return True  # its answer was lost, or an earlier attempt of this pod has launched it
            launch.submitted = False
            if error.code is grpc.StatusCode.ALREADY_EXISTS:
                # Only an earlier process of this search can have had the name, and it is gone.
                cluster.terminate_by_name(launch.name, f"trial {self.trial.number} asks for something else now")
                return False
            launch.over = True
            raise error.refusal(f"launch an execution of `{launch.entity.name}`") from error
        return True

    def _is_ours(self, launch: Launch) -> bool:
        cluster, request = self.cluster, launch.request
        assert request is not None
        identifier = cluster.identifier(launch.name)
        there: Execution = cluster.admin.call(
            "GetExecution", WorkflowExecutionGetRequest(id=identifier), given_up=launch.given_up
        )
        if there.closure.abort_metadata.cause.startswith(CAUSE):
            return False  # terminated with the process that had launched it
        return bool(there.spec.launch_plan == request.spec.launch_plan) and cluster.converter.same_inputs(
            request.inputs, self._data(launch)
        )

    def _data(self, launch: Launch) -> Any:
        identifier = self.cluster.identifier(launch.name)
        return self.cluster.admin.call(
            "GetExecutionData", WorkflowExecutionGetDataRequest(id=identifier), given_up=launch.given_up
        )

    def _outputs(self, launch: Launch) -> Any:
        assert launch.target is not None
        return self.cluster.converter.outputs(launch.target, self._data(launch))

    def _failure(self, launch: Launch, seen: Execution) -> ExecutionFailedError:
        """Return the error of an execution. `ListExecutions` has cut its message short, so it is asked for."""
        closure = seen.closure
        try:
            identifier = self.cluster.identifier(launch.name)
            closure = self.cluster.admin.call(
                "GetExecution", WorkflowExecutionGetRequest(id=identifier), given_up=launch.given_up
            ).closure
        except AdminError:
            logger.debug("The execution %s could not be read.", launch.name, exc_info=True)
        cause = closure.abort_metadata.cause or closure.abort_cause
        return ExecutionFailedError(
            launch.entity.name.rsplit(".", 1)[-1],
            name=launch.name,
            url=self.cluster.url(launch.name),
            phase=WorkflowExecution.Phase.Name(seen.closure.phase),
            code=closure.error.code,
            kind=ExecutionError.ErrorKind.Name(closure.error.kind),
            message=closure.error.message or cause or "Flyte gives no message.",
        )

    def _show(self, launch: Launch, outputs: Any) -> None:
        deck = self.cluster.link.deck
        if deck is not None:
            deck.show(
                launch.name,
                entity=launch.entity.name,
                kind=_kind(launch.entity),
                url=self.cluster.url(launch.name),
                inputs=launch.inputs,
                outputs=outputs,
            )


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(function)


def _kind(entity: Any) -> str:
    """Return what flytekit calls the kind of an entity in its Deck."""
    if isinstance(entity, EagerAsyncPythonFunctionTask):
        return "Eager Workflow"
    if isinstance(entity, AsyncPythonFunctionTask):
        return "Async Task"
    return "Workflow" if isinstance(entity, WorkflowBase) else "Task"
