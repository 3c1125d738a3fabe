"""Lets a task that raises `TrialPruned` succeed in Flyte, and marks the task's trial as pruned."""

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

from optuna import TrialPruned
from optuna.trial import BaseTrial

from optuna_flyte_dsl.engines.remote_trial.handle import mark_pruned
from optuna_flyte_dsl.space.objective import TRIAL


def marking_pruned(function: Callable[..., Any], outputs: Iterable[Any]) -> Callable[..., Any]:
    """Wrap a task's function: on `TrialPruned`, the wrapper marks the trial as pruned and returns NaN or 0."""
    kinds = tuple(outputs)
    values = tuple(0 if kind is int else math.nan for kind in kinds)
    stand_in = values if len(kinds) > 1 else values[0]

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(**inputs: Any) -> Any:
            try:
                value = await function(**inputs)
            except TrialPruned:
                _mark(inputs[TRIAL])
                return stand_in
            _remove_mark(inputs[TRIAL])
            return value

        return awaited

    @functools.wraps(function)
    def called(**inputs: Any) -> Any:
        try:
            value = function(**inputs)
        except TrialPruned:
            _mark(inputs[TRIAL])
            return stand_in
        _remove_mark(inputs[TRIAL])
        return value

    return called


def _mark(trial: BaseTrial) -> None:
    mark_pruned(trial, os.environ.get("FLYTE_INTERNAL_EXECUTION_ID", ""))


def _remove_mark(trial: BaseTrial) -> None:
    """Remove the mark of an earlier attempt of this execution, whose pod may have died after it set the mark."""
    if os.environ.get("FLYTE_ATTEMPT_NUMBER", "0") != "0":
        mark_pruned(trial, "")
