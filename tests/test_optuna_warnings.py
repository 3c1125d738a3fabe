"""Which warnings a user does not see."""

import warnings

import pytest
from optuna.exceptions import ExperimentalWarning

from optuna_flyte_dsl._optuna_warnings import without_optuna_warnings


def warned(category, module):
    """Return whether a warning that comes from a module reaches the user."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with without_optuna_warnings():
            warnings.warn_explicit("a warning", category, "file.py", 1, module=module)
    return bool(seen)


@pytest.mark.parametrize("module", ["optuna", "optuna.samplers._tpe.sampler", "optuna_flyte_dsl.sampling.auto_sampler"])
def test_warnings_of_optunas_are_not_seen(module):
    assert not warned(FutureWarning, module)
    assert not warned(ExperimentalWarning, module)


def test_other_warnings_are_seen():
    assert warned(FutureWarning, "their.module")
    assert warned(FutureWarning, "optunaplus")
    assert warned(UserWarning, "optuna.study")
