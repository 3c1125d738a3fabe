"""The first points of a search: spread evenly over the space, and all different as long as there are enough points."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from optuna_flyte_dsl.sampling.sobol import ScrambledSobol
from optuna_flyte_dsl.space.domain import part_of_range

_TRIES = 64
_APART = 1_000  # the distance between the indices of the points that are tried in turn for one trial


class QuasiRandomPoints:
    """Points of Sobol's sequence for the trials of a study, by the number of the trial.

    Args:
        seed: The seed of the sequence. Two processes with one seed share one sequence.
    """

    def __init__(self, seed: int) -> None:
        self._sequence = ScrambledSobol(seed)
        # For a parameter with a prior, a function of a share that returns the place in the range below which this share
        # of the prior lies.
        self.priors: Mapping[str, Callable[[float], float]] = {}

    def value(self, index: int, dimension: int, distribution: BaseDistribution, name: str = "") -> Any:
        """Return the value of a parameter in a point of the sequence.

        Args:
            dimension: How many parameters of the trial were sampled before. So the points of a trial do not depend on
                what other trials sample at the same time.
        """
        share = self._sequence.coordinate(index, dimension)
        prior = self.priors.get(name)
        return value_at(share if prior is None else prior(share), distribution)

    def index_of(self, trial: FrozenTrial, earlier: Sequence[FrozenTrial]) -> int:
        """Return the index of a trial's point: one whose point no earlier trial has, if that is soon found.

        The parameters are those of the earlier trials, if these agree.
        """
        space = dict(earlier[0].distributions) if earlier else {}
        if not all(map(_is_finite, space.values())) or any(each.distributions != space for each in earlier):
            return trial.number
        sampled = {name for name, distribution in space.items() if not distribution.single()}
        taken = {_key({name: each.params[name] for name in sampled}) for each in earlier}
        tried = (trial.number + _APART * turn for turn in range(_TRIES))
        return next((index for index in tried if _key(self._point(index, space)) not in taken), trial.number)

    def _point(self, index: int, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        sampled = [(name, distribution) for name, distribution in space.items() if not distribution.single()]
        return {name: self.value(index, place, each, name) for place, (name, each) in enumerate(sampled)}


def _key(params: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, repr(value)) for name, value in params.items()))


def _is_finite(distribution: BaseDistribution) -> bool:
    return not isinstance(distribution, FloatDistribution) or distribution.step is not None


def value_at(share: float, distribution: BaseDistribution) -> Any:
    """Return the value below which a share of a distribution lies.

    Args:
        share: A number from 0 to 1.
        distribution: One of Optuna's. With `log`, the logarithm is uniform; of integers, each has the part of the range
            that is rounded to it, as in Optuna.

    >>> round(value_at(0.5, FloatDistribution(1e-4, 1.0, log=True)), 9), value_at(0.99, IntDistribution(1, 9, step=4))
    (0.01, 9)
    """
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[part_of_range(share, len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        edge = 0.5 if isinstance(distribution, IntDistribution) else 0.0
        start, end = math.log(low - edge), math.log(high + edge)
        drawn = math.exp(start + share * (end - start))
        return min(max(round(drawn) if edge else drawn, low), high)
    if distribution.step is None:
        return min(max(low + share * (high - low), low), high)
    steps = round((high - low) / distribution.step)  # Optuna makes `high` a multiple of the step
    value = low + part_of_range(share, steps + 1) * distribution.step
    return value if isinstance(distribution, IntDistribution) else min(value, high)
