"""Finds from the place of a decorated task's call whether the call is a search."""

import enum
import os
import sys
import types

from flytekit.core.context_manager import ExecutionState, FlyteContextManager

_NODE_CREATION = "flytekit.core.node_creation"
_FUNCTION_TASK = "flytekit.core.python_function_task"
_PYFLYTE_RUN = "flytekit.clis.sdk_in_container.run"


class Place(enum.Enum):
    """The place where a decorated task is called."""

    SEARCH = "an eager workflow, asyncio, a notebook: the call is a search"
    NODE = "flytekit's create_node"
    TASK = "a task that flytekit has made of the decorated task, because the decorators are in the wrong order"
    COMMAND = "`pyflyte run file.py train ...`, which gives every parameter a value"


def place_of_call(depth: int) -> Place:
    """Return the place of a decorated task's call, from the module of the caller.

    Only the module of the caller tells one kind of call from another: `create_node(train, ...)`, `pyflyte run` and a
    user's own call reach the same method.

    Args:
        depth: The number of frames between this function and the caller.
    """
    caller = str(sys._getframe(depth + 1).f_globals.get("__name__"))
    return {_NODE_CREATION: Place.NODE, _FUNCTION_TASK: Place.TASK, _PYFLYTE_RUN: Place.COMMAND}.get(
        caller, Place.SEARCH
    )


def in_a_workflow() -> bool:
    """Return whether a workflow is being compiled, or a dynamic task runs locally: neither can wait for a search."""
    context = FlyteContextManager.current_context()
    compilation, execution = context.compilation_state, context.execution_state
    if compilation is not None and compilation.mode == 1:
        return True
    return execution is not None and execution.mode is ExecutionState.Mode.LOCAL_DYNAMIC_TASK_EXECUTION


def is_imported_by_a_pod() -> bool:
    """Return whether a pod is importing a module.

    A search that is called at the top of the module would start anew in each pod.
    """
    if "FLYTE_INTERNAL_EXECUTION_ID" not in os.environ:
        return False
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__":
            return True
        frame = frame.f_back
    return False
