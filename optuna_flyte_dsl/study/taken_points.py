"""Finds points that were tried already, to reuse their values, to sample other points, or to end the search."""

import hashlib
import itertools
import math
import random
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_flyte_dsl._compat.optuna import cached_params, detached_trial, enqueued_params, set_enqueued_params
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._proxy import Proxy
from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.options import Duplicates
from optuna_flyte_dsl.space import domain
from optuna_flyte_dsl.space.markers import Suggestion
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study.attributes import FIXED_ARGUMENTS, SAME_AS
from optuna_flyte_dsl.study.resuming import counts
from optuna_flyte_dsl.study.study_view import preview_of

_TRIES = 30
"""How often a sampler is asked for a new point before a point is drawn without the sampler."""

_Key = tuple[Hashable, ...]
"""A point as one key for each parameter; see `domain.key_of`.

A key of `None` stands for a value outside of the space, and `_INACTIVE` for a parameter that is not active.
"""

_INACTIVE = "inactive"


class _Earlier(NamedTuple):
    """A complete trial whose values may be reused."""

    number: int
    values: tuple[float, ...]


class TakenPoints:
    """The points of a search space that trials have tried, or are trying.

    Args:
        ends: Whether the search ends when every point is taken.
    """

    def __init__(self, space: SearchSpace, duplicates: Duplicates, *, ends: bool) -> None:
        self.ends = ends
        self._space = space
        self._markers = {name: marker.stored for name, marker in sorted(space.items())}
        self._fixed = _digest_of_fixed_arguments(space)
        self._duplicates = duplicates
        for name, marker in self._markers.items():
            if ends and math.isinf(domain.count(marker)):
                raise InvalidOptionError(
                    f"`stop_when_exhausted=True`: `{name}` has values without end. Give it a `step`, or drop the "
                    "option."
                )
        self._size = space.n_points
        if ends and self._size == math.inf:
            raise InvalidOptionError(
                f"`stop_when_exhausted=True`: the conditions of `{space.name}` have too many combinations to count its "
                "points. Drop the option."
            )
        self._warned = self._warned_of_more = False
        self._n_settled = 0  # the first trials of the study, all finished, whose keys are in the next two fields
        self._settled: set[_Key] = set()
        self._settled_values: dict[_Key, _Earlier] = {}

    def exhausted(self, study: optuna.Study) -> bool:
        """Return whether every point is taken, by a finished or a running trial."""
        return self._size != math.inf and self._count(self._unsettled(study)) >= self._size

    def suggest(self, study: optuna.Study, trial: Trial) -> tuple[dict[str, Any], tuple[float, ...] | None]:
        """Sample a trial's parameters.

        Returns:
            The keyword arguments of the objective; and the values of an earlier trial, if they are to be reused.
        """
        trial.set_user_attr(FIXED_ARGUMENTS, self._fixed)
        if self._duplicates == "resample" and not set(self._markers) <= set(enqueued_params(trial)):
            set_enqueued_params(trial, self._new_point(study, trial))
        arguments = self._space.suggest(trial)
        if self._duplicates != "reuse":
            return arguments, None
        key = self._key_of(trial.params)
        if None in key:  # a trial with a value outside of the space equals no other trial
            return arguments, None
        unsettled = self._unsettled(study)
        earlier = self._settled_values.get(key) or unsettled.get(key)
        if earlier is None:
            return arguments, None
        trial.set_user_attr(SAME_AS, earlier.number)
        return arguments, earlier.values

    def _new_point(self, study: optuna.Study, trial: Trial) -> dict[str, Any]:
        taken = self._unsettled(study, but=trial.number)
        preview = preview_of(study, _UnchangedStorage(trial.storage))
        point: dict[str, Any] = {}
        for _ in range(_TRIES):
            attempt = detached_trial(preview, trial)
            self._space.suggest(attempt)
            point = dict(cached_params(attempt))
            if not self._is_taken(self._key_of(point), taken):
                return point
        if (n_taken := self._count(taken)) < self._size < math.inf:
            size = int(self._size)
            start = random.Random(trial.number).randrange(size)  # noqa: S311 - not a secret
            for offset in range(n_taken + 1):
                chosen = {**self._point((start + offset) % size), **enqueued_params(trial)}
                if not self._is_taken(self._key_of(chosen), taken):
                    return chosen
        if self._size < math.inf and not self._warned:
            self._warned = True
            logger.warning(
                "`duplicates='resample'`: all %d points of the space are taken, and are run again. "
                "`stop_when_exhausted=True` would end the search.",
                int(self._size),
            )
        return point

    def _point(self, index: int) -> dict[str, Any]:
        """Return what Optuna stores for the point at an index of a space with finitely many points."""
        return {name: self._space[name].to_stored(value) for name, value in self._space.counter.point(index).items()}

    def _unsettled(self, study: optuna.Study, but: int = -1) -> dict[_Key, _Earlier | None]:
        """Settle the first trials of a study that have all finished; return the points that the other trials take.

        Args:
            but: The number of a trial that is left out.

        Returns:
            For each point, the finished trial that has its values, if there is one.
        """
        points: dict[_Key, _Earlier | None] = {}
        settles = True
        for trial in itertools.islice(study.get_trials(deepcopy=False), self._n_settled, None):
            # Trials are in the order of their numbers. At a gap, a trial is not visible yet.
            settles = settles and trial.state.is_finished() and trial.number == self._n_settled
            self._n_settled += settles
            same = trial.user_attrs.get(FIXED_ARGUMENTS) == self._fixed
            takes = same and trial.number != but and (trial.state is TrialState.RUNNING or counts(trial))
            # The trial may have been run with another search space.
            if not takes or None in (key := self._key(trial)):
                continue
            is_complete = trial.state is TrialState.COMPLETE
            earlier = _Earlier(trial.number, tuple(trial.values)) if is_complete else None
            if not settles:
                points[key] = points.get(key) or earlier
                continue
            self._settled.add(key)
            if earlier is not None:
                self._settled_values.setdefault(key, earlier)
        return points

    def _is_taken(self, key: _Key, unsettled: Mapping[_Key, _Earlier | None]) -> bool:
        return key in self._settled or key in unsettled

    def _count(self, unsettled: Mapping[_Key, _Earlier | None]) -> int:
        return len(self._settled) + len(unsettled.keys() - self._settled)

    def _key(self, trial: FrozenTrial) -> _Key:
        key = self._key_of(trial.params) if trial.params.keys() <= self._markers.keys() else (None,)
        if trial.params.keys() > self._markers.keys() and not self._warned_of_more:
            self._warned_of_more = True
            logger.warning(
                "`duplicates` and `stop_when_exhausted` compare the parameters of the signature only, but trial %d has "
                "also sampled %s: such trials are not compared. Mark these parameters in the signature.",
                trial.number,
                ", ".join(f"`{name}`" for name in trial.params.keys() - self._markers.keys()),
            )
        return key

    def _key_of(self, params: Mapping[str, Any]) -> _Key:
        if self._space.active_in(params) != params.keys() & self._markers.keys():
            return (None,)  # a point of another space, or one that is not complete yet
        return tuple(
            domain.key_of(marker, params[name]) if name in params else _INACTIVE
            for name, marker in self._markers.items()
        )


def _digest_of_fixed_arguments(space: SearchSpace) -> str:
    """Return a hash of the contents of a space's fixed arguments, the same in each process."""
    fixed = {name: value for name, value in space.arguments.items() if not isinstance(value, Suggestion)}
    digest = hashlib.sha256()
    for name, value in sorted(fixed.items()):
        from optuna_flyte_dsl.study.content_hash import content_hash  # loaded late: it needs joblib

        try:
            digest.update(f"{name}={content_hash(value)};".encode())
        except Exception as error:
            raise InvalidOptionError(
                f"`duplicates` and `stop_when_exhausted` compare points with those of other searches, but the fixed "
                f"argument `{name}` cannot be told apart by its content ({type(error).__name__}: {error}). Pass "
                "something that can be pickled, such as the path of a file, or drop the option."
            ) from error
    return digest.hexdigest()[:16]


class _UnchangedStorage(Proxy):
    """A proxy of a storage that stores no parameter."""

    def set_trial_param(self, *_: Any) -> None:
        pass
