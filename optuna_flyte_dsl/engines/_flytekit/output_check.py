"""Checks what a task returns before flytekit converts it: flytekit's error would not name the cure."""

import copy
import types
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Union, get_args, get_origin

from flytekit.exceptions.user import FlyteUserRuntimeException

from optuna_flyte_dsl._compat.flytekit import task_function, with_task_function
from optuna_flyte_dsl.engines._flytekit.pruned_task import marking_pruned
from optuna_flyte_dsl.errors import ObjectiveValueError
from optuna_flyte_dsl.space.objective import Objective, as_declared


def observing_outputs(task: Any, observe: Callable[[Any], None]) -> Any:
    """Return a copy of a task that calls `observe` with what the task returns, before flytekit converts it.

    The copy takes each number in the type that the task declares for it: a scalar of numpy is a float.
    """
    observed = copy.copy(task)
    kinds = [_plain(kind) for kind in _output_types(task)]

    def post_execute(params: Any, value: Any) -> Any:
        value = as_declared(task.post_execute(params, value), kinds)
        observe(value)
        return value

    observed.post_execute = post_execute
    return observed


def _plain(kind: Any) -> Any:
    """Return a type without its metadata, and without the `None` beside it."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    members = [each for each in get_args(kind) if each is not type(None)]
    return _plain(members[0]) if get_origin(kind) in (Union, types.UnionType) and len(members) == 1 else kind


def _output_types(task: Any) -> Iterable[Any]:
    return task.python_interface.outputs.values()  # type: ignore[no-any-return]


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
        checked = with_task_function(checked, marking_pruned(function, _output_types(task)))
    return checked


def refusal_in(message: str) -> ObjectiveValueError | None:
    """Return the `ObjectiveValueError` that a failed execution's message contains; `None` if it contains none."""
    mark = f"{ObjectiveValueError.__name__}: "
    return ObjectiveValueError(message.rpartition(mark)[2].strip()) if mark in message else None
