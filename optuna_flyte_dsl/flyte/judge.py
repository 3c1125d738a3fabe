"""Judges in its pod what a task returns: Flyte would only say that it cannot convert it."""

from __future__ import annotations

import copy
from typing import Any

from flytekit.exceptions.user import FlyteUserRuntimeException

from optuna_flyte_dsl.errors import ObjectiveValueError
from optuna_flyte_dsl.objective import Objective


def judged(task: Any, objective: Objective) -> Any:
    """Return a task that fails, with the cure, where what it returns is no value of its objective.

    Args:
        task: The task; it stays as it is.
        objective: What the task is to a search.
    """
    task, plain = copy.copy(task), task

    def post_execute(params: Any, value: Any) -> Any:
        value = plain.post_execute(params, value)
        if (wrong := objective.refusal(value)) is not None:
            # As an error of the user's code: another attempt would end in the same way.
            raise FlyteUserRuntimeException(wrong) from wrong
        return value

    task.post_execute = post_execute
    return task


def refusal_in(message: str) -> ObjectiveValueError | None:
    """Return the error of a task that no study can take, if it is what a failed execution's message holds."""
    mark = f"{ObjectiveValueError.__name__}: "
    return ObjectiveValueError(message.rpartition(mark)[2].strip()) if mark in message else None
