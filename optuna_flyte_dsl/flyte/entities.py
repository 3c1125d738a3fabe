"""Reads what Flyte knows of a task, a workflow or a launch plan."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from flytekit.core.base_task import PythonTask
from flytekit.core.launch_plan import LaunchPlan
from flytekit.core.reference_entity import ReferenceEntity

from optuna_flyte_dsl.errors import InvalidObjectiveError

_EMPTY = inspect.Parameter.empty


def is_entity(objective: Any) -> bool:
    """Tell whether an object is one that Flyte can run: a task, a workflow, a launch plan or a reference to one."""
    return getattr(objective, "python_interface", None) is not None and hasattr(objective, "interface")


def is_task(entity: Any) -> bool:
    """Tell whether an object is a task that is defined here."""
    return isinstance(entity, PythonTask) and not isinstance(entity, ReferenceEntity)


def entity_signature(entity: Any) -> inspect.Signature:
    """Return the signature of a Flyte entity as Flyte has resolved it: types, defaults and what it returns.

    Raises:
        InvalidObjectiveError: If the entity has an input that cannot be a Python parameter.
    """
    interface = entity.python_interface
    defaults = _defaults(entity)
    fixed = set(entity.fixed_inputs.literals) if _is_launch_plan(entity) else set()
    try:
        parameters = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(name, _EMPTY), annotation=annotation
            )
            for name, annotation in interface.inputs.items()
            if name not in fixed
        ]
    except ValueError as error:
        raise InvalidObjectiveError(f"`{entity.name}` cannot be an objective: {error}.") from error
    return inspect.Signature(parameters, return_annotation=_returned(interface))


def entity_name(entity: Any) -> str:
    """Return the name that a user knows an entity by: the last part of Flyte's."""
    return str(entity.name).rsplit(".", 1)[-1]


def ignored_in_cache(entity: Any) -> tuple[str, ...]:
    """Return the inputs that do not count in the key of a task's cache."""
    return tuple(getattr(getattr(entity, "metadata", None), "cache_ignore_input_vars", None) or ())


_USED = "__optuna_flyte_dsl_retries_used__"
_ATTEMPTS_OF_FLYTE = re.compile(r"\[\d+/(\d+)\] currentAttempt done\. Last Error: USER::")
"""What propeller says of a task that has no attempts left; those that the system has spoilt are counted apart."""


def note_retries_used(error: BaseException, *, used: bool = True) -> None:
    """Note on an error that a task has raised it in the last attempt that its own `retries` allow."""
    if used or retries_are_used(error):
        with contextlib.suppress(Exception):  # a user's `__setattr__`
            setattr(error, _USED, used)


def retries_are_used(error: BaseException) -> bool:
    """Tell whether a task has used up `retries` of its own, here or on a cluster; Flyte says there how many it had.

    A search's `retries` do not multiply with them.
    """
    attempts = _ATTEMPTS_OF_FLYTE.findall(str(getattr(error, "message", "")))
    return getattr(error, _USED, False) or any(int(number) > 1 for number in attempts)


def _is_launch_plan(entity: Any) -> bool:
    return isinstance(entity, LaunchPlan) and not isinstance(entity, ReferenceEntity)


def _defaults(entity: Any) -> Mapping[str, Any]:
    """Return the inputs that have a default. Flyte's interface does not tell a default of None from none at all."""
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
    """Return the annotation that stands for an interface's outputs."""
    outputs = dict(interface.outputs)
    if not outputs:
        return None
    if interface.output_tuple_name or any(name != f"o{index}" for index, name in enumerate(outputs)):
        return NamedTuple(interface.output_tuple_name or "Outputs", list(outputs.items()))
    types = tuple(outputs.values())
    return types[0] if len(types) == 1 else tuple[types]  # type: ignore[valid-type]
