"""Finds whether flytekit refuses an argument that each trial of a search gets: then no trial can succeed."""

from collections.abc import Container, Mapping
from typing import Any

from flytekit.core.context_manager import FlyteContextManager
from flytekit.core.type_engine import TypeEngine

from optuna_flyte_dsl._foreign_errors import is_blob_store_outage
from optuna_flyte_dsl._text import shown, text_of
from optuna_flyte_dsl.errors import FixedArgumentError


def refused_argument(
    entity: Any, name: str, arguments: Mapping[str, Any], searched: Container[str], error: Exception
) -> FixedArgumentError | None:
    """Return the error of a fixed argument that flytekit cannot convert; `None` if it can convert all of them.

    The call blocks, and runs in a thread of its own.

    Args:
        entity: The task, workflow or launch plan.
        name: The name of the entity, for the error.
        searched: The names of the parameters whose values differ between trials.
        error: The error of a trial. The result is `None` if the conversion fails otherwise than in that trial.
    """
    interface, types = getattr(entity, "interface", None), getattr(entity, "python_interface", None)
    if interface is None or types is None:
        return None
    context = FlyteContextManager.current_context()
    for argument, value in arguments.items():
        if argument in searched or argument not in types.inputs:
            continue
        kind = types.inputs[argument]
        try:
            TypeEngine.to_literal(context, value, kind, interface.inputs[argument].type)
        except Exception as refusal:  # noqa: BLE001 - a transformer may raise anything
            is_passing = isinstance(refusal, OSError | MemoryError) or is_blob_store_outage(refusal)
            if is_passing or text_of(refusal) not in text_of(error):
                return None
            return FixedArgumentError(
                f"`{name}`: Flyte cannot convert the argument `{argument}` to {getattr(kind, '__name__', kind)}: it is "
                f"{shown(value, 80)}, of type {type(value).__name__}. Pass a value of the annotated type. Flyte says: "
                f"{shown(refusal)}"
            )
    return None
