"""Priors: weights of choices, and normal and beta distributions of numbers."""

import math
import random
from collections import Counter
from fractions import Fraction
from typing import Annotated

import numpy as np
import optuna
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from optuna.samplers import RandomSampler
from scipy import stats

from optuna_flyte_dsl import (
    AutoSampler,
    Beta,
    Category,
    Float,
    Integer,
    InvalidMarkerError,
    InvalidMarkerTypeError,
    InvalidSpaceError,
    Normal,
    Optimizer,
    Ordinal,
    SearchSpace,
    optimize,
    suggest,
)
from optuna_flyte_dsl.space import domain
from optuna_flyte_dsl.space.priors import beta_quantile


@given(share=st.floats(0.001, 0.999), alpha=st.floats(0.1, 500), beta=st.floats(0.1, 500))
def test_the_quantile_of_a_beta_distribution_is_scipys(share, alpha, beta):
    quantile = beta_quantile(share, alpha, beta)
    assume(1e-12 < quantile < 1 - 1e-9)
    assert stats.beta.cdf(quantile, alpha, beta) == pytest.approx(share, abs=1e-6)


@given(
    share=st.floats(0, 1),
    low=st.floats(-100, 100),
    width=st.floats(0.1, 100),
    middle=st.floats(0, 1),
    std=st.floats(0.05, 1e4),
)
def test_a_normal_prior_is_cut_off_at_the_bounds(share, low, width, middle, std):
    marker = Float(low, low + width, prior=Normal(min(low + middle * width, low + width), std))
    place = domain.place_by_prior(marker, share)
    assert 0 <= place <= 1
    truncated = stats.truncnorm(-middle * width / std, (1 - middle) * width / std, loc=middle * width, scale=std)
    assert truncated.cdf(place * width) == pytest.approx(share, abs=1e-6)


@given(share=st.floats(0, 1))
def test_the_logarithm_of_a_log_parameter_is_normal(share):
    marker = Float(1e-5, 1, log=True, prior=Normal(1e-3, 10))
    logarithm = -5 + 5 * domain.place_by_prior(marker, share)
    assert logarithm == pytest.approx(stats.truncnorm(-2, 3, loc=-3, scale=1).ppf(share), abs=1e-6)


def drawn(marker, count):
    generator = random.Random(1)
    return [domain.random_value(marker, generator) for _ in range(count)]


def rounded_to(value):
    """Return the share of a normal distribution that is rounded to a value from 0 to 2."""
    part, whole = ((value - 0.5, value + 0.5), (-0.5, 2.5))
    return (stats.norm.cdf(part[1]) - stats.norm.cdf(part[0])) / (stats.norm.cdf(whole[1]) - stats.norm.cdf(whole[0]))


@pytest.mark.parametrize(
    ("marker", "shares"),
    [
        (Category(["a", "b", "c"], weights=[1, 2, 5]), {"a": 1 / 8, "b": 2 / 8, "c": 5 / 8}),
        (Category({"small": 1, "large": (2,)}, weights=(3, 1)), {1: 3 / 4, (2,): 1 / 4}),
        (Ordinal([16, 32], weights=[0.1, 0.3]), {16: 0.25, 32: 0.75}),
        (Category(["a", "b"]), {"a": 0.5, "b": 0.5}),
        (Category(["never", "a", "b"], weights=[0, 1, 0]), {"a": 1.0}),
        (Float(0, 1, step=1, prior=Normal(0.5, 1e300)), {0.0: 0.5, 1.0: 0.5}),
        (Integer(0, 1, prior=Beta(1, 1)), {0: 0.5, 1: 0.5}),
        (Integer(0, 2, prior=Normal(0, 1)), {value: rounded_to(value) for value in (0, 1, 2)}),
        (Float(0, 1, step=0.5, prior=Normal(0, 1e9)), {0.0: 1 / 3, 0.5: 1 / 3, 1.0: 1 / 3}),
    ],
)
def test_points_drawn_at_random_have_the_prior(marker, shares):
    counts = Counter(drawn(marker, 2_000))
    assert counts.keys() == shares.keys()
    for value, share in shares.items():
        assert counts[value] / 2_000 == pytest.approx(share, abs=0.05)


@pytest.mark.parametrize(
    ("prior", "expected"),
    [(Beta(2, 5), stats.beta(2, 5, 1, 2)), (Normal(1.5, 0.2), stats.truncnorm(-2.5, 7.5, 1.5, 0.2))],
)
def test_numbers_drawn_at_random_have_the_prior(prior, expected):
    assert stats.kstest(drawn(Float(1, 3, prior=prior), 500), expected.cdf).pvalue > 0.01


def test_the_first_points_of_a_search_are_drawn_from_the_priors():
    @optimize(n_trials=10, seed=1, progress=False)
    async def search(
        rate: Float(1e-5, 1, log=True, prior=Normal(1e-3, 2)),
        kind: Category(["usual", "rare"], weights=[1_000, 1]),
        sizes: Annotated[list[int], Integer(1, 100, prior=Beta(50, 1)) * 2],
        free: Float(0, 1),
    ) -> float:
        return rate

    trials = search.run_sync().trials
    for trial in trials:
        assert 1e-4 < trial.params["rate"] < 1e-2
        assert trial.params["kind"] == "usual"
        assert trial.params["sizes.0"] > 80 < trial.params["sizes.1"]
    assert {int(trial.params["free"] * 2) for trial in trials} == {0, 1}


@pytest.mark.parametrize("options", [{"sampler": AutoSampler, "seed": 1}, {"sampler": AutoSampler(seed=1)}])
def test_a_given_auto_sampler_uses_the_priors_too(options):
    async def search(kind: Category(["usual", "rare"], weights=[1_000, 1])) -> float:
        return 1.0

    study = Optimizer(search, 1, 10, progress=False, **options).run_sync()
    assert {trial.params["kind"] for trial in study.trials} == {"usual"}


def test_a_deterministic_search_uses_the_priors_of_each_trials_own_sampler():
    async def search(trial, kind: Category(["usual", "rare"], weights=[1_000, 1])) -> float:
        return 1.0

    study = Optimizer(search, 2, 8, seed=1, deterministic=True, progress=False).run_sync()
    assert {trial.params["kind"] for trial in study.trials} == {"usual"}


def test_a_prior_of_the_call_replaces_that_of_the_signature():
    async def search(x: Float(0, 1, prior=Normal(0.9, 0.01))) -> float:
        return x

    optimizer = Optimizer(search, 1, 5, seed=1, progress=False)
    assert all(trial.value > 0.8 for trial in optimizer.run_sync().trials)
    optimizer = Optimizer(search, 1, 5, seed=1, progress=False)
    study = optimizer.run_sync(x=suggest.float(0, 1, prior=Normal(0.1, 0.01)))
    assert all(trial.value < 0.2 for trial in study.trials)


def test_choices_that_hold_markers_have_weights():
    choices = Category({"svm": {"C": Float(0, 1)}, "forest": {"n": Integer(1, 9)}}, weights=[1, 1_000])

    async def search(model: Annotated[dict, choices]) -> float:
        return 1.0

    study = Optimizer(search, 1, 8, seed=1, progress=False).run_sync()
    assert {trial.params["model"] for trial in study.trials} == {"forest"}


def test_a_sampler_that_uses_no_priors_is_named(caplog):
    async def search(x: Float(0, 1, prior=Normal(0.5, 0.1))) -> float:
        return x

    optimizer = Optimizer(search, 1, 5, sampler=RandomSampler(seed=1), progress=False)
    optimizer.run_sync()
    assert "RandomSampler does not use the priors of `x`" in caplog.text
    assert any("does not use the priors of `x`" in line for line in optimizer.plan().warnings)
    assert not any("priors" in line for line in Optimizer(search, 1, 5).plan().warnings)


def train(
    lr: Float(1e-5, 1e-1, log=True, prior=Normal(1e-3, 3)),
    depth: Integer(1, 12, prior=Beta(2, 3.5)),
    kind: Category({"a": 1, "b": 2}, weights=[1, 2.5]),
    size: Ordinal([1, 2, 4], weights=[1, 2, 3]),
    flag: Annotated[bool, Category(weights=[1, 3])],
) -> float:
    return lr


def test_priors_are_written_to_files_and_shown():
    space = SearchSpace.of(train)
    for read in (SearchSpace.from_json(space.to_json()), SearchSpace.from_yaml(space.to_yaml())):
        assert read == space
        assert not read.difference(space)
        assert read.priors.keys() == {"lr", "depth", "kind", "size", "flag"}
    for text in ("prior=Normal(mean=0.001, std=3)", "weights=[1, 2.5]", "weights=[1, 3]"):
        assert text in str(space)
    assert space["lr"] != Float(1e-5, 1e-1, log=True)
    assert space["kind"] != Category({"a": 1, "b": 2})
    changed = space.replace(lr=Float(1e-5, 1e-1, log=True))
    assert "prior=Normal" in str(changed.difference(space))


@pytest.mark.parametrize(
    ("prior", "message"),
    [
        ({"kind": "normall", "mean": 1, "std": 1}, "must be one of normal, beta.*Did you mean `normal`"),
        ({"kind": "normal", "mean": 0.5}, "needs .*std"),
        ({"kind": "beta", "alpha": 1, "beta": 1, "mean": 1}, "mean"),
        ({"kind": "normal", "mean": 0.5, "std": -1}, "must be above 0"),
        ({"kind": "normal", "mean": 5, "std": 1}, "must lie within the bounds"),
        (3, "prior"),
    ],
)
def test_a_wrong_prior_of_a_file_is_refused(prior, message):
    data = {"parameters": {"x": {"kind": "float", "low": 0, "high": 1, "prior": prior}}}
    with pytest.raises(InvalidSpaceError, match=message):
        SearchSpace.from_dict(data)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Normal(0, 0), InvalidMarkerError, "`std` must be above 0, but got 0"),
        (lambda: Normal(math.inf, 1), InvalidMarkerError, "`mean` must be finite"),
        (lambda: Normal("a", 1), InvalidMarkerTypeError, "`mean` must be a number, but got 'a'"),
        (lambda: Normal(1), InvalidMarkerTypeError, r"Normal: .*`std`|Normal: .*'std'"),
        (lambda: Beta(1, -2), InvalidMarkerError, "`beta` must be above 0"),
        (lambda: Beta(True, 2), InvalidMarkerTypeError, "`alpha` must be a number"),
        (lambda: Float(0, 1, prior=0.3), InvalidMarkerTypeError, "`prior` must be a Normal or a Beta, but got 0.3"),
        (lambda: Float(0, 1, prior=Normal(2, 1)), InvalidMarkerError, "must lie within the bounds, but got 2"),
        (lambda: Float(0.1, 1, log=True, prior=Normal(0.5, 1)), InvalidMarkerError, "is a factor and must be above 1"),
        (lambda: Integer(1, 9, prior=Normal(10, 1)), InvalidMarkerError, "must lie within the bounds"),
        (lambda: Float(1, 0, prior=Normal(2, 1)), InvalidMarkerError, "`low < high` must hold"),
        (lambda: Category(["a", "b"], weights=[1]), InvalidMarkerError, "one number for each of the 2 choices"),
        (lambda: Category(["a", "b"], weights=[0, 0.0]), InvalidMarkerError, "one of the `weights` must be above 0"),
        (lambda: Category(["a", "b"], weights=[1, -1]), InvalidMarkerError, "must be at least 0, but got -1"),
        (lambda: Category(["a", "b"], weights=[1, math.nan]), InvalidMarkerError, "`weights` must be finite"),
        (lambda: Normal(10**400, 1), InvalidMarkerError, "`mean` must be finite"),
        (lambda: Beta(1e300, 1), InvalidMarkerError, "`alpha` must be at most 10000"),
        (
            lambda: Category(["a", "b"], weights=[1, "2"]),
            InvalidMarkerTypeError,
            "`weights` must be a number, but got '2'",
        ),
        (lambda: Category(["a", "b"], weights={"a": 1}), InvalidMarkerTypeError, "`weights` must be a list"),
        (lambda: Category(["a", "b"], weights=3), InvalidMarkerTypeError, "`weights` must be a list"),
    ],
)
def test_a_wrong_prior_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_numbers_of_numpy_can_be_written():
    def search(
        x: Float(0, 1, prior=Normal(np.float32(0.5), np.float64(0.25))),
        n: Integer(0, 9, prior=Beta(Fraction(1, 2), np.int64(2))),
        kind: Category(["a", "b"], weights=np.array([3, 1])),
    ) -> float:
        return x

    space = SearchSpace.of(search)
    assert SearchSpace.from_yaml(space.to_yaml()) == space == SearchSpace.from_json(space.to_json())
    assert "np." not in str(space)


def test_very_large_weights_are_weights_too():
    marker = Category(["a", "b", "c"], weights=[1e308] * 3)
    assert [domain.random_value(marker, random.Random(seed)) for seed in range(20)].count("a") > 2


def test_a_prior_that_the_constraints_contradict_costs_no_trial():
    @optimize(n_trials=20, seed=1, progress=False, constraints=[lambda x: 0.5 - x])
    async def search(x: Float(0, 1, prior=Normal(0.1, 0.05))) -> float:
        return x

    assert {trial.state.name for trial in search.run_sync().trials} == {"COMPLETE"}


def test_weights_are_checked_when_the_type_has_given_the_choices():
    def wrong(kind: Annotated[bool, Category(weights=[1])]) -> float:
        return 1.0

    with pytest.raises(InvalidMarkerError, match="one number for each of the 2 choices"):
        SearchSpace.of(wrong)


def test_priors_do_not_change_what_optuna_stores():
    plain = optuna.distributions.FloatDistribution(0, 1)
    assert Float(0, 1, prior=Normal(0.5, 0.1)).to_distribution() == plain
    assert Float(0, 1) == Float(0, 1, prior=None)
