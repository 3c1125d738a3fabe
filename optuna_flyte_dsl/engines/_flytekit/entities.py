"""Reads the name and the signature of a task, a workflow or a launch plan."""

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from flytekit.core.base_task import PythonTask
from flytekit.core.launch_plan import LaunchPlan
from flytekit.core.reference_entity import ReferenceEntity

from optuna_flyte_dsl.engines._flytekit.types import declared_types
from optuna_flyte_dsl.errors import InvalidAnnotationError, InvalidObjectiveError
from optuna_flyte_dsl.space.annotations import positional_only

_EMPTY = inspect.Parameter.empty


def is_entity(target: Any) -> bool:
    """Return whether flytekit can run an object: a task, a workflow, a launch plan or a reference to one."""
    return getattr(target, "python_interface", None) is not None and hasattr(target, "interface")


def is_task(entity: Any) -> bool:
    """Return whether an object is a task that is defined in this program."""
    return isinstance(entity, PythonTask) and not isinstance(entity, ReferenceEntity)


def entity_signature(entity: Any) -> inspect.Signature:
    """Return the signature of an entity as flytekit has resolved it, with types and defaults as objects."""
    interface = entity.python_interface
    function = getattr(entity, "task_function", None)
    for parameter in inspect.signature(function).parameters.values() if function is not None else ():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise InvalidAnnotationError(positional_only(entity_name(entity), parameter.name))
    defaults, declared = _defaults(entity), declared_types(entity)
    fixed = set(entity.fixed_inputs.literals) if _is_launch_plan(entity) else set()
    try:
        parameters = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(name, _EMPTY),
                annotation=declared.get(name, annotation),
            )
            for name, annotation in interface.inputs.items()
            if name not in fixed
        ]
    except ValueError as error:
        raise InvalidObjectiveError(f"`{entity.name}` cannot be an objective: {error}.") from error
    return inspect.Signature(parameters, return_annotation=_returned(interface))


def entity_name(entity: Any) -> str:
    """Return the name by which users know an entity: the last part of its name in Flyte."""
    return str(entity.name).rsplit(".", 1)[-1]


def _is_launch_plan(entity: Any) -> bool:
    return isinstance(entity, LaunchPlan) and not isinstance(entity, ReferenceEntity)


def _defaults(entity: Any) -> Mapping[str, Any]:
    """Return the defaults of an entity's inputs. An interface alone cannot tell a default of None from no default."""
    if _is_launch_plan(entity):
        optional = {name: p for name, p in entity.parameters.parameters.items() if not p.required}
        given = {**_defaults(entity.workflow), **entity.saved_inputs}
        return {name: given[name] for name in optional if name in given}
    function = getattr(entity, "task_function", None) or getattr(entity, "function", None)
    if function is None:
        return {
            name: default
            for name, (_, default) in entity.python_interface.inputs_with_defaults.items()
            if default is not None
        }
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not _EMPTY
    }


def _returned(interface: Any) -> Any:
    """Return the return annotation of a function with an interface's outputs."""
    outputs = dict(interface.outputs)
    if not outputs:
        return None
    if interface.output_tuple_name or any(name != f"o{index}" for index, name in enumerate(outputs)):
        return NamedTuple(interface.output_tuple_name or "Outputs", list(outputs.items()))
    types = tuple(outputs.values())
    return types[0] if len(types) == 1 else tuple[types]  # type: ignore[valid-type]
