"""Lets a task that raises `TrialPruned` succeed in Flyte, and marks the task's trial as pruned."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

from optuna import TrialPruned

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
