"""Reads the state of all running executions, with few calls."""

from __future__ import annotations

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
from flyteidl.admin.node_execution_pb2 import NodeExecutionListRequest
from flyteidl.admin.task_execution_pb2 import TaskExecutionListRequest
from flyteidl.core.execution_pb2 import TaskExecution, WorkflowExecution
from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier

from optuna_flyte_dsl.flyte.admin import Admin, AdminError, GivenUpError
from optuna_flyte_dsl.log import logger

TERMINAL = frozenset(
    {WorkflowExecution.SUCCEEDED, WorkflowExecution.FAILED, WorkflowExecution.ABORTED, WorkflowExecution.TIMED_OUT}
)

_NAMES_A_CALL = 100
_SHORTEST, _LONGEST = 0.2, 5.0
"""Seconds between two looks."""

_SHARE = 0.05
"""How late the end of an execution may be seen, as a part of how long executions take."""

_CALLS_A_SECOND = 5.0
_CLOSING_SECONDS = 1.0
_REMEMBERED = 32
_MISSED = 5
"""Looks that may miss an execution before it is asked for by its name."""


_NODES = 100
_CLOSER_A_LOOK = 32
"""Executions of which one look asks whether their pods run: each costs two calls and more."""

_WAITING_PHASES = frozenset(
    {
        TaskExecution.UNDEFINED,
        TaskExecution.QUEUED,
        TaskExecution.INITIALIZING,
        TaskExecution.WAITING_FOR_RESOURCES,
    }
)


def _runs(execution: Execution | None) -> bool:
    return execution is not None and execution.closure.phase == WorkflowExecution.RUNNING


class Watch:
    """Looks at executions until they end, in a thread of its own, which runs while there is something to look at.

    Args:
        admin: flyteadmin.
        project: The executions' project.
        domain: Their domain.
        after_look: Called after each look; what shows the state, for example. It must not raise.
    """

    def __init__(self, admin: Admin, project: str, domain: str, after_look: Callable[[], None]) -> None:
        self._admin = admin
        self._where = NamedEntityIdentifier(project=project, domain=domain)
        self._after_look = after_look
        self._lock = threading.Lock()
        self._waiting: dict[str, concurrent.futures.Future[Execution]] = {}
        self._since: dict[str, float] = {}
        self._on_running: dict[str, Callable[[], None]] = {}
        self._missed: collections.Counter[str] = collections.Counter()
        self._durations: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)
        self._thread: threading.Thread | None = None
        self._news = threading.Event()
        self._closed = threading.Event()

    def wait_for(self, name: str, on_running: Callable[[], None] | None = None) -> concurrent.futures.Future[Execution]:
        """Return a future of an execution's end, as `ListExecutions` shows it.

        Args:
            name: The execution's.
            on_running: Called once, in the thread of the looks, when Flyte says that it runs.
        """
        future: concurrent.futures.Future[Execution] = concurrent.futures.Future()
        with self._lock:
            self._waiting[name] = future
            if on_running is not None:
                self._on_running[name] = on_running
            self._since[name] = time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="optuna-flyte-watch", daemon=True)
                self._thread.start()
        self._news.set()
        return future

    def forget(self, name: str) -> None:
        """Look at an execution no more; its future is cancelled."""
        with self._lock:
            future = self._waiting.pop(name, None)
            self._since.pop(name, None)
            self._missed.pop(name, None)
            self._on_running.pop(name, None)
        if future is not None:
            future.cancel()

    async def close(self) -> None:
        """End the thread, and wait for it a moment: a call that flyteadmin leaves without an answer holds it longer."""
        self._closed.set()
        self._news.set()
        patience = time.monotonic() + _CLOSING_SECONDS
        while self._thread is not None and self._thread.is_alive() and time.monotonic() < patience:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    def interval(self) -> float:
        """Return the seconds until the next look: short for short trials, longer as they prove long."""
        with self._lock:
            count = len(self._waiting)
            usual = statistics.median(self._durations) if self._durations else None
            if usual is None:
                # The oldest is at least as old as this.
                usual = time.monotonic() - min(self._since.values(), default=time.monotonic())
        calls = -(-count // _NAMES_A_CALL)
        return max(min(max(usual * _SHARE, _SHORTEST), _LONGEST), calls / _CALLS_A_SECOND)

    def _run(self) -> None:
        while not self._closed.wait(self.interval()):
            with self._lock:
                names = list(self._waiting)
            if not names:
                self._after_look()
                self._news.clear()
                with self._lock:
                    idle = not self._waiting
                if idle and not self._closed.is_set():
                    self._news.wait()
                continue
            for start in range(0, len(names), _NAMES_A_CALL):
                if self._closed.is_set():
                    return
                self._look(names[start : start + _NAMES_A_CALL])
            self._after_look()

    def find(self, names: Sequence[str]) -> dict[str, Execution]:
        """Return which of some executions there are, by name, as `ListExecutions` shows them. It blocks."""
        return self._list(names)

    def _look(self, names: Sequence[str]) -> None:
        try:
            seen = self._list(names)
        except GivenUpError:
            return
        except BaseException as error:  # noqa: BLE001 - raised where the executions are awaited
            for name in names:
                self._settle(name, error)
            return
        for name in names:
            execution = seen.get(name)
            if execution is None:
                self._miss(name)
            elif execution.closure.phase in TERMINAL:
                self._settle(name, execution)
        running = [name for name in list(self._on_running) if _runs(seen.get(name))]
        for name in running[:_CLOSER_A_LOOK]:
            self._look_closer(name, seen[name])

    def _look_closer(self, name: str, execution: Execution) -> None:
        """Tell when a pod of an execution runs: Flyte says RUNNING of one whose pod still waits for a machine."""
        try:
            runs = self._has_running_task(execution.id)
        except GivenUpError:
            return
        except AdminError as error:
            logger.debug("It is not known whether the pod of %s runs: %s", name, error)
            runs = True
        with self._lock:
            on_running = self._on_running.pop(name, None)
            if on_running is not None and not runs:
                self._on_running[name] = on_running  # behind the others, whose turn is next
        if on_running is not None and runs:
            on_running()

    def _has_running_task(self, identifier: WorkflowExecutionIdentifier) -> bool:
        nodes = self._admin.call(
            "ListNodeExecutions",
            NodeExecutionListRequest(workflow_execution_id=identifier, limit=_NODES),
            given_up=self._closed,
        ).node_executions
        for node in nodes:
            if node.id.node_id in ("start-node", "end-node"):
                continue
            request = TaskExecutionListRequest(node_execution_id=node.id, limit=_NODES)
            tasks = self._admin.call("ListTaskExecutions", request, given_up=self._closed).task_executions
            if any(task.closure.phase not in _WAITING_PHASES for task in tasks):
                return True
        return False

    def _list(self, names: Sequence[str]) -> dict[str, Execution]:
        # flyteadmin makes a scalar of a list of one, and refuses it.
        function = "value_in" if len(names) > 1 else "eq"
        request = ResourceListRequest(
            id=self._where,
            limit=len(names),
            filters=f"{function}(execution_name,{';'.join(names)})",
            # Pages are made by an offset, which means something in a fixed order only.
            sort_by=Sort(key="execution_name", direction=Sort.ASCENDING),
        )
        seen: dict[str, Execution] = {}
        while True:
            page = self._admin.call("ListExecutions", request, given_up=self._closed)
            seen.update((execution.id.name, execution) for execution in page.executions)
            if not page.token or not page.executions or len(seen) >= len(names):
                return seen
            request.token = page.token

    def _miss(self, name: str) -> None:
        """Note that a list has left out an execution; at last, ask for it by its name."""
        self._missed[name] += 1
        if self._missed[name] % _MISSED:
            return
        identifier = WorkflowExecutionIdentifier(project=self._where.project, domain=self._where.domain, name=name)
        try:
            execution = self._admin.call(
                "GetExecution", WorkflowExecutionGetRequest(id=identifier), given_up=self._closed
            )
        except GivenUpError:
            return
        except AdminError as error:
            if error.code is grpc.StatusCode.NOT_FOUND:
                gone = Execution(id=identifier)
                gone.closure.phase = WorkflowExecution.FAILED
                gone.closure.error.code = "NotFound"
                gone.closure.error.message = f"The execution {name} is no longer in Flyte."
                self._settle(name, gone)
            else:
                self._settle(name, error)
            return
        except BaseException as error:  # noqa: BLE001 - raised where the execution is awaited
            self._settle(name, error)
            return
        if execution.closure.phase in TERMINAL:
            self._settle(name, execution)

    def _settle(self, name: str, end: Execution | BaseException) -> None:
        with self._lock:
            future = self._waiting.pop(name, None)
            since = self._since.pop(name, None)
            self._missed.pop(name, None)
            self._on_running.pop(name, None)
            if since is not None and isinstance(end, Execution):
                self._durations.append(time.monotonic() - since)
        if future is None or not future.set_running_or_notify_cancel():
            return
        if isinstance(end, Execution):
            future.set_result(end)
        else:
            future.set_exception(end)
