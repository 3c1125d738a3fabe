"""Wraps a task in a workflow of one node, so that Flyte can launch the task by a launch plan.

For a task that is launched alone, Flyte ignores `timeout` and `interruptible`, and does not index the labels.
"""

import weakref
from typing import Any

from flytekit.core.context_manager import FlyteContext, FlyteContextManager
from flytekit.core.interface import transform_inputs_to_parameters
from flytekit.core.launch_plan import LaunchPlan
from flytekit.core.node import Node
from flytekit.core.python_function_task import EagerAsyncPythonFunctionTask
from flytekit.core.workflow import ImperativeWorkflow, WorkflowBase
from flytekit.models.literals import LiteralMap

_workflows: weakref.WeakKeyDictionary[Any, WorkflowBase] = weakref.WeakKeyDictionary()  # task -> its workflow


def workflow_around(task: Any) -> WorkflowBase | None:
    """Return the workflow of one node that runs a task. The workflow has the task's name, inputs and outputs.

    Flytekit's registration and packaging find this workflow, and register a launch plan of the same name with it.

    Returns:
        `None` if flytekit cannot make a node of the task, because of the names of the task's inputs or outputs.
    """
    interface = task.python_interface
    if "entity" in interface.inputs or any(hasattr(Node, name) for name in interface.outputs):
        return None
    if task not in _workflows:
        # A workflow cannot be made in a context in which another one is being compiled.
        builder = FlyteContext.current_context().new_builder()
        builder.compilation_state = None
        with FlyteContextManager.with_context(builder):
            _workflows[task] = _make_workflow(task)
    return _workflows[task]


def _make_workflow(task: Any) -> WorkflowBase:
    if isinstance(task, EagerAsyncPythonFunctionTask):
        workflow: WorkflowBase = task.get_as_workflow()  # with the node that terminates a failed task's executions
        return workflow
    workflow = ImperativeWorkflow(name=task.name)
    inputs = {name: workflow.add_workflow_input(name, kind) for name, kind in task.python_interface.inputs.items()}
    node = workflow.add_entity(task, **inputs)
    for name in task.python_interface.outputs:
        workflow.add_workflow_output(name, node.outputs[name])
    return workflow


def launch_plan_of(workflow: WorkflowBase) -> LaunchPlan:
    """Return the launch plan that has a workflow's name.

    Flytekit keeps its default launch plans by name, so in a notebook flytekit would return the launch plan of an
    earlier definition of the workflow.
    """
    parameters = transform_inputs_to_parameters(FlyteContext.current_context(), workflow.python_interface)
    return LaunchPlan(workflow.name, workflow, parameters, LiteralMap({}))
