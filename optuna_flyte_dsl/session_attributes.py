"""The methods and attributes of a search, which `Optimizer` and `Optimized` share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import optuna

from optuna_flyte_dsl._option_names import check_names
from optuna_flyte_dsl._run_sync import wait_for
from optuna_flyte_dsl._text import did_you_mean, nearest, shown
from optuna_flyte_dsl.errors import ArgumentError, InvalidOptionError
from optuna_flyte_dsl.options import Options
from optuna_flyte_dsl.session import Session, SpaceDescription
from optuna_flyte_dsl.space.annotations import listed
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study.best_trial import best_trial_of

if TYPE_CHECKING:
    from optuna_flyte_dsl.search_plan import Plan

P = ParamSpec("P")
S = TypeVar("S", bound="SessionAttributes")
T = TypeVar("T")


class _Assignable(Generic[T]):
    """An option of a session, as an attribute that can be assigned while no search runs."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: SessionAttributes | None, owner: type) -> T:
        if instance is None:  # an access on the class, not on an instance
            return self  # type: ignore[return-value]
        value: T = getattr(instance._session.options, self._name)
        return value

    def __set__(self, instance: SessionAttributes, value: T) -> None:
        instance._assigned_session.assign(self._name, value)


def no_attribute(name: str, attribute: str, kind: str, known: Sequence[str]) -> AttributeError:
    """Return the error of an attribute that neither a search nor its objective has, with the cure if that is known.

    Args:
        kind: What has no such attribute.
        known: The attributes that it has.
    """
    if hasattr(optuna.Study, attribute) and not attribute.startswith("_"):
        return AttributeError(
            f"`{name}` is a search, and `{attribute}` belongs to its study. Write `{name}.study.{attribute}`, or use "
            f"the study that `{name}.run_sync(...)` returns."
        )
    if attribute in ("run", "start", "search", "fit"):
        return AttributeError(f"`{name}` has no `{attribute}`. Write `{name}.run_sync(...)`, or `await {name}(...)`.")
    return AttributeError(f"{kind} has no attribute {attribute!r}.{did_you_mean(attribute, known)}")


def _takes_some_of(
    options: Callable[P, Options],
) -> Callable[[Callable[[S, Mapping[str, Any]], S]], Callable[Concatenate[S, P], S]]:
    """Give a method the parameters of an options dataclass, and call the method with those that a call gives."""

    def decorate(method: Callable[[S, Mapping[str, Any]], S]) -> Callable[Concatenate[S, P], S]:
        def with_options(self: S, /, *args: P.args, **kwargs: P.kwargs) -> S:
            check_names("with_options", kwargs, Options.__dataclass_fields__)
            return method(self, inspect.signature(options).bind_partial(*args, **kwargs).arguments)

        functools.update_wrapper(with_options, method)
        itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        signature = Options.signature()
        given = [each.replace(default=...) for each in signature.parameters.values()]
        with_options.__signature__ = signature.replace(parameters=[itself, *given])  # type: ignore[attr-defined]
        return with_options

    return decorate


class SessionAttributes:
    """The base class with the attributes that `Optimizer` and `Optimized` share."""

    __slots__ = ()  # a `__dict__` would hide the attributes of the object that a proxy wraps
    if TYPE_CHECKING:  # annotations would be found before those of the object that a proxy wraps
        n_trials: _Assignable[int]
        concurrency: _Assignable[int]
        delay: _Assignable[float]
    else:
        n_trials, concurrency, delay = _Assignable(), _Assignable(), _Assignable()

    @property
    def _session(self) -> Session:
        raise NotImplementedError

    @property
    def _assigned_session(self) -> Session:
        """The session whose options are assigned: `_session`, unless a test overrides that."""
        raise NotImplementedError

    def _start(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Coroutine[Any, Any, optuna.Study]:
        raise NotImplementedError

    @property
    def space(self) -> SearchSpace:
        """The search space that the objective's signature declares."""
        return self._session.objective.space

    def _with_session(self, session: Session) -> Self:
        raise NotImplementedError

    @_takes_some_of(Options)
    def with_options(self, options: Mapping[str, Any]) -> Self:
        """Return the same search with other options: `train.with_options(n_trials=20)(dataset="digits")`.

        Options that the call leaves out stay as they are. The parameters are those of `optimize`.

        Returns:
            A new object. The one on which `with_options` is called is not changed. An `Optimizer` that is returned has
            a new study, unless an option gives one.

        Raises:
            InvalidOptionError: If an option breaks its rule, or contradicts another option.
            DirectionError: If the number of objectives, or a direction, contradicts the study.
        """
        return self._with_session(self._session.with_options(options))

    def best(
        self,
        study: optuna.Study,
        /,
        fixed: Mapping[str, Any] | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        within: Mapping[str, float] | None = None,
        space: SpaceDescription | None = None,
    ) -> dict[str, Any]:
        """Return the keyword arguments of a study's best trial: `train.task(**train.best(study))` is the final run.

        Args:
            study: A study of this objective.
            fixed: Arguments that the search got and the signature does not have, such as `{"dataset": "digits"}`;
                suggestions too.
            weights: How much each objective counts, by its name, for a study with several objectives. The trial with
                the best weighted sum of values is chosen. An objective that is left out does not count.
            within: Bounds of objectives, by name. A trial is chosen only if each of these values is as good as its
                bound.
            space: The space that the search got by its argument `space`.

        Raises:
            NoBestTrialError: If no trial is complete, or none is within the bounds.
            InvalidOptionError: If the study has several objectives and none has a weight, if a name is wrong, or if the
                study is one of another objective.
            DirectionError: If the directions of the study are not those of the objective.
            ArgumentError: If an argument is missing.
        """
        objective = self._session.objective
        if objective.suggests_itself and not self.space:
            raise InvalidOptionError(
                f"`{objective.name}` samples by `trial`, so its arguments do not have the best values. Run it with "
                "`optuna.trial.FixedTrial(study.best_params)`."
            )
        if fixed is not None and not isinstance(fixed, Mapping):
            raise ArgumentError(
                f"`fixed` must be a dict of what the search got, as in `fixed={{'dataset': 'digits'}}`, but got "
                f"{shown(fixed)}."
            )
        params = best_trial_of(study, weights, within).params
        objective.directions_with(study.directions)
        bound = self._session.declared_space(space).bind(**(fixed or {}))
        others = [name for name in params if not bound.takes(name.partition(".")[0])]
        if others and not objective.takes_trial:
            raise InvalidOptionError(
                f"`best` takes a study of `{objective.name}`, but the trials of {study.study_name!r} have "
                f"{listed(others)}, which `{objective.name}` does not take. Give the study of this search."
            )
        # Without a missing argument, the conditions of the others cannot be told.
        active = bound.active_in(params) if not bound.missing else frozenset()
        unknown = bound.missing or tuple(name for name in bound if name in active and name not in params)
        if unknown:
            raise ArgumentError(
                f"`{objective.name}`: `best` does not know {listed(unknown)}, which the search got by the call. "
                f"Give what the search got, as in `fixed={{{unknown[0].split('.')[0]!r}: ...}}`."
            )
        return bound.fill(params)

    def plan(self, /, *args: Any, **kwargs: Any) -> Plan:
        """Return what a call would run, without running it: the space, the options, and what looks wrong.

        Args:
            *args: The positional arguments of the objective, as in `await train(...)`.
            **kwargs: The keyword arguments of the objective, as in `await train(...)`, and options of `optimize`, as in
                `train.with_options(...)`. A name that both have is the objective's.

        Raises:
            OptunaFlyteError: The error that the call would raise before it opens its storage.

        >>> from optuna_flyte_dsl import Float, optimize
        >>> @optimize(n_trials=100, concurrency=8)
        ... def train(lr: Float(1e-5, 1e-1), dataset: str = "wine") -> float: ...
        >>> print(train.plan(dataset="digits", n_trials=40).warnings[0])
        `lr`: Float(1e-05, 0.1) spans 4 powers of ten, and nine of ten points lie in the last one. Write \
`Float(1e-05, 0.1, log=True)`.
        """
        arguments, options = self._separate(kwargs)
        for name in arguments:
            near = nearest(name, Options.__dataclass_fields__)
            if near is not None and name != "space" and not self.space.takes(name):
                raise self.space.unknown_parameter(name, cure=f"the option `{near}` has a similar name")
        session = self._session.with_options(options) if options else self._session
        return session.plan(args, arguments)

    def _separate(self, kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the arguments of the objective among some arguments, and the options; see `plan`."""
        known = self.space.parameter_names or ()
        options = {
            name: each for name, each in kwargs.items() if name in Options.__dataclass_fields__ and name not in known
        }
        return {name: each for name, each in kwargs.items() if name not in options}, options

    def run_sync(self, /, *args: Any, **kwargs: Any) -> optuna.Study:
        """Run a search and wait for it, even where an event loop is running, as in a notebook.

        Args:
            *args: The positional arguments of the objective, as in `await train(...)`.
            **kwargs: The keyword arguments of the objective, as in `await train(...)`.

        Returns:
            The study of this call.
        """
        return wait_for(self._start(args, kwargs))
