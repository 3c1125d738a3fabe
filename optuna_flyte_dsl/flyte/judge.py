"""Judges what a task returns: Flyte would only say that it cannot convert it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from flytekit.exceptions.user import FlyteUserRuntimeException

from optuna_flyte_dsl.errors import ObjectiveValueError
from optuna_flyte_dsl.objective import Objective


def watched(task: Any, look: Callable[[Any], None]) -> Any:
    """Return a task that shows what it returns before Flyte converts it.

    Args:
        task: The task; it stays as it is.
        look: Called with each value that it returns.
    """
    shown = copy.copy(task)

    def post_execute(params: Any, value: Any) -> Any:
        value = task.post_execute(params, value)
        look(value)
        return value

    shown.post_execute = post_execute
    return shown


def judged(task: Any, objective: Objective) -> Any:
    """Return a task that fails in its pod, with the cure, where what it returns is no value of its objective.

    Args:
        task: The task; it stays as it is.
        objective: What the task is to a search.
    """

    def judge(value: Any) -> None:
        if (wrong := objective.refusal(value)) is not None:
            # As an error of the user's code: another attempt would end in the same way.
            raise FlyteUserRuntimeException(wrong) from wrong

    return watched(task, judge)


def refusal_in(message: str) -> ObjectiveValueError | None:
    """Return the error of a task that no study can take, if it is what a failed execution's message holds."""
    mark = f"{ObjectiveValueError.__name__}: "
    return ObjectiveValueError(message.rpartition(mark)[2].strip()) if mark in message else None
