"""Reads the nodes of executions from flyteadmin, and the tasks that the nodes run."""

import threading
from collections.abc import Iterator
from typing import Any

from flyteidl.admin.node_execution_pb2 import NodeExecution, NodeExecutionListRequest
from flyteidl.admin.task_execution_pb2 import TaskExecution, TaskExecutionListRequest
from flyteidl.core import execution_pb2
from flyteidl.core.identifier_pb2 import NodeExecutionIdentifier, WorkflowExecutionIdentifier

from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin

_NODE = execution_pb2.NodeExecution
TERMINAL_NODE_PHASES = frozenset(
    {_NODE.SUCCEEDED, _NODE.FAILED, _NODE.ABORTED, _NODE.SKIPPED, _NODE.TIMED_OUT, _NODE.RECOVERED}
)

_PAGE = 100
"""The number of nodes or tasks that one call asks for."""

_ENDS = ("start-node", "end-node")


def nodes_with_tasks(
    admin: Admin,
    execution: WorkflowExecutionIdentifier,
    given_up: threading.Event | None = None,
    *,
    ended: bool = False,
    **limits: Any,
) -> Iterator[tuple[NodeExecution, list[TaskExecution]]]:
    """Yield the nodes of an execution, each with its attempts to run a task. The call blocks.

    A node without a task may contain other nodes: a sub-workflow, a conditional, a launch plan. `ListNodeExecutions`
    does not list the nodes inside of such a node, so a further request lists them.

    Args:
        ended: Whether nodes that have ended are included.
        limits: The time limits of each call; see `Admin.call`.
    """
    inside = [NodeExecutionListRequest(workflow_execution_id=execution, limit=_PAGE)]
    while inside:
        for node in admin.pages("ListNodeExecutions", inside.pop(), "node_executions", given_up=given_up, **limits):
            if node.id.node_id in _ENDS or (node.closure.phase in TERMINAL_NODE_PHASES and not ended):
                continue
            tasks = tasks_of(admin, node.id, given_up, **limits)
            yield node, tasks
            child = node.closure.workflow_node_metadata.executionId
            if child.name:
                inside.append(NodeExecutionListRequest(workflow_execution_id=child, limit=_PAGE))
            elif not tasks:
                inside.append(
                    NodeExecutionListRequest(
                        workflow_execution_id=node.id.execution_id, unique_parent_id=node.id.node_id, limit=_PAGE
                    )
                )


def tasks_of(
    admin: Admin, node: NodeExecutionIdentifier, given_up: threading.Event | None = None, **limits: Any
) -> list[TaskExecution]:
    """Return the attempts of a node to run its task. The call blocks.

    Args:
        limits: The time limits of each call; see `Admin.call`.
    """
    request = TaskExecutionListRequest(node_execution_id=node, limit=_PAGE)
    return list(admin.pages("ListTaskExecutions", request, "task_executions", given_up=given_up, **limits))
