"""Launches and terminates executions, and starts the server to which their pods report."""

import concurrent.futures
import functools
import itertools
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from flyteidl.admin.execution_pb2 import (
    ExecutionCreateRequest,
    ExecutionTerminateRequest,
    WorkflowExecutionGetDataRequest,
)
from flyteidl.core.literals_pb2 import LiteralMap
from flytekit.core.context_manager import ExecutionState, FlyteContext
from optuna.trial import Trial

from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._retry import backoff, retry
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.cluster_options import Cluster
from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin, AdminError
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_connection import Connection
from optuna_flyte_dsl.engines._flytekit.cluster.converter import Converter
from optuna_flyte_dsl.engines._flytekit.cluster.execution_names import ExecutionNames
from optuna_flyte_dsl.engines._flytekit.cluster.executions import create_request
from optuna_flyte_dsl.engines._flytekit.cluster.poller import Poller
from optuna_flyte_dsl.engines._flytekit.cluster.registry import Launchable, Registry
from optuna_flyte_dsl.engines._flytekit.cluster.search_address import search_address
from optuna_flyte_dsl.engines._flytekit.cluster.traffic import Traffic
from optuna_flyte_dsl.engines._flytekit.event_loops import threads_with_own_loops
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV, TrialHandle
from optuna_flyte_dsl.engines.remote_trial.server import TrialServer
from optuna_flyte_dsl.errors import ClusterUnavailableError, RefusedError
from optuna_flyte_dsl.study.durable_storage import DurableStorage

_TERMINATIONS_AT_ONCE = 32
_TRIALS_A_LOOKUP = 100
CAUSE = "optuna_flyte_dsl: "
"""The prefix of the cause of each termination by this library."""

StoreAttributes = Callable[[Trial, Callable[[], Mapping[str, Any]]], Awaitable[None]]
"""Sets user attributes of a trial, and returns when they would outlive this process.

The function that returns the attributes is called when they are stored, and one at a time: later ones are newer ones.
"""


@dataclass(eq=False)
class Launcher:
    """Launches, polls and terminates the executions of one search."""

    connection: Connection
    options: Cluster
    search: str  # the search's key, the same in the eager pod's next attempt
    outer_context: FlyteContext
    store_attributes: StoreAttributes
    is_taken_over: Callable[[Trial], Awaitable[bool]]
    traffic: Traffic
    label: str = ""  # the value of the label `SEARCH` of the search's executions
    leaves_executions: bool = False  # whether executions are left running at the end, for the pod's next attempt
    is_ending: bool = False  # whether this process is told to end
    on_successor: Callable[[], None] = lambda: None  # called if a later attempt of the pod has taken the search over
    adopts: bool = False  # whether executions of an earlier process are adopted
    is_silent: bool = False  # whether flyteadmin has not answered the latest termination
    terminated: int = 0
    running: set[str] = field(default_factory=set)  # the names of the executions that are not known to have ended
    unsure: set[str] = field(default_factory=set)  # the names of launches that Flyte has not answered
    # By the name of a launch plan that was full: a lock for the one trial that tries to launch it.
    full: dict[str, threading.Lock] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)  # the names of the executions that were launched or adopted

    def __post_init__(self) -> None:
        connection, options, context = self.connection, self.options, self.outer_context
        self.names: ExecutionNames = ExecutionNames(connection, self.search, (options.console_url or "").rstrip("/"))
        self.admin: Admin = Admin(connection.remote, options.patience)
        self.registry: Registry = Registry(self.admin, connection.settings)
        self.poller: Poller = self.traffic.enter()
        self._left = False
        self._is_succeeded, self._next_check = False, 0.0
        self._server: TrialServer | None = None
        self.workers: Threads = threads_with_own_loops(options.launches_at_once)
        self.terminators: Threads = Threads(limit=_TERMINATIONS_AT_ONCE)
        state = context.execution_state or context.new_execution_state()
        eager = state.with_params(mode=ExecutionState.Mode.EAGER_EXECUTION)
        self._context = context.with_execution_state(eager).build()
        self._converter: Converter | None = None
        self._lock = threading.Lock()

    @property
    def converter(self) -> Converter:
        """Converts inputs and outputs. The converter is made in a worker thread, because it connects to the cluster."""
        with self._lock:
            if self._converter is None:
                self._converter = Converter(self.admin)
            return self._converter

    def context(self, queue: Any) -> FlyteContext:
        """Return the Flyte context of a trial, in which calls go through the trial's worker queue."""
        return self._context.with_worker_queue(queue).build()

    def request(
        self, trial: Trial, target: Launchable, inputs: LiteralMap, digest: str, given_up: threading.Event
    ) -> ExecutionCreateRequest:
        env = {}
        if self._server is not None and self.options.trials_token_env is None:
            env[TOKEN_ENV] = self._server.token_of(trial_id(trial))
        return create_request(
            self.connection,
            self.options,
            env,
            target,
            inputs,
            label=self.label,
            digest=digest,
            eager=self.connection.eager_execution.read(self.admin, given_up),
        )

    def serve(self, trial: Trial) -> TrialHandle:
        """Serve a trial to its pod, and return its handle. The call blocks."""
        options = self.options
        if options.trials_storage_env is not None:
            if isinstance(trial.storage, DurableStorage):
                trial.storage.share(trial_id(trial))
            return TrialHandle(f"env:{options.trials_storage_env}", trial_id(trial), trial.study.study_name)
        with self._lock:
            if self._server is None:
                self._server = self._start_server(trial)
                logger.info(
                    "Trials report to %s. Each trial has a token; the connection is %s.",
                    self._server.address,
                    "encrypted" if self._server.endpoint.certificate else "not encrypted",
                )
        return self._server.serve(trial)

    def _start_server(self, trial: Trial) -> TrialServer:
        name = self.options.trials_token_env
        token = os.environ.get(name) if name is not None else None
        if name is not None and not token:
            raise RefusedError(
                f"`trials_token_env`: the environment variable {name!r} must hold the token that pods show, but it is "
                "not set here. Set it here and in the pods, from one secret."
            )
        return TrialServer(
            trial.storage,
            trial.study.study_name,
            endpoint=search_address(self.options, str(self.connection.remote.config.platform.endpoint)),
            secret=token,
            token_env=name or TOKEN_ENV,
            shares_secret=name is not None,
        )

    def forget(self, trial: Trial) -> None:
        if self._server is not None:
            self._server.forget(trial)

    def find_inputs(
        self, entity: Any, names: Sequence[str], first: int, given_up: threading.Event
    ) -> list[dict[str, Any] | None]:
        """Read the inputs with which the trials of this search have launched an entity. The call blocks.

        Args:
            first: The number of the first trial.

        Returns:
            The inputs of each trial from the first one up to the last one with an execution. An item is `None` if the
            trial has no execution, or if its inputs cannot be read.
        """
        target = self.registry.find(entity, given_up)
        found: list[dict[str, Any] | None] = []
        for start in itertools.count(first, _TRIALS_A_LOOKUP):
            numbers = range(start, start + _TRIALS_A_LOOKUP)
            names_of_trials = [self.names.name(number, entity.name, "0", 0) for number in numbers]
            existing = self.poller.find(names_of_trials)
            for name in names_of_trials:
                request = WorkflowExecutionGetDataRequest(id=self.names.identifier(name))
                found.append(
                    self.converter.arguments(
                        target, names, self.admin.call("GetExecutionData", request, given_up=given_up)
                    )
                    if name in existing
                    else None
                )
            if not existing:
                break
        while found and found[-1] is None:
            found.pop()
        return found

    def end_of_grace(self) -> float:
        """Return the time of the monotonic clock at which a grace period that begins now is over."""
        return time.monotonic() + self.options.grace

    def terminate(self, name: str, cause: str, deadline: float) -> None:
        """Terminate an execution if it still runs. The call blocks, and logs failures.

        If Flyte has not answered the launch, the launch may still be under way. Then, while Flyte does not find the
        execution, the termination is repeated for the time limit of a launch.

        Args:
            deadline: The time of the monotonic clock at which the call gives up. A call that begins later makes one
                short attempt, unless flyteadmin has not answered the previous termination.
        """
        if self._has_successor():
            logger.warning("A later attempt of this pod runs the search: %s is left to it.", name)
            if not self.is_ending:
                self.on_successor()
            return
        request = ExecutionTerminateRequest(id=self.names.identifier(name), cause=f"{CAUSE}{cause}")
        left = deadline - time.monotonic()
        if left <= 0 and self.is_silent:
            logger.error("The execution %s could not be terminated: flyteadmin does not answer.", name)
            return
        attempt = max(pauses.last_termination, min(pauses.launch_rpc, left / 2))

        def call() -> None:
            patience = max(0.0, deadline - time.monotonic() - attempt)
            self.admin.call("TerminateExecution", request, patience=patience, seconds=attempt, is_paced=False)

        def may_come(error: Exception) -> bool:
            return name in self.unsure and isinstance(error, AdminError) and error.code is grpc.StatusCode.NOT_FOUND

        waits = backoff(pauses.admin_first, 1.0, lambda: min(left - attempt, pauses.launch_rpc))
        try:
            retry(call, waits, may_pass=may_come)
            self.is_silent = False
        except ClusterUnavailableError as error:
            self.is_silent = True
            logger.error("The execution %s could not be terminated: %s", name, error)
        except AdminError as error:
            if may_come(error):
                logger.warning("Flyte has not answered the launch of %s, and does not have it. Look if it runs.", name)
            elif error.code not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
                logger.error("The execution %s could not be terminated: %s", name, error)
        except Exception as error:  # noqa: BLE001 - the other executions must be terminated too
            logger.error("The execution %s could not be terminated: %s", name, error)

    def terminate_all(self, names: Sequence[str], cause: str, deadline: float) -> None:
        """Terminate executions, many at the same time, without an event loop; see `terminate`."""
        with concurrent.futures.ThreadPoolExecutor(_TERMINATIONS_AT_ONCE) as threads:
            list(threads.map(functools.partial(self.terminate, cause=cause, deadline=deadline), names))

    def _has_successor(self) -> bool:
        """Return whether a later attempt of this pod has begun. A result is kept for a second. The call blocks."""
        if self.connection.eager_execution.pod is None:
            return False
        with self._lock:
            if time.monotonic() >= self._next_check:
                admin, seconds = Admin(self.connection.remote, patience=0.0), self.options.grace / 8
                self._is_succeeded = self.connection.eager_execution.has_successor(admin, seconds)
                self._next_check = time.monotonic() + pauses.successor_check
            return self._is_succeeded

    async def close(self) -> None:
        """End all threads, after the last trial. A second call is harmless."""
        if not self._left:
            self._left = True
            if self.terminated and not self.leaves_executions:
                logger.warning("%d executions were terminated.", self.terminated)
            await self.traffic.leave()
        if self._server is not None and not self.terminators.closed:
            await self.terminators.run(self._server.close)  # a worker may be held up by a silent blob store
        await self.workers.close()
        await self.terminators.close()
