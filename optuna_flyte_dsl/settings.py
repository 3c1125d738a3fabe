"""The options of a search, checked against each other and against its objective."""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from numbers import Real
from typing import Any, Literal, TypeAlias

import optuna
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import BaseSampler

from optuna_flyte_dsl.cluster import Cluster
from optuna_flyte_dsl.duplicates import DUPLICATES, Duplicates
from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.ledger import Observer
from optuna_flyte_dsl.objective import Objective
from optuna_flyte_dsl.search import Limits
from optuna_flyte_dsl.storage import StorageOption
from optuna_flyte_dsl.studies import Direction, PrunerOption, SamplerOption, StudyOption, StudyOptions, read_directions

Executor: TypeAlias = Literal["thread", "process"]
Seconds: TypeAlias = float | timedelta | None
Failures: TypeAlias = int | Literal["auto"] | None
Catch: TypeAlias = type[BaseException] | Sequence[type[BaseException]]


@dataclass(frozen=True)
class Settings:
    """The options of a search, checked.

    Args:
        limits: How much is run, and how much at once.
        study: How the study is opened or made.
        callbacks: Optuna's callbacks.
        initial_points: Parameters of the first trials.
        progress: Whether to show how the search goes on.
        cluster: How trials run on a Flyte cluster.
        executor: What runs trials on this machine.
        gpus: The devices that trials in processes are given, one each.
        duplicates: What is done with a point that was tried already.
        stop_when_exhausted: Whether the search ends when its space has no other point.
    """

    limits: Limits
    study: StudyOptions = field(default_factory=StudyOptions)
    callbacks: tuple[Observer, ...] = ()
    initial_points: tuple[Mapping[str, Any], ...] = ()
    progress: bool = True
    cluster: Cluster = field(default_factory=Cluster)
    executor: Executor = "thread"
    gpus: tuple[int | str, ...] | None = None
    duplicates: Duplicates = "allow"
    stop_when_exhausted: bool = False

    @classmethod
    def read(
        cls,
        objective: Objective,
        *,
        concurrency: int,
        n_trials: int,
        study: StudyOption,
        delay: float,
        direction: Direction | None,
        directions: Sequence[Direction] | None,
        sampler: SamplerOption,
        seed: int | None,
        pruner: PrunerOption,
        storage: StorageOption,
        study_name: str | None,
        resume: bool,
        takeover: bool,
        timeout: Seconds,
        trial_timeout: Seconds,
        max_consecutive_failures: Failures,
        retries: int,
        catch: Catch,
        executor: Executor,
        gpus: Sequence[int | str] | None,
        deterministic: bool,
        duplicates: Duplicates,
        stop_when_exhausted: bool,
        callbacks: Sequence[Observer] | None,
        initial_points: Sequence[Mapping[str, Any]] | None,
        progress: bool,
        cluster: Cluster | None,
    ) -> Settings:
        """Check the options of `optimize` or `Optimizer` against each other and against the objective.

        Raises:
            InvalidOptionError: If one breaks a rule.
            DirectionError: If the directions do not fit the objective.
        """
        flags = {"deterministic": deterministic, "stop_when_exhausted": stop_when_exhausted, "progress": progress}
        for name, value in flags.items():
            if not isinstance(value, bool):
                raise InvalidOptionError(f"`{name}` must be True or False, but got {value!r}.")
        limits = Limits(
            n_trials=check_count("n_trials", n_trials),
            concurrency=check_count("concurrency", concurrency),
            delay=check_delay(delay),
            timeout=_check_seconds("timeout", timeout),
            trial_timeout=_check_seconds("trial_timeout", trial_timeout),
            retries=check_count("retries", retries, least=0),
            catch=_check_catch(catch),
            max_consecutive_failures=max_consecutive_failures
            if max_consecutive_failures in ("auto", None)
            else check_count("max_consecutive_failures", max_consecutive_failures),
            deterministic=deterministic,
        )
        options = StudyOptions(
            study,
            read_directions(direction, directions),
            sampler,
            seed,
            pruner,
            storage,
            study_name,
            resume,
            takeover,
            deterministic,
        )
        options.check(objective)
        if cluster is not None and not isinstance(cluster, Cluster):
            raise InvalidOptionError(
                f"`cluster` must be a Cluster, such as `Cluster(interruptible=True)`, but got {cluster!r}."
            )
        points = _check_points(initial_points, limits.n_trials)
        if not objective.samples:
            for point in points:
                objective.space.check_point(point)
        settings = cls(
            limits,
            options,
            _check_callbacks(callbacks),
            points,
            progress,
            cluster or Cluster(),
            executor,
            _check_gpus(gpus),
            duplicates,
            stop_when_exhausted,
        )
        settings._check_executor()
        settings._check_deterministic(objective)
        settings._check_duplicates(objective)
        return settings

    def _check_executor(self) -> None:
        if self.executor not in ("thread", "process"):
            raise InvalidOptionError(f'`executor` must be "thread" or "process", but got {self.executor!r}.')
        if self.gpus is None:
            return
        if self.executor != "process":
            raise InvalidOptionError(
                '`gpus` needs `executor="process"`: threads of one process share its CUDA_VISIBLE_DEVICES.'
            )
        if self.limits.concurrency > len(self.gpus):
            raise InvalidOptionError(
                f"`gpus` has {len(self.gpus)} devices, fewer than `concurrency={self.limits.concurrency}`: each "
                "running trial has its own. Lower `concurrency`, or name a device twice to share it, as in `gpus=[0, "
                "0]`."
            )

    def _check_deterministic(self, objective: Objective) -> None:
        if not self.limits.deterministic:
            return
        refused = {
            "timeout": self.limits.timeout,
            "trial_timeout": self.limits.trial_timeout,
            "pruner": self.study.pruner,
        }
        for name, value in refused.items():
            if value is not None:
                raise InvalidOptionError(
                    f"`deterministic=True` and `{name}` were both given, but what {name} does depends on time. Drop "
                    "one."
                )
        given = self.study.study
        if isinstance(given, optuna.Study) and not isinstance(given.pruner, MedianPruner | NopPruner):
            raise InvalidOptionError(
                "`deterministic=True`: the study has a pruner, and what that does depends on time. Make it with "
                "`pruner=optuna.pruners.NopPruner()`, or drop `deterministic`."
            )
        if self.study.seed is None and self.study.makes_samplers:
            raise InvalidOptionError(
                "`deterministic=True` needs `seed`, as in `seed=1`: a sampler without one draws anew each time."
            )
        if objective.samples and not self.study.makes_samplers and self.limits.concurrency > 1:
            raise InvalidOptionError(
                f"`deterministic=True`: `{objective.name}` samples while it runs, at the same time as others, and each "
                "trial needs a sampler of its own. Give `seed` and the sampler's class, as in `sampler=TPESampler`, "
                "and neither a sampler that is made already nor a study; or mark the parameters in the signature."
            )

    def _check_duplicates(self, objective: Objective) -> None:
        if self.duplicates not in DUPLICATES:
            raise InvalidOptionError(
                f"`duplicates` must be {', '.join(map(repr, DUPLICATES))}, but got {self.duplicates!r}."
            )
        if objective.samples and (self.duplicates != "allow" or self.stop_when_exhausted):
            name = "duplicates" if self.duplicates != "allow" else "stop_when_exhausted"
            raise InvalidOptionError(
                f"`{name}` needs a search space that is known before a trial runs, but `{objective.name}` samples by "
                "itself. Mark its parameters in the signature, as in `x: Integer(1, 5)`."
            )

    def own_sampler(self, objective: Objective) -> Callable[[int], BaseSampler] | None:
        """Return what makes a sampler for each trial, where trials sample while they run and are to repeat."""
        own = self.limits.deterministic and objective.takes_trial and self.study.makes_samplers
        return self.study.sampler_of if own else None

    def with_limits(self, objective: Objective, **changes: Any) -> Settings:
        """Return settings with other limits.

        Raises:
            InvalidOptionError: If fewer trials are asked for than there are initial points, or more at once than GPUs.
        """
        settings = replace(self, limits=replace(self.limits, **changes))
        _check_points(self.initial_points, settings.limits.n_trials)
        settings._check_executor()
        settings._check_deterministic(objective)
        return settings


def check_count(name: str, value: Any, *, least: int = 1) -> int:
    """Return a count as an int.

    Raises:
        InvalidOptionError: If it is no integer, or too small.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if count < least:
        rule = "greater than 0" if least else "0 or greater"
        raise InvalidOptionError(f"`{name}` must be an integer {rule}, but got {value!r}.")
    return count


def check_delay(value: Any) -> float:
    """Return a delay in seconds as a float.

    Raises:
        InvalidOptionError: If it is no number, below 0, or longer than a thread can wait.
    """
    number: Any = None if isinstance(value, bool) or not isinstance(value, Real) else value
    if number is None or not 0 <= number <= threading.TIMEOUT_MAX:
        raise InvalidOptionError(f"`delay` must be a number of seconds, 0 or more, but got {value!r}.")
    return float(number)


def _check_seconds(name: str, value: Any) -> float | None:
    if value is None:
        return None
    number: Any = value.total_seconds() if isinstance(value, timedelta) else value
    fits = isinstance(number, Real) and not isinstance(number, bool) and 0 < float(number) <= threading.TIMEOUT_MAX
    if not fits:
        raise InvalidOptionError(f"`{name}` must be a number of seconds above 0, or a timedelta, but got {value!r}.")
    return float(number)


def _check_catch(catch: Any) -> tuple[type[BaseException], ...]:
    kinds = (catch,) if isinstance(catch, type) else catch
    if not isinstance(kinds, Sequence) or not all(isinstance(k, type) and issubclass(k, BaseException) for k in kinds):
        raise InvalidOptionError(
            f"`catch` must be an exception class, or a tuple of them, but got {catch!r}. Write `catch=(ValueError,)`."
        )
    return tuple(kinds)


def _check_gpus(gpus: Any) -> tuple[int | str, ...] | None:
    if gpus is None:
        return None
    if (
        isinstance(gpus, str)
        or not isinstance(gpus, Sequence)
        or not gpus
        or not all(isinstance(gpu, int | str) and not isinstance(gpu, bool) for gpu in gpus)
    ):
        raise InvalidOptionError(
            f"`gpus` must be a list of devices, as CUDA_VISIBLE_DEVICES names them, but got {gpus!r}. Write `gpus=[0, "
            "1]`."
        )
    return tuple(gpus)


def _check_callbacks(callbacks: Sequence[Observer] | None) -> tuple[Observer, ...]:
    if callbacks is None:
        return ()
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise InvalidOptionError(
            f"`callbacks` must be a list of functions that take a study and a trial, but got {callbacks!r}. "
            "Write `callbacks=[function]`."
        )
    for callback in callbacks:
        if inspect.iscoroutinefunction(callback) or inspect.iscoroutinefunction(type(callback).__call__):
            raise InvalidOptionError(
                f"Each of `callbacks` must be a sync function, but {callback!r} is async, and nobody would await it. "
                "Make it a plain `def`: callbacks run in a thread, and may block."
            )
    return tuple(callbacks)


def _check_points(points: Sequence[Mapping[str, Any]] | None, n_trials: int) -> tuple[Mapping[str, Any], ...]:
    if points is None:
        return ()
    if (
        isinstance(points, Mapping | str)
        or not isinstance(points, Sequence)
        or not all(isinstance(p, Mapping) for p in points)
    ):
        raise InvalidOptionError(
            f"`initial_points` must be a list of dicts, such as [{{'x': 0.5}}], but got {points!r}."
        )
    if len(points) > n_trials:
        raise InvalidOptionError(
            f"`initial_points` holds {len(points)} points, more than `n_trials={n_trials}`. "
            "Raise `n_trials`, or drop some."
        )
    return tuple(dict(point) for point in points)
