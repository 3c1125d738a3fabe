"""What is registered and fetched, and what no pod could load."""

import copy
import dataclasses
import importlib.util
import sys
from typing import Optional

import flytekit as fl
import grpc
import optuna
import pytest
import quick
from flyteidl.core import identifier_pb2
from flytekit.configuration import SerializationSettings
from flytekit.core.task import ReferenceTask
from flytekit.models.common import Annotations, Labels
from flytekit.models.filters import ValueIn
from flytekit.models.interface import ParameterMap
from flytekit.models.literals import LiteralMap
from flytekit.remote import FlyteRemote

from optuna_flyte_dsl import Cluster, Float, Minimize, Optimizer, RefusedError, UnloadableError, optimize, suggest
from tests.support._compat import set_python_outputs
from tests.support.cluster_searches import executions, there, with_options
from tests.support.eager_pod import IMAGES
from tests.support.flyteadmin import Fault
from tests.support.small_searches import states


def test_a_workflow_and_a_launch_plan_are_launched_as_such(cluster):
    for entity in (quick.flow, quick.plan):
        study = there(Optimizer(entity, 2, 2, progress=False), cluster).run_sync(x=suggest.float(0, 1))
        assert states(study) == ["COMPLETE"] * 2
    assert [each.spec.launch_plan.name for each in executions(cluster)] == ["quick.flow"] * 2 + ["quick.plan"] * 2
    bases = [each.inputs.literals["base"].scalar.primitive.float_value for each in executions(cluster)]
    assert bases == [2.0, 2.0, 5.0, 5.0]


def test_an_eager_workflow_is_launched_with_its_failure_node(cluster):
    study = there(Optimizer(quick.eager_flow, 2, 2, progress=False), cluster).run_sync(x=suggest.float(0, 1))
    assert states(study) == ["COMPLETE"] * 2
    (workflow,) = [spec.template for spec in cluster.workflows.values()]
    assert workflow.failure_node.id


def test_references_are_launched_and_nothing_is_registered(cluster):
    remote = cluster.remote()
    settings = SerializationSettings(IMAGES, project="project", domain="development", version="v1")
    remote.register_workflow(quick.flow, settings, "v1")
    created = cluster.counts["CreateTask"] + cluster.counts["CreateWorkflow"]

    @fl.reference_task(project="project", domain="development", name="quick.sync_step", version="v1")
    def task(x: float) -> float: ...

    @fl.reference_workflow(project="project", domain="development", name="quick.flow", version="v1")
    def workflow(x: float) -> float:
        return x

    @fl.reference_launch_plan(project="project", domain="development", name="quick.flow", version="v1")
    def launch_plan(x: float) -> float:
        return x

    for entity in (task, workflow, launch_plan):
        there_too = Optimizer(entity, 2, 2, progress=False).on(remote, image_config=IMAGES)
        study = there_too.run_sync(x=suggest.float(0, 1))
        assert states(study) == ["COMPLETE"] * 2, study.trials[0].user_attrs
    assert cluster.counts["CreateTask"] + cluster.counts["CreateWorkflow"] == created
    assert cluster.counts["CreateUploadLocation"] == 0


def test_a_reference_to_nothing_ends_the_search_with_the_cure(cluster):
    @fl.reference_task(project="project", domain="development", name="nothing", version="v1")
    def task(x: float) -> float: ...

    with pytest.raises(RefusedError, match=r"find.*`nothing`.*NOT_FOUND.*Register what is missing"):
        there(Optimizer(task, 2, 2, progress=False), cluster).run_sync(x=suggest.float(0, 1))


def test_a_task_that_no_pod_can_load_is_refused_before_the_first_launch(cluster):
    @optimize(n_trials=2, progress=False)
    @fl.task
    def test_local(x: Float(0, 1)) -> Minimize:
        return x

    with pytest.raises(UnloadableError, match=r"`test_local` cannot be loaded by the pod.*at the top of its module"):
        there(test_local, cluster).run_sync()
    assert cluster.counts["CreateExecution"] == cluster.counts["CreateTask"] == 0
    assert states(test_local.study) == []

    async def awaits_it(trial: optuna.Trial):
        return await test_async(x=0.5)

    @fl.task
    async def test_async(x: float) -> float:
        return x

    optimizer = Optimizer(awaits_it, 2, 4, progress=False)
    with pytest.raises(UnloadableError):
        there(optimizer, cluster).run_sync()
    assert set(states(optimizer.study)) == {"FAIL"}
    assert cluster.counts["CreateExecution"] == 0


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("rpc", ["GetLaunchPlan", "GetWorkflow", "CreateWorkflow", "CreateLaunchPlan"])
def test_a_passing_fault_while_a_workflow_is_registered_is_waited_out(cluster, rpc, done):
    cluster.fail(rpc, Fault(times=6, done=done))
    study = there(Optimizer(quick.flow, 2, 2, progress=False), cluster).run_sync(x=suggest.float(0, 1))
    assert states(study) == ["COMPLETE"] * 2
    assert len(cluster.executions) == 2


def test_the_race_for_the_workflow_around_a_task_is_waited_out(cluster):
    remote = cluster.remote()
    settings = SerializationSettings(IMAGES, project="project", domain="development", version="v1")
    task = remote.register_task(quick.sync_step, settings, "v1")  # it has no launch plan
    cluster.single_task_races = 5
    study = there(Optimizer(task, 2, 6, progress=False), cluster).run_sync(x=suggest.float(0, 1))
    assert states(study) == ["COMPLETE"] * 6
    assert len(cluster.executions) == 6


def kinds_of(admin):
    return {each.spec.launch_plan.resource_type for each in executions(admin)}


def test_trials_launch_a_launch_plan_so_that_their_labels_are_searchable(cluster):
    labelled = with_options(quick.train, labels={"team": "a"})
    there(labelled, cluster).run_sync()
    there(Optimizer(quick.step, 2, 2, progress=False), cluster).run_sync(x=suggest.float(0, 1))
    assert kinds_of(cluster) == {identifier_pb2.LAUNCH_PLAN}
    assert [each.spec.launch_plan.name for each in executions(cluster)] == ["quick.train"] * 6 + ["quick.step"] * 2
    filters = [ValueIn("execution_tag.key", ["team"]), ValueIn("execution_tag.value", ["a"])]
    found, _ = cluster.remote().client.list_executions_paginated("project", "development", limit=100, filters=filters)
    assert len(found) == 6


def test_a_reference_to_a_task_launches_its_launch_plan_if_there_is_one(cluster):
    there(quick.train, cluster).run_sync()
    (version,) = {version for *_, version in cluster.tasks}
    inputs = {"x": float, "base": float, "name": Optional[str]}
    task = ReferenceTask("project", "development", "quick.train", version, inputs, {"o0": float})
    optimizer = Optimizer(task, 2, 2, progress=False)
    there(optimizer, cluster).run_sync(x=suggest.float(0, 1), base=1.0, name=None)
    assert len(executions(cluster)) == 8
    assert kinds_of(cluster) == {identifier_pb2.LAUNCH_PLAN}


def test_a_launch_plan_with_the_tasks_name_that_runs_something_else_is_left_alone(cluster):
    remote = cluster.remote()
    settings = SerializationSettings(IMAGES, project="project", domain="development", version="v1")
    task = remote.register_task(quick.step, settings, "v1")
    other = fl.LaunchPlan("quick.step", quick.one_input, ParameterMap({}), LiteralMap({}))
    remote.register_launch_plan(other, "v1", serialization_settings=settings)
    there(Optimizer(task, 2, 2, progress=False), cluster).run_sync(x=suggest.float(0, 1))
    assert kinds_of(cluster) == {identifier_pb2.TASK}


def test_a_user_who_may_not_register_launch_plans_is_told_what_does_not_hold(cluster, caplog):
    cluster.fail("CreateWorkflow", Fault(grpc.StatusCode.PERMISSION_DENIED, times=100))
    assert states(there(quick.train, cluster).run_sync()) == ["COMPLETE"] * 6
    assert kinds_of(cluster) == {identifier_pb2.TASK}
    assert "its `timeout` and `interruptible` do not hold" in caplog.text


def test_a_workflow_of_the_same_name_with_another_interface_leaves_the_task_alone(cluster, caplog):
    remote = cluster.remote()
    settings = SerializationSettings(IMAGES, project="project", domain="development", version="v1")
    workflow = fl.Workflow(name="quick.step")
    node = workflow.add_entity(quick.sync_step, x=workflow.add_workflow_input("x", float))
    workflow.add_workflow_output("o0", node.outputs["o0"])
    remote.register_workflow(workflow, settings, "v1")
    search = Optimizer(quick.step, 2, 2, progress=False).on(cluster.remote(), image_config=IMAGES, version="v1")
    assert states(search.run_sync(x=suggest.float(0, 1))) == ["COMPLETE"] * 2
    assert kinds_of(cluster) == {identifier_pb2.TASK}
    assert "has another interface: rename one of them" in caplog.text


def test_a_version_that_another_search_has_just_registered_is_used(cluster, monkeypatch):
    registered = FlyteRemote.register_task

    def loses_the_race(self, entity, settings, version):
        other = copy.deepcopy(settings)
        other = dataclasses.replace(other, env={"OTHER": "search"})
        registered(cluster.remote(), entity, other, version)
        return registered(self, entity, settings, version)

    monkeypatch.setattr(FlyteRemote, "register_task", loses_the_race)
    assert states(there(quick.train, cluster).run_sync()) == ["COMPLETE"] * 6


def test_an_execution_has_the_labels_and_annotations_of_its_launch_plan_too(cluster):
    plan = fl.LaunchPlan.get_or_create(
        quick.flow,
        name="quick.labelled",
        labels=Labels({"team": "vision", "cost": "plan"}),
        annotations=Annotations({"mesh": "off"}),
    )
    options = Cluster(labels={"cost": "call"})
    there(Optimizer(plan, 1, 1, cluster=options, progress=False), cluster).run_sync(x=suggest.float(0, 1))
    (execution,) = executions(cluster)
    assert execution.spec.labels.values["team"] == "vision"
    assert execution.spec.labels.values["cost"] == "call"
    assert execution.spec.annotations.values["mesh"] == "off"


def test_a_task_of_which_flytekit_makes_no_node_is_launched_alone(cluster):
    for task in (quick.names_an_entity, quick.returns_an_id):
        optimizer = Optimizer(task, 1, 1, progress=False)
        there(optimizer, cluster).run_sync(**{name: suggest.float(0, 1) for name in task.python_interface.inputs})
    assert kinds_of(cluster) == {identifier_pb2.TASK}


def test_a_task_can_be_redefined_as_in_a_notebook(cluster, tmp_path, monkeypatch):
    for names in ("x", "xy"):
        signature = ", ".join(f"{name}: float" for name in names)
        path = tmp_path / f"{names}.py"
        path.write_text(f"import flytekit as fl\n\n\n@fl.task\ndef again({signature}) -> float:\n    return x\n")
        spec = importlib.util.spec_from_file_location("cell", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "cell", module)
        spec.loader.exec_module(module)
        optimizer = Optimizer(module.again, 1, 1, progress=False)
        there(optimizer, cluster).run_sync(**{name: suggest.float(0, 1) for name in names})
    assert [len(each.inputs.literals) for each in executions(cluster)] == [1, 2]
    assert kinds_of(cluster) == {identifier_pb2.LAUNCH_PLAN}


@pytest.mark.parametrize("kind", ["map", "conditional"])
def test_a_task_that_no_pod_can_load_is_found_inside_of_a_workflow(cluster, kind):
    @fl.task
    def test_inner(x: float) -> float:
        return x

    if kind == "map":

        @fl.workflow
        def flow(xs: list[float]) -> list[float]:
            return fl.map_task(test_inner)(x=xs)

        given = {"xs": [suggest.float(0, 1)]}
    else:

        @fl.workflow
        def flow(x: float) -> float:
            return fl.conditional("c").if_(x > 0.5).then(test_inner(x=x)).else_().then(test_inner(x=1.0))

        given = {"x": suggest.float(0, 1)}
    with pytest.raises(UnloadableError, match="`test_inner` cannot be loaded"):
        there(Optimizer(with_float(flow), 1, 1, progress=False, direction="minimize"), cluster).run_sync(**given)
    assert cluster.counts["CreateExecution"] == 0


def with_float(flow):
    set_python_outputs(flow, {"o0": float})  # a list is no objective
    return flow
