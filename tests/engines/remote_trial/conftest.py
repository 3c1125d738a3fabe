"""A study, and the server of its trials."""

import optuna
import pytest

from optuna_flyte_dsl._compat.optuna import storage_of, trial_id
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV
from optuna_flyte_dsl.engines.remote_trial.server import TrialServer


@pytest.fixture
def study():
    return optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=1), pruner=optuna.pruners.ThresholdPruner(upper=0.5)
    )


@pytest.fixture
def server(study, monkeypatch, request):
    """Return a server of the study's trials, at the endpoint that a test may give."""
    server = TrialServer(storage_of(study), study.study_name, endpoint=getattr(request, "param", None))
    serve = server.serve

    def serve_and_show(trial):
        monkeypatch.setenv(TOKEN_ENV, server.token_of(trial_id(trial)))
        return serve(trial)

    server.serve = serve_and_show
    yield server
    server.close()
