"""`Optimizer`: a search as an object."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

import optuna

from optuna_flyte_dsl._option_names import check_names
from optuna_flyte_dsl.engines.engine import DeploymentOptions
from optuna_flyte_dsl.engines.engine_choice import read_objective
from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.optimizer_arguments import OptimizerArguments
from optuna_flyte_dsl.options import Options
from optuna_flyte_dsl.session import Session
from optuna_flyte_dsl.session_attributes import SessionAttributes, no_attribute
from optuna_flyte_dsl.session_override import overridden, source_of
from optuna_flyte_dsl.space.markers import Category, Float, Integer, Number, Suggestion, suggest
from optuna_flyte_dsl.space.objective import Objective, undecorated
from optuna_flyte_dsl.study.opening import StudySource

__all__ = ["Category", "Float", "Integer", "Number", "Optimizer", "Suggestion", "suggest"]
# This module offers the markers and `optimize` too, because `flytekitplugins.optuna.optimizer` does.

_REQUIRED = ("objective", "concurrency", "n_trials")

S = TypeVar("S")
P = ParamSpec("P")


def _takes_arguments(
    arguments: Callable[P, OptimizerArguments],
) -> Callable[[Callable[[S, OptimizerArguments], None]], Callable[Concatenate[S, P], None]]:
    """Give a method the parameters of an options dataclass, and call the method with an instance."""

    def decorate(method: Callable[[S, OptimizerArguments], None]) -> Callable[Concatenate[S, P], None]:
        def init(self: S, /, *args: P.args, **kwargs: P.kwargs) -> None:
            check_names("Optimizer", kwargs, OptimizerArguments.__dataclass_fields__)
            fields = OptimizerArguments.__dataclass_fields__
            given = {*list(fields)[: len(args)], *kwargs}
            if missing := [name for name in _REQUIRED if name not in given]:
                raise InvalidOptionError(
                    f"`Optimizer` needs {' and '.join(f'`{name}`' for name in missing)}, as in "
                    "`Optimizer(objective, concurrency=4, n_trials=100)`."
                )
            method(self, arguments(*args, **kwargs))

        return functools.update_wrapper(init, method)

    return decorate


class Optimizer(SessionAttributes):
    """A search as an object: all its calls add trials to one study.

    Awaiting a call runs the search and returns the study. The study is made at first use.

    Args:
        objective: A Flyte task, workflow or launch plan; or a function, sync or async, that takes
            `trial: optuna.Trial` or has markers in its signature. A sync function runs in a thread. A function may
            return an awaitable, such as the call of an async task.
        {options}

    Raises:
        InvalidObjectiveError: If the objective is neither a Flyte entity nor such a function.
        InvalidOptionError: If an option breaks its rule, or contradicts another option.
        DirectionError: If the number of objectives, or a direction, contradicts the study.

    >>> import asyncio
    >>> def bowl(trial: optuna.Trial, center: float) -> float:
    ...     return (trial.suggest_float("x", -10, 10) - center) ** 2
    >>> optimizer = Optimizer(bowl, concurrency=2, n_trials=10, progress=False)
    >>> study = asyncio.run(optimizer(center=2.0))
    >>> len(study.trials)
    10
    """

    @_takes_arguments(OptimizerArguments)
    def __init__(self, arguments: OptimizerArguments) -> None:
        objective = read_objective(undecorated(arguments.objective))
        self._own_session = Session(objective, arguments)
        self._source = StudySource(arguments, objective)

    @property
    def _session(self) -> Session:
        return overridden(self._own_session)

    @property
    def _assigned_session(self) -> Session:
        return self._own_session

    @property
    def _current_source(self) -> StudySource:
        """The study of all calls. While tests override the options of searches, each such override has its own."""
        session = self._session
        if session is self._own_session:
            return self._source
        return source_of(session)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, optuna.Study]:
        """Run the search. Await the call.

        Args:
            *args: Positional arguments of the objective.
            **kwargs: Keyword arguments of the objective: fixed values, suggestions, or containers of suggestions.

        Returns:
            The study.
        """
        return self._start(args, kwargs)

    def _start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Coroutine[Any, Any, optuna.Study]:
        return self._session.search(self._current_source, args, kwargs)

    def on(self, remote: Any, **options: Unpack[DeploymentOptions]) -> Optimizer:
        """Return this search with its trials on a cluster; see `Optimized.on`.

        Args:
            remote: A `flytekit.remote.FlyteRemote`.
            **options: How the code of the search gets to the cluster.
        """
        moved = copy.copy(self)
        moved._own_session = self._session.on(remote, options)
        return moved

    def _with_session(self, session: Session) -> Self:
        other = copy.copy(self)
        other._own_session, other._source = session, StudySource(session.options, session.objective)
        return other

    @property
    def objective(self) -> Any:
        """The objective that was given to `Optimizer`."""
        return self._session.objective.target

    @property
    def study(self) -> optuna.Study:
        """The study of all calls. Another study can be assigned while no search runs."""
        return self._session.open_study(self._current_source)

    @study.setter
    def study(self, study: optuna.Study) -> None:
        self._source = self._own_session.assign_study(study)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not yet set, as while the object is copied
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise no_attribute(self._session.objective.name, name, f"{self!r}", dir(type(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy or pickle the objective and the options. The copy's study is a new one, unless an option gives it."""
        return _rebuild, (type(self), self._session.objective, self._session.options)

    def __copy__(self) -> Self:
        copied = self.__new__(type(self))
        vars(copied).update(vars(self))  # the copy adds its trials to the same study
        return copied

    def __repr__(self) -> str:
        return f"Optimizer({self._session.objective.name}, concurrency={self.concurrency}, n_trials={self.n_trials})"


def _rebuild(kind: type[Optimizer], objective: Objective, options: Options) -> Optimizer:
    optimizer = kind.__new__(kind)
    optimizer._own_session, optimizer._source = Session(objective, options), StudySource(options, objective)
    return optimizer


Optimizer.__doc__ = Options.fill_in(Optimizer.__doc__)
_self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
Optimizer.__init__.__signature__ = OptimizerArguments.signature(_self)  # type: ignore[attr-defined]


def __getattr__(name: str) -> Any:
    """Return `optimize`, which `flytekitplugins.optuna.optimizer` offers too.

    The module `decorator` is imported when `optimize` is first looked up.
    """
    if name == "optimize":
        return importlib.import_module("optuna_flyte_dsl.decorator").optimize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
