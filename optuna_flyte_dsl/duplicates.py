"""What a search does with a point that it has tried already, and when its space holds no other."""

from __future__ import annotations

import copy
import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import optuna
import wrapt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_flyte_dsl.errors import InvalidOptionError
from optuna_flyte_dsl.log import logger
from optuna_flyte_dsl.share import counts
from optuna_flyte_dsl.space import SearchSpace
from optuna_flyte_dsl.views import changed

SAME_ATTRIBUTE = "optuna_flyte_dsl:same_as"
"""The user attribute of a trial that was answered from an earlier one, and holds that one's number."""

Duplicates: TypeAlias = Literal["allow", "reuse", "resample"]
DUPLICATES: tuple[str, ...] = get_args(Duplicates)

_TRIES = 30
"""How often a sampler is asked for a new point before one is chosen without it."""

FIXED_ATTRIBUTE = "optuna_flyte_dsl:fixed"
"""The user attribute of a trial that tells its fixed arguments from others, where repeated points are looked for."""

_Key = tuple[tuple[str, str], ...]


class Points:
    """The points of a search space that are taken.

    Args:
        distributions: The space's, by parameter.
        duplicates: What is done with a point that is taken.
        ends: Whether the search ends when all are.
        fixed: The fixed arguments: the same parameters with others are another point.

    Raises:
        InvalidOptionError: If it is to end, but has points without end.
    """

    def __init__(
        self,
        distributions: Mapping[str, BaseDistribution],
        duplicates: Duplicates,
        *,
        ends: bool,
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        said = repr(sorted((fixed or {}).items(), key=lambda item: item[0]))
        self._fixed = hashlib.sha256(said.encode()).hexdigest()[:16]
        self.ends = ends
        self._distributions = dict(sorted(distributions.items()))
        self._duplicates = duplicates
        for name, distribution in self._distributions.items():
            if ends and math.isinf(_size(distribution)):
                raise InvalidOptionError(
                    f"`stop_when_exhausted=True`: `{name}` has values without end. Give it a `step`, or drop the "
                    "option."
                )
        self._sizes = [_size(distribution) for distribution in self._distributions.values()]
        self._warned = False
        self._keys: dict[int, _Key] = {}  # of trials whose parameters do not change any more

    def exhausted(self, study: optuna.Study) -> bool:
        """Tell whether all points are taken: of trials that have ended, or run."""
        size = math.prod(self._sizes)
        if math.isinf(size):
            return False
        return len({self._key(trial) for trial in self._taken(study)}) >= size

    def _holds(self, trial: FrozenTrial) -> bool:
        """Tell whether a trial's point is one of the space: it may have been another when the trial was run."""
        return set(trial.params) == set(self._distributions) and all(
            distribution._contains(trial.distributions[name].to_internal_repr(trial.params[name]))
            if isinstance(distribution, FloatDistribution | IntDistribution)
            else trial.params[name] in distribution.choices
            for name, distribution in self._distributions.items()
            if isinstance(distribution, FloatDistribution | IntDistribution | CategoricalDistribution)
        )

    def suggest(
        self, study: optuna.Study, trial: Trial, space: SearchSpace
    ) -> tuple[dict[str, Any], tuple[float, ...] | None]:
        """Sample a trial's parameters.

        Args:
            study: The study.
            trial: The trial, which has none yet.
            space: Makes its arguments of them.

        Returns:
            The arguments; and the values of an earlier trial that had the same, where those answer it.
        """
        trial.set_user_attr(FIXED_ATTRIBUTE, self._fixed)
        if self._duplicates == "resample" and not set(self._distributions) <= set(trial._fixed_params):
            trial._fixed_params = self._new_point(study, trial, space)
        arguments = space.suggest(trial)
        if self._duplicates != "reuse":
            return arguments, None
        key = _key(trial.params)
        for earlier in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if earlier.user_attrs.get(FIXED_ATTRIBUTE) == self._fixed and self._key(earlier) == key:
                trial.set_user_attr(SAME_ATTRIBUTE, earlier.number)
                return arguments, tuple(earlier.values)
        return arguments, None

    def _new_point(self, study: optuna.Study, trial: Trial, space: SearchSpace) -> dict[str, Any]:
        taken = {self._key(each) for each in self._taken(study) if each.number != trial.number}
        preview = changed(study, type(study), _storage=_Preview(study._storage))
        point: dict[str, Any] = {}
        for _ in range(_TRIES):
            attempt = Trial(preview, trial._trial_id)
            # A copy: in memory, it is the storage's own.
            attempt._cached_frozen_trial = copy.deepcopy(attempt._cached_frozen_trial)
            space.suggest(attempt)
            point = dict(attempt._cached_frozen_trial.params)
            if _key(point) not in taken:
                return point
        size = math.prod(self._sizes)
        if len(taken) < size < math.inf:
            start = random.Random(trial.number).randrange(int(size))  # noqa: S311 - no secret
            for offset in range(len(taken) + 1):
                chosen = {**self._point((start + offset) % int(size)), **trial._fixed_params}
                if _key(chosen) not in taken:
                    return chosen
        if size < math.inf and not self._warned:
            self._warned = True
            logger.warning(
                "`duplicates='resample'`: all %d points of the space are taken, and are run again. "
                "`stop_when_exhausted=True` would end the search.",
                int(size),
            )
        return point

    def _point(self, index: int) -> dict[str, Any]:
        """Return the point of a finite space that has a number."""
        point = {}
        for (name, distribution), size in zip(self._distributions.items(), self._sizes, strict=True):
            index, digit = divmod(index, int(size))
            point[name] = _value(distribution, digit)
        return point

    def _taken(self, study: optuna.Study) -> Iterator[FrozenTrial]:
        for trial in study.get_trials(deepcopy=False):
            same = trial.user_attrs.get(FIXED_ATTRIBUTE) == self._fixed
            if same and (trial.state is TrialState.RUNNING or counts(trial)) and self._holds(trial):
                yield trial

    def _key(self, trial: FrozenTrial) -> _Key:
        known = self._keys.get(trial.number)
        if known is not None:
            return known
        key = _key(trial.params)
        if trial.state.is_finished():
            self._keys[trial.number] = key
        return key


class _Preview(wrapt.BaseObjectProxy):  # type: ignore[type-arg, misc, unused-ignore]
    """A storage that keeps no parameter: what a sampler proposes is looked at first."""

    def set_trial_param(self, *_: Any) -> None:
        pass


def _key(parameters: Mapping[str, Any]) -> _Key:
    return tuple(sorted((name, repr(value)) for name, value in parameters.items()))


def _size(distribution: BaseDistribution) -> float:
    """Return how many values a distribution has."""
    if distribution.single():
        return 1
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return (distribution.high - distribution.low) // distribution.step + 1
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        return round((distribution.high - distribution.low) / distribution.step) + 1
    return math.inf


def _value(distribution: BaseDistribution, index: int) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        choices: Sequence[Any] = distribution.choices
        return choices[index]
    if isinstance(distribution, IntDistribution):
        return distribution.low + index * distribution.step
    assert isinstance(distribution, FloatDistribution)
    return (
        distribution.low if not index else min(distribution.low + index * (distribution.step or 0), distribution.high)
    )
