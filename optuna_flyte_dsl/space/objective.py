"""An objective of any kind: its name, its search space, how it is run, and a check of the values that it returns."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, get_args

import optuna
from optuna.study import StudyDirection

from optuna_flyte_dsl._record import record
from optuna_flyte_dsl._text import counted, shown
from optuna_flyte_dsl.errors import InvalidObjectiveError, ObjectiveValueError
from optuna_flyte_dsl.space.annotations import names_marker
from optuna_flyte_dsl.space.directions import ReturnAnnotation, merge_directions, read_return_annotation
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.space.signatures import read_signature


def read_values(
    name: str, returned: Any, n_objectives: int, n_constraints: int = 0, fields: Sequence[str] | None = None
) -> tuple[float, ...]:
    """Convert what one run of an objective returned to its values: the values of objectives and of constraints.

    Args:
        n_objectives: The number of the study's directions.
        n_constraints: The number of constraints among the values.
        fields: The fields of the NamedTuple that the return annotation names, if it names one.
    """
    n_values = n_objectives + n_constraints
    if n_values == 1 and type(returned) is float:
        return (returned,)
    values = tuple(returned) if isinstance(returned, tuple | list) else (returned,)
    numbers = tuple(_number(value) for value in values)
    if None in numbers:
        raise ObjectiveValueError(
            f"`{name}` must return {'a number' if n_values == 1 else f'a tuple of {n_values} numbers'}, but it "
            f"returned {shown(returned)}, of type {type(returned).__name__}. Return a float for each objective."
        )
    its_fields = getattr(returned, "_fields", fields)
    if fields is not None and its_fields != fields:
        raise ObjectiveValueError(
            f"`{name}` returned {shown(returned)}, but its return annotation has the fields {', '.join(fields)}. "
            "Return the class of the annotation, so that each value is told to its objective."
        )
    if len(numbers) != n_values:
        constraints = f", and the annotation {counted(n_constraints, 'constraint')}" if n_constraints else ""
        raise ObjectiveValueError(
            f"`{name}` returned {counted(len(numbers), 'value')}, {shown(returned)}, but the study has "
            f"{counted(n_objectives, 'direction')}{constraints}. Return one value for each, or "
            "give as many directions."
        )
    return numbers  # type: ignore[return-value]


def as_declared(returned: Any, kinds: Sequence[Any]) -> Any:
    """Return what a task returned, with each number in the type that the task declares for it.

    Flyte takes neither an int nor a scalar of numpy or torch for a float. Any other value is returned unchanged.

    Args:
        kinds: The type of each output.
    """
    if len(kinds) == 1:
        return _as_declared(returned, kinds[0])
    if not isinstance(returned, tuple) or len(returned) != len(kinds):
        return returned
    values = tuple(map(_as_declared, returned, kinds))
    return type(returned)(*values) if hasattr(returned, "_fields") else values


def _as_declared(value: Any, kind: Any) -> Any:
    if getattr(value, "ndim", 0) or isinstance(value, tuple | list):
        return value
    if kind is int and isinstance(value, Integral):
        return int(value)
    number = _number(value) if kind is float else None
    return value if number is None else number


def task_refusal(name: str, returned: Any, n_objectives: int, *, refused_by_sdk: bool) -> ObjectiveValueError | None:
    """Return the error of a value that a task returned and that cannot be told to the study; `None` if it can be.

    Args:
        n_objectives: The number of values of the task's return annotation: of objectives and of constraints.
        refused_by_sdk: Whether the SDK has already refused the value. If the SDK has not refused the value, the SDK may
            accept an int for a float.
    """
    try:
        read_values(name, returned, n_objectives)
    except ObjectiveValueError as wrong:
        return wrong
    accepted = (float,) if refused_by_sdk else (float, int)
    if all(type(value) in accepted for value in (returned if n_objectives > 1 else (returned,))):
        return None
    several = isinstance(returned, tuple | list)
    described = ", ".join(
        f"{shown(value)}, of type {type(value).__name__}"
        for value in (returned if several and n_objectives > 1 else (returned,))
    )
    return ObjectiveValueError(
        f"`{name}` returned {described}, which Flyte does not accept for the return annotation. Write `float(...)` "
        "around the value."
    )


def _is_generator(function: Any) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _number(value: Any) -> float | None:
    if isinstance(value, str | bytes | bytearray | complex):  # of a numpy complex, `float` would take the real part
        return None
    try:
        return float(value)
    except Exception:  # noqa: BLE001 - an object's `__float__` may raise anything
        return None


TRIAL = "trial"
"""The name of the parameter by which an objective receives its `optuna.Trial`."""


class Kind(enum.Enum):
    """How an objective is run."""

    TASK = "a task, workflow or launch plan, by its engine"
    ASYNC_FUNCTION = "an async function"
    FUNCTION = "a sync function"


@record
class TaskDescription:
    """The name and the signature of a task, which its engine reads."""

    name: str
    signature: inspect.Signature


@record
class Objective:
    """The thing that a search minimizes or maximizes."""

    target: Any
    name: str
    kind: Kind
    takes_trial: bool  # whether the objective takes `trial`; for a task, only with the type `optuna.Trial`
    space: SearchSpace
    returns: ReturnAnnotation

    def call_arguments(self, arguments: Mapping[str, Any], trial: Any) -> Mapping[str, Any]:
        """Return the keyword arguments of a call: those of a trial, and the trial itself if `target` takes it."""
        return {**arguments, TRIAL: trial} if self.takes_trial else arguments

    @classmethod
    def of(cls, target: Any, task: TaskDescription | None = None) -> Objective:
        """Read the name, the kind, the search space and the return annotation of a task or function."""
        if task is not None:
            name, signature, kind = task.name, task.signature, Kind.TASK
            takes_trial = TRIAL in signature.parameters and is_trial(signature.parameters[TRIAL].annotation)
        elif callable(target) and not isinstance(target, type):
            function = target
            while isinstance(function, functools.partial):
                function = function.func
            name, signature = getattr(function, "__name__", type(function).__name__), read_signature(target)
            is_async = any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))
            kind = Kind.ASYNC_FUNCTION if is_async else Kind.FUNCTION
            takes_trial = TRIAL in signature.parameters
            if takes_trial and _is_no_trial(signature.parameters[TRIAL].annotation):
                raise InvalidObjectiveError(
                    f"`{name}`: the parameter `trial` gets the `optuna.Trial`, but its annotation is "
                    f"{shown(signature.parameters[TRIAL].annotation)}. Give the parameter another name."
                )
            if any(map(_is_generator, (function, type(function).__call__))):
                raise InvalidObjectiveError(
                    f"`{name}` must return its value, but it is a generator. Write `return` instead of `yield`; to "
                    "report a value on the way, take `trial: optuna.Trial` and call `trial.report(value, step)`."
                )
        else:
            raise InvalidObjectiveError(
                f"`objective` must be a Flyte task, workflow or launch plan, or a function, but got {shown(target)}. "
                "Put `@optimize` over `@fl.task`, or over a function. Options have names: `@optimize(n_trials=20)`."
            )
        for parameter in signature.parameters.values():
            if task is not None and any(map(is_trial, get_args(parameter.annotation))):
                raise InvalidObjectiveError(
                    f"`{name}`: a task's trial must have the type `optuna.Trial`, but the annotation of "
                    f"`{parameter.name}` is {parameter.annotation}. Write `trial: optuna.Trial`. A plain call takes "
                    "an `optuna.trial.FixedTrial`."
                )
            if parameter.name != TRIAL and is_trial(parameter.annotation):
                raise InvalidObjectiveError(
                    f"`{name}`: the trial must be the parameter `trial`, but it is called `{parameter.name}`. Write "
                    "`trial: optuna.Trial`."
                )
        space = SearchSpace.from_signature(
            signature, name=name, ignore=frozenset({TRIAL}) if takes_trial else frozenset(), strict=kind is Kind.TASK
        )
        if kind is not Kind.TASK and not takes_trial and not space:
            cure = "lambda trial: ..." if name == "<lambda>" else f"def {name}(trial: optuna.Trial)"
            raise InvalidObjectiveError(
                f"`{name}` must have a parameter called `trial`, or a marker in its signature, but it has "
                f"{', '.join(f'`{parameter}`' for parameter in signature.parameters) or 'no parameters'}. Write "
                f"`{cure}`, or mark a parameter of a function, as in `x: Float(0, 1)`."
            )
        returns = read_return_annotation(name, signature.return_annotation, strict=kind is Kind.TASK)
        return cls(target, name, kind, takes_trial, space, returns)

    @property
    def suggests_itself(self) -> bool:
        """Whether the objective calls `trial.suggest_...` itself, so that its space is not known before it runs."""
        return self.takes_trial and self.kind is not Kind.TASK

    def directions_with(self, given: Sequence[StudyDirection] | None) -> tuple[StudyDirection, ...] | None:
        """Return the directions of a search from the annotation and from options or a study; see `merge_directions`."""
        return merge_directions(self.name, self.returns.directions, given)

    def refusal(self, returned: Any, *, refused_by_sdk: bool = False) -> Exception | None:
        """Return the error for a value that a task returned against its return annotation; see `task_refusal`."""
        if self.returns.n_values is None:
            return None
        return task_refusal(self.name, returned, self.returns.n_values, refused_by_sdk=refused_by_sdk)


def is_trial(annotation: Any) -> bool:
    """Return whether an annotation is the class of an Optuna trial."""
    return isinstance(annotation, type) and issubclass(annotation, optuna.trial.BaseTrial)


def _is_no_trial(annotation: Any) -> bool:
    """Return whether a parameter `trial` with this annotation is to get something else than a trial."""
    is_value = isinstance(annotation, type) and issubclass(annotation, int | float | str | bytes | list | dict | tuple)
    return is_value or names_marker(annotation)


def undecorated(thing: Any) -> Any:
    """Return the task or function under `@optimize`; return anything else as it is."""
    return getattr(thing, "__optuna_flyte_objective__", thing)
