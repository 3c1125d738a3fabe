"""Puts the parts of a search together: `Optimizer`, and what it shares with the decorator."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import functools
import importlib
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

import optuna

from optuna_flyte_dsl.cluster import Cluster
from optuna_flyte_dsl.duplicates import Duplicates, Points
from optuna_flyte_dsl.errors import CompilationError, InvalidOptionError, SearchRunningError
from optuna_flyte_dsl.flyte.calls import in_a_workflow, is_imported_by_a_pod
from optuna_flyte_dsl.flyte.eager import ClusterSearch, Home, find_home
from optuna_flyte_dsl.flyte.processes import ProcessRunner
from optuna_flyte_dsl.flyte.remote import Deployment, DeploymentOptions, FlyteRemote, check_options
from optuna_flyte_dsl.flyte.runner import FlyteRunner
from optuna_flyte_dsl.ledger import Ledger, Observer
from optuna_flyte_dsl.markers import Category, Float, Integer, Number, Suggestion, suggest
from optuna_flyte_dsl.objective import Kind, Objective
from optuna_flyte_dsl.owners import Owner
from optuna_flyte_dsl.progress import Reporter, Tally
from optuna_flyte_dsl.search import Runner, Search
from optuna_flyte_dsl.settings import Catch, Executor, Failures, Seconds, Settings, check_count, check_delay
from optuna_flyte_dsl.space import SearchSpace
from optuna_flyte_dsl.storage import KeptStorage, StorageOption, is_kept
from optuna_flyte_dsl.studies import (
    Direction,
    PrunerOption,
    Resumption,
    SamplerOption,
    StudyOption,
    StudySource,
    check_space,
    finished_in,
    identity_of,
    note_arguments,
    resume,
    resume_total,
    settle,
)
from optuna_flyte_dsl.threads import Threads, insist
from optuna_flyte_dsl.views import kept_view

T = TypeVar("T")
_PLAIN = (type(None), bool, int, float, str)

__all__ = ["Category", "Float", "Integer", "Number", "Optimizer", "Suggestion", "suggest"]
# `flytekitplugins.optuna.optimizer` has the markers and `optimize` too.


class Session:
    """The options of an objective's searches, and how many of them run now.

    Args:
        objective: What is searched.
        settings: The options.
        deployment: The way to a cluster from this machine; `None` to run where the call is.
    """

    def __init__(self, objective: Objective, settings: Settings, deployment: Deployment | None = None) -> None:
        self.objective = objective
        self.settings = settings
        self.deployment = deployment
        self._running = 0

    def assign(self, name: str, value: Any) -> None:
        """Assign one of `n_trials`, `concurrency` and `delay`.

        Raises:
            SearchRunningError: If a search runs: it has read its options, and would not see the new one.
            InvalidOptionError: If the value breaks the option's rule.
        """
        if self._running:
            raise SearchRunningError(
                f"`{name}` of `{self.objective.name}` cannot be assigned while a search runs, which would not see it. "
                "Assign it before the call, or await the search first."
            )
        checked = check_delay(value) if name == "delay" else check_count(name, value)
        self.settings = self.settings.with_limits(self.objective, **{name: checked})

    def assign_study(self, study: optuna.Study) -> StudySource:
        """Use another study for all calls from now on.

        Raises:
            SearchRunningError: If a search runs: it has its study.
            InvalidOptionError: If it is no study.
            DirectionError: If its directions do not fit the objective.
        """
        if self._running:
            raise SearchRunningError(
                f"`study` of `{self.objective.name}` cannot be assigned while a search runs, which has one. "
                "Await the search first."
            )
        if not isinstance(study, optuna.Study):
            raise InvalidOptionError(f"`study` must be an optuna.Study, but got {study!r}.")
        options = replace(self.settings.study, study=study, sampler=None, seed=None)
        options.check(self.objective)
        self.settings = replace(self.settings, study=options)
        return StudySource(options, self.objective)

    def search(
        self, source: StudySource, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Coroutine[Any, Any, optuna.Study]:
        """Check a call's arguments, and return the search that the call stands for.

        Args:
            source: Where the search's study comes from.
            args: The call's positional arguments.
            kwargs: The call's keyword arguments.

        Raises:
            CompilationError: In the body of a plain workflow, which cannot wait for a search.
            ArgumentError: If the arguments do not fit the objective.
            OutOfRangeError: If a fixed value or an initial point lies outside its marker.
            EmptySpaceError: If nothing is left to search.
        """
        if is_imported_by_a_pod():
            raise CompilationError(
                f"`{self.objective.name}`: this module is imported by a pod, and would start the search anew in each. "
                'Put the call under `if __name__ == "__main__":`.'
            )
        if in_a_workflow():
            name = self.objective.name
            raise CompilationError(
                f"`{name}` is a search, and a `@workflow` cannot wait for one. Call it in an `@fl.eager` workflow, "
                f"`await {name}(...)`; or make one node of its task, `create_node({name}.task, ...)`."
            )
        space = self.objective.space.bind(*args, **kwargs)
        points = self.settings.initial_points
        if self.objective.samples:
            space.check_complete()  # it suggests by itself: what it searches is not known
        else:
            space.check_ready()
            self._points(space)
            points = tuple(space.convert_point(point) for point in points)
        return self._search(source, space, points)

    async def _search(
        self, source: StudySource, space: SearchSpace, points: tuple[Mapping[str, Any], ...]
    ) -> optuna.Study:
        settings = self.settings
        self._running += 1
        thread = Threads(limit=1)
        try:
            found = find_home()
            if self.deployment is not None:
                found = await thread.run(self.deployment.home, self.objective.target, settings.cluster.patience)
            if found is None:
                study: optuna.Study = await thread.run(source.get)
                await self._run_kept(study, space, points, thread)
            else:
                home, context = found
                cluster = ClusterSearch(home, settings.cluster, self._key(source, home, space), context, thread)
                async with cluster:
                    study = await self._search_there(cluster, source, space, points, thread)
        finally:
            self._running -= 1
            await thread.close()
        return study

    def _key(self, source: StudySource, home: Home, space: SearchSpace) -> str:
        """Return what names the study of a search in its home, the same in each process that comes to it."""
        if source.key is None:
            fixed = {name: value for name, value in space.arguments.items() if isinstance(value, _PLAIN)}
            source.key = home.key(f"{self.objective.name}{dict(space)!r}{fixed!r}")
        return source.key

    def open_study(self, source: StudySource) -> optuna.Study:
        """Return the study of a source; where a search would keep it in a checkpoint, it is kept there at once."""
        found = find_home() if self.deployment is None else None
        if found is None or found[0].store is None or source.given:
            return source.get()
        key = self._key(source, found[0], self.objective.space)
        return source.get(functools.partial(found[0].store.storage, key))

    async def _search_there(
        self,
        cluster: ClusterSearch,
        source: StudySource,
        space: SearchSpace,
        points: tuple[Mapping[str, Any], ...],
        thread: Threads,
    ) -> optuna.Study:
        """Search with the trials on a cluster, and go on with what the pod's attempt before has left."""
        if self.objective.kind is Kind.ENTITY:
            await cluster.controller.check(self.objective.target)
        study: optuna.Study = await thread.run(source.get, cluster.storage)
        n_trials = self.settings.limits.n_trials
        cluster.checkpointed = source.kept and cluster.storage is not None
        resumes = self.settings.study.resume and is_kept(study._storage)
        cluster.persisted = cluster.controller.adopts = cluster.checkpointed or resumes
        if not cluster.checkpointed:
            if resumes:
                cluster.controller.root = await thread.run(identity_of, study)
            await self._run_kept(study, space, points, thread, cluster)
            return study
        async with source.opening:
            call = next(source.calls)
            if self.objective.kind is Kind.ENTITY and call == 0:
                await cluster.recover(study, self.objective.target, space)
            adopts = cluster.has_executions if self.objective.kind is not Kind.ENTITY else lambda _: True
            left = await thread.run(resume, study, n_trials, call, adopts)
            # At once: a checkpoint does not hold what the one before did.
            await cluster.commit()
        if left.n_trials:
            await self._run(study, space, points, thread, left, cluster)
        await thread.run(settle, study, call)
        return study

    def _points(self, space: SearchSpace) -> Points | None:
        """Return what knows the points that are taken; `None` where nobody asks."""
        settings = self.settings
        if settings.duplicates == "allow" and not settings.stop_when_exhausted:
            return None
        fixed = {name: value for name, value in space.arguments.items() if not isinstance(value, Suggestion)}
        return Points(space.distributions(), settings.duplicates, ends=settings.stop_when_exhausted, fixed=fixed)

    async def _run_kept(
        self,
        study: optuna.Study,
        space: SearchSpace,
        points: tuple[Mapping[str, Any], ...],
        thread: Threads,
        cluster: ClusterSearch | None = None,
    ) -> None:
        """Search on a study that may outlive this process, or be others' too: say who runs its trials."""
        options, n_trials = self.settings.study, self.settings.limits.n_trials
        if not self.objective.samples:
            await thread.run(check_space, study, space)
        if not is_kept(study._storage):
            finished = await thread.run(finished_in, study) if options.resume else ()
            left = Resumption(max(0, n_trials - len(finished)), finished=finished)
            if left.n_trials:
                await self._run(study, space, points, thread, left, cluster)
            return
        owner = Owner(study._storage, cluster.evidence, cluster.life) if cluster is not None else Owner(study._storage)
        try:
            await thread.run(owner.open)
            storage = KeptStorage(study._storage, owner, self.objective.name)
            left = Resumption(n_trials)
            if options.resume:
                adopts = cluster.has_executions if cluster is not None else lambda _: False
                view = kept_view(study, storage)
                left = await thread.run(resume_total, view, storage, n_trials, options.takeover, adopts)
                await thread.run(note_arguments, view, space, self.objective.name)
            await self._run(study, space, points, thread, left, cluster, storage)
        finally:
            owner.close()

    async def _run(
        self,
        study: optuna.Study,
        space: SearchSpace,
        points: tuple[Mapping[str, Any], ...],
        thread: Threads,
        left: Resumption,
        cluster: ClusterSearch | None = None,
        storage: KeptStorage | None = None,
    ) -> None:
        settings, objective = self.settings, self.objective
        resumes = storage is not None and settings.study.resume
        if settings.executor == "process" and cluster is None:
            runner: Runner = ProcessRunner(objective, settings.gpus)
        else:
            runner = FlyteRunner(objective, cluster.controller if cluster is not None else None)
        try:
            total = settings.limits.n_trials if resumes else left.n_trials + len(left.finished)
            tally = Tally(objective.name, total, study.directions)
            for trial in left.finished:
                tally.add(trial)
            with Reporter(tally, enabled=settings.progress) as reporter:
                ledger = Ledger(
                    study,
                    objective,
                    space,
                    observer=reporter,
                    callbacks=settings.callbacks,
                    resumed=left.running,
                    storage=storage,
                    total=settings.limits.n_trials if resumes else None,
                    lost=storage is not None,
                    max_consecutive_failures=settings.limits.failures,
                    points=self._points(space),
                    own_sampler=settings.own_sampler(objective),
                    deterministic=settings.limits.deterministic,
                )
                search = Search(
                    ledger,
                    objective,
                    runner,
                    replace(settings.limits, n_trials=left.n_trials),
                    initial_points=points,
                    commit=cluster.commit if cluster is not None and cluster.checkpointed else None,
                    thread=thread,
                )
                if cluster is not None:
                    cluster.runs(search)
                await search.run()
        finally:
            await insist(runner.close)


class Limited:
    """The space and the limits of an objective's searches, as attributes."""

    __slots__ = ()  # a `__dict__` of its own would stand before that of what a proxy wraps

    if TYPE_CHECKING:  # as an annotation of the class, it would stand before those of what a proxy wraps
        _self_session: Session

    @property
    def space(self) -> SearchSpace:
        """The search space that the objective's signature declares."""
        return self._self_session.objective.space

    @property
    def n_trials(self) -> int:
        """How many trials a call runs. Can be assigned while no search runs."""
        return self._self_session.settings.limits.n_trials

    @n_trials.setter
    def n_trials(self, value: int) -> None:
        self._self_session.assign("n_trials", value)

    @property
    def concurrency(self) -> int:
        """How many trials run at the same time, at most. Can be assigned while no search runs."""
        return self._self_session.settings.limits.concurrency

    @concurrency.setter
    def concurrency(self, value: int) -> None:
        self._self_session.assign("concurrency", value)

    @property
    def delay(self) -> float:
        """Seconds between the starts of two trials, at least. Can be assigned while no search runs."""
        return self._self_session.settings.limits.delay

    @delay.setter
    def delay(self, value: float) -> None:
        self._self_session.assign("delay", value)


class Optimizer(Limited):
    """A search as an object: many trials of an objective, on one study.

    Awaiting a call runs the search and returns the study. A second call adds its trials to the same study.

    Args:
        objective: A Flyte task, workflow or launch plan; or a function, sync or async, that takes
            `trial: optuna.Trial` or has markers in its signature. A sync function runs in a thread; what a function
            returns may be awaitable, such as the call of an async task.
        concurrency: How many trials run at the same time, at most.
        n_trials: How many trials a call runs.
        study: An `optuna.Study`, or a function that makes one; by default a new one in memory, made on first use.
        delay: Seconds between the starts of two trials, at least.
        direction: "minimize" or "maximize", for one objective whose annotation does not say it.
        directions: The same for several objectives, as a list.
        sampler: A sampler of Optuna's, or something that makes one, such as its class.
        seed: Seed of the sampler. With `concurrency=1`, it makes a search repeat.
        pruner: A pruner of Optuna's, or something that makes one. For one objective only.
        storage: Where the study is kept: a URL of Optuna's, the path of a journal file, a storage, or a function that
            makes one. By default it is in memory.
        study_name: The study's name there. If there is one already, it is gone on with.
        resume: Whether `n_trials` is what the study is to have in all, over any number of calls, kills and machines,
            and not what each call adds. `study_name` is the objective's then, if it is not given.
        takeover: With `resume`, whether trials are closed, and tried again, that are RUNNING and of whose process
            nothing can be known from here, such as one on another host.
        timeout: Seconds, or a timedelta, after which no trial starts, running ones are stopped, and the study is
            returned.
        trial_timeout: The same for each trial, from when it begins to run: it is stopped, and has failed.
        max_consecutive_failures: How many trials may fail in a row before the search ends with a
            `TooManyFailuresError`. "auto" is 10, or twice `concurrency` if that is more, but at most a quarter of
            `n_trials` (and at least 5), while none has succeeded, and five times as many after that; 10 in a search
            of up to 10. `None` is without end.
        retries: How often a trial that raises is tried again, with the same parameters.
        catch: The exceptions that only fail a trial; another one ends the search.
        executor: Where trials run on this machine: "thread", or "process", a worker process for each running trial,
            which may crash, and can be stopped.
        gpus: With `executor="process"`, the devices of which each running trial has one, as its `CUDA_VISIBLE_DEVICES`.
        deterministic: Whether a search with a seed repeats whatever order its trials end in.
        duplicates: What is done with parameters that were tried already: "allow" runs them again, "reuse" takes the
            values of the finished trial, "resample" asks for others.
        stop_when_exhausted: Whether the search ends when each point of its space is taken.
        callbacks: Optuna's callbacks, called with the study and each finished trial, one at a time, in a thread.
            `study.stop()` in one ends the search.
        initial_points: Parameters to try first, as `{name: value}`; what a point leaves out is sampled.
        progress: Whether to show a bar on a terminal, and log lines elsewhere.
        cluster: How trials run on a Flyte cluster, where they run there.

    Raises:
        InvalidObjectiveError: If the objective is none of these.
        InvalidOptionError: If an option breaks a rule, or contradicts another.
        DirectionError: If the number of objectives, or a direction, contradicts the study's.

    >>> import asyncio
    >>> def bowl(trial: optuna.Trial, center: float) -> float:
    ...     return (trial.suggest_float("x", -10, 10) - center) ** 2
    >>> optimizer = Optimizer(bowl, concurrency=2, n_trials=10, progress=False)
    >>> study = asyncio.run(optimizer(center=2.0))
    >>> len(study.trials)
    10
    """

    def __init__(
        self,
        objective: Any,
        concurrency: int,
        n_trials: int,
        study: StudyOption = None,
        delay: float = 0,
        *,
        direction: Direction | None = None,
        directions: Sequence[Direction] | None = None,
        sampler: SamplerOption = None,
        seed: int | None = None,
        pruner: PrunerOption = None,
        storage: StorageOption = None,
        study_name: str | None = None,
        resume: bool = False,
        takeover: bool = False,
        timeout: Seconds = None,
        trial_timeout: Seconds = None,
        max_consecutive_failures: Failures = "auto",
        retries: int = 0,
        catch: Catch = (Exception,),
        executor: Executor = "thread",
        gpus: Sequence[int | str] | None = None,
        deterministic: bool = False,
        duplicates: Duplicates = "allow",
        stop_when_exhausted: bool = False,
        callbacks: Sequence[Observer] | None = None,
        initial_points: Sequence[Mapping[str, Any]] | None = None,
        progress: bool = True,
        cluster: Cluster | None = None,
    ) -> None:
        read = Objective.of(plain(objective))
        self._self_session = Session(
            read,
            Settings.read(
                read,
                concurrency=concurrency,
                n_trials=n_trials,
                study=study,
                delay=delay,
                direction=direction,
                directions=directions,
                sampler=sampler,
                seed=seed,
                pruner=pruner,
                storage=storage,
                study_name=study_name,
                resume=resume,
                takeover=takeover,
                timeout=timeout,
                trial_timeout=trial_timeout,
                max_consecutive_failures=max_consecutive_failures,
                retries=retries,
                catch=catch,
                executor=executor,
                gpus=gpus,
                deterministic=deterministic,
                duplicates=duplicates,
                stop_when_exhausted=stop_when_exhausted,
                callbacks=callbacks,
                initial_points=initial_points,
                progress=progress,
                cluster=cluster,
            ),
        )
        self._source = StudySource(self._self_session.settings.study, read)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, optuna.Study]:
        """Run the search; await the call.

        Args:
            *args: Arguments of the objective, by position.
            **kwargs: Arguments of the objective: fixed values, suggestions, or containers that hold some.

        Returns:
            The study.
        """
        return self._self_session.search(self._source, args, kwargs)

    def run_sync(self, /, *args: Any, **kwargs: Any) -> optuna.Study:
        """Run the search and wait for it, also where an event loop runs already, as in a notebook.

        Args:
            *args: As for a call.
            **kwargs: As for a call.

        Returns:
            The study.
        """
        return wait_for(self(*args, **kwargs))

    def on(self, remote: FlyteRemote, **options: Unpack[DeploymentOptions]) -> Optimizer:
        """Return this search with its trials on a cluster, each call of a task an execution there; see `Optimized.on`.

        Args:
            remote: The way to the cluster.
            **options: How the code gets there.
        """
        check_options(options)
        there = copy.copy(self)
        own = self._self_session
        there._self_session = Session(own.objective, own.settings, Deployment(remote, **options))
        return there

    @property
    def objective(self) -> Any:
        """The objective, as it was given."""
        return self._self_session.objective.target

    @property
    def study(self) -> optuna.Study:
        """The study of all calls, made on first use. Another can be assigned while no search runs."""
        return self._self_session.open_study(self._source)

    @study.setter
    def study(self, study: optuna.Study) -> None:
        self._source = self._self_session.assign_study(study)

    def __repr__(self) -> str:
        return (
            f"Optimizer({self._self_session.objective.name}, concurrency={self.concurrency}, n_trials={self.n_trials})"
        )


def plain(objective: Any) -> Any:
    """Return what a decorated objective decorates, and anything else as it is."""
    return getattr(objective, "__optuna_flyte_objective__", objective)


def wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end from synchronous code, whether or not an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        running = False
    else:
        running = True
    return _wait_in_thread(coroutine) if running else asyncio.run(coroutine)


def _wait_in_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    result: list[T] = []
    errors: list[BaseException] = []
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []
    interrupted = threading.Event()

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None
        started.append((asyncio.get_running_loop(), task))
        if interrupted.is_set():
            coroutine.close()
            raise asyncio.CancelledError
        return await coroutine

    def run() -> None:
        try:
            result.append(asyncio.run(main()))
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="optuna-flyte-run-sync")
    thread.start()
    try:
        thread.join()
    except BaseException:
        interrupted.set()
        for loop, task in started:
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    if errors:
        raise errors[0]
    return result[0]


def __getattr__(name: str) -> Any:
    """Find `optimize` here too, where `flytekitplugins.optuna` has it; the decorator is built on this module."""
    if name == "optimize":
        return importlib.import_module("optuna_flyte_dsl.decorator").optimize
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
