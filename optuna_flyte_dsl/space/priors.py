"""Priors: where in its range a parameter's good values are expected, before a trial has run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from optuna_flyte_dsl._text import shown
from optuna_flyte_dsl.errors import InvalidMarkerError, InvalidMarkerTypeError
from optuna_flyte_dsl.space.finite_number import plain_number
from optuna_flyte_dsl.space.marker_calls import CheckedCall

_SMALLEST = 2.0**-53  # the quantile of a normal distribution at 0 is minus infinity
_NARROW = 1e-6
_LARGEST_SHAPE = 10_000.0  # such a beta distribution is almost a single value
_BISECTIONS = 60
_TERMS = 60  # of the continued fraction; the number of terms grows with the root of the larger shape parameter


class Prior(metaclass=CheckedCall):
    """Base of the priors of numbers: `Float(0, 1, prior=Normal(0.3, 0.1))`.

    The first points of an `AutoSampler` are drawn from the priors, and so are the points that a search draws at random.
    Optuna's samplers know no priors.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Normal(Prior):
    """A normal distribution, cut off at the bounds of the parameter.

    Args:
        mean: The mean, within the bounds of the parameter. With `log=True`, it is the geometric mean.
        std: The standard deviation, above 0. With `log=True`, it is the geometric standard deviation, a factor above 1:
            with `Float(1e-5, 1, log=True, prior=Normal(1e-3, 10))`, two thirds of the first points lie between 1e-4
            and 1e-2.

    Raises:
        InvalidMarkerError: If `std` is not above 0, or a number is not finite.
        InvalidMarkerTypeError: If an argument is not a number.

    >>> from optuna_flyte_dsl import Float
    >>> Float(0, 1, prior=Normal(0.3, 0.1))
    Float(0, 1, prior=Normal(mean=0.3, std=0.1))
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        _set_number(self, "mean", self.mean)
        _set_above_zero(self, "std", self.std)


@dataclass(frozen=True, slots=True)
class Beta(Prior):
    """A beta distribution over the range of the parameter, or over its logarithm if that has `log=True`.

    Args:
        alpha: The first shape parameter, above 0, at most 10,000. Above 1, few values are near the lower bound.
        beta: The second shape parameter, above 0, at most 10,000. Above 1, few values are near the upper bound.

    Raises:
        InvalidMarkerError: If an argument is not above 0, or too large.
        InvalidMarkerTypeError: If an argument is not a number.

    >>> from optuna_flyte_dsl import Float
    >>> Float(0, 0.5, prior=Beta(2, 5))
    Float(0, 0.5, prior=Beta(alpha=2, beta=5))
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        for name, shape in (("alpha", self.alpha), ("beta", self.beta)):
            _set_above_zero(self, name, shape)
            if shape > _LARGEST_SHAPE:
                raise InvalidMarkerError(
                    f"Beta: `{name}` must be at most {_LARGEST_SHAPE:g}, but got {shown(shape)}. Fix the value, if it "
                    "is that sure."
                )


def unused_priors(names: Iterable[str], sampler: str) -> str:
    """Return the warning that a sampler does not use the priors of some parameters."""
    return (
        f"{sampler} does not use the priors of {', '.join(f'`{name}`' for name in names)}: only an AutoSampler, the "
        "default sampler, begins with points that are drawn from them."
    )


def check_prior(marker: str, prior: Any, low: float | None, high: float | None, *, log: bool) -> None:
    """Check that a marker can have a prior.

    Raises:
        InvalidMarkerError: If the mean lies outside of the bounds, or the geometric standard deviation is not above 1.
        InvalidMarkerTypeError: If it is no prior.
    """
    if prior is None:
        return
    if not isinstance(prior, Normal | Beta):
        raise InvalidMarkerTypeError(
            f"{marker}: `prior` must be a Normal or a Beta, but got {shown(prior)}. Write `prior=Normal(0.3, 0.1)`, "
            "with the mean and the standard deviation."
        )
    if not isinstance(prior, Normal):
        return
    if low is not None and high is not None and not low <= prior.mean <= high:
        raise InvalidMarkerError(
            f"{marker}: the mean of `prior` must lie within the bounds, but got {prior.mean:g} with (low={low:g}, "
            f"high={high:g}). Move it, or widen the bounds."
        )
    if log and not prior.std > 1:
        raise InvalidMarkerError(
            f"{marker}: with `log=True`, the `std` of `prior` is a factor and must be above 1, but got {prior.std:g}. "
            "Write 10 for a power of ten."
        )


def place_of(prior: Normal | Beta, share: float, start: float, end: float, *, log: bool) -> float:
    """Return the place, from 0 to 1, in a range, below which a share of a prior lies.

    Args:
        share: A number from 0 to 1.
        start: The begin of the range; its logarithm, if `log`.
        end: The end of the range; its logarithm, if `log`.
    """
    if isinstance(prior, Normal):
        mean, std = (math.log(prior.mean), math.log(prior.std)) if log else (prior.mean, prior.std)
        if end - start < _NARROW * std:
            return share  # the density hardly changes over the range
        from statistics import NormalDist  # loaded late: few spaces have a prior

        normal = NormalDist(mean, std)
        first, last = normal.cdf(start), normal.cdf(end)
        value = normal.inv_cdf(min(max(first + share * (last - first), _SMALLEST), 1 - _SMALLEST))
        return min(max((value - start) / (end - start), 0.0), 1.0)
    return beta_quantile(share, prior.alpha, prior.beta)


def place_by_weights(weights: tuple[float, ...], share: float) -> float:
    """Return the middle of the part of [0, 1] that one of several equal parts takes, chosen by its weight.

    >>> place_by_weights((1, 3), 0.2), place_by_weights((1, 3), 0.3)
    (0.25, 0.75)
    """
    largest = max(weights)
    sums = list(accumulate(weight / largest for weight in weights))
    index = sum(share * sums[-1] >= each for each in sums[:-1])
    return (index + 0.5) / len(weights)


def beta_quantile(share: float, alpha: float, beta: float) -> float:
    """Return the quantile of a beta distribution: the number below which a share of it lies.

    The distribution function is inverted by bisection.

    >>> round(beta_quantile(0.5, 3, 3), 9)
    0.5
    """
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _beta_cdf(middle, alpha, beta) < share:
            low = middle
        else:
            high = middle
    return high


def _beta_cdf(x: float, alpha: float, beta: float) -> float:
    """Return the regularized incomplete beta function, by its continued fraction: https://dlmf.nist.gov/8.17#v."""
    if not 0 < x < 1:
        return float(x >= 1)
    if x > (alpha + 1) / (alpha + beta + 2):  # there the fraction of the mirrored function converges faster
        return 1 - _beta_cdf(1 - x, beta, alpha)
    log_front = (
        math.lgamma(alpha + beta)
        - math.lgamma(alpha)
        - math.lgamma(beta)
        + alpha * math.log(x)
        + beta * math.log1p(-x)
        - math.log(alpha)
    )
    fraction = 1.0
    for step in range(_TERMS + int(5 * math.sqrt(max(alpha, beta))), 0, -1):
        m = step // 2
        if step % 2:
            term = -(alpha + m) * (alpha + beta + m) * x / ((alpha + 2 * m) * (alpha + 2 * m + 1))
        else:
            term = m * (beta - m) * x / ((alpha + 2 * m - 1) * (alpha + 2 * m))
        fraction = 1 + term / fraction
    return math.exp(log_front) / fraction


def _set_number(prior: Prior, name: str, value: Any) -> None:
    """Check an argument of a prior, and set it as a plain number."""
    object.__setattr__(prior, name, plain_number(type(prior).__name__, name, value))


def _set_above_zero(prior: Prior, name: str, value: Any) -> None:
    _set_number(prior, name, value)
    if not value > 0:
        raise InvalidMarkerError(f"{type(prior).__name__}: `{name}` must be above 0, but got {shown(value)}.")
