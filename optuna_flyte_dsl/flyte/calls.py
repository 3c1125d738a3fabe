"""Tells what the call of a decorated objective means, by where it happens."""

from __future__ import annotations

import enum
import sys
from typing import Any

from flytekit.core.context_manager import CompilationState, FlyteContextManager
from flytekit.core.promise import flyte_entity_call_handler

_NODE_CREATION = "flytekit.core.node_creation"
_PYFLYTE_RUN = "flytekit.clis.sdk_in_container.run"


class Place(enum.Enum):
    """Where a decorated objective is called."""

    SEARCH = "where a search can run: an eager workflow, asyncio, a notebook"
    WORKFLOW = "in the body of a plain workflow, while Flyte compiles it"
    NODE = "by flytekit's create_node"
    COMMAND = "by `pyflyte run file.py objective ...`, with a value for every parameter"


def place_of_call(depth: int = 2) -> Place:
    """Return where the function was called that calls this one.

    Flytekit gives no other sign: in compilation, `create_node(train, ...)` and `train(...)` reach the same `__call__`,
    and so do `pyflyte run` and a user's own call. So the caller's module is looked at.

    Args:
        depth: How many frames up the caller of interest is.
    """
    caller = sys._getframe(depth).f_globals.get("__name__")
    if is_compiling():
        return Place.NODE if caller == _NODE_CREATION else Place.WORKFLOW
    return Place.COMMAND if caller == _PYFLYTE_RUN else Place.SEARCH


def is_compiling() -> bool:
    """Tell whether Flyte compiles a workflow now."""
    state: CompilationState | None = FlyteContextManager.current_context().compilation_state
    return state is not None and state.mode == 1


def make_node(entity: Any, inputs: dict[str, Any]) -> Any:
    """Return the promises of a new node of the workflow that is being compiled."""
    return flyte_entity_call_handler(entity, **inputs)
