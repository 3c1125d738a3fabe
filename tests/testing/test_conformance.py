"""Our runners pass the suite that others' runners pass."""

import asyncio

import conformance
import flytekit as fl
import pytest

from optuna_flyte_dsl import optimize
from optuna_flyte_dsl.engines._flytekit.flytekit_runner import FlytekitRunner
from optuna_flyte_dsl.engines.functions import FunctionRunner
from optuna_flyte_dsl.engines.process_runner import ProcessRunner
from optuna_flyte_dsl.testing.conformance import EngineConformance
from tests.engines.test_engine import IMAGES
from tests.engines.test_engine import admin as admin


@pytest.mark.newest
class TestFunctionsInThreads(EngineConformance):
    def make_runner(self, objective):
        return FunctionRunner(objective)


class TestTasksInThreads(EngineConformance):
    def make_runner(self, objective):
        return FlytekitRunner(objective)

    def objective(self, function):
        return optimize(fl.task(function))


@pytest.mark.newest
class TestProcesses(EngineConformance):
    def make_runner(self, objective):
        return ProcessRunner(objective, FunctionRunner, None)


@pytest.mark.newest
class TestCluster(EngineConformance):
    @pytest.fixture(autouse=True)
    def _cluster(self, admin):
        self.admin = admin

    def objective(self, function):
        return getattr(conformance, function.__name__)

    async def search(self, objective, arguments, options):
        return await objective.with_options(**options).on(self.admin.remote(), image_config=IMAGES)(**arguments)


class Careless:
    """A runner that does everything wrong that a runner can do wrong."""

    def __init__(self, objective):
        self._objective = objective

    async def run(self, run):
        try:
            return self._objective.target(**run.arguments) or 0.0
        except Exception:
            return 0.0

    async def close(self):
        pass


@pytest.mark.newest
def test_the_suite_finds_the_faults_of_a_careless_runner(tmp_path, monkeypatch):
    monkeypatch.setattr("optuna_flyte_dsl.testing.conformance_objectives.PATIENCE", 0.2)

    class Suite(EngineConformance):
        def make_runner(self, objective):
            return Careless(objective)

    failed = []
    for name in [name for name in dir(Suite) if name.startswith("test_")]:
        folder = tmp_path / name
        folder.mkdir()
        test = getattr(Suite(), name)
        try:
            test(folder) if "tmp_path" in test.__annotations__ else test()
        except (Exception, asyncio.CancelledError):
            failed.append(name)
    assert failed == [
        "test_a_cancelled_search_tells_its_trials",
        "test_a_search_that_takes_too_long_stops_its_trials",
        "test_a_trial_reports_and_is_pruned",
        "test_a_trial_that_hangs_is_given_up_at_its_time_limit",
        "test_an_attempt_that_raised_is_tried_again_with_the_same_parameters",
        "test_an_error_fails_its_trial_and_no_other",
        "test_an_objective_that_always_fails_ends_the_search_with_its_cause",
        "test_trials_run_at_the_same_time",
        "test_what_is_no_number_ends_the_search",
    ]
