"""Judges what a task returns: Flyte would only say that it cannot convert it."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

from flytekit.exceptions.user import FlyteUserRuntimeException
from optuna import TrialPruned

from optuna_flyte_dsl.errors import ObjectiveValueError
from optuna_flyte_dsl.flyte.handles import mark_pruned
from optuna_flyte_dsl.objective import TRIAL, Objective


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

    One that takes its trial, and raises `TrialPruned`, does not fail: its trial is noted as pruned, and what it returns
    then is not looked at. Nor is it ever taken for another trial's, for the trial is in the key of Flyte's cache.

    Args:
        task: The task; it stays as it is.
        objective: What the task is to a search.
    """

    def judge(value: Any) -> None:
        if (wrong := objective.refusal(value)) is not None:
            # As an error of the user's code: another attempt would end in the same way.
            raise FlyteUserRuntimeException(wrong) from wrong

    shown = watched(task, judge)
    if objective.takes_trial and callable(getattr(task, "_task_function", None)):
        shown._task_function = _marking_pruned(task._task_function, task.python_interface.outputs.values())
    return shown


def _marking_pruned(function: Callable[..., Any], outputs: Iterable[Any]) -> Callable[..., Any]:
    """Return a task's function that marks its trial as pruned, and returns something, where it raises `TrialPruned`."""
    kinds = tuple(outputs)
    nothing = tuple(0 if kind is int else math.nan for kind in kinds)
    stand_in = nothing if len(kinds) > 1 else nothing[0]

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
    """Return the error of a task that no study can take, if it is what a failed execution's message holds."""
    mark = f"{ObjectiveValueError.__name__}: "
    return ObjectiveValueError(message.rpartition(mark)[2].strip()) if mark in message else None
