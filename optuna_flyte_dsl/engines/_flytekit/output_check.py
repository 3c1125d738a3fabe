"""Checks what a task returns before flytekit converts it: flytekit's error would not name the cure."""

import copy
from collections.abc import Callable
from typing import Any

from flytekit.exceptions.user import FlyteUserRuntimeException

from optuna_flyte_dsl._compat.flytekit import task_function, with_task_function
from optuna_flyte_dsl.engines._flytekit.pruned_task import marking_pruned
from optuna_flyte_dsl.errors import ObjectiveValueError
from optuna_flyte_dsl.space.objective import Objective


def observing_outputs(task: Any, observe: Callable[[Any], None]) -> Any:
    """Return a copy of a task that calls `observe` with each value that the task returns, before it is converted."""
    observed = copy.copy(task)

    def post_execute(params: Any, value: Any) -> Any:
        value = task.post_execute(params, value)
        observe(value)
        return value

    observed.post_execute = post_execute
    return observed


def checking_outputs(task: Any, objective: Objective) -> Any:
    """Return a copy of a task that fails, with the cure in its error, if it returns values that no study can take.

    If the task takes its trial and raises `TrialPruned`, the copy marks the trial as pruned and returns a
    placeholder, which nobody reads. Flyte's cache never returns the placeholder for another trial: the trial is part of
    the cache key.
    """

    def check(value: Any) -> None:
        if (wrong := objective.refusal(value)) is not None:
            # `wrong` is raised as a user error, which Flyte does not retry: another attempt would raise the same error.
            raise FlyteUserRuntimeException(wrong) from wrong

    checked = observing_outputs(task, check)
    function = task_function(task)
    if objective.takes_trial and callable(function):
        checked = with_task_function(checked, marking_pruned(function, task.python_interface.outputs.values()))
    return checked


def refusal_in(message: str) -> ObjectiveValueError | None:
    """Return the `ObjectiveValueError` that a failed execution's message contains; `None` if it contains none."""
    mark = f"{ObjectiveValueError.__name__}: "
    return ObjectiveValueError(message.rpartition(mark)[2].strip()) if mark in message else None
