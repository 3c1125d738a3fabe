"""The requests that create executions."""

from collections.abc import Mapping

from flyteidl.admin.common_pb2 import Annotations, Envs, Labels, RawOutputDataConfig
from flyteidl.admin.execution_pb2 import ExecutionCreateRequest, ExecutionMetadata, ExecutionSpec
from flyteidl.core.literals_pb2 import KeyValuePair, LiteralMap

from optuna_flyte_dsl.cluster_options import Cluster
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_connection import Connection
from optuna_flyte_dsl.engines._flytekit.cluster.eager_execution import EagerExecution
from optuna_flyte_dsl.engines._flytekit.cluster.registry import Launchable
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV

ATTEMPT = "optuna-flyte-dsl/attempt"
"""The annotation with the number of the eager pod's attempt that has launched an execution."""

SEARCH = "optuna-flyte-dsl-search"
"""The label with a hash of the search that has launched an execution.

Labels are searchable, so the pod's next attempt finds the executions that this attempt has left.
"""

_INNER = "-inner"


def inner_label(label: str) -> str:
    """Return the value of the label `SEARCH` for searches inside of a search's trials, at any depth of nesting."""
    return label.removesuffix(_INNER) + _INNER


INPUTS_DIGEST = "optuna-flyte-dsl/inputs"
"""The annotation with the digest of an execution's inputs.

Flyte stores the annotation in the database row of the execution, which nothing overwrites.

Flyte's stored inputs of an execution are not comparable: a CreateExecution request overwrites the stored inputs even if
Flyte refuses the request because its name is taken.
"""


def create_request(
    connection: Connection,
    options: Cluster,
    env: Mapping[str, str],
    target: Launchable,
    inputs: LiteralMap,
    *,
    label: str,
    digest: str,
    eager: EagerExecution,
) -> ExecutionCreateRequest:
    """Build the request that creates an execution, without the execution's name.

    Args:
        label: The value of the label `SEARCH`.
        digest: The digest of the inputs.
        eager: The eager workflow's execution. What was set for it holds for the new execution too, unless `options`
            say otherwise: service account, prefix of raw outputs, environment variables, labels, annotations,
            `interruptible` and `overwrite_cache`. A launch plan of the user keeps its own labels, annotations, service
            account and prefix. Propeller passes on the same to the executions that a workflow launches. Flyte's
            console shows the new execution under the eager execution's node.
    """
    inherited = eager.spec
    of_eager = {pair.key: pair.value for pair in inherited.envs.values if pair.key != TOKEN_ENV}
    env = {**of_eager, **options.env, **connection.env, **env}
    labels = {**inherited.labels.values, **target.labels, **options.labels, **connection.labels, SEARCH: label}
    marks = {INPUTS_DIGEST: digest, ATTEMPT: str(connection.attempt)}
    annotations = {**inherited.annotations.values, **target.annotations, **options.annotations, **marks}
    spec = ExecutionSpec(
        launch_plan=target.id,
        metadata=ExecutionMetadata(mode=ExecutionMetadata.MANUAL, parent_node_execution=eager.node),
        labels=Labels(values=labels),
        annotations=Annotations(values=annotations),
        envs=Envs(values=[KeyValuePair(key=key, value=value) for key, value in env.items()]),
        tags=list(options.tags),
        max_parallelism=options.max_parallelism or 0,
    )
    spec.notifications.SetInParent()
    if options.interruptible is not None:
        spec.interruptible.value = options.interruptible
    elif inherited.HasField("interruptible"):
        spec.interruptible.CopyFrom(inherited.interruptible)
    spec.overwrite_cache = inherited.overwrite_cache if options.overwrite_cache is None else options.overwrite_cache
    if options.cluster_pool is not None:
        spec.cluster_assignment.cluster_pool_name = options.cluster_pool
    if options.execution_cluster_label is not None:
        spec.execution_cluster_label.value = options.execution_cluster_label
    if options.raw_output_prefix is not None:
        spec.raw_output_data_config.CopyFrom(RawOutputDataConfig(output_location_prefix=options.raw_output_prefix))
    elif inherited.HasField("raw_output_data_config") and not target.has_raw_output_prefix:
        spec.raw_output_data_config.CopyFrom(inherited.raw_output_data_config)
    if options.security_context is not None:
        spec.security_context.CopyFrom(options.security_context.to_flyte_idl())
    elif inherited.HasField("security_context") and not target.has_identity:
        spec.security_context.run_as.CopyFrom(inherited.security_context.run_as)
    return ExecutionCreateRequest(project=connection.project, domain=connection.domain, spec=spec, inputs=inputs)
