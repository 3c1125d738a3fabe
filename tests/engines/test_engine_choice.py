"""The choice of an engine by the task's class: a second engine is plugged in, of an SDK that is imported later."""

import importlib
import inspect
import sys
import types
from typing import ClassVar

import pytest
import wrapt

from optuna_flyte_dsl import ArgumentError, Float, Optimizer, optimize
from optuna_flyte_dsl.engines import engine_choice
from optuna_flyte_dsl.space.objective import TaskDescription


class Job:
    """A task of another SDK."""

    def __init__(self, function):
        self.function = function

    def __call__(self, **inputs):
        return self.function(**inputs)


class JobRunner:
    """Runs jobs, and notes their inputs."""

    ran: ClassVar[list] = []

    def __init__(self, objective):
        self.objective = objective

    async def run(self, run):
        run.begin()
        self.ran.append(dict(run.arguments))
        return self.objective.target.function(**run.arguments)

    async def close(self):
        self.ran.append("closed")


def job_engine():
    """Return a module with the functions of the protocol `Engine`."""
    engine = types.ModuleType("otherpackage.othersdk_engine")
    vars(engine).update(
        is_task=lambda target: isinstance(target, Job),
        describe=lambda task: TaskDescription(task.function.__name__, inspect.signature(task.function)),
        prepare=lambda task: None,
        in_pod=lambda: False,
        check_place=lambda name: None,
        call=lambda task, name, kwargs: NotImplemented,
        check_attribute=lambda name, attribute: None,
        pod_methods=lambda task, objective, make_pruner: {},
        current_site=lambda: None,
        make_local_runner=JobRunner,
        load_search=lambda: None,
    )
    return engine


@pytest.fixture
def registered(monkeypatch, tmp_path):
    """Plug in an engine whose SDK is not imported yet; return what its types have registered."""
    calls = []
    carried = types.ModuleType("otherpackage.types")
    carried.register = lambda: calls.append("register")
    for module in (types.ModuleType("otherpackage"), carried, job_engine()):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    (tmp_path / "othersdk.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(engine_choice, "_PACKAGES", {**engine_choice._PACKAGES, "othersdk": "otherpackage"})
    monkeypatch.setattr(engine_choice, "_imported", list(engine_choice._imported))
    wrapt.register_post_import_hook(engine_choice._on_import, "othersdk")
    yield calls
    sys.modules.pop("othersdk", None)


def test_a_second_engine_runs_the_tasks_of_its_sdk(registered):
    job = Job(lambda x, scale: x * scale)
    job.function.__name__ = "job"
    job.function.__annotations__["x"] = Float(0, 1)
    assert registered == []
    importlib.import_module("othersdk")
    assert registered == ["register"]
    JobRunner.ran.clear()
    study = Optimizer(job, 2, 4, progress=False).run_sync(scale=2.0)
    assert [trial.value for trial in study.trials] == [2 * trial.params["x"] for trial in study.trials]
    assert JobRunner.ran[-1] == "closed"
    assert sorted(run["x"] for run in JobRunner.ran[:-1]) == sorted(trial.params["x"] for trial in study.trials)
    decorated = optimize(n_trials=2, progress=False)(job)
    assert len(decorated.run_sync(scale=1.0).trials) == 2
    with pytest.raises(ArgumentError, match="needs a value for `scale`"):
        decorated()
    assert decorated.task(x=3, scale=2) == 6
