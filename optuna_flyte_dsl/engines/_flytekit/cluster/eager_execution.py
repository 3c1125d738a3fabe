"""Reads the execution of the eager workflow in whose pod a search runs."""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from flyteidl.admin.execution_pb2 import ExecutionSpec, WorkflowExecutionGetRequest
from flyteidl.admin.node_execution_pb2 import NodeExecutionListRequest
from flyteidl.admin.task_execution_pb2 import TaskExecutionListRequest
from flyteidl.core.execution_pb2 import NodeExecution
from flyteidl.core.identifier_pb2 import NodeExecutionIdentifier, WorkflowExecutionIdentifier

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin, AdminError

_NODES = 100


@dataclass(frozen=True)
class EagerExecution:
    """The execution of an eager workflow: its specification, and the node that runs the workflow.

    The specification and the node are empty where they are not known, as for a search that a laptop starts.
    """

    spec: ExecutionSpec = field(default_factory=ExecutionSpec)
    node: NodeExecutionIdentifier | None = None


class EagerExecutionReader:
    """Reads the eager workflow's execution from flyteadmin once.

    All searches of the eager workflow use what the first one has read.

    Args:
        identifier: The execution; `None` outside of an eager workflow's pod.
    """

    def __init__(self, identifier: WorkflowExecutionIdentifier | None) -> None:
        self._identifier = identifier
        self._lock = threading.Lock()
        self._execution = None if identifier is not None else EagerExecution()

    def read(self, admin: Admin) -> EagerExecution:
        """Return the execution. It blocks."""
        with self._lock:
            if self._execution is None:
                assert self._identifier is not None
                try:
                    spec = admin.call("GetExecution", WorkflowExecutionGetRequest(id=self._identifier)).spec
                    self._execution = EagerExecution(spec, _own_node(admin, self._identifier))
                except AdminError as error:
                    logger.warning("The eager workflow's execution could not be read: %s", error)
                    self._execution = EagerExecution()
            return self._execution


def _own_node(admin: Admin, execution: WorkflowExecutionIdentifier) -> NodeExecutionIdentifier | None:
    """Return the node execution in whose pod this process runs; `None` if no single node can be identified."""
    request = NodeExecutionListRequest(workflow_execution_id=execution, limit=_NODES)
    nodes = [
        node.id
        for node in admin.call("ListNodeExecutions", request).node_executions
        if node.closure.phase not in (NodeExecution.SUCCEEDED, NodeExecution.FAILED, NodeExecution.SKIPPED)
        and node.id.node_id not in ("start-node", "end-node")
    ]
    # Where the operator has set the console's address, the pod knows its node's page.
    _, _, page = os.environ.get("FLYTE_EXECUTION_URL", "").partition("/nodeId/")
    own = [node for node in nodes if node.node_id == page.partition("/")[0]]
    found = own or [node for node in nodes if _task_name() in _tasks_of(admin, node)]
    return found[0] if len(found) == 1 else None


def _task_name() -> str:
    return os.environ.get("FLYTE_INTERNAL_TASK_NAME", "")


def _tasks_of(admin: Admin, node: NodeExecutionIdentifier) -> Iterator[str]:
    request = TaskExecutionListRequest(node_execution_id=node, limit=_NODES)
    for task in admin.call("ListTaskExecutions", request).task_executions:
        yield task.id.task_id.name
