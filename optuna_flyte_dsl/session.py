"""Assembles each search of an objective from its parts: the study, the runner, the loop, the progress display."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import optuna

from optuna_flyte_dsl._compat.optuna import storage_of
from optuna_flyte_dsl._pending_search import PendingSearch
from optuna_flyte_dsl._run_sync import wait_for
from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl._threads import Threads, finish
from optuna_flyte_dsl.engines.engine import Deployment, DeploymentOptions, RemoteSearch, Site, host_engine
from optuna_flyte_dsl.engines.functions import FunctionRunner
from optuna_flyte_dsl.errors import InvalidOptionError, SearchRunningError, StorageUnavailableError
from optuna_flyte_dsl.options import Options
from optuna_flyte_dsl.search.loop import SearchLoop
from optuna_flyte_dsl.search.progress import Reporter, Tally
from optuna_flyte_dsl.search.runner import Runner
from optuna_flyte_dsl.search.trials import AskTell
from optuna_flyte_dsl.space.objective import Objective
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study import resuming
from optuna_flyte_dsl.study.durable import DurableStorage
from optuna_flyte_dsl.study.liveness import Owner
from optuna_flyte_dsl.study.opening import StudySource, check_study_options, make_sampler, wait_until_open
from optuna_flyte_dsl.study.storages import is_kept, preload_database
from optuna_flyte_dsl.study.taken_points import TakenPoints
from optuna_flyte_dsl.study.view import view_of

T = TypeVar("T")
_PLAIN_TYPES = (type(None), bool, int, float, str)


class Session:
    """The options of an objective's searches, and the number of searches that are running.

    Args:
        deployment: The way to a cluster from this machine; `None` if trials run where the search is called.
    """

    def __init__(self, objective: Objective, options: Options, deployment: Deployment | None = None) -> None:
        check_study_options(options, objective)
        options.check_objective(objective)
        preload_database(options.storage)
        self.objective = objective
        self.options: Options = options
        self.deployment = deployment
        self._running = 0

    def on(self, remote: Any, options: DeploymentOptions) -> Session:
        """Return the session of the same searches with their trials on a cluster."""
        engine = host_engine(self.objective.target)
        if engine is None:
            raise InvalidOptionError(
                f"`on` takes a FlyteRemote, but got {shown(remote)}. Write `on(FlyteRemote.auto(default_project=..., "
                "default_domain=...))`."
            )
        return Session(self.objective, self.options, engine.deploy(remote, options))

    def assign(self, name: str, value: Any) -> None:
        """Assign one of `n_trials`, `concurrency` and `delay`."""
        if self._running:
            raise SearchRunningError(
                f"`{name}` of `{self.objective.name}` cannot be assigned while a search runs, which would not see it. "
                "Assign it before the call, or await the search first."
            )
        options = dataclasses.replace(self.options, **{name: value})
        options.check_objective(self.objective)
        self.options = options

    def assign_study(self, study: optuna.Study) -> StudySource:
        """Use another study for all calls from now on."""
        if self._running:
            raise SearchRunningError(
                f"`study` of `{self.objective.name}` cannot be assigned while a search runs, which has one. "
                "Await the search first."
            )
        if not isinstance(study, optuna.Study):
            raise InvalidOptionError(f"`study` must be an optuna.Study, but got {shown(study)}.")
        options = dataclasses.replace(self.options, study=study, sampler=None, seed=None)
        check_study_options(options, self.objective)
        self.options = options
        return StudySource(options, self.objective)

    def search(
        self, source: StudySource, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, optuna.Study]:
        """Check the arguments of a call, and return the search as a coroutine."""
        engine = host_engine(self.objective.target)
        if engine is not None:
            engine.check_place(self.objective.name)
        for name in kwargs:
            if name in Options.__dataclass_fields__ and not self.objective.space.takes(name):
                cure = f"an option of the search is given to `optimize({name}=...)`, not to the call"
                raise self.objective.space.unknown_parameter(name, cure=cure)
        space = self.objective.space.bind(*args, **kwargs)
        points = tuple(self.options.initial_points or ())
        if self.objective.suggests_itself:
            space.check_complete()
        else:
            space.check_ready()
        taken = _taken_points(self.options, space)
        if not self.objective.suggests_itself:
            points = tuple(space.convert_point(point) for point in points)
        return PendingSearch(self._search(source, space, points, taken), self.objective.name)

    def open_study(self, source: StudySource) -> optuna.Study:
        """Return the study of a `StudySource`.

        If a search would keep the study in a checkpoint, the study is kept there at once.
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
            search = _Assembly(self.options, self.objective, source, space, points, taken, thread)
            if site is None:
                return await search.run_here()
            async with site.start_search(cluster, self._key(source, site, space), thread) as remote:
                return await search.run_remotely(remote)
        finally:
            self._running -= 1
            await thread.close()


@dataclass(frozen=True)
class _Assembly:
    """The parts of one search. Its study is used in the single thread `thread`."""

    options: Options
    objective: Objective
    source: StudySource
    space: SearchSpace
    points: tuple[Mapping[str, Any], ...]
    taken: TakenPoints | None  # `None` if no option needs the points that are taken
    thread: Threads
    started: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    async def _in_time(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that uses the storage, in the study's thread; give up at the search's `timeout`."""
        seconds = self.options.timeouts[0]
        scope = asyncio.timeout_at(None if seconds is None else self.started + seconds)
        try:
            async with scope:
                value: T = await self.thread.run(function, *args)
                return value
        except TimeoutError:
            if not scope.expired():
                raise
            raise StorageUnavailableError(
                f"The storage of `{self.objective.name}` has not answered for {seconds:g} s, which is the search's "
                "`timeout`: no trial was run. Look after the storage, or raise `timeout`.",
                (),
                None,
            ) from None

    async def _open_in_time(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that opens or reads the storage before it is a `DurableStorage`; wait out a short outage."""
        given_up = threading.Event()
        opening = functools.partial(wait_until_open, function, *args, of=self.objective.name, given_up=given_up)
        try:
            return await self._in_time(opening)
        finally:
            given_up.set()

    async def run_here(self) -> optuna.Study:
        """Search with the trials on this machine."""
        study: optuna.Study = await self._open_in_time(self.source.get)
        await self._resume_and_run(study, None)
        return study

    async def run_remotely(self, remote: RemoteSearch) -> optuna.Study:
        """Search with the trials on a cluster, and continue what the pod's attempt before has left."""
        await remote.check(self.objective)
        study: optuna.Study = await self._open_in_time(self.source.get, remote.open_storage)
        remote.is_checkpointed = self.source.is_checkpointed and remote.open_storage is not None
        resumes = self.options.resume and is_kept(storage_of(study))
        remote.is_durable = remote.is_checkpointed or resumes
        if resumes and not remote.is_checkpointed:
            remote.use_study_in_names(await self._open_in_time(resuming.identity_of, study))
        await self._resume_and_run(study, remote)
        return study

    async def _resume_and_run(self, study: optuna.Study, remote: RemoteSearch | None) -> None:
        options, thread, n_trials = self.options, self.thread, self.options.n_trials
        is_checkpointed = remote is not None and remote.is_checkpointed
        if not self.objective.suggests_itself and not is_checkpointed:
            await self._open_in_time(resuming.check_space, study, self.space)
        storage = storage_of(study)
        if not is_kept(storage):
            finished = await thread.run(resuming.finished_in, study) if options.resume else ()
            left = resuming.Resumption(max(0, n_trials - len(finished)), finished=finished)
            await self._run(study, left, remote, None)
            return
        durable: DurableStorage | None = None
        evidence = (remote.evidence, remote.life) if remote is not None else ()
        owner = await self._open_in_time(Owner, storage, *evidence)
        try:
            await self._open_in_time(owner.open)
            durable = DurableStorage(storage, owner, self.objective.name)
            left = resuming.Resumption(n_trials)
            resume = functools.partial(
                resuming.resume,
                view_of(study, storage=durable),
                durable,
                n_trials,
                takeover=options.takeover,
                adopts=remote.adopts if remote is not None else lambda _: False,
            )
            if remote is not None and is_checkpointed:
                async with self.source.opening:
                    call = next(self.source.calls)
                    if call == 0:
                        await remote.recover(study, self.objective, self.space)
                    left = await thread.run(functools.partial(resume, call=call))
                    await remote.commit()  # at once, because each attempt's checkpoint starts empty
                await self._run(study, left, remote, durable)
                await thread.run(resuming.settle, study, call)
                return
            if options.resume:
                left = await self._in_time(resume)
                note = functools.partial(resuming.note_fixed_arguments, view_of(study, storage=durable))
                await self._in_time(note, self.space, self.objective.name)
            await self._run(study, left, remote, durable)
        finally:
            if durable is not None:
                durable.hurry()
                await finish(functools.partial(self._close_spares, durable))
            owner.close()

    async def _close_strays(self, storage: DurableStorage, study: optuna.Study) -> None:
        storage.hurry()
        with contextlib.suppress(Exception):  # if the storage still fails, the study's next run closes the strays
            await self.thread.run(storage.close_strays, study.study_name)

    async def _close_spares(self, storage: DurableStorage) -> None:
        if storage.spares:
            with contextlib.suppress(Exception):  # if the storage still fails, the study's next run closes the spares
                await self.thread.run(storage.close_spares)

    async def _run(
        self,
        study: optuna.Study,
        left: resuming.Resumption,
        remote: RemoteSearch | None,
        storage: DurableStorage | None,
    ) -> None:
        options, objective = self.options, self.objective
        is_checkpointed = remote is not None and remote.is_checkpointed
        has_total = storage is not None and options.resume and not is_checkpointed
        if not left.n_trials and not has_total:
            return
        runner = self._make_runner(remote)
        try:
            total = options.n_trials if has_total else left.n_trials + len(left.finished)
            tally = Tally(objective.name, total, study.directions)
            for trial in left.finished:
                tally.add(trial)
            own_samplers = options.deterministic and objective.takes_trial and options.makes_samplers
            with Reporter(tally, enabled=options.progress) as reporter:
                trials = AskTell(
                    study,
                    objective,
                    self.space,
                    options,
                    observer=reporter,
                    adopted=left.adopted,
                    storage=storage,
                    total=options.n_trials if has_total else None,
                    points=self.taken,
                    sampler_of_trial=(lambda number: make_sampler(options, number + 1)) if own_samplers else None,
                )
                if is_checkpointed:
                    trials.interrupted_are_lost = False  # a cancellation is intended; SIGTERM sets this to True
                loop = SearchLoop(
                    trials,
                    objective,
                    runner,
                    options,
                    n_trials=left.n_trials,
                    initial_points=self.points,
                    started=self.started,
                    commit=remote.commit if remote is not None and is_checkpointed else None,
                    thread=self.thread,
                )
                if remote is not None:
                    remote.attach(loop)
                try:
                    await loop.run()
                except (StorageUnavailableError, asyncio.CancelledError):
                    raise  # nothing can be told now; a cancelled search has told its trials, or leaves them on purpose
                except BaseException:
                    if storage is not None:
                        await finish(functools.partial(self._close_strays, storage, study))
                    raise
        finally:
            await finish(runner.close)

    def _make_runner(self, remote: RemoteSearch | None) -> Runner:
        objective, options = self.objective, self.options
        if remote is not None:
            return remote.make_runner(objective)
        engine = host_engine(objective.target)
        make_runner = FunctionRunner if engine is None else engine.make_local_runner
        if options.executor == "process":
            from optuna_flyte_dsl.engines.processes import ProcessRunner  # loaded late: few searches need loky

            return ProcessRunner(objective, make_runner, options.gpus)
        return make_runner(objective)


def _taken_points(options: Options, space: SearchSpace) -> TakenPoints | None:
    """Return the points that are taken; `None` if no option needs them."""
    if options.duplicates == "allow" and not options.stop_when_exhausted:
        return None
    return TakenPoints(space, options.duplicates, ends=options.stop_when_exhausted)


class _Assignable(Generic[T]):
    """An option of a session, as an attribute that can be assigned while no search runs."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: SessionAttributes | None, owner: type) -> T:
        if instance is None:  # asked of the class
            return self  # type: ignore[return-value]
        value: T = getattr(instance._session.options, self._name)
        return value

    def __set__(self, instance: SessionAttributes, value: T) -> None:
        instance._session.assign(self._name, value)


class SessionAttributes:
    """The base class with the attributes that `Optimizer` and `Optimized` share."""

    __slots__ = ()  # a `__dict__` here would hide the attributes of what a proxy wraps
    if TYPE_CHECKING:  # annotations would stand before those of what a proxy wraps
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

    def run_sync(self, /, *args: Any, **kwargs: Any) -> optuna.Study:
        """Run a search and wait for it, even where an event loop is running, as in a notebook.

        Args:
            *args: The positional arguments of the objective, as in `await train(...)`.
            **kwargs: The keyword arguments of the objective, as in `await train(...)`.

        Returns:
            The study of this call.
        """
        return wait_for(self._start(args, kwargs))
