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


class Broken:
    """A runner that runs nothing."""

    def __init__(self, objective):
        pass

    async def run(self, run):
        raise RuntimeError("no machine is free")

    async def close(self):
        pass


@pytest.mark.newest
def test_the_suite_finds_the_faults_of_bad_runners(tmp_path, monkeypatch):
    monkeypatch.setattr("optuna_flyte_dsl.testing.conformance_objectives.PATIENCE", 0.2)
    every = {name for name in dir(EngineConformance) if name.startswith("test_")}
    careless, broken = failed_tests(Careless, tmp_path / "careless"), failed_tests(Broken, tmp_path / "broken")
    assert {"test_trials_run_at_the_same_time", "test_a_cancelled_search_tells_its_trials"} <= careless
    assert {"test_what_works_is_complete", "test_nan_is_a_failed_trial"} <= broken
    assert careless | broken == every


def failed_tests(runner, path):
    """Return the names of the tests that a runner fails."""

    class Suite(EngineConformance):
        def make_runner(self, objective):
            return runner(objective)

    failed = set()
    for name in [name for name in dir(Suite) if name.startswith("test_")]:
        folder = path / name
        folder.mkdir(parents=True)
        test = getattr(Suite(), name)
        try:
            test(folder) if "tmp_path" in test.__annotations__ else test()
        except (Exception, asyncio.CancelledError):
            failed.add(name)
    return failed
