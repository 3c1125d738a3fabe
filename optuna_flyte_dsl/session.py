"""`Session`: an objective with its options, and the study of its latest search."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeAlias, TypeVar

import optuna

from optuna_flyte_dsl._option_names import check_names
from optuna_flyte_dsl._pending_search import PendingSearch
from optuna_flyte_dsl._run_sync import wait_for
from optuna_flyte_dsl._text import did_you_mean, shown
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.engines.engine import Deployment, DeploymentOptions, Site
from optuna_flyte_dsl.engines.engine_choice import host_engine, in_pod
from optuna_flyte_dsl.errors import ArgumentError, InvalidOptionError, SearchRunningError
from optuna_flyte_dsl.options import Options
from optuna_flyte_dsl.search_assembly import Assembly, taken_points
from optuna_flyte_dsl.space.annotations import listed
from optuna_flyte_dsl.space.objective import TRIAL, Objective
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study.best_trial import best_trial_of
from optuna_flyte_dsl.study.opening import StudySource, check_study_options
from optuna_flyte_dsl.study.storages import preload_database
from optuna_flyte_dsl.study.taken_points import TakenPoints

P = ParamSpec("P")
S = TypeVar("S", bound="SessionAttributes")
T = TypeVar("T")
SpaceDescription: TypeAlias = SearchSpace | Mapping[str, Any] | str | os.PathLike[str]
_PLAIN_TYPES = (type(None), bool, int, float, str)


class Session:
    """The options of an objective's searches, and the number of searches that are running.

    Args:
        deployment: The way to a cluster from this machine; `None` if trials run where the search is called.
    """

    def __init__(self, objective: Objective, options: Options, deployment: Deployment | None = None) -> None:
        check_study_options(options, objective)
        options.check_objective(objective)
        if not in_pod():  # a pod may not need the driver
            preload_database(options.storage)
        self.objective = objective
        self.options: Options = options
        self.deployment = deployment
        self._running = 0

    def on(self, remote: Any, options: DeploymentOptions) -> Session:
        """Return a session with the same objective and options, whose trials run on a cluster."""
        engine = host_engine(self.objective.target)
        if engine is None:
            raise InvalidOptionError(
                f"`on` takes a FlyteRemote, but got {shown(remote)}. Write `on(FlyteRemote.auto(default_project=..., "
                "default_domain=...))`."
            )
        return Session(self.objective, self.options, engine.deploy(remote, options))

    def with_options(self, given: Mapping[str, Any]) -> Session:
        """Return a session with the same objective and other options. Options that are not given stay as they are."""
        return Session(self.objective, dataclasses.replace(self.options, **given), self.deployment)

    def assign(self, name: str, value: Any) -> None:
        """Assign one of `n_trials`, `concurrency` and `delay`."""
        if self._running:
            raise SearchRunningError(
                f"`{name}` of `{self.objective.name}` cannot be assigned while a search runs, which would ignore it. "
                "Assign it before the call, or await the search first."
            )
        options = dataclasses.replace(self.options, **{name: value})
        options.check_objective(self.objective)
        self.options = options

    def assign_study(self, study: optuna.Study) -> StudySource:
        """Use another study for all calls from now on."""
        if self._running:
            raise SearchRunningError(
                f"`study` of `{self.objective.name}` cannot be assigned while a search runs, which uses its study. "
                "Await the search first."
            )
        if not isinstance(study, optuna.Study):
            raise InvalidOptionError(f"`study` must be an optuna.Study, but got {shown(study)}.")
        options = dataclasses.replace(self.options, study=study, sampler=None, seed=None)
        check_study_options(options, self.objective)
        self.options = options
        return StudySource(options, self.objective)

    def search(
        self,
        source: StudySource,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        on_begin: Callable[[], None] = lambda: None,
    ) -> Coroutine[Any, Any, optuna.Study]:
        """Check the arguments of a call, and return the search as a coroutine.

        Args:
            on_begin: Called when the coroutine begins to run. A coroutine that is not awaited never begins.
        """
        engine = host_engine(self.objective.target)
        if engine is not None:
            engine.check_place(self.objective.name)
        declared = self.objective.space
        if "space" in kwargs and not declared.takes("space"):
            kwargs = dict(kwargs)
            declared = self.declared_space(kwargs.pop("space"))
        for name in kwargs:
            if name == TRIAL and self.objective.takes_trial:
                raise ArgumentError(f"`{self.objective.name}`: the search itself gives `trial`. Leave it out.")
            if name in Options.__dataclass_fields__ and not self.objective.space.takes(name):
                cure = f"an option of one search is given as `{self.objective.name}.with_options({name}=...)(...)`"
                raise self.objective.space.unknown_parameter(name, cure=cure)
            if self.objective.suggests_itself and not self.objective.space.takes(name):
                cure = "what the function suggests by `trial` can be set for single trials by `initial_points`"
                raise self.objective.space.unknown_parameter(name, cure=cure)
        space = declared.bind(*args, **kwargs)
        points = tuple(self.options.initial_points or ())
        if self.objective.suggests_itself:
            space.check_complete()
        else:
            space.check_ready()
        taken = None if self.objective.suggests_itself else taken_points(self.options, self.objective, space)
        if not self.objective.suggests_itself:
            points = tuple(space.convert_point(point) for point in points)

        async def search() -> optuna.Study:
            on_begin()
            return await self._search(source, space, points, taken)

        return PendingSearch(search(), self.objective.name)

    def declared_space(self, given: SpaceDescription | None) -> SearchSpace:
        """Return the space that the signature declares, with what a call's `space` declares otherwise.

        Raises:
            InvalidSpaceError: If `given` does not describe a space of this objective.
            InvalidOptionError: If the objective samples by itself, or `given` is no space.
        """
        space = self.objective.space
        if given is None:
            return space
        if self.objective.suggests_itself:
            raise InvalidOptionError(
                f"`{self.objective.name}` samples by `trial`, so that `space` cannot say what is searched. Mark its "
                "parameters in the signature, as in `x: Float(0, 1)`."
            )
        if isinstance(given, SearchSpace):
            return given.of_objective(space)
        if isinstance(given, str | os.PathLike):
            return SearchSpace.load(given, space)
        if isinstance(given, Mapping):
            return SearchSpace.from_dict(given, space)
        raise InvalidOptionError(
            f"`space` must be a SearchSpace, a dict, or the path of a YAML or JSON file, but got {shown(given)}."
        )

    def open_study(self, source: StudySource) -> optuna.Study:
        """Return the study of a `StudySource`.

        If a search would keep the study in Flyte's checkpoint, `open_study` opens the study in the checkpoint too.
        """
        site = self._current_site() if self.deployment is None else None
        if site is None or not site.keeps_studies or source.is_given:
            return source.get()
        return source.get(functools.partial(site.open_storage, self._key(source, site, self.objective.space)))

    def _current_site(self) -> Site | None:
        engine = host_engine(self.objective.target)
        return engine.current_site() if engine is not None else None

    def _key(self, source: StudySource, site: Site, space: SearchSpace) -> str:
        """Return a key for this search's study that is stable across pod attempts."""
        if source.key is None:
            fixed = {name: value for name, value in space.arguments.items() if isinstance(value, _PLAIN_TYPES)}
            source.key = site.key(f"{self.objective.name}{dict(space)!r}{fixed!r}")
        return source.key

    async def _search(
        self, source: StudySource, space: SearchSpace, points: tuple[Mapping[str, Any], ...], taken: TakenPoints | None
    ) -> optuna.Study:
        cluster = self.options.cluster
        assert cluster is not None
        self._running += 1
        thread = Threads(limit=1)
        try:
            site = self._current_site()
            if self.deployment is not None:
                site = await thread.run(self.deployment.site, self.objective.target, cluster.patience)
            search = Assembly(self.options, self.objective, source, space, points, taken, thread)
            if site is None:
                return await search.run_here()
            async with site.start_search(cluster, self._key(source, site, space), thread) as remote:
                return await search.run_remotely(remote)
        finally:
            self._running -= 1
            await thread.close()


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
        instance._session.assign(self._name, value)


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
            InvalidOptionError: If the study has several objectives and none has a weight, or if a name is wrong.
            ArgumentError: If an argument is missing.
        """
        objective = self._session.objective
        if objective.suggests_itself and not self.space:
            raise InvalidOptionError(
                f"`{objective.name}` samples by `trial`, so its arguments do not have the best values. Run it with "
                "`optuna.trial.FixedTrial(study.best_params)`."
            )
        bound = self._session.declared_space(space).bind(**(fixed or {}))
        bound.check_complete()
        params = best_trial_of(study, weights, within).params
        active = bound.active_in(params)
        if missing := [name for name in bound if name in active and name not in params]:
            raise ArgumentError(
                f"`{objective.name}`: the best trial has no value for {listed(missing)}: its search got it by the "
                f"call. Give what the search got, as in `fixed={{{missing[0].split('.')[0]!r}: ...}}`."
            )
        return bound.fill(params)

    def run_sync(self, /, *args: Any, **kwargs: Any) -> optuna.Study:
        """Run a search and wait for it, even where an event loop is running, as in a notebook.

        Args:
            *args: The positional arguments of the objective, as in `await train(...)`.
            **kwargs: The keyword arguments of the objective, as in `await train(...)`.

        Returns:
            The study of this call.
        """
        return wait_for(self._start(args, kwargs))
