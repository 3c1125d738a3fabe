"""`@optimize`, and the proxy that it puts over a task or a function."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, Unpack, overload

import optuna

from optuna_flyte_dsl._option_names import check_names
from optuna_flyte_dsl._proxy import Proxy
from optuna_flyte_dsl._text import did_you_mean
from optuna_flyte_dsl.engines.engine import DeploymentOptions
from optuna_flyte_dsl.engines.engine_choice import engine_of, host_engine, read_objective
from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.options import Options
from optuna_flyte_dsl.session import Session
from optuna_flyte_dsl.session_attributes import SessionAttributes, no_attribute
from optuna_flyte_dsl.session_override import overridden
from optuna_flyte_dsl.space.objective import Objective, undecorated
from optuna_flyte_dsl.study.opening import StudySource, pruner_in_pod

if TYPE_CHECKING:  # checkers only: what `@fl.task` returns is a function or a task
    from flytekit.core.python_function_task import PythonFunctionTask

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")


class _Annotations(dict[str, Any]):
    """The annotations of a proxy.

    The class of the proxy has no annotations; an instance shows the annotations of the wrapped objective.
    """

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else getattr(instance.__wrapped__, "__annotations__", {})

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__wrapped__.__annotations__ = value


class Optimized(SessionAttributes, Proxy, Generic[Q, R]):
    """A task or function under `@optimize`: in everything but its call, it is the task or function itself.

    A decorated task is an instance of the task's class. A decorated task has the task's name, signature and docstring.
    A trial's pod can load a decorated task, and `map_task` and `create_node` accept it as the task. Awaiting the call
    of a decorated task runs a search.

    Attributes:
        task: The task or function. `train.task(...)` runs the task or function once, without a search.
        space: The search space that the signature declares.
        study: The study of the latest call.
        n_trials: The number of trials that a call runs. `n_trials` can be assigned while no search runs.
        concurrency: The largest number of trials that run at the same time. Assignable while no search runs.
        delay: The least time between the starts of two trials, in seconds. Assignable while no search runs.
    """

    def __init__(self, wrapped: Any, session: Session) -> None:
        super().__init__(wrapped)
        self._self_session = session
        # A study belongs to a session, because tests may override the session.
        self._self_latest: tuple[Session, StudySource] | None = None
        self._self_prepared: tuple[Session, StudySource] | None = None  # for the next call
        engine = engine_of(wrapped)
        self._self_pod_methods: Mapping[str, Callable[..., Any]] = (
            engine.pod_methods(wrapped, session.objective, lambda: pruner_in_pod(session.options)) if engine else {}
        )

    @property
    def _session(self) -> Session:
        return overridden(self._self_session)

    @property
    def _assigned_session(self) -> Session:
        return self._self_session

    def __call__(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, optuna.Study]:
        """Run a search. Await the call.

        Args:
            *args: Positional arguments of the objective.
            **kwargs: Keyword arguments of the objective: fixed values, suggestions, or containers of suggestions. And
                `space`, if the signature has no parameter of this name: a `SearchSpace`, what `space.to_dict()` has
                returned, or the path of a YAML or JSON file. It says what the parameters are that it names, in place of
                the signature.

        Returns:
            A coroutine that returns the study of this call. A call by flytekit's `create_node` returns the promises of
            a node. A call by `pyflyte run file.py train ...`, which gives every parameter a value, returns the outputs
            of the task.

        Raises:
            CompilationError: In the body of a plain workflow, which cannot wait for a search.
            InvalidObjectiveError: If `@fl.task` is above `@optimize`.
            ArgumentError: If the arguments do not fit the objective.
            OutOfRangeError: If a fixed value lies outside its marker.
            EmptySpaceError: If nothing is left to search.
            InvalidSpaceError: If `space` does not describe a space of the objective.
        """
        engine = host_engine(self.__wrapped__)
        if engine is not None:
            result = engine.call(self.__wrapped__, self._session.objective.name, kwargs)
            if result is not NotImplemented:
                return result  # type: ignore[no-any-return]
        return self._start(args, kwargs)

    def _start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Coroutine[Any, Any, optuna.Study]:
        session = self._session
        source = self._self_of_session(self._self_prepared) or StudySource(session.options, session.objective)

        def begin() -> None:
            self._self_latest = session, source

        search = session.search(source, args, kwargs, begin)
        self._self_prepared = None
        return search

    def _self_of_session(self, known: tuple[Session, StudySource] | None) -> StudySource | None:
        session, source = known or (None, None)
        return source if session is self._session else None

    def on(self, remote: Any, **options: Unpack[DeploymentOptions]) -> Optimized[Q, R]:
        """Return the same objective with its trials on a cluster, searched from this machine.

        The search runs in this process, and each call of a task is an execution on the cluster. The code is packaged
        and registered as `pyflyte run --remote` does it. Cancelling the search, or Ctrl-C, terminates its executions.

        Args:
            remote: A `flytekit.remote.FlyteRemote`, with the project and domain of all executions.
            **options: How the code gets to the cluster. `version`: the version with which tasks are registered; by
                default a hash of the code. `image_config`: the images of the containers. `source`: the folder that is
                packaged; by default the root of the objective's package. `destination`: the folder in which a pod
                unpacks the code. `copy_all`: whether all files are packaged, instead of the loaded modules only.

        Returns:
            A new objective. The objective on which `on` is called is not changed.

        Raises:
            InvalidOptionError: If `remote` is not a FlyteRemote with a default project and domain.
        """
        return self._with_session(self._session.on(remote, options))

    def _with_session(self, session: Session) -> Optimized[Q, R]:
        return Optimized(self.__wrapped__, session)

    @property
    def task(self) -> Callable[Q, R]:
        """The task or function. A call of `train.task` runs the objective once, without a search."""
        return self.__wrapped__  # type: ignore[no-any-return]

    @property
    def objective(self) -> Callable[Q, R]:
        """The task or function; the same as `task`, under the attribute name that `Optimizer` uses."""
        return self.task

    @property
    def __optuna_flyte_objective__(self) -> Callable[Q, R]:
        return self.task

    @property
    def study(self) -> optuna.Study:
        """The study of the latest call; before the first call, the study that the first call will use."""
        session = self._session
        source = self._self_of_session(self._self_latest) or self._self_of_session(self._self_prepared)
        if source is None:
            source = StudySource(session.options, session.objective)
            self._self_prepared = session, source
        return session.open_study(source)

    @study.setter
    def study(self, study: optuna.Study) -> None:
        session = self._self_session
        self._self_latest = session, session.assign_study(study)
        self._self_prepared = None

    def __getattr__(self, name: str) -> Any:
        # Called for names that this class does not have.
        methods = {} if name.startswith("_self_") else self._self_pod_methods
        if name in methods:
            return methods[name]
        try:
            return getattr(self.__wrapped__, name)
        except AttributeError:
            if name.startswith("_"):
                raise
            if (engine := host_engine(self.__wrapped__)) is not None:
                engine.check_attribute(self._session.objective.name, name)
            raise no_attribute(self._session.objective.name, name, f"{self!r}", dir(type(self))) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name.startswith("_") or hasattr(type(self), name) or hasattr(self.__wrapped__, name)):
            objective, options = self._session.objective.name, Options.__dataclass_fields__
            cure = f" Write `{objective}.with_options({name}=...)`." if name in options else did_you_mean(name, options)
            raise InvalidOptionError(
                f"`{name}` cannot be assigned to `{objective}`: only `n_trials`, `concurrency` and `delay` can.{cure}"
            )
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*dir(self.__wrapped__), *dir(type(self))})

    def __str__(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        return f"<search over {self._session.objective.name}>"

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        # If the proxy claimed to be a function, cloudpickle would pickle the wrapped function in its place.
        wrapped: type = type(self.__wrapped__)
        return Optimized if issubclass(wrapped, types.FunctionType) else wrapped

    def __copy__(self) -> Optimized[Q, R]:
        return _rebuild(self.__wrapped__, self._session.objective, self._session.options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimized[Q, R]:
        return self.__copy__()

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        if isinstance(self.__wrapped__, types.FunctionType):
            module, name = self.__wrapped__.__module__, self.__wrapped__.__qualname__
            if module != "__main__" and getattr(sys.modules.get(module), name, None) is self:
                return name  # pickle it by reference, as functions are pickled
        return _rebuild, (self.__wrapped__, self._session.objective, self._session.options)

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self.__reduce_ex__(2)


Optimized.__annotations__ = _Annotations()


def _rebuild(wrapped: Any, objective: Objective, options: Options) -> Optimized[Any, Any]:
    return Optimized(wrapped, Session(objective, options))


class Decorator(Protocol):
    """The type of what `@optimize(...)` returns: a decorator of a task or a function."""

    def __call__(self, objective: Callable[Q, R] | PythonFunctionTask[Any], /) -> Optimized[Q, R]:
        """Return the decorated objective."""
        ...


class _Optimize(Protocol[P]):
    """`optimize`, to type checkers: bare, called with options, or called with an objective and options."""

    @overload
    def __call__(self, objective: None = None, *args: P.args, **kwargs: P.kwargs) -> Decorator: ...
    @overload
    def __call__(
        self, objective: Callable[Q, R] | PythonFunctionTask[Any], *args: P.args, **kwargs: P.kwargs
    ) -> Optimized[Q, R]: ...


def _takes_options(options: Callable[P, Options]) -> Callable[[Callable[[Any, Options], Any]], _Optimize[P]]:
    """Give a function the parameters of an options dataclass, and call the function with an instance."""

    def decorate(function: Callable[[Any, Options], Any]) -> _Optimize[P]:
        def optimize(objective: Any = None, *args: P.args, **kwargs: P.kwargs) -> Any:
            check_names("optimize", kwargs, Options.__dataclass_fields__)
            given = options(*args, **kwargs)
            return (lambda decorated: function(decorated, given)) if objective is None else function(objective, given)

        optimize.__doc__ = Options.fill_in(function.__doc__)
        optimize.__module__, optimize.__qualname__ = function.__module__, function.__qualname__
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        objective = inspect.Parameter("objective", kind, default=None, annotation=Any)
        optimize.__signature__ = Options.signature(objective)  # type: ignore[attr-defined]
        return optimize

    return decorate


@_takes_options(Options)
def optimize(objective: Any, options: Options) -> Any:
    """Turn the call of a task or function into a search.

    Write `@optimize`, or `@optimize(n_trials=100)` with options, over `@fl.task` or over a function. Each
    awaited call is a search with a new study, unless `study` or `study_name` says otherwise.

    Args:
        objective: The decorated task or function; see `Optimizer`.
        {options}

    Returns:
        The decorated objective, or a decorator.

    Raises:
        InvalidObjectiveError: If the decorated object cannot be an objective.
        InvalidOptionError: If an option breaks its rule, or contradicts another option.
        DirectionError: If the number of objectives, or a direction, contradicts the study.

    >>> import asyncio
    >>> from optuna_flyte_dsl import Float, Maximize
    >>> @optimize(concurrency=2, n_trials=10, progress=False)
    ... async def hill(x: Float(-10, 10), top: float = 3.0) -> Maximize:
    ...     return -((x - top) ** 2)
    >>> study = asyncio.run(hill(top=1.0))
    >>> len(study.trials), study.direction.name
    (10, 'MAXIMIZE')
    """
    target = undecorated(objective)
    engine = engine_of(target)
    if engine is not None:
        engine.prepare(target)
    return Optimized(target, Session(read_objective(target), options))
