"""Tells what the call of a decorated objective means, by where it happens."""

from __future__ import annotations

import enum
import os
import sys
import types
from typing import Any

from flytekit.core.context_manager import ExecutionState, FlyteContextManager
from flytekit.core.promise import flyte_entity_call_handler

_NODE_CREATION = "flytekit.core.node_creation"
_FUNCTION_TASK = "flytekit.core.python_function_task"
_PYFLYTE_RUN = "flytekit.clis.sdk_in_container.run"


class Place(enum.Enum):
    """Where a decorated objective is called."""

    SEARCH = "where a search can run: an eager workflow, asyncio, a notebook"
    NODE = "by flytekit's create_node"
    TASK = "by a task that flytekit has made of it: the decorators are in the wrong order"
    COMMAND = "by `pyflyte run file.py objective ...`, with a value for every parameter"


def place_of_call() -> Place:
    """Return where the function was called that calls this one.

    Flytekit gives no other sign: `create_node(train, ...)` and `train(...)` reach the same `__call__`, and so do
    `pyflyte run` and a user's own call. So the caller's module is looked at.
    """
    caller = str(sys._getframe(2).f_globals.get("__name__"))
    return {_NODE_CREATION: Place.NODE, _FUNCTION_TASK: Place.TASK, _PYFLYTE_RUN: Place.COMMAND}.get(
        caller, Place.SEARCH
    )


def in_a_workflow() -> bool:
    """Tell whether the body of a workflow, or of a dynamic one, runs now: what it calls become nodes."""
    context = FlyteContextManager.current_context()
    compilation, execution = context.compilation_state, context.execution_state
    if compilation is not None and compilation.mode == 1:
        return True
    return execution is not None and execution.mode is ExecutionState.Mode.LOCAL_DYNAMIC_TASK_EXECUTION


def is_imported_by_a_pod() -> bool:
    """Tell whether a module is being imported, to find a task for a pod to run: what it calls then runs in each pod."""
    if "FLYTE_INTERNAL_EXECUTION_ID" not in os.environ:
        return False
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") != "__main__":
            return True
        frame = frame.f_back
    return False


def make_node(entity: Any, inputs: dict[str, Any]) -> Any:
    """Return the promises of an entity: of a new node while Flyte compiles, else of its local run."""
    return flyte_entity_call_handler(entity, **inputs)
