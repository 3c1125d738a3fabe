"""Polls the phases of all running executions, with few calls."""

import asyncio
import collections
import concurrent.futures
import statistics
import threading
import time
from collections.abc import Callable, Sequence

import grpc
from flyteidl.admin.common_pb2 import NamedEntityIdentifier, ResourceListRequest, Sort
from flyteidl.admin.execution_pb2 import Execution, WorkflowExecutionGetRequest
from flyteidl.core.execution_pb2 import TaskExecution, WorkflowExecution
from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin, AdminError, GivenUpError, unavailable
from optuna_flyte_dsl.engines._flytekit.cluster.execution_failures import TERMINAL, vanished
from optuna_flyte_dsl.engines._flytekit.cluster.node_executions import nodes_with_tasks
from optuna_flyte_dsl.engines._flytekit.cluster.token_bucket import TokenBucket
from optuna_flyte_dsl.errors import ClusterError, ClusterUnavailableError

_NAMES_A_CALL = 100
"""The largest number of executions that one call of `ListExecutions` asks for."""

_LATENESS = 0.05
"""How late the end of an execution may be seen, as a fraction of the usual duration of executions."""

_REMEMBERED = 32
"""The number of recent executions whose median duration is the usual duration."""

_MISSED = 5
"""An execution that this many polls did not list is asked for by its name."""

_PODS_PER_SECOND = 5.0
"""The largest number of executions in a second whose pods are polled. Polling a pod takes two calls, or more."""

_QUEUED_PHASES = frozenset({WorkflowExecution.UNDEFINED, WorkflowExecution.QUEUED})
_WAITING_PHASES = frozenset(
    {TaskExecution.UNDEFINED, TaskExecution.QUEUED, TaskExecution.INITIALIZING, TaskExecution.WAITING_FOR_RESOURCES}
)


class Poller:
    """Polls executions until they end, in a thread of its own. The thread sleeps while no execution is awaited.

    Args:
        after_poll: Called after each round of polls, also after a round without executions. It must not raise.
    """

    def __init__(self, admin: Admin, project: str, domain: str, after_poll: Callable[[], None]) -> None:
        self._admin = admin
        self._where = NamedEntityIdentifier(project=project, domain=domain)
        self._after_poll = after_poll
        self._lock = threading.Lock()
        self._waiting: dict[str, concurrent.futures.Future[Execution]] = {}
        self._since: dict[str, float] = {}
        self._patience: dict[str, float | None] = {}
        self._outage_began: float | None = None  # when flyteadmin last began to leave polls unanswered
        self._on_running: dict[str, Callable[[], None]] = {}
        self._pods = TokenBucket()
        self._missed: collections.Counter[str] = collections.Counter()
        self._begun: set[str] = set()  # the awaited executions that have left Flyte's queue
        self._durations: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)
        self._thread: threading.Thread | None = None
        self._news = threading.Event()
        self._closed = threading.Event()

    def wait_for(
        self, name: str, on_running: Callable[[], None] | None = None, patience: float | None = None
    ) -> concurrent.futures.Future[Execution]:
        """Return a future of an execution's final state. An execution that Flyte no longer has counts as FAILED.

        Args:
            on_running: Called when a pod of the execution runs.
            patience: The seconds after which an outage of flyteadmin becomes the future's error; by default the
                patience of the poller's `Admin`.
        """
        future: concurrent.futures.Future[Execution] = concurrent.futures.Future()
        with self._lock:
            self._waiting[name] = future
            self._patience[name] = patience
            if on_running is not None:
                self._on_running[name] = on_running
            self._since[name] = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="optuna-flyte-poller", daemon=True)
                self._thread.start()
        self._news.set()
        return future

    def forget(self, name: str) -> None:
        """Stop polling an execution, and cancel its future."""
        with self._lock:
            future = self._waiting.pop(name, None)
            self._since.pop(name, None)
            self._drop(name)
        if future is not None:
            future.cancel()

    def _drop(self, name: str) -> None:
        """Forget all details of an execution. The caller holds the lock."""
        self._patience.pop(name, None)
        self._missed.pop(name, None)
        self._begun.discard(name)
        self._on_running.pop(name, None)

    async def close(self) -> None:
        """End the thread, and wait for it a moment.

        A call that flyteadmin does not answer may hold the thread longer.
        """
        self._closed.set()
        self._news.set()
        patience, thread = time.monotonic() + pauses.poller_close, self._thread
        while thread is not None and thread.is_alive() and time.monotonic() < patience:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    @property
    def queued(self) -> int:
        """The number of executions that wait to be run, as far as polls have seen."""
        return len(self._waiting) - len(self._begun)

    def interval(self) -> float:
        """Return the seconds until the next poll. The interval grows with the usual duration of executions."""
        with self._lock:
            count = len(self._waiting)
            usual = statistics.median(self._durations) if self._durations else None
            if usual is None:
                # No execution has ended yet, so the age of the oldest one is used as an estimate.
                usual = time.monotonic() - min(self._since.values(), default=time.monotonic())
        calls = -(-count // _NAMES_A_CALL)
        wanted = min(max(usual * _LATENESS, pauses.poll_shortest), pauses.poll_longest)
        return max(wanted, calls * pauses.list_call)

    def _run(self) -> None:
        try:
            self._poll_until_closed()
        except BaseException as error:  # noqa: BLE001 - callers would await the executions for ever
            with self._lock:
                self._thread = None  # the next call of `wait_for` starts another thread
                names = list(self._waiting)
            fault = ClusterError(f"Running executions can no longer be polled: {error!r}. Please report this.")
            fault.__cause__ = error
            for name in names:
                self._settle(name, fault)

    def _poll_until_closed(self) -> None:
        while not self._closed.wait(self.interval()):
            with self._lock:
                names = list(self._waiting)
            if not names:
                self._after_poll()
                self._news.clear()
                with self._lock:
                    idle = not self._waiting
                if idle and not self._closed.is_set():
                    self._news.wait()
                continue
            for start in range(0, len(names), _NAMES_A_CALL):
                if self._closed.is_set():
                    return
                self._poll(names[start : start + _NAMES_A_CALL])
            self._after_poll()

    def _poll(self, names: Sequence[str]) -> None:
        try:
            seen = self._seen_in_time(names)
        except GivenUpError:
            return
        except BaseException as error:  # noqa: BLE001 - the callers that await the executions get the error
            for name in names:
                self._settle(name, error)
            return
        if seen is None:
            return
        for name in names:
            execution = seen.get(name)
            if execution is None:
                self._miss(name)
            elif execution.closure.phase in TERMINAL:
                self._settle(name, execution)
        phases = {name: execution.closure.phase for name, execution in seen.items()}
        begun = {name for name, phase in phases.items() if phase not in _QUEUED_PHASES}
        with self._lock:
            self._begun |= begun & self._waiting.keys()
        running = [name for name in list(self._on_running) if phases.get(name) == WorkflowExecution.RUNNING]
        for name in running:
            if not self._pods.take_at_once(_PODS_PER_SECOND, _PODS_PER_SECOND):
                break
            self._poll_pod(name, seen[name])

    def _seen_in_time(self, names: Sequence[str]) -> dict[str, Execution] | None:
        """Return what `find` returns; `None` after an outage that not all searches wait out.

        The searches that share the poller may have different patience.
        """
        waited = 0.0 if self._outage_began is None else time.monotonic() - self._outage_began
        began = time.monotonic() - waited
        with self._lock:
            given = {name: self._patience.get(name) for name in names}
        patience = {name: self._admin.patience if own is None else own for name, own in given.items()}
        try:
            seen = self.find(names, patience=max(0.0, min(patience.values()) - waited))
        except ClusterUnavailableError as error:
            self._outage_began = began
            for name in names:
                waited = time.monotonic() - began
                if waited >= patience[name]:
                    self._settle(
                        name, unavailable(error.__cause__ or error, "call ListExecutions", waited, patience[name])
                    )
            return None
        self._outage_began = None
        return seen

    def _poll_pod(self, name: str, execution: Execution) -> None:
        """Call `on_running` once a pod of an execution runs, or if flyteadmin refuses to list the execution's tasks.

        The phase of an execution does not tell whether its pod runs: the phase is RUNNING even while the pod is queued.
        """
        try:
            runs = self._has_running_task(execution.id)
        except (GivenUpError, ClusterUnavailableError):
            return  # the next poll asks again
        except AdminError as error:
            logger.debug("It is not known whether the pod of %s runs: %s", name, error)
            runs = True
        with self._lock:
            on_running = self._on_running.pop(name, None)
            if on_running is not None and not runs:
                self._on_running[name] = on_running  # as the last entry: the next poll asks for other pods first
        if on_running is not None and runs:
            on_running()

    def _has_running_task(self, identifier: WorkflowExecutionIdentifier) -> bool:
        # This thread also sees the ends of executions, so it does not wait out an outage of this request.
        nodes = nodes_with_tasks(self._admin, identifier, self._closed, ended=True, patience=0.0)
        return any(task.closure.phase not in _WAITING_PHASES for _, tasks in nodes for task in tasks)

    def find(self, names: Sequence[str], *, patience: float | None = None) -> dict[str, Execution]:
        """Return the existing executions with given names, by name, as `ListExecutions` lists them. The call blocks.

        Args:
            patience: The seconds for which an outage is waited out; by default the patience of the poller's `Admin`.
        """
        request = ResourceListRequest(
            id=self._where,
            limit=len(names),
            filters=f"value_in(execution_name,{';'.join(names)})",
            # A page's token is an offset, so the order must be fixed.
            sort_by=Sort(key="execution_name", direction=Sort.ASCENDING),
        )
        seen: dict[str, Execution] = {}
        limits = {"given_up": self._closed, "patience": patience}
        for execution in self._admin.pages("ListExecutions", request, "executions", **limits):
            seen[execution.id.name] = execution
            if len(seen) >= len(names):
                break
        return seen

    def _miss(self, name: str) -> None:
        """Count that a poll did not list an execution. After several such polls, ask for the execution by its name."""
        self._missed[name] += 1
        with self._lock:
            began = self._since.get(name, 0.0)
        # A replica of flyteadmin's database shows a new execution late.
        if self._missed[name] % _MISSED or time.monotonic() < began + pauses.replica_lag:
            return
        identifier = WorkflowExecutionIdentifier(project=self._where.project, domain=self._where.domain, name=name)
        try:
            execution = self._admin.call(
                "GetExecution", WorkflowExecutionGetRequest(id=identifier), given_up=self._closed, patience=0.0
            )
        except (GivenUpError, ClusterUnavailableError):
            return  # a later poll asks again
        except BaseException as error:  # noqa: BLE001 - the caller that awaits the execution gets the error
            if not (isinstance(error, AdminError) and error.code is grpc.StatusCode.NOT_FOUND):
                self._settle(name, error)
                return
            execution = vanished(identifier)
        if execution.closure.phase in TERMINAL:
            self._settle(name, execution)

    def _settle(self, name: str, end: Execution | BaseException) -> None:
        with self._lock:
            future = self._waiting.pop(name, None)
            since = self._since.pop(name, None)
            self._drop(name)
            if since is not None and isinstance(end, Execution):
                self._durations.append(time.monotonic() - since)
        if future is None or not future.set_running_or_notify_cancel():
            return
        if isinstance(end, Execution):
            future.set_result(end)
        else:
            future.set_exception(end)
