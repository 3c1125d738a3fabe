"""The node executions and the task executions of an execution, as flyteadmin keeps them."""

import dataclasses
import pathlib

from flyteidl.admin import node_execution_pb2, task_execution_pb2
from flyteidl.core import execution_pb2, identifier_pb2, workflow_pb2

NODE = execution_pb2.NodeExecution
TASK = execution_pb2.TaskExecution
STARTS_AND_ENDS = ("start-node", "end-node")


@dataclasses.dataclass
class NodeRecord:
    """One node of an execution.

    Args:
        folder: The folder of its data: its inputs, and a folder for the outputs of each attempt.
        parent: The id of the node that contains it; empty for one of the execution itself.
        child: The name of the execution that a launch plan's node has made.
        tasks: The attempts of its task: their phases.
    """

    id: str
    folder: pathlib.Path
    parent: str = ""
    child: str = ""
    phase: int = NODE.RUNNING
    task: identifier_pb2.Identifier | None = None
    tasks: list[int] = dataclasses.field(default_factory=list)
    errors: list[int] = dataclasses.field(default_factory=list)  # the kinds of the errors of those that have failed


def unique_id(parent, node):
    """Return the id of a node inside of another one; propeller puts the attempt of the outer one between."""
    return f"{parent}-0-{node}" if parent else node


def task_of(node):
    """Return the task of a node, or of each element of an array node; `None` for others."""
    inner = node.array_node.node if node.WhichOneof("target") == "array_node" else node
    return inner.task_node.reference_id if inner.WhichOneof("target") == "task_node" else None


def inner_nodes(spec, node):
    """Return the nodes inside of a sub-workflow's node or a conditional's: those of its first branch."""
    target = node.WhichOneof("target")
    if target == "branch_node":
        return [node.branch_node.if_else.case.then_node]
    if target == "workflow_node" and node.workflow_node.WhichOneof("reference") == "sub_workflow_ref":
        template = next(sub for sub in spec.sub_workflows if sub.id == node.workflow_node.sub_workflow_ref)
        return [each for each in template.nodes if each.id not in STARTS_AND_ENDS]
    return []


def single_task_node(task):
    """Return the node that flyteadmin makes around a task that is launched alone: it has a name, and no more."""
    name = "".join(letter for letter in task[-63:] if letter == "-" or letter.isalnum())
    return workflow_pb2.Node(id=name, metadata=workflow_pb2.NodeMetadata(name=name))


def node_messages(execution, parent, identifier):
    """Return an execution's nodes inside of `parent`, as ListNodeExecutions does: without those inside of them."""
    with execution.lock:
        records = [record for record in execution.nodes.values() if record.parent == parent]
        is_over = not execution.running
    nodes = []
    if not parent:
        ends = STARTS_AND_ENDS if is_over else STARTS_AND_ENDS[:1]
        records = [*(NodeRecord(name, pathlib.Path(), phase=NODE.SUCCEEDED) for name in ends), *records]
    for record in records:
        node = node_execution_pb2.NodeExecution()
        node.id.CopyFrom(identifier_pb2.NodeExecutionIdentifier(node_id=record.id, execution_id=identifier))
        if record.id not in STARTS_AND_ENDS:
            node.input_uri = f"{record.folder}/inputs.pb"
        node.closure.phase = record.phase
        if record.child:
            node.closure.workflow_node_metadata.executionId.CopyFrom(identifier)
            node.closure.workflow_node_metadata.executionId.name = record.child
        nodes.append(node)
    return nodes


def task_messages(execution, node):
    """Return the attempts of a node's task: none for a node that runs no task."""
    record = execution.nodes[node.node_id]
    tasks = []
    for attempt, phase in enumerate(record.tasks):
        task = task_execution_pb2.TaskExecution()
        task.id.retry_attempt = attempt
        task.id.node_execution_id.CopyFrom(node)
        task.id.task_id.CopyFrom(record.task)
        task.closure.phase = phase
        if attempt < len(record.errors):
            task.closure.error.kind = record.errors[attempt]
        tasks.append(task)
    return tasks
