"""Calls a task by its values. Flytekit makes literals of all values, and takes some twenty times as long."""

from __future__ import annotations

import collections
import copy
from collections.abc import Mapping
from typing import Annotated, Any, cast, get_args, get_origin

from flytekit.core.context_manager import (
    ExecutionState,
    FlyteContext,
    FlyteContextManager,
    OutputMetadataTracker,
    flyte_context_Var,
)
from flytekit.core.promise import flyte_entity_call_handler
from flytekit.core.python_function_task import AsyncPythonFunctionTask, PythonFunctionTask
from optuna.study import StudyDirection

from optuna_flyte_dsl._compat.flytekit import without_deck
from optuna_flyte_dsl.engines._flytekit.sandbox import CallParameters
from optuna_flyte_dsl.engines._flytekit.types import is_carried_by_name, native_type
from optuna_flyte_dsl.space.conditions import Condition
from optuna_flyte_dsl.space.conversion import to_float
from optuna_flyte_dsl.space.markers import Role, Suggestion

_PLAIN_TYPES = (bool, int, float, str)
_KNOWN_METADATA = (Suggestion, Condition, Role, StudyDirection)  # flytekit acts on other metadata, such as a HashMethod


class PlainCall:
    """The calls of a task that has nothing that flytekit must do for it: its inputs and outputs are plain values.

    A call does what `flyte_entity_call_handler` does in an eager workflow on this machine: it has the same context,
    result and errors, in the same order.
    """

    def __init__(self, task: Any, inputs: Mapping[str, _PlainType], outputs: Mapping[str, _PlainType]) -> None:
        self._task = without_deck(task)
        self._inputs = inputs
        self._output_types = [output.native for output in outputs.values()]
        name = task.python_interface.output_tuple_name or "DefaultNamedTupleOutput"
        self._named_tuple = collections.namedtuple(name, list(outputs)) if len(outputs) > 1 else None  # noqa: PYI024

    def values(self, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the values that the task's function gets; `None` if flytekit must look at an argument."""
        values = {}
        for name, value in arguments.items():
            plain = self._inputs.get(name)
            if plain is None:
                return None
            converted = to_float(plain.native, value) if plain.is_marked else value
            if type(converted) is not plain.native:
                return None
            values[name] = converted
        return values

    def run(self, values: Mapping[str, Any], outside: FlyteContext) -> Any:
        """Run the task.

        Args:
            values: What `values(...)` has returned.
            outside: The context in which the task is called.
        """
        state = outside.execution_state
        assert state is not None
        parameters = cast("CallParameters", state.user_space_params).of_call()
        builder = outside.new_builder()
        builder.level += 3  # flytekit enters four contexts
        builder.execution_state = _with_parameters(state, parameters)
        builder.output_metadata_tracker = OutputMetadataTracker()
        builder.worker_queue = None
        stack = flyte_context_Var.get()
        depth = len(stack)
        stack.append(builder.build())
        try:
            try:
                returned = self._task.execute(**values)
            except Exception as error:
                error.args = (f"Error encountered while executing '{self._task.name}':\n  {error}",)
                raise
            returned = self._task.post_execute(parameters, returned)
        finally:
            del stack[depth:]
        if self._named_tuple is None:
            if type(returned) is self._output_types[0]:
                return returned
        elif isinstance(returned, tuple | list) and list(map(type, returned)) == self._output_types:
            return self._named_tuple(*returned)
        return self._refused(returned, values, outside)

    def _refused(self, returned: Any, values: Mapping[str, Any], outside: FlyteContext) -> Any:
        """Let flytekit convert what the task has returned, which raises flytekit's own error. The task does not run."""
        replay = copy.copy(self._task)
        replay.execute = lambda **_: returned
        replay.post_execute = lambda _, value: value
        builder = outside.new_builder()
        builder.worker_queue = None  # no limits of time for the conversion
        with FlyteContextManager.with_context(builder):
            return flyte_entity_call_handler(replay, **values)


def _with_parameters(state: ExecutionState, parameters: CallParameters) -> ExecutionState:
    """Return a copy of a state. `state.with_params` makes the state's directory anew, which is there already."""
    copied = object.__new__(ExecutionState)
    vars(copied).update(vars(state))
    copied.user_space_params = parameters
    return copied


class _PlainType:
    """A type whose values flytekit passes on as they are."""

    def __init__(self, native: type, *, is_marked: bool) -> None:
        self.native = native
        self.is_marked = is_marked  # whether a marker says the type: then an int is a float, as in Python


def plain_call(entity: Any) -> PlainCall | None:
    """Return the calls of a task by its values; `None` if flytekit must call the entity."""
    if type(entity) not in (PythonFunctionTask, AsyncPythonFunctionTask):  # a subclass may do anything
        return None
    if entity.execution_mode is not entity.ExecutionBehavior.DEFAULT or entity.metadata.cache:
        return None
    interface = entity.python_interface
    inputs = {name: _plain_type(annotation) for name, annotation in interface.inputs.items()}
    outputs = {name: _plain_type(annotation) for name, annotation in interface.outputs.items()}
    if not outputs or (len(outputs) == 1 and interface.output_tuple_name):
        return None
    plain_inputs = {name: kind for name, kind in inputs.items() if kind is not None}
    plain_outputs = {name: kind for name, kind in outputs.items() if kind is not None and not kind.is_marked}
    if len(plain_inputs) < len(inputs) or len(plain_outputs) < len(outputs):
        return None
    return PlainCall(entity, plain_inputs, plain_outputs)


def _plain_type(annotation: Any) -> _PlainType | None:
    parts = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    markers = [part for part in parts if isinstance(part, Suggestion)]
    if not markers:
        is_plain = parts[0] in _PLAIN_TYPES and all(isinstance(part, _KNOWN_METADATA) for part in parts[1:])
        return _PlainType(parts[0], is_marked=False) if is_plain else None
    if not all(part in _PLAIN_TYPES or isinstance(part, _KNOWN_METADATA) for part in parts):
        return None
    native = native_type(annotation)
    if len(markers) > 1 or is_carried_by_name(markers[0], native) or native not in _PLAIN_TYPES:
        return None
    return _PlainType(native, is_marked=True)
