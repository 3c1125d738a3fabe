"""Finds where a search runs: in which execution of an eager workflow, in which of its nodes, and in which attempt."""

import os
import threading
from dataclasses import dataclass, field

from flyteidl.admin.execution_pb2 import ExecutionSpec, WorkflowExecutionGetRequest
from flyteidl.admin.task_execution_pb2 import TaskExecution
from flyteidl.core.execution_pb2 import ExecutionError
from flyteidl.core.identifier_pb2 import NodeExecutionIdentifier, WorkflowExecutionIdentifier
from flytekit.core.context_manager import ExecutionParameters

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin, AdminError
from optuna_flyte_dsl.engines._flytekit.cluster.node_executions import TERMINAL_NODE_PHASES, nodes_with_tasks, tasks_of


@dataclass(frozen=True)
class EagerPod:
    """The pod of an eager workflow: one attempt of one node of an execution."""

    execution: WorkflowExecutionIdentifier
    # The folder of the node's inputs and outputs: the same in each attempt, and another one for each node.
    folder: str
    attempt: int  # from 0
    task: str  # the name of the eager task

    @classmethod
    def current(cls, params: ExecutionParameters | None) -> "EagerPod | None":
        """Return the pod in which this process runs; `None` outside of a pod."""
        if "FLYTE_INTERNAL_EXECUTION_ID" not in os.environ or params is None or params.execution_id is None:
            return None
        attempt = os.environ.get("FLYTE_ATTEMPT_NUMBER", "0")
        # Propeller writes the outputs of an attempt to a folder that is named after its number, in the node's folder.
        outputs = str(params.output_metadata_prefix or "").rstrip("/")
        folder, _, last = outputs.rpartition("/")
        return cls(
            params.execution_id.to_flyte_idl(),
            folder if last == attempt else outputs,
            int(attempt),
            os.environ.get("FLYTE_INTERNAL_TASK_NAME", ""),
        )


@dataclass(frozen=True)
class EagerExecution:
    """The execution of an eager workflow: its specification, and the node that runs the workflow.

    The specification and the node are empty where they are not known, as for a search that a laptop starts.
    """

    spec: ExecutionSpec = field(default_factory=ExecutionSpec)
    node: NodeExecutionIdentifier | None = None


class EagerExecutionReader:
    """Reads the eager workflow's execution from flyteadmin once.

    All searches of the eager workflow share the result of the first read.

    Args:
        pod: The eager workflow's pod; `None` outside of a pod.
    """

    def __init__(self, pod: EagerPod | None) -> None:
        self.pod = pod
        self._lock = threading.Lock()
        self._execution = None if pod is not None else EagerExecution()
        self._asking = threading.Lock()
        self._is_succeeded = False

    def read(self, admin: Admin, given_up: threading.Event | None = None) -> EagerExecution:
        """Return the execution. The call blocks.

        Raises:
            GivenUpError: If `given_up` was set before flyteadmin has answered.
        """
        with self._lock:
            if self._execution is None:
                assert self.pod is not None
                spec, node = ExecutionSpec(), None
                try:
                    request = WorkflowExecutionGetRequest(id=self.pod.execution)
                    spec = admin.call("GetExecution", request, given_up=given_up).spec
                    node = _own_node(admin, self.pod, given_up)
                except AdminError as error:
                    logger.warning("The eager workflow's execution could not be read: %s", error)
                self._execution = EagerExecution(spec, node)
            return self._execution

    def has_successor(self, admin: Admin, seconds: float) -> bool:
        """Return whether Flyte has begun a later attempt of this pod's node. The call blocks.

        Flyte may begin the next attempt while the pod of the previous attempt is still ending. If flyteadmin does not
        answer, the result is False. The pod then terminates its executions, because executions cost money.

        Args:
            admin: Sends the request, without waiting for the end of an outage.
            seconds: The time limit of the request.
        """
        with self._asking:
            if self.pod is not None and not self._is_succeeded:
                try:
                    attempts = [task.id.retry_attempt for task in self._attempts(admin, seconds)]
                    self._is_succeeded = any(attempt > self.pod.attempt for attempt in attempts)
                except Exception as error:  # noqa: BLE001 - the result is then False
                    logger.warning("It is not known whether Flyte has begun this pod's next attempt: %r", error)
            return self._is_succeeded

    def system_failures(self, admin: Admin, seconds: float) -> int:
        """Return how many earlier attempts of this pod have failed by a system error. The call blocks.

        An attempt whose kind of error is not known counts as a system error.

        Args:
            seconds: The time limit of a request.
        """
        assert self.pod is not None
        before = [task for task in self._attempts(admin, seconds) if task.id.retry_attempt < self.pod.attempt]
        return self.pod.attempt - len([task for task in before if task.closure.error.kind == ExecutionError.USER])

    def _attempts(self, admin: Admin, seconds: float) -> list[TaskExecution]:
        """Return the attempts of this pod's node; an empty list if the node is not known."""
        known = self._execution  # read without the lock, which a running `read` may hold
        if known is None or known.node is None:
            return []
        return tasks_of(admin, known.node, patience=0.0, seconds=seconds)


def _own_node(admin: Admin, pod: EagerPod, given_up: threading.Event | None) -> NodeExecutionIdentifier | None:
    """Return the node execution in whose pod this process runs; `None` if no single node can be identified."""
    # Where the operator has set the console's address, the pod knows its node's page.
    _, _, page = os.environ.get("FLYTE_EXECUTION_URL", "").partition("/nodeId/")
    if page:
        return NodeExecutionIdentifier(node_id=page.partition("/")[0], execution_id=pod.execution)
    same_task = []
    for node, tasks in nodes_with_tasks(admin, pod.execution, given_up):
        if node.input_uri == _inputs_of(pod.folder):
            return node.id
        if any(task.id.task_id.name == pod.task for task in tasks):
            same_task.append(node.id)
    return same_task[0] if len(same_task) == 1 else None


def has_ended(admin: Admin, execution: WorkflowExecutionIdentifier, folder: str) -> bool:
    """Return whether the node of an execution whose data is in a folder has ended, as far as that is known. Blocks."""
    nodes = nodes_with_tasks(admin, execution, ended=True)
    phases = (node.closure.phase for node, _ in nodes if node.input_uri == _inputs_of(folder))
    return next(phases, None) in TERMINAL_NODE_PHASES


def _inputs_of(folder: str) -> str:
    return f"{folder}/inputs.pb"
