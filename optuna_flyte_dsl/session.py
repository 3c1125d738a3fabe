"""`Session`: an objective with its options, and the study of its latest search."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import optuna
from optuna.storages import InMemoryStorage

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pending_search import PendingSearch
from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.engines.engine import Deployment, DeploymentOptions, Site
from optuna_flyte_dsl.engines.engine_choice import host_engine, in_pod, load_search
from optuna_flyte_dsl.errors import ArgumentError, InvalidOptionError, SearchRunningError
from optuna_flyte_dsl.options import Options
from optuna_flyte_dsl.space.objective import TRIAL, Objective
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study.opening import StudySource, check_study_options
from optuna_flyte_dsl.study.storages import check_choices, preload_database

if TYPE_CHECKING:
    from optuna_flyte_dsl.search_assembly import Call
    from optuna_flyte_dsl.search_plan import Plan

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
        if not in_pod():  # a pod may need neither a search nor the driver
            load_search()
            preload_database(options.storage)
        self.objective = objective
        self.options: Options = options
        self.deployment = deployment
        self._running = 0
        self._has_warned = False  # of a search of a single trial

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
        return Session(self.objective, self.options.replaced(**given), self.deployment)

    def assign(self, name: str, value: Any) -> None:
        """Assign one of `n_trials`, `concurrency` and `delay`."""
        if self._running:
            raise SearchRunningError(
                f"`{name}` of `{self.objective.name}` cannot be assigned while a search runs, which would ignore it. "
                "Assign it before the call, or await the search first."
            )
        options = self.options.replaced(**{name: value})
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
        options = self.options.replaced(study=study, sampler=None, seed=None)
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
        call = self.prepare(args, kwargs)
        if self.options.n_trials == 1 and "n_trials" not in self.options.given and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "`%s` runs a single trial, which is the default of `n_trials`. For a search, write "
                "`@optimize(n_trials=100)`.",
                self.objective.name,
            )

        async def search() -> optuna.Study:
            on_begin()
            return await self._search(source, call)

        return PendingSearch(search, self.objective.name)

    def prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Check the arguments of a call, and return what the call searches.

        Raises:
            ArgumentError: If the arguments do not fit the objective, or one is missing.
            InvalidOptionError: If the sampler needs a package that is not installed.
            EmptySpaceError: If nothing is left to search.
            OutOfRangeError: If a fixed value or an initial point lies outside its marker.
        """
        # Loaded late: a trial's pod does not need them.
        from optuna_flyte_dsl.sampling.sampler_packages import check_packages
        from optuna_flyte_dsl.search_assembly import Call, taken_points

        # Not checked at decoration: the image of a trial's pod may lack the packages.
        study = self.options.study
        check_packages(study.sampler if isinstance(study, optuna.Study) else self.options.sampler)
        space = self._space_of_call(args, kwargs)
        points = tuple(self.options.initial_points or ())
        if self.objective.suggests_itself:
            return Call(space, points, None)
        return Call(
            space,
            tuple(space.convert_point(point) for point in points),
            taken_points(self.options, self.objective, space),
        )

    def _space_of_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> SearchSpace:
        declared = self.objective.space
        if "space" in kwargs and not declared.declares("space"):
            kwargs = dict(kwargs)
            declared = self.declared_space(kwargs.pop("space"))
        for name in kwargs:
            if name == TRIAL and self.objective.takes_trial:
                raise ArgumentError(f"`{self.objective.name}`: the search itself gives `trial`. Leave it out.")
            if name in Options.__dataclass_fields__ and not declared.takes(name):
                cure = f"an option of one search is given as `{self.objective.name}.with_options({name}=...)(...)`"
                raise declared.unknown_parameter(name, cure=cure)
            if self.objective.suggests_itself and not declared.takes(name):
                cure = "what the function suggests by `trial` can be set for single trials by `initial_points`"
                raise declared.unknown_parameter(name, cure=cure)
        space = declared.bind(*args, **kwargs)
        if self.objective.suggests_itself:
            space.check_complete()
        else:
            space.check_ready()
        return space

    def plan(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Plan:
        """Return the plan of a call; see `SessionAttributes.plan`."""
        from optuna_flyte_dsl.search_plan import make_plan  # loaded late, as in `prepare`

        space = self.prepare(args, kwargs).space
        storage = self.options.storage
        if storage is not None and not isinstance(storage, InMemoryStorage):
            check_choices(space)
        if (site := self._current_site()) is not None:
            return make_plan(self.options, self.objective, space, "on the cluster of this pod", site.keeps_studies)
        cluster = "on the cluster of the given FlyteRemote" if self.deployment is not None else None
        return make_plan(self.options, self.objective, space, cluster)

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

    async def _search(self, source: StudySource, call: Call) -> optuna.Study:
        from optuna_flyte_dsl.search_assembly import Assembly  # loaded late, as in `prepare`

        cluster = self.options.cluster
        assert cluster is not None
        self._running += 1
        thread = Threads(limit=1)
        try:
            site = self._current_site()
            if self.deployment is not None:
                site = await thread.run(self.deployment.site, self.objective.target, cluster.patience)
            search = Assembly(self.options, self.objective, source, call, thread)
            if site is None:
                return await search.run_here()
            async with site.start_search(cluster, self._key(source, site, call.space), thread) as remote:
                return await search.run_remotely(remote)
        finally:
            self._running -= 1
            await thread.close()
