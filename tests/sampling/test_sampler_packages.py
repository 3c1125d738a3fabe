"""The packages that samplers need."""

import functools

import optuna
import pytest
from optuna.samplers import CmaEsSampler, GPSampler, QMCSampler, TPESampler

from optuna_flyte_dsl import Float, InvalidOptionError, Optimizer
from optuna_flyte_dsl.sampling import sampler_packages
from optuna_flyte_dsl.sampling.sampler_packages import missing_packages


@pytest.fixture(autouse=True)
def _nothing_is_installed(monkeypatch):
    monkeypatch.setattr(sampler_packages, "_is_installed", lambda package: False)


def marked(x: Float(0, 1)) -> float:
    raise AssertionError("no trial may run")


def search(**options):
    return Optimizer(marked, 2, 5, progress=False, **options)


def refused(sampler, packages):
    install = packages.replace("`", "").replace(",", "")
    return pytest.raises(
        InvalidOptionError, match=rf"`sampler`: {sampler} needs {packages}, which .* lacks\..*`pip install {install}`"
    )


@pytest.mark.parametrize(
    ("sampler", "packages"), [(GPSampler, "`torch`, `scipy`"), (CmaEsSampler, "`cmaes`"), (QMCSampler, "`scipy`")]
)
def test_a_sampler_without_its_packages_is_refused_before_the_first_trial(sampler, packages):
    makers = [sampler, functools.partial(sampler, seed=1), lambda: sampler.__new__(sampler)]
    for made in [*makers, sampler.__new__(sampler)]:
        with refused(sampler.__name__, packages):
            search(sampler=made).run_sync()


def test_the_plan_and_a_study_of_the_users_are_checked_too():
    with refused("CmaEsSampler", "`cmaes`"):
        search(sampler=CmaEsSampler).plan()
    study = optuna.create_study()
    study.sampler = CmaEsSampler.__new__(CmaEsSampler)
    for given in (study, lambda: study):
        with refused("CmaEsSampler", "`cmaes`"):
            search(study=given).run_sync()
    assert not study.trials


def test_a_decoration_checks_no_package():
    """The image of a trial's pod, which imports the module too, need not have the packages of the sampler."""
    search(sampler=GPSampler)


def test_a_sampler_that_needs_nothing_lacks_nothing():
    assert missing_packages(TPESampler) == []


def test_what_is_installed_is_not_missing(monkeypatch):
    monkeypatch.undo()
    assert sampler_packages._is_installed("optuna")
    assert not sampler_packages._is_installed("no_such_package")
