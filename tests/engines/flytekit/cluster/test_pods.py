"""Searches on a cluster whose pods are real processes, against a real control plane on loopback."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import optuna
import pytest
import reporting
from flyteidl.core import identifier_pb2
from flytekit.configuration import Image, ImageConfig

from optuna_flyte_dsl import Optimizer
from optuna_flyte_dsl.study.study_file import read_study
from tests.support import scripts, wait_until
from tests.support.cluster_searches import executions
from tests.support.flyteadmin import FlyteAdmin
from tests.support.flyteadmin.executions import PHASES
from tests.support.marks import needs_pyflyte

ROOT = Path(__file__).parents[4]
PODS = ROOT / "tests" / "pods"


@pytest.fixture
def cluster(tmp_path):
    environment = {"TEST_FOLDER": str(tmp_path)}
    with FlyteAdmin(tmp_path / "flyte", python_path=[ROOT], environment=environment) as admin:
        yield admin


def pyflyte(admin, *arguments, folder=PODS):
    environment = {**os.environ, **admin.client_environment, "FLYTE_LOCAL_SANDBOX_PATH": str(admin.folder / "sandbox")}
    with tempfile.NamedTemporaryFile("r") as output:
        process = scripts.start(["pyflyte", *arguments], folder, environment, output.name)
        assert process.wait(300) == 0, output.read()
        return output.read()


def run(admin, file, entity, *inputs):
    """Run a user's eager workflow on the cluster; return its execution."""
    where = ["-p", "project", "-d", "development", "--name", "eager"]
    pyflyte(admin, "run", "--remote", *where, file, entity, *inputs)
    return admin.executions["project", "development", "eager"]


def end_of(execution, patience=240):
    assert execution.done.wait(patience), "it has not ended"
    assert execution.phase == PHASES.SUCCEEDED, execution.outcome.message
    return execution.outcome.outputs.literals["o0"]


def trials_of(admin):
    return [execution for execution in executions(admin) if execution.name != "eager"]


@needs_pyflyte
def test_the_whole_journey_of_a_users_file(cluster):
    execution = run(cluster, "wine.py", "search", "--dataset", "digits")
    best = end_of(execution).scalar.primitive.float_value
    trials = trials_of(cluster)
    values = [trial.outcome.outputs.literals["o0"].scalar.primitive.float_value for trial in trials]
    assert len(trials) == 4
    assert best == max(values)
    for trial in trials:
        labels = dict(trial.spec.labels.values)
        assert labels.pop("optuna-flyte-dsl-search")
        assert labels == {"eager-exec": "eager", "eager-root-exec": "eager"}
        assert {pair.key: pair.value for pair in trial.spec.envs.values} == {"_F_EE_ROOT": "eager"}
        assert trial.inputs.literals["dataset"].scalar.primitive.string_value == "digits"
    deck = next(cluster.folder.glob("executions/eager/*/data/0/deck.html")).read_text()
    for trial in trials:
        assert f"/executions/{trial.name}" in deck


@pytest.mark.newest
@needs_pyflyte
def test_a_study_goes_from_pod_to_pod(cluster):
    execution = run(cluster, "wine.py", "search_and_mark")
    blob = end_of(execution).scalar.blob
    assert blob.metadata.type.format == "optuna-study"
    study = read_study(Path(blob.uri.removeprefix("file://")))
    assert study.user_attrs["trials"] == len(study.trials) == 4
    assert study.direction.name == "MAXIMIZE"
    names = [each.spec.launch_plan.name for each in trials_of(cluster)]
    assert len(names) == 5
    fetched = cluster.remote().fetch_execution(name="eager")
    synced = cluster.remote().sync_execution(fetched)
    assert len(synced.outputs.get("o0", as_type=optuna.Study).trials) == 4


@needs_pyflyte
def test_a_registered_and_a_packaged_file_hold_both_entities(cluster, tmp_path):
    image = ["--image", "example.com/image:1"]
    pyflyte(
        cluster, "--pkgs", "wine", "package", *image, "--output", str(tmp_path / "package.tgz"), "--source", str(PODS)
    )
    with tarfile.open(tmp_path / "package.tgz") as package:
        names = [name.split("_", 1)[1] for name in package.getnames()]
    # The numbers are Flyte's: 1 is a task, 2 a workflow, 3 a launch plan.
    assert {f"wine.{name}_{kind}.pb" for name in ("train", "search") for kind in (1, 2, 3)} <= set(names)
    assert len(names) == len(set(names))
    pyflyte(cluster, "register", *image, "-p", "project", "-d", "development", "--version", "1", "wine.py")
    assert {name for _, _, name, _ in cluster.tasks} >= {"wine.train", "wine.search"}
    remote = cluster.remote()
    task = remote.fetch_task(name="wine.search", version="1")
    started = remote.execute(task, inputs={"dataset": "x"}, execution_name="eager")
    assert end_of(cluster.executions["project", "development", started.id.name]).scalar.primitive.float_value > 0
    assert len(trials_of(cluster)) == 4
    plans = {(trial.spec.launch_plan.resource_type, trial.spec.launch_plan.version) for trial in trials_of(cluster)}
    assert plans == {(identifier_pb2.LAUNCH_PLAN, "1")}


@pytest.mark.newest
@needs_pyflyte
def test_a_tasks_timeout_and_interruptible_hold_for_its_trials(cluster):
    execution = run(cluster, "limited.py", "search")
    found = end_of(execution).scalar.primitive.string_value
    assert len(re.findall(r"task execution timeout \[3s\] expired", found)) >= 4, found
    trials = [node for node in cluster.propeller.interruptible if not node.startswith("eager/")]
    assert [cluster.propeller.interruptible[node] for node in trials] == [True] * 4
    parents = {trial.spec.metadata.parent_node_execution.node_id for trial in trials_of(cluster)}
    assert parents == {"limitedsearch"}


@needs_pyflyte
@pytest.mark.newest
def test_every_kind_of_objective_runs_on_a_cluster(cluster, tmp_path):
    (tmp_path / "data.txt").write_text("12345")
    execution = run(cluster, "objectives.py", "everything", "--data", str(tmp_path / "data.txt"))
    found = [literal.scalar.primitive.string_value for literal in end_of(execution).collection.literals]
    assert found[-1] == "outside 42.0"
    found = found[:-1]
    assert len(found) == 18
    assert not [line for line in found if not line.startswith("COMPLETE")]
    pairs = [re.search(r"(?:'x'|'n'): ([\d.e-]+)}.*\[([\d.e-]+)", line).groups() for line in found]
    x, values = ([float(pair[side]) for pair in pairs] for side in (0, 1))
    expected = [
        *(10 + x[i] for i in (0, 1)),
        *(x[i] for i in (2, 3)),
        *(x[i] * 0.5 * 2 + 5 for i in (4, 5)),
        *(4 * x[i] for i in (6, 7)),
        *(2 * x[i] + 3 for i in (8, 9)),
        2 * (2 * x[10] if x[10] > 0.5 else x[10] + 1),
        2 * (x[11] + 1),
        *(x[i] for i in (12, 13)),
        *(2 * x[i] + 2 * (x[i] + 100) for i in (14, 15)),
        *(2 * x[i] for i in (16, 17)),
    ]
    assert values == pytest.approx(expected)


def log(admin):
    path = admin.folder.parent / "log"
    return path.read_text().splitlines() if path.exists() else []


def attempts_of(admin, name="eager"):
    """Return the times at which the attempts of an execution's only node were started."""
    return next((times for node, times in admin.propeller.attempts.items() if node.startswith(f"{name}/")), [])


def attempts_of_all(admin, name="eager"):
    return [times for node, times in admin.propeller.attempts.items() if node.startswith(f"{name}/")]


def pod_of(admin, execution):
    return next(iter(admin.propeller.processes(execution)), None)


@pytest.mark.newest
@needs_pyflyte
def test_a_search_survives_two_kills_of_its_pod_in_a_row(cluster, tmp_path):
    execution = run(cluster, "slow.py", "search")
    for _ in range(2):
        wait_until(lambda: len(log(cluster)) == 2, 60)
        attempts = len(attempts_of(cluster))
        os.killpg(pod_of(cluster, execution).pid, signal.SIGKILL)
        wait_until(lambda now=attempts: len(attempts_of(cluster)) > now, 60)
        reads = cluster.counts["GetExecution"]
        # It has read its own execution, and has found the first trial's again.
        wait_until(lambda now=reads: cluster.counts["GetExecution"] > now + 1, 60)
    (tmp_path / "go").touch()
    assert end_of(execution).scalar.primitive.string_value == " ".join(["COMPLETE"] * 6)
    assert len(trials_of(cluster)) == 6
    assert len(log(cluster)) == len(set(log(cluster))) == 6  # none has run twice


@pytest.mark.newest
@needs_pyflyte
def test_a_pod_that_is_killed_before_it_could_write_anything_breaks_no_chain(cluster, tmp_path):
    execution = run(cluster, "slow.py", "search")
    wait_until(lambda: len(log(cluster)) == 2, 60)
    for attempts in (1, 2):  # the second time as soon as it is there
        wait_until(lambda now=attempts: len(attempts_of(cluster)) == now, 60)
        wait_until(lambda: pod_of(cluster, execution) is not None, 60)
        os.killpg(pod_of(cluster, execution).pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    assert end_of(execution).scalar.primitive.string_value == " ".join(["COMPLETE"] * 6)
    assert len(log(cluster)) == len(set(log(cluster))) == len(trials_of(cluster)) == 6


@pytest.mark.newest
@needs_pyflyte
def test_a_search_killed_at_any_moment_loses_no_trial_and_runs_none_twice(cluster, tmp_path):
    (tmp_path / "go").touch()
    execution = run(cluster, "slow.py", "search")
    for kill in range(3):  # the fourth failure of the system's would be the last
        # At a moment given by what has been asked of the control plane, not by a clock.
        goal = cluster.counts["CreateExecution"] + 1 + 2 * kill % 3
        wait_until(lambda now=goal: cluster.counts["CreateExecution"] >= now or not execution.running, 60)
        pod = pod_of(cluster, execution)
        if pod is None:
            break
        os.killpg(pod.pid, signal.SIGKILL)
    assert end_of(execution).scalar.primitive.string_value == " ".join(["COMPLETE"] * 6)
    assert len(log(cluster)) == len(set(log(cluster))) == len(trials_of(cluster)) == 6
    assert not cluster.running()


@pytest.mark.newest
@needs_pyflyte
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_pod_that_is_told_to_end_terminates_its_executions(cluster, number):
    execution = run(cluster, "slow.py", "search")
    wait_until(lambda: len(log(cluster)) == 2, 60)
    for attempt in (1, 2, 3):  # after these three, Flyte does not start the pod again, whatever its retries are
        os.killpg(pod_of(cluster, execution).pid, signal.SIGKILL)
        wait_until(lambda now=attempt: len(attempts_of(cluster)) == now + 1, 60)
        polls = cluster.counts["ListExecutions"]
        wait_until(lambda now=polls: cluster.counts["ListExecutions"] >= now + 5, 60)  # it has adopted them
    os.killpg(pod_of(cluster, execution).pid, number)  # fast registration passes only SIGTERM on
    assert execution.done.wait(60)
    assert execution.phase == PHASES.FAILED
    assert [trial.phase for trial in trials_of(cluster)] == [PHASES.ABORTED] * 2
    assert not cluster.running()


@pytest.mark.newest
@needs_pyflyte
@pytest.mark.parametrize("workflow", ["search", "search_once"])
def test_where_flyte_starts_the_pod_again_its_executions_are_left_and_adopted(cluster, tmp_path, workflow):
    execution = run(cluster, "slow.py", workflow)  # with and without retries of its own
    wait_until(lambda: len(log(cluster)) == 2, 60)
    pod_of(cluster, execution).send_signal(signal.SIGTERM)
    wait_until(lambda: len(attempts_of(cluster)) == 2, 60)
    assert len(cluster.running()) == 3
    (tmp_path / "go").touch()
    assert end_of(execution).scalar.primitive.string_value == " ".join(["COMPLETE"] * 6)
    assert len(log(cluster)) == len(set(log(cluster))) == 6


@pytest.mark.newest
@needs_pyflyte
def test_a_pod_that_still_ends_beside_its_successor_disturbs_nothing(cluster, tmp_path):
    execution = run(cluster, "slow.py", "search_once")
    wait_until(lambda: len(log(cluster)) == 2, 60)
    cluster.propeller.drain(execution)
    wait_until(lambda: len(cluster.propeller.processes(execution)) == 2, 60)  # the old pod and the new one
    (tmp_path / "go").touch()
    assert end_of(execution).scalar.primitive.string_value == " ".join(["COMPLETE"] * 6)
    assert len(log(cluster)) == len(set(log(cluster))) == len(trials_of(cluster)) == 6


@pytest.mark.newest
@needs_pyflyte
def test_two_nodes_that_search_in_one_execution_keep_their_trials_apart(cluster, tmp_path):
    execution = run(cluster, "slow.py", "two_searches")
    wait_until(lambda: len(log(cluster)) == 4, 120)
    os.killpg(pod_of(cluster, execution).pid, signal.SIGKILL)  # one of the two
    wait_until(lambda: sum(map(len, attempts_of_all(cluster))) == 3, 60)
    (tmp_path / "go").touch()
    end_of(execution)
    found = [literal.scalar.primitive.string_value for literal in execution.outcome.outputs.literals.values()]
    assert found == ["COMPLETE COMPLETE"] * 2
    assert len(log(cluster)) == len(set(log(cluster))) == len(trials_of(cluster)) == 4
    assert not cluster.counts["TerminateExecution"]


@pytest.mark.newest
@needs_pyflyte
def test_an_aborted_search_leaves_nothing_running_though_retries_are_left(cluster):
    execution = run(cluster, "slow.py", "search")
    wait_until(lambda: len(log(cluster)) == 2, 60)
    remote = cluster.remote()
    remote.terminate(remote.fetch_execution(name="eager"), "a person has aborted it")
    wait_until(lambda: not cluster.running(), 60)
    assert [trial.phase for trial in trials_of(cluster)] == [PHASES.ABORTED] * 2
    assert execution.phase == PHASES.ABORTED


def test_a_search_started_here_runs_its_trials_there(cluster):
    import wine

    # The default image is not asked for: a registry is no part of this cluster.
    options = {"image_config": ImageConfig(Image("default", "example.com/image", "1"))}
    study = asyncio.run(wine.train.on(cluster.remote(), **options)(dataset="abc"))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 4
    assert len(trials_of(cluster)) == 4
    assert {task[2] for task in cluster.tasks} == {"wine.train"}


PROGRAM = """
import sys
import slow
from flytekit.configuration import Config, Image, ImageConfig, PlatformConfig
from flytekit.remote import FlyteRemote

remote = FlyteRemote(Config(PlatformConfig(sys.argv[1], insecure=True)), "project", "development", sys.argv[2])
slow.train.on(remote, image_config=ImageConfig(Image("default", "example.com/image", "1"))).run_sync()
"""


@pytest.mark.newest
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_here_terminates_what_runs_there(cluster, tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, cluster.endpoint, str(tmp_path / "raw")],
        env={**os.environ, "PYTHONPATH": f"{PODS}{os.pathsep}{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: len(log(cluster)) == 2 or process.poll() is not None, 60)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode
    assert "2 executions were terminated" in errors
    assert [trial.phase for trial in trials_of(cluster)] == [PHASES.ABORTED] * 2, errors
    assert not cluster.running()


@pytest.mark.newest
def test_a_script_that_is_not_guarded_does_not_start_its_search_in_each_pod(cluster, tmp_path):
    done = subprocess.run(
        [sys.executable, "unguarded.py", cluster.endpoint, str(tmp_path / "raw")],
        cwd=PODS,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.count("is imported by a pod") == 2, done.stdout + done.stderr
    assert (
        'Put the call under `if __name__ == \\"__main__\\":`' in done.stdout.replace("'", '"')
        or "__main__" in done.stdout
    )
    assert len(trials_of(cluster)) == 2
    assert not cluster.running()


@pytest.mark.newest
@needs_pyflyte
def test_what_a_task_returns_is_judged_in_its_pod(cluster):
    execution = run(cluster, "values.py", "search")
    found = [literal.scalar.primitive.string_value for literal in end_of(execution).collection.literals]
    assert len(found) == 6
    ended, text, number, ended_by_list, listed, raised = found
    assert ended.startswith("ObjectiveValueError: `text` must return a number, but it returned '0.")
    assert ended.endswith("Return a float for each objective.")
    assert text == ended
    assert ended_by_list == listed
    assert listed.startswith("ObjectiveValueError: `a_list` returned [0.")
    assert "Write `float(...)` around the value" in listed
    assert number == "None"  # the trial has not failed
    assert "[USER:RuntimeError] ValueError: it was not to be (see http" in raised


@pytest.mark.newest
def test_a_task_that_was_pruned_and_is_called_again_is_judged_by_its_latest_call(cluster):
    remote = cluster.remote()
    images = ImageConfig(Image("default", "example.com/image", "1"))
    local = Optimizer(reporting.tries_again, 1, 1, progress=False)
    there = Optimizer(reporting.tries_again, 1, 1, progress=False).on(remote, image_config=images)
    for study in (local.run_sync(), there.run_sync()):
        assert [(trial.state.name, trial.values) for trial in study.trials] == [("COMPLETE", [0.25])]

    calls = []

    def gives_up(trial: optuna.Trial) -> float:
        calls.append(1)
        if len(calls) > 1:
            return reporting.fit.task(trial=trial, x=0.25, cheap=True)
        try:
            return reporting.fit.task(trial=trial, x=0.25, cheap=False)
        except optuna.TrialPruned:
            raise ValueError("this attempt fails, and the next one calls the task again") from None

    study = (
        Optimizer(gives_up, 1, 1, retries=1, progress=False)
        .on(remote, image_config=images, source=str(PODS))
        .run_sync()
    )
    assert len(calls) == 2
    assert [(trial.state.name, trial.values) for trial in study.trials] == [("COMPLETE", [0.25])]


# The searches of a process: two at the same time, one after another, and one beside a running event loop.
SEARCHES = {
    "two": ("asyncio.run(both())", 4),
    "second": ("asyncio.run(one_after_another())", 2),
    "notebook": ("asyncio.run(in_a_loop())", 2),
}
LAPTOP = """
import asyncio, sys
import slow
from flytekit.configuration import Config, Image, ImageConfig, PlatformConfig
from flytekit.remote import FlyteRemote

remote = FlyteRemote(Config(PlatformConfig(sys.argv[1], insecure=True)), "project", "development", sys.argv[2])
images = ImageConfig(Image("default", "example.com/image", "1"))
train = slow.train.on(remote, image_config=images)

async def both():
    await asyncio.gather(train(), train())

async def one_after_another():
    first = asyncio.ensure_future(train())
    await asyncio.sleep(0)
    second = asyncio.ensure_future(train())
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    await second

async def in_a_loop():
    train.run_sync()

"""


@pytest.mark.newest
@pytest.mark.parametrize("searches", SEARCHES)
def test_sigterm_here_ends_all_searches_of_the_process(cluster, tmp_path, searches):
    call, running = SEARCHES[searches]
    cluster.instant = lambda execution: None
    process = subprocess.Popen(
        [sys.executable, "-c", LAPTOP + call, cluster.endpoint, str(tmp_path / "raw")],
        env={**os.environ, "PYTHONPATH": f"{PODS}{os.pathsep}{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: len(cluster.running()) == running or process.poll() is not None, 60)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert not cluster.running(), errors
