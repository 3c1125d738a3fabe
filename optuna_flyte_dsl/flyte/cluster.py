"""Runs trials on a Flyte cluster: each call of a task, workflow or launch plan in a trial is an execution of its own.

In an eager workflow on a cluster, flytekit awaits `context.worker_queue.add(entity, input_kwargs)`. A search puts a
`TrialQueue` there, in the contexts of its trials only: other calls of the same eager workflow stay flytekit's.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from flyteidl.admin.common_pb2 import Annotations, Envs, Labels, RawOutputDataConfig
from flyteidl.admin.execution_pb2 import (
    Execution,
    ExecutionCreateRequest,
    ExecutionMetadata,
    ExecutionSpec,
    ExecutionTerminateRequest,
    WorkflowExecutionGetDataRequest,
    WorkflowExecutionGetRequest,
)
from flyteidl.core.execution_pb2 import ExecutionError, WorkflowExecution
from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier
from flyteidl.core.literals_pb2 import KeyValuePair, LiteralMap
from flytekit.configuration import SerializationSettings
from flytekit.core.context_manager import ExecutionState, FlyteContext
from flytekit.core.python_function_task import AsyncPythonFunctionTask, EagerAsyncPythonFunctionTask
from flytekit.core.workflow import WorkflowBase
from flytekit.exceptions.eager import EagerException
from flytekit.models.core.identifier import WorkflowExecutionIdentifier as ExecutionIdentifier
from flytekit.remote import FlyteRemote
from optuna.trial import Trial

from optuna_flyte_dsl.cluster import Cluster
from optuna_flyte_dsl.errors import OptunaFlyteError
from optuna_flyte_dsl.flyte.admin import Admin, AdminError, GivenUpError
from optuna_flyte_dsl.flyte.deck import ExecutionsDeck
from optuna_flyte_dsl.flyte.judge import refusal_in
from optuna_flyte_dsl.flyte.literals import Converter
from optuna_flyte_dsl.flyte.local import close_loops
from optuna_flyte_dsl.flyte.registry import Launchable, Registry
from optuna_flyte_dsl.flyte.watch import Watch
from optuna_flyte_dsl.log import logger
from optuna_flyte_dsl.threads import Threads, insist

EXECUTIONS_ATTRIBUTE = "optuna_flyte_dsl:executions"
"""The user attribute of a trial that holds the name and console page of each of its executions, in launching order."""

EXECUTION_ERROR_ATTRIBUTE = "optuna_flyte_dsl:execution_error"
"""The user attribute of a trial, one of whose executions has failed, that holds what Flyte says of it."""

_MESSAGE_LIMIT = 2_000
_TERMINATIONS_AT_ONCE = 32
_MAX_NAME = 63
_LOOKED_UP = 100
_LAUNCH_SECONDS = 10.0
_CAUSE = "optuna_flyte_dsl: "
"""What the cause of each termination of ours starts with."""


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


@dataclass(frozen=True)
class Link:
    """What a search needs to know of a cluster.

    Args:
        remote: The way there.
        settings: How what is not registered yet is registered.
        identity: Of what asks for executions: the name of the eager workflow's execution, for example.
        prefix: What the names of executions start with.
        labels: Of each execution.
        env: Environment variables of each execution.
        deck: Where executions are shown.
    """

    remote: FlyteRemote
    settings: SerializationSettings
    identity: str
    prefix: str
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    deck: ExecutionsDeck | None = None


Recorder = Callable[[Trial, Mapping[str, Any]], Awaitable[None]]
"""Sets a trial's user attributes; returns when they would outlive this process, where they are to."""


class Traffic:
    """What all searches of one caller share, so that together they ask no more of flyteadmin than one: looks and pace.

    Args:
        admin: flyteadmin.
        deck: Where executions are shown.
    """

    def __init__(self, admin: Admin, deck: ExecutionsDeck | None) -> None:
        self._admin = admin
        self._deck = deck
        self._lock = threading.Lock()
        self._next_launch = float("-inf")
        self._users = 0
        self._watch: Watch | None = None

    def enter(self) -> Watch:
        """Return what looks at executions. Each user leaves it once."""
        remote = self._admin.remote
        with self._lock:
            self._users += 1
            if self._watch is None:
                where = (str(remote.default_project), str(remote.default_domain))
                self._watch = Watch(self._admin, *where, self._show_news)
            return self._watch

    async def leave(self) -> None:
        """End the looks, if nobody else needs them."""
        with self._lock:
            self._users -= 1
            watch = self._watch if self._users == 0 else None
            if watch is not None:
                self._watch = None
        if watch is not None:
            await watch.close()

    def keep_pace(self, launches_per_second: float, given_up: threading.Event) -> None:
        """Wait until the next launch may be."""
        with self._lock:
            now = time.monotonic()
            moment = max(self._next_launch, now)
            self._next_launch = moment + 1 / launches_per_second
        if given_up.wait(max(0.0, moment - now)):
            raise GivenUpError("Given up: a launch.")

    def _show_news(self) -> None:
        if self._deck is not None:
            self._deck.publish()


class ClusterController:
    """Launches, watches and terminates the executions of one search.

    Args:
        link: The cluster.
        options: How trials run there.
        identity: Of the search: the same again in the eager pod's next attempt.
        context: The Flyte context that the search was called in.
        record: Sets attributes of a trial.
        traffic: What it shares with other searches.
    """

    def __init__(
        self,
        link: Link,
        options: Cluster,
        identity: str,
        context: FlyteContext,
        record: Recorder,
        traffic: Traffic,
    ) -> None:
        self.link = link
        self.options = options
        self.identity = identity
        self.record = record
        self.leaving = False
        self.admin = Admin(link.remote, options.patience)
        self.registry = Registry(self.admin, link.settings)
        self.traffic = traffic
        self.watch = traffic.enter()
        self._left = False
        self._terminated = 0
        self.workers = Threads(limit=options.launches_at_once, at_exit=close_loops)
        self._terminators = Threads(limit=_TERMINATIONS_AT_ONCE)
        state = context.execution_state or context.new_execution_state()
        self._context = context.with_execution_state(
            state.with_params(mode=ExecutionState.Mode.EAGER_EXECUTION)
        ).build()
        self._converter: Converter | None = None
        self._lock = threading.Lock()

    @property
    def project(self) -> str:
        """The project of the executions."""
        return str(self.link.remote.default_project)

    @property
    def domain(self) -> str:
        """The domain of the executions."""
        return str(self.link.remote.default_domain)

    @property
    def converter(self) -> Converter:
        """Converts inputs and outputs; made in a worker, since it connects."""
        with self._lock:
            if self._converter is None:
                self._converter = Converter(self.link.remote)
            return self._converter

    def context(self, queue: TrialQueue) -> FlyteContext:
        """Return the context of a trial, in which calls go through its queue."""
        return self._context.with_worker_queue(queue).build()  # type: ignore[arg-type]

    def queue(self, trial: Trial) -> TrialQueue:
        """Return what stands in the place of flytekit's controller during a trial."""
        return TrialQueue(self, trial)

    async def check(self, entity: Any) -> None:
        """Check that pods can load an entity.

        Raises:
            UnloadableError: If they cannot.
        """
        await self.workers.run(self.registry.check, entity)

    def launched(self, entity: Any, names: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return the inputs that trials have launched an entity with. It blocks.

        Args:
            entity: What each trial launches.
            names: The inputs that are asked for.

        Returns:
            For each trial up to the last one that there is an execution of, its inputs; `None` where it has none.
        """
        target = self.registry.find(entity, threading.Event())
        found: list[dict[str, Any] | None] = []
        for start in itertools.count(step=_LOOKED_UP):
            executions = [self.name(start + offset, entity.name, 0, 0) for offset in range(_LOOKED_UP)]
            there = self.watch.find(executions)
            for name in executions:
                request = WorkflowExecutionGetDataRequest(id=self.identifier(name))
                found.append(
                    self.converter.arguments(target, names, self.admin.call("GetExecutionData", request))
                    if name in there
                    else None
                )
            if not there:
                break
        while found and found[-1] is None:
            found.pop()
        return found

    async def close(self) -> None:
        """End all threads. Called when no trial runs any more; it may be called again."""
        if not self._left:
            self._left = True
            if self._terminated and not self.leaving:
                logger.warning("%d executions were terminated.", self._terminated)
            await self.traffic.leave()
        await self.workers.close()
        await self._terminators.close()

    def name(self, trial: int, entity: str, index: int, attempt: int) -> str:
        """Return the name of an execution: a hash of what it is, behind words for people."""
        key = "\0".join([self.link.identity, self.identity, str(trial), entity, str(index), str(attempt)])
        digest = hashlib.sha256(key.encode()).hexdigest()[:20]
        words = re.sub(r"[^a-z0-9]+", "-", f"{self.link.prefix}-{entity.rsplit('.', 1)[-1][:8]}".lower()).strip("-")
        if not words or not words[0].isalpha():
            words = f"e-{words}".strip("-")
        return f"{words[: _MAX_NAME - len(digest) - 1]}-{digest}"

    def identifier(self, name: str) -> WorkflowExecutionIdentifier:
        """Return Flyte's identifier of an execution."""
        return WorkflowExecutionIdentifier(project=self.project, domain=self.domain, name=name)

    def url(self, name: str) -> str:
        """Return an execution's page in Flyte's console."""
        return str(self.link.remote.generate_console_url(ExecutionIdentifier(self.project, self.domain, name)))

    def request(self, target: Launchable, inputs: LiteralMap) -> ExecutionCreateRequest:
        """Return what asks for an execution; all but its name."""
        options = self.options
        spec = ExecutionSpec(
            launch_plan=target.id,
            metadata=ExecutionMetadata(mode=ExecutionMetadata.MANUAL),
            labels=Labels(values={**options.labels, **self.link.labels}),
            annotations=Annotations(values=dict(options.annotations)),
            envs=Envs(
                values=[KeyValuePair(key=key, value=value) for key, value in {**options.env, **self.link.env}.items()]
            ),
            tags=list(options.tags),
            max_parallelism=options.max_parallelism or 0,
        )
        spec.notifications.SetInParent()
        if options.interruptible is not None:
            spec.interruptible.value = options.interruptible
        if options.overwrite_cache is not None:
            spec.overwrite_cache = options.overwrite_cache
        if options.cluster_pool is not None:
            spec.cluster_assignment.cluster_pool_name = options.cluster_pool
        if options.execution_cluster_label is not None:
            spec.execution_cluster_label.value = options.execution_cluster_label
        if options.raw_output_prefix is not None:
            spec.raw_output_data_config.CopyFrom(RawOutputDataConfig(output_location_prefix=options.raw_output_prefix))
        if options.security_context is not None:
            spec.security_context.CopyFrom(options.security_context.to_flyte_idl())
        return ExecutionCreateRequest(project=self.project, domain=self.domain, spec=spec, inputs=inputs)

    async def terminate_orphan(self, name: str, cause: str) -> None:
        """Terminate an execution that an earlier process has launched, and nobody asks for."""
        await self._terminators.run(self.terminate_by_name, name, cause)

    async def terminate(self, launch: _Launch, cause: str) -> None:
        """Terminate an execution that nobody waits for any more."""
        self._terminated += launch.submitted
        await self._terminators.run(self._terminate, launch, cause)

    def _terminate(self, launch: _Launch, cause: str) -> None:
        launch.given_up.set()
        launch.idle.wait(_LAUNCH_SECONDS)  # an RPC that is under way ends by its own deadline
        if launch.submitted and not launch.over and not self.leaving:
            self.terminate_by_name(launch.name, cause)
            launch.over = True

    def terminate_by_name(self, name: str, cause: str) -> None:
        """Terminate an execution, if it still runs. It blocks, for the grace period at most, and raises nothing."""
        request = ExecutionTerminateRequest(id=self.identifier(name), cause=f"{_CAUSE}{cause}")
        try:
            self.admin.call("TerminateExecution", request, patience=self.options.grace, seconds=_LAUNCH_SECONDS)
        except AdminError as error:
            if error.code not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
                logger.error("The execution %s could not be terminated: %s", name, error)
        except Exception as error:  # noqa: BLE001 - the others must be terminated too
            logger.error("The execution %s could not be terminated: %s", name, error)


class _Launch:
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
    """

    def __init__(self, cluster: ClusterController, trial: Trial) -> None:
        self.cluster = cluster
        self.trial = trial
        self._calls = itertools.count()
        self._lock = threading.Lock()
        self._launches: list[_Launch] = []
        self._closed = False
        # What an earlier process has launched for this trial; what is not asked for again is nobody's.
        self._earlier = {entry["name"] for entry in trial.user_attrs.get(EXECUTIONS_ATTRIBUTE, ())}

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
        if left or orphans:
            await insist(lambda: self._end_all(left, orphans))

    async def _end_all(self, launches: list[_Launch], orphans: set[str]) -> None:
        await asyncio.gather(
            *(self._end(launch) for launch in launches),
            *(self.cluster.terminate_orphan(name, f"trial {self.trial.number} does without it") for name in orphans),
        )

    async def _end(self, launch: _Launch) -> None:
        self.cluster.watch.forget(launch.name)
        await self.cluster.terminate(launch, f"trial {self.trial.number} was given up")

    async def add(self, entity: Any, input_kwargs: dict[str, Any]) -> Any:
        """Launch an execution, wait for its end, and return its outputs; flytekit calls this, in any event loop.

        Args:
            entity: What to launch.
            input_kwargs: Its inputs.

        Raises:
            ExecutionFailedError: If the execution fails.
            ClusterError: If the search cannot go on.
        """
        launch = _Launch(entity, input_kwargs, next(self._calls))
        with self._lock:
            if self._closed:
                raise asyncio.CancelledError
            self._launches.append(launch)
        try:
            await self._launch(launch)
            end = await asyncio.wrap_future(self.cluster.watch.wait_for(launch.name))
            launch.over = True
            if end.closure.phase == WorkflowExecution.SUCCEEDED:
                value = await self._run(launch, self._outputs)
                self._show(launch, value)
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
        raise refusal_in(failure.message) or failure

    def _run(self, launch: _Launch, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
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

    async def _launch(self, launch: _Launch) -> None:
        await self._run(launch, self._prepare)
        for attempt in itertools.count():
            launch.name = self.cluster.name(self.trial.number, launch.entity.name, launch.index, attempt)
            # Before the launch: whoever finds the trial after this process has died must know what it has started.
            await self.cluster.record(self.trial, {EXECUTIONS_ATTRIBUTE: self._executions()})
            if await self._run(launch, self._create):
                break
        self._show(launch, "")

    def _executions(self) -> list[dict[str, str]]:
        with self._lock:
            names = [launch.name for launch in self._launches if launch.name]
        return [{"name": name, "url": self.cluster.url(name)} for name in names]

    def _prepare(self, launch: _Launch) -> None:
        launch.target = self.cluster.registry.find(launch.entity, launch.given_up)
        inputs = self.cluster.converter.inputs(launch.entity.name, launch.target, launch.inputs)
        launch.request = self.cluster.request(launch.target, inputs)

    def _create(self, launch: _Launch) -> bool:
        """Launch the execution. Return whether that name is its own: another may have it, with other inputs."""
        cluster, request = self.cluster, launch.request
        assert request is not None
        request.name = launch.name
        cluster.traffic.keep_pace(cluster.options.launches_per_second, launch.given_up)
        launch.submitted = True
        try:
            cluster.admin.call("CreateExecution", request, given_up=launch.given_up, seconds=_LAUNCH_SECONDS)
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

    def _is_ours(self, launch: _Launch) -> bool:
        cluster, request = self.cluster, launch.request
        assert request is not None
        identifier = cluster.identifier(launch.name)
        there: Execution = cluster.admin.call(
            "GetExecution", WorkflowExecutionGetRequest(id=identifier), given_up=launch.given_up
        )
        if there.closure.abort_metadata.cause.startswith(_CAUSE):
            return False  # terminated with the process that had launched it
        return bool(there.spec.launch_plan == request.spec.launch_plan) and cluster.converter.same_inputs(
            request.inputs, self._data(launch)
        )

    def _data(self, launch: _Launch) -> Any:
        identifier = self.cluster.identifier(launch.name)
        return self.cluster.admin.call(
            "GetExecutionData", WorkflowExecutionGetDataRequest(id=identifier), given_up=launch.given_up
        )

    def _outputs(self, launch: _Launch) -> Any:
        assert launch.target is not None
        return self.cluster.converter.outputs(launch.target, self._data(launch))

    def _failure(self, launch: _Launch, seen: Execution) -> ExecutionFailedError:
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

    def _show(self, launch: _Launch, outputs: Any) -> None:
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


def _kind(entity: Any) -> str:
    """Return what flytekit calls the kind of an entity in its Deck."""
    if isinstance(entity, EagerAsyncPythonFunctionTask):
        return "Eager Workflow"
    if isinstance(entity, AsyncPythonFunctionTask):
        return "Async Task"
    return "Workflow" if isinstance(entity, WorkflowBase) else "Task"
