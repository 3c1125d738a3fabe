"""`@optimize`: a transparent proxy over a task or a function, whose call is a search."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypedDict, Unpack, overload

import optuna
import wrapt

from optuna_flyte_dsl.cluster import Cluster
from optuna_flyte_dsl.duplicates import Duplicates
from optuna_flyte_dsl.errors import InvalidObjectiveError, InvalidOptionError
from optuna_flyte_dsl.flyte.calls import Place, make_node, place_of_call
from optuna_flyte_dsl.flyte.entities import is_task
from optuna_flyte_dsl.flyte.handles import pruner_here
from optuna_flyte_dsl.flyte.judge import judged
from optuna_flyte_dsl.flyte.remote import Deployment, DeploymentOptions, FlyteRemote, check_options
from optuna_flyte_dsl.flyte.types import spell_out_unions
from optuna_flyte_dsl.ledger import Observer
from optuna_flyte_dsl.objective import Objective
from optuna_flyte_dsl.optimizer import Limited, Session, plain, wait_for
from optuna_flyte_dsl.settings import Catch, Executor, Failures, Seconds, Settings
from optuna_flyte_dsl.storage import StorageOption
from optuna_flyte_dsl.studies import Direction, PrunerOption, SamplerOption, StudyOption, StudySource


class _Annotations(dict[str, Any]):
    """The annotations of a proxy: its own for the class, which has none, and those of what it wraps for an instance."""

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else getattr(instance.__wrapped__, "__annotations__", {})

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__wrapped__.__annotations__ = value


class Optimized(Limited, wrapt.BaseObjectProxy):  # type: ignore[type-arg, misc, unused-ignore]
    """A task or function under `@optimize`: in all but its call, the thing itself.

    It is an instance of its task's class, has the same name, signature and docstring, loads in a trial's pod, and goes
    into `map_task` and `create_node` as the task. Awaiting its call runs a search.

    Attributes:
        task: What was decorated; `train.task(...)` is one plain call.
        space: The search space that the signature declares.
        study: The study of the latest call.
        n_trials: How many trials a call runs; can be assigned while no search runs.
        concurrency: How many run at the same time, at most; can be assigned while no search runs.
        delay: Seconds between the starts of two trials; can be assigned while no search runs.
    """

    def __init__(self, wrapped: Any, session: Session) -> None:
        super().__init__(wrapped)
        self._self_session = session
        self._self_latest: StudySource | None = None
        self._self_prepared: StudySource | None = None

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run a search; await the call.

        Args:
            *args: Arguments of the objective, by position.
            **kwargs: Arguments of the objective: fixed values, suggestions, or containers that hold some.

        Returns:
            The study of this call, when awaited. As a node of a workflow (`create_node`), the task's promises; by
            `pyflyte run file.py train ...`, which gives every parameter a value, what the task returns.

        Raises:
            CompilationError: In the body of a plain workflow, which cannot wait for a search.
            InvalidObjectiveError: If `@fl.task` stands above `@optimize`.
            ArgumentError: If the arguments do not fit.
            OutOfRangeError: If a fixed value lies outside its marker.
            EmptySpaceError: If nothing is left to search.
        """
        place = place_of_call()
        if place is Place.NODE:
            return make_node(self.__wrapped__, kwargs)
        if place is Place.COMMAND:
            return self.__wrapped__(*args, **kwargs)
        if place is Place.TASK:
            raise InvalidObjectiveError(
                f"`{self._self_session.objective.name}`: the task was made of the search, so it has nothing to run. "
                "Put `@optimize` above `@fl.task`."
            )
        return self._self_search(args, kwargs)

    def _self_search(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Coroutine[Any, Any, optuna.Study]:
        source = self._self_prepared or self._self_source()
        search = self._self_session.search(source, args, kwargs)
        self._self_latest, self._self_prepared = source, None
        return search

    def _self_source(self) -> StudySource:
        return StudySource(self._self_session.settings.study, self._self_session.objective)

    def run_sync(self, /, *args: Any, **kwargs: Any) -> optuna.Study:
        """Run a search and wait for it, also where an event loop runs already, as in a notebook.

        Args:
            *args: As for a call.
            **kwargs: As for a call.

        Returns:
            The study of this call.
        """
        return wait_for(self._self_search(args, kwargs))

    def on(self, remote: FlyteRemote, **options: Unpack[DeploymentOptions]) -> Optimized:
        """Return the same objective with its trials on a cluster, started from this machine.

        Awaiting the call of what is returned runs the search here, and each call of a task is an execution there. The
        code is packaged and registered as `pyflyte run --remote` does it. Cancelling, or Ctrl-C, terminates what runs.

        Args:
            remote: The way to the cluster, with the project and domain of all executions.
            **options: How the code gets there: `version`, by default a hash of it; `image_config`, the containers'
                images; `source`, the folder that is packaged, by default the root of the objective's package;
                `destination`, where a pod unpacks it; `copy_all`, to package all files and not only loaded modules.

        Returns:
            The objective; this one is as it was.

        Raises:
            InvalidOptionError: If `remote` is no FlyteRemote with a default project and domain.
        """
        check_options(options)
        session = self._self_session
        return Optimized(self.__wrapped__, Session(session.objective, session.settings, Deployment(remote, **options)))

    @property
    def task(self) -> Any:
        """What was decorated. Its call is one plain call."""
        return self.__wrapped__

    @property
    def __optuna_flyte_objective__(self) -> Any:
        return self.__wrapped__

    @property
    def study(self) -> optuna.Study:
        """The study of the latest call. Before the first one, the study that the first call will use."""
        if self._self_latest is None and self._self_prepared is None:
            self._self_prepared = self._self_source()
        source = self._self_latest or self._self_prepared
        assert source is not None
        return self._self_session.open_study(source)

    @study.setter
    def study(self, study: optuna.Study) -> None:
        self._self_latest = self._self_session.assign_study(study)
        self._self_prepared = None

    @property
    def objective(self) -> Any:
        """What was decorated, under the name that an `Optimizer` has for it."""
        return self.__wrapped__

    def dispatch_execute(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task in its pod; flytekit calls this. What it returns is judged there, before Flyte refuses it."""
        session = self._self_session
        with pruner_here(session.settings.study.pruner_of_pods):
            return judged(self.__wrapped__, session.objective).dispatch_execute(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<optimize over {self.__wrapped__!r}>"

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name.startswith("_") or hasattr(type(self), name) or hasattr(self.__wrapped__, name)):
            raise InvalidOptionError(
                f"`{name}` cannot be assigned to `{self._self_session.objective.name}`: only `n_trials`, `concurrency` "
                "and `delay` can. Give the others to `optimize`."
            )
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*dir(self.__wrapped__), *dir(type(self))})

    __annotations__ = _Annotations()

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        # As a function, cloudpickle would take apart and pickle what is decorated instead.
        wrapped: type = type(self.__wrapped__)
        return Optimized if issubclass(wrapped, types.FunctionType) else wrapped

    def __copy__(self) -> Optimized:
        return _rebuild(self.__wrapped__, self._self_session.objective, self._self_session.settings)

    def __deepcopy__(self, memo: dict[int, Any]) -> Optimized:
        return self.__copy__()

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        if isinstance(self.__wrapped__, types.FunctionType):
            module, name = self.__wrapped__.__module__, self.__wrapped__.__qualname__
            if module != "__main__" and getattr(sys.modules.get(module), name, None) is self:
                return name  # by reference, as functions are pickled
        return _rebuild, (self.__wrapped__, self._self_session.objective, self._self_session.settings)

    def __reduce__(self) -> str | tuple[Any, ...]:
        return self.__reduce_ex__(2)


def _rebuild(wrapped: Any, objective: Objective, settings: Settings) -> Optimized:
    return Optimized(wrapped, Session(objective, settings))


class _Options(TypedDict, total=False):
    direction: Direction | None
    directions: Sequence[Direction] | None
    sampler: SamplerOption
    seed: int | None
    pruner: PrunerOption
    storage: StorageOption
    study_name: str | None
    resume: bool
    takeover: bool
    timeout: Seconds
    trial_timeout: Seconds
    max_consecutive_failures: Failures
    retries: int
    catch: Catch
    executor: Executor
    gpus: Sequence[int | str] | None
    deterministic: bool
    duplicates: Duplicates
    stop_when_exhausted: bool
    callbacks: Sequence[Observer] | None
    initial_points: Sequence[Mapping[str, Any]] | None
    progress: bool
    cluster: Cluster | None


@overload
def optimize(
    objective: None = None,
    concurrency: int = 1,
    n_trials: int = 1,
    study: StudyOption = None,
    delay: float = 0,
    **options: Unpack[_Options],
) -> Callable[[Any], Optimized]: ...


@overload
def optimize(
    objective: Callable[..., Any],
    concurrency: int = 1,
    n_trials: int = 1,
    study: StudyOption = None,
    delay: float = 0,
    **options: Unpack[_Options],
) -> Optimized: ...


def optimize(
    objective: Any = None,
    concurrency: int = 1,
    n_trials: int = 1,
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
) -> Any:
    """Turn the call of a task or function into a search.

    Used bare, `@optimize`, or with arguments, over `@fl.task` or over a function. Each awaited call is a search with a
    new study, unless `study` gives one.

    Args:
        objective: What is decorated; see `Optimizer`.
        concurrency: How many trials run at the same time, at most.
        n_trials: How many trials a call runs.
        study: An `optuna.Study`, which every call adds to, or a function that makes one for each call; by default each
            call makes one in memory.
        delay: Seconds between the starts of two trials, at least.
        direction: "minimize" or "maximize", for one objective whose annotation does not say it.
        directions: The same for several objectives, as a list.
        sampler: A sampler of Optuna's, or something that makes one for each search, such as its class.
        seed: Seed of the sampler. With `concurrency=1`, it makes a search repeat.
        pruner: A pruner of Optuna's, or something that makes one for each search. For one objective only.
        storage: Where the study is kept: a URL of Optuna's, the path of a journal file, a storage, or a function that
            makes one. By default each call has a new study, in memory.
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

    Returns:
        The decorated objective, or a decorator.

    Raises:
        InvalidObjectiveError: If it cannot be an objective.
        InvalidOptionError: If an option breaks a rule, or contradicts another.
        DirectionError: If the number of objectives, or a direction, contradicts the study's.

    >>> import asyncio
    >>> from optuna_flyte_dsl import Float, Maximize
    >>> @optimize(concurrency=2, n_trials=10, progress=False)
    ... async def hill(x: Float(-10, 10), top: float = 3.0) -> Maximize:
    ...     return -((x - top) ** 2)
    >>> study = asyncio.run(hill(top=1.0))
    >>> len(study.trials), study.direction.name
    (10, 'MAXIMIZE')
    """

    def decorate(decorated: Any) -> Optimized:
        target = plain(decorated)
        if is_task(target):
            spell_out_unions(target)
        read = Objective.of(target)
        settings = Settings.read(
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
        )
        return Optimized(target, Session(read, settings))

    return decorate if objective is None else decorate(objective)
