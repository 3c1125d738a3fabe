"""Checks what a task returns before flytekit converts it: flytekit's error would not name the cure."""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

from flytekit.exceptions.user import FlyteUserRuntimeException
from optuna import TrialPruned

from optuna_flyte_dsl._compat.flytekit import task_function, with_task_function
from optuna_flyte_dsl.engines.remote_trial.handle import mark_pruned
from optuna_flyte_dsl.errors import ObjectiveValueError
from optuna_flyte_dsl.space.objective import TRIAL, Objective


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
    placeholder, which nobody reads. Flyte's cache never returns this placeholder for another trial, because the trial is
    part of the cache key.
    """

    def check(value: Any) -> None:
        if (wrong := objective.refusal(value)) is not None:
            # Raise it as an error of the user's code, because another attempt would raise the same.
            raise FlyteUserRuntimeException(wrong) from wrong

    checked = observing_outputs(task, check)
    function = task_function(task)
    if objective.takes_trial and callable(function):
        checked = with_task_function(checked, _marking_pruned(function, task.python_interface.outputs.values()))
    return checked


def _marking_pruned(function: Callable[..., Any], outputs: Iterable[Any]) -> Callable[..., Any]:
    """Wrap a task's function: where it raises `TrialPruned`, the wrapper marks the trial and returns NaN or 0."""
    kinds = tuple(outputs)
    values = tuple(0 if kind is int else math.nan for kind in kinds)
    stand_in = values if len(kinds) > 1 else values[0]

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(**inputs: Any) -> Any:
            try:
                return await function(**inputs)
            except TrialPruned:
                mark_pruned(inputs[TRIAL])
                return stand_in

        return awaited

    @functools.wraps(function)
    def called(**inputs: Any) -> Any:
        try:
            return function(**inputs)
        except TrialPruned:
            mark_pruned(inputs[TRIAL])
            return stand_in

    return called


def refusal_in(message: str) -> ObjectiveValueError | None:
    """Return the `ObjectiveValueError` that a failed execution's message contains; `None` if it contains none."""
    mark = f"{ObjectiveValueError.__name__}: "
    return ObjectiveValueError(message.rpartition(mark)[2].strip()) if mark in message else None
