"""Searches of the tests of studies, and the storages that they use."""

import collections

import grpc
import optuna
import pytest
from optuna.trial import TrialState

from optuna_flyte_dsl import Float, Minimize, optimize
from optuna_flyte_dsl.study.attributes import OWNER
from optuna_flyte_dsl.study.storages import open_storage

RELATIONAL = ["sqlite", "postgresql"]


SHARED = ["journal", "postgresql", "grpc"]


ALL = ["journal", "sqlite", "postgresql", "grpc"]


def on(*kinds):
    return pytest.mark.parametrize("storage", kinds, indirect=True)


def objective(**options):
    @optimize(**{"concurrency": 2, "n_trials": 6, "progress": False, **options})
    def objective(x: Float(0, 1), base: float = 0.0) -> Minimize:
        return x + base

    return objective


def states(study):
    return dict(collections.Counter(trial.state.name for trial in study.trials))


def left_running(storage, name, record=None, **params):
    """Leave a trial RUNNING, as a process that was killed has done."""
    there = open_storage(storage)
    study = optuna.create_study(storage=there, study_name=name, load_if_exists=True)
    system_attrs = {f"{OWNER}other": record} if record is not None else {}
    distributions = {key: optuna.distributions.FloatDistribution(0, 1) for key in params}
    study.add_trial(
        optuna.trial.create_trial(
            state=TrialState.RUNNING, params=params, distributions=distributions, system_attrs=system_attrs
        )
    )
    return study


def refused(code, details=""):
    error = grpc.RpcError(details)
    error.code = lambda: code
    return error
