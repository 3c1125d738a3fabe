"""How a trial is given to another process."""

import json
import pickle

import conformance
import flytekit as fl
import optuna
import pytest
from flytekit.core.context_manager import FlyteContextManager
from flytekit.core.type_engine import TypeEngine

from optuna_flyte_dsl import OptunaFlyteError
from optuna_flyte_dsl._compat.optuna import trial_id
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV, TrialHandle, using_pruner


def test_what_flyte_carries_holds_no_secret(server, study):
    handle = server.serve(study.ask())
    context = FlyteContextManager.current_context()
    kind = TypeEngine.to_literal_type(optuna.Trial)
    text = TypeEngine.to_literal(context, handle, optuna.Trial, kind).scalar.primitive.string_value
    public = {"address", "trial", "study", "token", "search", "shares_secret", "certificate", "certificate_name"}
    assert set(json.loads(text)) == public
    assert server.token_of(handle.trial) not in text + repr(handle) + str(pickle.dumps(handle))
    assert json.loads(text)["token"] == TOKEN_ENV, "the name of the variable"


def test_a_trial_of_this_process_stays_itself(study):
    seen = []

    @fl.task
    def test_looks(trial: optuna.Trial, x: float) -> float:
        seen.append(trial)
        return x

    trial = study.ask()
    assert test_looks(trial=trial, x=1.0) == 1.0
    assert seen == [trial]
    fixed = optuna.trial.FixedTrial({"x": 0.5})
    assert conformance.prunes.task.task_function.__name__ == "prunes"

    @fl.task
    def test_reads(trial: optuna.trial.BaseTrial) -> float:
        return trial.suggest_float("x", 0, 1)

    assert test_reads(trial=fixed) == 0.5
    with pytest.raises(Exception, match=r"An `optuna.Trial` is needed, but got 3"):
        test_looks(trial=3, x=1.0)


def test_a_trial_may_reach_its_storage_by_itself(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=url, study_name="s")
    trial = study.ask()
    handle = TrialHandle("env:THE_STORAGE", trial_id(trial), "s")
    with pytest.raises(OptunaFlyteError, match="'THE_STORAGE' must hold the storage's URL, but it is not set here"):
        handle.open()
    monkeypatch.setenv("THE_STORAGE", url)
    assert "sqlite" not in handle.to_text()
    with using_pruner(lambda: optuna.pruners.ThresholdPruner(upper=0.5)):
        there = handle.open()
    there.report(0.75, 0)
    assert there.should_prune()
    assert study.trials[0].intermediate_values == {0: 0.75}
