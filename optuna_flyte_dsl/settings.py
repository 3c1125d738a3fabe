"""The options of a search, checked against each other and against its objective."""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from optuna_flyte_dsl.cluster import Cluster
from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.objective import Objective
from optuna_flyte_dsl.search import Limits, Observer
from optuna_flyte_dsl.studies import Direction, SamplerOption, StudyOption, StudyOptions, read_directions


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
    """

    limits: Limits
    study: StudyOptions = field(default_factory=StudyOptions)
    callbacks: tuple[Observer, ...] = ()
    initial_points: tuple[Mapping[str, Any], ...] = ()
    progress: bool = True
    cluster: Cluster = field(default_factory=Cluster)

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
        limits = Limits(
            n_trials=check_count("n_trials", n_trials),
            concurrency=check_count("concurrency", concurrency),
            delay=check_delay(delay),
        )
        options = StudyOptions(study, read_directions(direction, directions), sampler, seed)
        options.check(objective)
        if not isinstance(progress, bool):
            raise InvalidOptionError(f"`progress` must be True or False, but got {progress!r}.")
        if cluster is not None and not isinstance(cluster, Cluster):
            raise InvalidOptionError(
                f"`cluster` must be a Cluster, such as `Cluster(interruptible=True)`, but got {cluster!r}."
            )
        points = _check_points(initial_points, limits.n_trials)
        if not objective.takes_trial:
            for point in points:
                objective.space.check_point(point)
        return cls(
            limits,
            options,
            _check_callbacks(callbacks),
            points,
            progress,
            cluster or Cluster(),
        )

    def with_limits(self, **changes: Any) -> Settings:
        """Return settings with other limits.

        Raises:
            InvalidOptionError: If fewer trials are asked for than there are initial points.
        """
        limits = replace(self.limits, **changes)
        _check_points(self.initial_points, limits.n_trials)
        return replace(self, limits=limits)


def check_count(name: str, value: Any) -> int:
    """Return a count as an int.

    Raises:
        InvalidOptionError: If it is no integer, or not above 0.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)
    except TypeError:
        count = 0
    if count <= 0:
        raise InvalidOptionError(f"`{name}` must be an integer greater than 0, but got {value!r}.")
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
