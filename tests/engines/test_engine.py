"""What becomes of a trial is the same in threads, in processes, and on a cluster: what `EngineConformance` lacks."""

import re
from pathlib import Path

import conformance
import optuna
import pytest
from flytekit.configuration import Image, ImageConfig

from optuna_flyte_dsl.engines import functions
from optuna_flyte_dsl.study.attributes import ATTEMPTS, ERROR, TRACEBACK
from tests.support import own_threads, wait_until, worker_processes
from tests.support.flyteadmin import FlyteAdmin
from tests.support.small_searches import states

ROOT = Path(__file__).parents[2]
IMAGES = ImageConfig(Image("default", "example.com/image", "1"))
RUNNERS = ["thread", "process", "cluster"]
# On the oldest versions, only what depends on them runs in processes and pods: each takes seconds to start.
ELSEWHERE_NEWEST = pytest.mark.parametrize(
    "runner", [RUNNERS[0], *(pytest.param(each, marks=pytest.mark.newest) for each in RUNNERS[1:])], indirect=True
)
PRUNER = optuna.pruners.ThresholdPruner(upper=0.5)


@pytest.fixture(scope="module")
def admin(tmp_path_factory):
    with FlyteAdmin(tmp_path_factory.mktemp("flyte"), python_path=[ROOT]) as admin:
        yield admin
        assert not admin.running()


@pytest.fixture(params=RUNNERS)
def runner(request):
    if request.param == "cluster":
        return request.getfixturevalue("admin")
    return request.param


@pytest.fixture(autouse=True)
def _nothing_is_left():
    yield
    wait_until(lambda: not own_threads())
    assert not worker_processes()


def run(runner, objective, *, points=(), n_trials=None, inputs=None, **options):
    points = [{"x": x} for x in points]
    options = {"concurrency": 2, "progress": False, "initial_points": points or None, **options}
    options["n_trials"] = n_trials or max(1, len(points))
    if runner == "process":
        options["concurrency"] = 1  # each worker process takes seconds to start
    if isinstance(runner, str):
        return objective.with_options(executor=runner, **options).run_sync(**(inputs or {}))
    return objective.with_options(**options).on(runner.remote(), image_config=IMAGES).run_sync(**(inputs or {}))


def reasons(study):
    return [trial.user_attrs.get(ERROR, "") for trial in study.trials]


@ELSEWHERE_NEWEST
def test_choices_arrive_as_they_are_declared(runner):
    study = run(runner, conformance.takes_choices, points=[0.25, 0.75], seed=1)
    assert states(study) == ["COMPLETE"] * 2, reasons(study)
    assert {trial.params["kernel"] for trial in study.trials} <= {"LINEAR", "RBF"}
    assert {trial.params["size"] for trial in study.trials} <= {"SMALL", "LARGE"}
    assert all(
        trial.value == conformance.takes_choices.task(**conformance.takes_choices.space.fill(trial.params))
        for trial in study.trials
    )


@ELSEWHERE_NEWEST
def test_classes_choices_between_them_and_lists_arrive_as_they_are_declared(runner):
    objective = conformance.takes_structures
    study = run(runner, objective, n_trials=4, seed=5, inputs={"config.booster": "dart"})
    assert states(study) == ["COMPLETE"] * 4, reasons(study)
    assert {trial.params["model"] for trial in study.trials} == {"SVM", "Forest"}
    space = objective.space.bind(**{"config.booster": "dart"})
    for trial in study.trials:
        assert trial.params.keys() == space.active_in(trial.params)
        assert trial.value == pytest.approx(objective.task(**space.fill(trial.params)))
    assert objective.best(study, {"config.booster": "dart"})["config"].booster == "dart"


@pytest.mark.parametrize("runner", RUNNERS[1:], indirect=True)
def test_a_segfault_is_a_failed_trial_and_the_search_goes_on(runner):
    study = run(runner, conformance.segfaults, points=[0.9, 0.1], concurrency=1)
    assert states(study) == ["FAIL", "COMPLETE"]
    if isinstance(runner, FlyteAdmin):
        assert reasons(study)[0].startswith("ExecutionFailedError: ")
    else:
        assert reasons(study)[0] == "WorkerDiedError: The trial's worker process died: a segmentation fault (SIGSEGV)."


def test_a_trial_that_hangs_is_stopped_after_its_timeout(runner, tmp_path, warned, monkeypatch):
    monkeypatch.setattr(functions, "_warned", functions.threading.Event())
    try:
        study = run(runner, conformance.hangs, points=[0.5], trial_timeout=0.3, inputs={"folder": str(tmp_path)})
        assert states(study) == ["FAIL"]
        assert reasons(study)[0].startswith("TrialTimeoutError: The trial ran for longer than `trial_timeout`, 0.3 s")
        if isinstance(runner, FlyteAdmin):
            wait_until(lambda: not runner.running())
        assert any("a thread cannot be stopped" in line for line in warned()) == (runner == "thread")
    finally:
        (tmp_path / "over").touch()


@ELSEWHERE_NEWEST
def test_an_objective_that_fails_at_times_does_not_end_the_search(runner, warned):
    study = run(runner, conformance.fails_at_times, points=[0.1, 0.9, 0.2], max_consecutive_failures=2)
    assert sorted(states(study)) == ["COMPLETE", "COMPLETE", "FAIL"]
    assert sum("one in three" in reason for reason in reasons(study)) == 1
    (line,) = [each for each in warned() if "one in three" in each]
    assert re.search(r"\(conformance.py:\d+, in fails_at_times: raise ValueError\(\"one in three\"\)\)$", line)
    if not isinstance(runner, FlyteAdmin):  # there, the traceback is in Flyte's own message
        (text,) = [trial.user_attrs[TRACEBACK] for trial in study.trials if TRACEBACK in trial.user_attrs]
        assert text.startswith("Traceback (most recent call last):\n")
        assert text.count("  File ") == text.count("conformance.py") == 1


def test_a_pruned_trial_is_pruned_and_keeps_what_it_has_reported(runner):
    study = run(runner, conformance.prunes, points=[0.9, 0.2], concurrency=1, pruner=PRUNER)
    assert states(study) == ["PRUNED", "COMPLETE"]
    assert [trial.intermediate_values for trial in study.trials] == [{0: 0.9}, {0: 0.2, 1: 0.1}]
    assert [trial.value for trial in study.trials] == [0.9, 0.2]
    assert [trial.user_attrs["ran"] for trial in study.trials] == [True, True]
    if isinstance(runner, FlyteAdmin):
        ended = [each for each in runner.executions.values() if "prunes" in each.spec.launch_plan.name]
        assert {each.phase for each in ended} == {4}, "a pruned trial is no failure in Flyte"
        for each in ended:
            shown = str(each.inputs)
            token = next(pair.value for pair in each.spec.envs.values if pair.key == "OPTUNA_FLYTE_DSL_TOKEN")
            assert token not in shown
            assert all(token not in str(trial) for trial in study.trials)


def test_a_tasks_own_retries_hold_and_do_not_multiply(runner, tmp_path):
    options = {"retries": 2, "concurrency": 1, "inputs": {"folder": str(tmp_path)}}
    study = run(runner, conformance.recovers, points=[0.2, 0.9], **options)
    assert states(study) == ["COMPLETE", "FAIL"]
    assert (tmp_path / "recovers-0.2").stat().st_size == 2
    assert (tmp_path / "recovers-0.9").stat().st_size == 2
    assert all(ATTEMPTS not in trial.user_attrs for trial in study.trials)


@ELSEWHERE_NEWEST
def test_the_retries_of_a_task_in_a_workflow_hold_and_do_not_multiply(runner, tmp_path):
    options = {"retries": 2, "inputs": {"folder": str(tmp_path)}}
    study = run(runner, conformance.has_a_part_that_recovers, points=[0.2, 0.9], **options)
    assert states(study) == ["COMPLETE", "FAIL"]
    assert (tmp_path / "part-0.2").stat().st_size == 2
    assert (tmp_path / "part-0.9").stat().st_size == 2


@pytest.mark.parametrize("runner", RUNNERS[:2], indirect=True)
def test_a_function_samples_and_prunes_wherever_it_runs(runner):
    objective = conformance.samples_and_prunes
    options = {"n_trials": 8, "concurrency": 2, "seed": 1, "pruner": PRUNER, "progress": False}
    study = objective.with_options(executor=runner, **options).run_sync()
    assert len({trial.params["x"] for trial in study.trials}) == 8
    for trial in study.trials:
        assert trial.state.name == ("PRUNED" if trial.params["x"] > 0.5 else "COMPLETE")
        assert trial.value == trial.params["x"]
        if trial.state.name == "COMPLETE":
            assert trial.user_attrs["kind"] == trial.params["kind"]
