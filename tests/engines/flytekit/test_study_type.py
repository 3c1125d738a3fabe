"""Studies as inputs and outputs of tasks and workflows."""

import asyncio
import subprocess
import sys

import flytekit as fl
import optuna
import pytest
from flytekit.core.context_manager import FlyteContextManager
from flytekit.core.type_engine import TypeEngine

from optuna_flyte_dsl import Float, Maximize, optimize
from optuna_flyte_dsl.study.study_file import write_study
from tests.support.marks import needs_pyflyte


@optimize(n_trials=5, progress=False)
@fl.task
def train(x: Float(0, 1)) -> Maximize:
    return x


@fl.task
def mark(study: optuna.Study) -> optuna.Study:
    study.set_user_attr("marked", True)
    return study


@fl.task
def describe(study: optuna.Study) -> str:
    return f"{len(study.trials)} trials, {study.direction.name}, {study.user_attrs}"


@fl.workflow
def described(study: optuna.Study) -> str:
    return describe(study=mark(study=study))


@fl.eager
async def search() -> optuna.Study:
    study = await train()
    return mark(study=study)


def test_a_study_goes_through_tasks_and_workflows():
    study = asyncio.run(search())
    assert study.user_attrs["marked"] is True
    assert len(study.trials) == 5
    assert described(study=study) == f"5 trials, MAXIMIZE, {study.user_attrs}"


def test_a_study_is_a_file_and_no_pickle():
    literal_type = TypeEngine.to_literal_type(optuna.Study)
    assert literal_type.blob.format == "optuna-study"
    assert TypeEngine.get_transformer(optuna.Study).guess_python_type(literal_type) is optuna.Study
    context = FlyteContextManager.current_context()
    study = optuna.create_study(study_name="ours")
    study.add_trial(optuna.trial.create_trial(value=1.0))
    literal = TypeEngine.to_literal(context, study, optuna.Study, literal_type)
    with open(literal.scalar.blob.uri, "rb") as file:
        assert file.readline().startswith(b'{"op_code":')
    again = TypeEngine.to_python_value(context, literal, optuna.Study)
    assert [trial.value for trial in again.trials] == [1.0]


def test_what_is_no_study_is_refused():
    with pytest.raises(Exception, match=r"An optuna\.Study is expected, or the path of its file, but got"):
        describe(study=3)


@needs_pyflyte
def test_pyflyte_run_takes_the_path_of_a_file(tmp_path):
    study = optuna.create_study()
    study.add_trial(optuna.trial.create_trial(value=1.0))
    write_study(study, tmp_path / "study.journal")
    command = [f"{sys.prefix}/bin/pyflyte", "run", __file__, "described", "--study", str(tmp_path / "study.journal")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "1 trials, MINIMIZE, {'marked': True}" in done.stdout, done.stderr
