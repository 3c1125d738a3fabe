"""What an execution is given."""

import re

import grpc
import pytest
import quick
from flytekit.models.security import Identity, SecurityContext

from optuna_flyte_dsl import Cluster, InvalidOptionError, Optimizer, suggest
from optuna_flyte_dsl.engines._flytekit.cluster.executions import ATTEMPT, INPUTS_DIGEST, SEARCH
from tests.support.cluster_searches import executions, there, with_options
from tests.support.eager_pod import Pod, eager_execution
from tests.support.flyteadmin import Fault


def test_an_execution_gets_all_that_a_user_may_set_for_it(cluster):
    context = SecurityContext(run_as=Identity(k8s_service_account="robot"))
    tuned = with_options(
        quick.train,
        interruptible=True,
        overwrite_cache=True,
        labels={"team": "a"},
        annotations={"note": "b"},
        env={"KEY": "value"},
        tags=("nightly",),
        cluster_pool="pool",
        execution_cluster_label="label",
        raw_output_prefix="s3://bucket/folder",
        security_context=context,
        max_parallelism=3,
    )
    there(tuned, cluster).run_sync()
    for execution in executions(cluster):
        spec = execution.spec
        assert spec.interruptible.value is True
        assert spec.overwrite_cache is True
        assert spec.labels.values["team"] == "a"
        digest = spec.annotations.values[INPUTS_DIGEST]
        assert dict(spec.annotations.values) == {"note": "b", INPUTS_DIGEST: digest, ATTEMPT: "0"}
        assert {pair.key: pair.value for pair in spec.envs.values} == {"KEY": "value"}
        assert list(spec.tags) == ["nightly"]
        assert spec.cluster_assignment.cluster_pool_name == "pool"
        assert spec.execution_cluster_label.value == "label"
        assert spec.raw_output_data_config.output_location_prefix == "s3://bucket/folder"
        assert spec.security_context.run_as.k8s_service_account == "robot"
        assert spec.max_parallelism == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"launches_per_second": 0}, "`launches_per_second` of `Cluster` must be a number above 0, but got 0"),
        ({"patience": "long"}, "`patience` of `Cluster` must be a number above 0, but got 'long'"),
        ({"launches_at_once": 1.5}, "`launches_at_once` of `Cluster` must be an integer above 0, but got 1.5"),
        (
            {"on_sigterm": "wait"},
            "`on_sigterm` of `Cluster` must be one of 'auto', 'terminate', 'leave', but got 'wait'",
        ),
        ({"interruptible": "yes"}, "`interruptible` of `Cluster` must be True, False or None"),
        ({"labels": {"a": 1}}, "`labels` of `Cluster` must map strings to strings"),
        ({"tags": "nightly"}, "`tags` of `Cluster` must be strings"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(InvalidOptionError, match=re.escape(message)):
        Cluster(**options)


def test_trials_inherit_what_the_execution_of_their_workflow_has(cluster, tmp_path):
    eager = eager_execution(cluster)
    eager.spec.security_context.run_as.k8s_service_account = "trainer"
    eager.spec.raw_output_data_config.output_location_prefix = str(tmp_path / "raw")
    eager.spec.envs.values.add(key="REGION", value="north")
    eager.spec.labels.values.update({"team": "a", SEARCH: "of the outer search"})
    eager.spec.annotations.values.update({"note": "b", INPUTS_DIGEST: "of the outer trial"})
    eager.spec.interruptible.value = True
    eager.spec.overwrite_cache = True
    eager.spec.envs.values.add(key="OPTUNA_FLYTE_DSL_TOKEN", value="of the outer trial")
    tuned = with_options(
        quick.train,
        raw_output_prefix=str(tmp_path / "own"),
        labels={"team": "c"},
        interruptible=False,
        overwrite_cache=False,
    )

    async def workflow():
        await quick.train()
        await tuned()

    Pod(cluster, tmp_path, 0).run(workflow)
    specs = [each.spec for each in executions(cluster)]
    assert len(specs) == 12
    for spec in specs:
        assert {pair.key: pair.value for pair in spec.envs.values} == {"_F_EE_ROOT": "eager", "REGION": "north"}
        assert spec.labels.values[SEARCH] != "of the outer search"
        assert spec.annotations.values["note"] == "b"
        assert spec.annotations.values[INPUTS_DIGEST] != "of the outer trial"
    assert [spec.labels.values["team"] for spec in specs] == ["a"] * 6 + ["c"] * 6
    assert [spec.interruptible.value for spec in specs] == [True] * 6 + [False] * 6
    assert [spec.overwrite_cache for spec in specs] == [True] * 6 + [False] * 6
    assert {spec.metadata.parent_node_execution.node_id for spec in specs} == {"n0"}
    assert cluster.counts["ListNodeExecutions"] < 12
    assert {spec.security_context.run_as.k8s_service_account for spec in specs} == {"trainer"}
    assert [spec.raw_output_data_config.output_location_prefix for spec in specs] == [str(tmp_path / "raw")] * 6 + [
        str(tmp_path / "own")
    ] * 6


@pytest.mark.parametrize("plan", [quick.plan, quick.own_plan])
def test_a_launch_plan_keeps_its_own_service_account_and_raw_output_prefix(cluster, tmp_path, plan):
    eager = eager_execution(cluster)
    eager.spec.security_context.run_as.k8s_service_account = "trainer"
    eager.spec.raw_output_data_config.output_location_prefix = str(tmp_path / "raw")
    Pod(cluster, tmp_path, 0).run(lambda: Optimizer(plan, 1, 1, progress=False)(x=suggest.float(0, 1)))
    (execution,) = executions(cluster)
    of_the_request = (
        execution.spec.security_context.run_as.k8s_service_account,
        execution.spec.raw_output_data_config.output_location_prefix,
    )
    # flyteadmin takes what the request lacks from the launch plan.
    assert of_the_request == (("trainer", str(tmp_path / "raw")) if plan is quick.plan else ("", ""))


def test_trials_keep_the_service_account_though_nodes_cannot_be_listed(cluster, tmp_path):
    eager_execution(cluster).spec.security_context.run_as.k8s_service_account = "trainer"
    cluster.fail("ListNodeExecutions", Fault(grpc.StatusCode.PERMISSION_DENIED, times=10**6))
    Pod(cluster, tmp_path, 0).run(quick.train)
    accounts = {each.spec.security_context.run_as.k8s_service_account for each in executions(cluster)}
    assert accounts == {"trainer"}
