"""Finds points that were tried already, to reuse their values, to sample other points, or to end the search."""

import functools
import hashlib
import math
import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_flyte_dsl._compat.optuna import (
    cached_trial,
    detached_trial,
    enqueued_params,
    set_enqueued_params,
    trial_id,
    trials_to_read,
)
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._proxy import Proxy
from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import ArgumentError, InvalidOptionError, RefusedPointError
from optuna_flyte_dsl.options import Duplicates
from optuna_flyte_dsl.space import conversion, domain
from optuna_flyte_dsl.space.markers import Suggestion
from optuna_flyte_dsl.space.parameter_constraints import ParameterConstraint
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study.attributes import FIXED_ARGUMENTS, SAME_AS, WARM_START
from optuna_flyte_dsl.study.feasibility import constraints_of
from optuna_flyte_dsl.study.resuming import counts
from optuna_flyte_dsl.study.study_view import preview_of
from optuna_flyte_dsl.study.trial_history import TrialHistory

_TRIES = 4
"""How often a sampler is asked for a new point before a point is looked for near the sampler's point.

A sampler that has found the best points suggests them again and again, and each question costs its time.
"""

_NEAR = 30
"""How many points are then drawn that differ from the sampler's in one parameter; as many in two; as many in three."""

_RANDOM_TRIES = 1_000
"""How many points are then drawn at random to find one that the constraints allow."""

_MOST_COUNTED = 10_000
"""The largest number of points of which those that the constraints allow are counted."""

_Key = tuple[Hashable, ...]
"""A point as one key for each parameter; see `domain.key_of`.

A key of `None` stands for a value outside of the space, and `_INACTIVE` for a parameter that is not active.
"""

_INACTIVE = "inactive"


class EarlierTrial(NamedTuple):
    """A complete trial whose values may be reused."""

    number: int
    values: tuple[float, ...]
    constraints: tuple[float, ...]


class TakenPoints:
    """The points of a search space that trials have tried, or are trying.

    Args:
        ends: Whether the search ends when every point is taken.
        constraints: The constraints that a point must satisfy.
    """

    def __init__(
        self,
        space: SearchSpace,
        duplicates: Duplicates,
        *,
        ends: bool,
        constraints: Sequence[ParameterConstraint] = (),
    ) -> None:
        self.ends = ends
        self._last_violation: str | None = None
        self._constraints = constraints
        self._space = space
        self._distributions = space.distributions()
        self._markers = {name: marker.stored for name, marker in sorted(space.items())}
        self.fixed: str = _digest_of_fixed_arguments(space)
        self._duplicates = duplicates
        for name, marker in self._markers.items():
            if ends and math.isinf(domain.count(marker)):
                raise InvalidOptionError(
                    f"`stop_when_exhausted=True`: `{name}` has values without end. Give it a `step`, or drop the "
                    "option."
                )
        self._size = space.n_points
        if constraints and self._size <= _MOST_COUNTED:
            n_allowed = sum(self._is_allowed(self._point(index)) for index in range(int(self._size)))
            self._size = n_allowed
            if not n_allowed:
                raise InvalidOptionError(f"`constraints`: they allow no point of the space of `{space.name}`.")
        if ends and self._size == math.inf:
            raise InvalidOptionError(
                f"`stop_when_exhausted=True`: the conditions of `{space.name}` have too many combinations to count its "
                "points. Drop the option."
            )
        self._warned = self._warned_of_more = False
        self._history = TrialHistory()
        self._settled: set[_Key] = set()  # the points of trials that have ended
        self._settled_values: dict[_Key, EarlierTrial] = {}
        self._judged: set[_Key] = set()  # the points of trials that were compared with the constraints
        self._forbidden: set[_Key] = set()  # those of them that the constraints forbid

    def exhausted(self, study: optuna.Study) -> bool:
        """Return whether every point is taken, by a finished or a running trial."""
        return self._size != math.inf and self._count(self._unsettled(trials_to_read(study))) >= self._size

    def suggest(self, study: optuna.Study, trial: Trial) -> tuple[dict[str, Any], EarlierTrial | None]:
        """Sample a trial's parameters.

        Returns:
            The keyword arguments of the objective; and an earlier trial, if its values are to be reused.
        """
        trial.set_user_attr(FIXED_ARGUMENTS, self.fixed)
        if (self._duplicates == "resample" or self._constraints) and not self._is_complete(enqueued_params(trial)):
            set_enqueued_params(trial, self._new_point(study, trial))
        arguments = self._space.suggest(trial)
        if (violation := self._violation(arguments)) is not None:
            raise RefusedPointError(violation)
        if self._duplicates != "reuse":
            return arguments, None
        key = self._key_of(trial.params)
        if None in key:  # a trial with a value outside of the space equals no other trial
            return arguments, None
        unsettled = self._unsettled(trials_to_read(study, as_of_ask=True))
        earlier = self._settled_values.get(key) or unsettled.get(key)
        if earlier is None:
            return arguments, None
        trial.set_user_attr(SAME_AS, earlier.number)
        return arguments, earlier

    def _is_complete(self, params: Mapping[str, Any]) -> bool:
        """Return whether parameters, as Optuna stores them, are a whole point."""
        try:
            return self._space.active_in(params) <= params.keys()
        except ArgumentError:  # a value outside of the space
            return True

    def _violation(self, arguments: Mapping[str, Any]) -> str | None:
        """Return which constraint forbids the arguments of a trial, for an error; `None` if none does."""
        for constraint in self._constraints:
            if (value := constraint.value(arguments)) > 0:
                point = shown(self._space.point(arguments))
                return f"{constraint.name} is {value:g} for {point}, but must be at most 0."
        return None

    def _is_allowed(self, point: Mapping[str, Any]) -> bool:
        """Return whether a point, as Optuna stores it, satisfies the constraints."""
        try:
            self._last_violation = self._violation(self._space.fill(point))
        except (RefusedPointError, ArgumentError) as error:
            self._last_violation = str(error)
        return self._last_violation is None

    def _new_point(self, study: optuna.Study, trial: Trial) -> dict[str, Any]:
        """Return what Optuna is to store for a trial: a point that satisfies the constraints, and is not taken."""
        taken = self._unsettled(trials_to_read(study, as_of_ask=True), but=trial.number)
        n_taken = self._count(taken)
        is_left = n_taken < self._size
        allowed: dict[str, Any] | None = None

        def candidates() -> Iterator[dict[str, Any]]:
            suggested = self._attempts(study, trial)
            yield from filter(self._is_allowed, suggested) if self._constraints else suggested
            if allowed is not None:
                yield from filter(self._is_allowed, self._near(allowed, trial))
            if self._constraints:
                yield from filter(self._is_allowed, self._random_points(trial))

        for point in candidates():
            if self._duplicates != "resample" or not self._is_taken(self._key_of(point), taken):
                return point
            allowed = allowed or point
            if not is_left:  # nobody is asked for what there is not
                break
        if is_left and self._size < math.inf:
            n_points = int(self._space.n_points)
            start = random.Random(trial.number).randrange(n_points)  # noqa: S311 - not a secret
            for offset in range(min(n_points, n_taken + n_points - int(self._size) + 1)):
                chosen = self._merged(self._point((start + offset) % n_points), enqueued_params(trial))
                if chosen and not self._is_taken(self._key_of(chosen), taken) and self._is_allowed(chosen):
                    return chosen
        if allowed is None:
            raise RefusedPointError(f"No point that the constraints allow was found. {self._last_violation}")
        if self._size < math.inf and not self._warned:
            self._warned = True
            logger.warning(
                "`duplicates='resample'`: trial %d of `%s` runs a point again, because no other one is left. "
                "`stop_when_exhausted=True` ends a search when all its points are taken.",
                trial.number,
                self._space.name,
            )
        return allowed

    def _attempts(self, study: optuna.Study, trial: Trial) -> Iterator[dict[str, Any]]:
        """Yield points that the sampler suggests."""
        preview = preview_of(study, _UnchangedStorage(trial.storage, cached_trial(trial), trial_id(trial)))
        for _ in range(_TRIES):
            yield self._sampled(detached_trial(preview, trial))

    def _random_points(self, trial: Trial) -> Iterator[dict[str, Any]]:
        """Yield points that are drawn at random, half of them by the priors."""
        enqueued = enqueued_params(trial)
        generator = random.Random(trial.number)  # noqa: S311 - not a secret
        for turn in range(_RANDOM_TRIES):
            yield self._space.draw(functools.partial(_drawn, enqueued, generator, by_prior=turn % 2 == 0))

    def _merged(self, point: Mapping[str, Any], enqueued: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a point with the enqueued values; `None` if they make a parameter active that the point lacks."""
        merged = {**point, **enqueued}
        active = self._space.active_in(merged)
        return {name: merged[name] for name in active} if active <= merged.keys() else None

    def _near(self, point: Mapping[str, Any], trial: Trial) -> Iterator[dict[str, Any]]:
        """Yield points in which one parameter of a point is drawn anew; then two, then three."""
        generator = random.Random(trial.number)  # noqa: S311 - not a secret
        names = [name for name in sorted(point.keys() - enqueued_params(trial).keys()) if self._has_choice(name)]
        for n_changed in range(1, min(len(names), 3) + 1):
            for _ in range(_NEAR):
                changed = generator.sample(names, n_changed)
                kept = {name: value for name, value in point.items() if name not in changed}
                yield self._space.draw(functools.partial(_drawn, kept, generator, by_prior=False))

    def _has_choice(self, name: str) -> bool:
        return domain.count(self._markers[name]) > 1

    def _sampled(self, trial: Trial) -> dict[str, Any]:
        return self._space.draw(lambda name, _: conversion.suggest(trial, name, self._distributions[name]))

    def _point(self, index: int) -> dict[str, Any]:
        """Return what Optuna stores for the point at an index of a space with finitely many points."""
        return {name: self._space[name].to_stored(value) for name, value in self._space.counter.point(index).items()}

    def _unsettled(self, trials: Sequence[FrozenTrial], but: int = -1) -> dict[_Key, EarlierTrial | None]:
        """Settle the trials of a study that have ended since the last call; return the points that the others take.

        Args:
            trials: All trials of the study.
            but: The number of a trial that is left out.

        Returns:
            For each point, the finished trial that has its values, if there is one.
        """
        points: dict[_Key, EarlierTrial | None] = {}
        ended, changing = self._history.look(trials)
        for index, trial in enumerate([*ended, *changing]):
            same = trial.user_attrs.get(FIXED_ARGUMENTS) == self.fixed
            is_tried = trial.state is TrialState.RUNNING or counts(trial) or WARM_START in trial.user_attrs
            takes = same and trial.number != but and is_tried
            # The trial may have been run with another search space.
            if not takes or None in (key := self._key(trial)):
                continue
            if self._constraints and key not in self._judged:
                self._judged.add(key)
                if not self._is_allowed(trial.params):
                    self._forbidden.add(key)
            is_complete = trial.state is TrialState.COMPLETE
            earlier = (
                EarlierTrial(trial.number, tuple(trial.values), constraints_of(trial) or ()) if is_complete else None
            )
            if index >= len(ended):
                points[key] = points.get(key) or earlier
                continue
            self._settled.add(key)
            if earlier is not None:
                self._settled_values.setdefault(key, earlier)
        return points

    def _is_taken(self, key: _Key, unsettled: Mapping[_Key, EarlierTrial | None]) -> bool:
        return key in self._settled or key in unsettled

    def _count(self, unsettled: Mapping[_Key, EarlierTrial | None]) -> int:
        """Return how many points are taken, without those that the constraints forbid now."""
        others = unsettled.keys() - self._settled - self._forbidden
        return len(self._settled) - len(self._settled & self._forbidden) + len(others)

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
        try:
            active = self._space.active_in(params)
        except ArgumentError:  # a value outside of the space
            return (None,)
        if active != params.keys() & self._markers.keys():
            return (None,)  # a point of another space, or one that is not complete yet
        return tuple(
            domain.key_of(marker, params[name]) if name in params else _INACTIVE
            for name, marker in self._markers.items()
        )


def _drawn(kept: Mapping[str, Any], generator: random.Random, name: str, marker: Suggestion, *, by_prior: bool) -> Any:
    """Return what is stored for a parameter: the value that is kept, or a value that is drawn at random.

    Args:
        by_prior: Whether the value is drawn from the prior. The constraints may forbid what a prior expects.
    """
    if name in kept:
        return kept[name]
    return marker.to_stored(domain.random_value(marker, generator, by_prior=by_prior))


def _digest_of_fixed_arguments(space: SearchSpace) -> str:
    """Return a hash of the contents of a space's fixed arguments, the same in each process."""
    digest = hashlib.sha256()
    for name, value in sorted(space.fixed_values().items()):
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
    """A proxy of a storage that stores no parameter, and remembers the trial that is sampled."""

    def __init__(self, storage: BaseStorage, trial: FrozenTrial, its_id: int) -> None:
        super().__init__(storage)
        self._self_trial, self._self_id = trial, its_id

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if trial_id == self._self_id:
            return self._self_trial
        found: FrozenTrial = self.__wrapped__.get_trial(trial_id)
        return found

    def set_trial_param(self, *_: Any) -> None:
        pass
