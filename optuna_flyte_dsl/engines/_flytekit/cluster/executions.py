"""The cluster as one caller sees it; the names, pages and requests of the caller's executions."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from flyteidl.admin.common_pb2 import Annotations, Envs, Labels, RawOutputDataConfig
from flyteidl.admin.execution_pb2 import ExecutionCreateRequest, ExecutionMetadata, ExecutionSpec
from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier
from flyteidl.core.literals_pb2 import KeyValuePair, LiteralMap
from flytekit.configuration import SerializationSettings
from flytekit.models.core.identifier import WorkflowExecutionIdentifier as ExecutionIdentifier
from flytekit.remote import FlyteRemote

from optuna_flyte_dsl.cluster_options import Cluster
from optuna_flyte_dsl.engines._flytekit.cluster.deck import ExecutionsDeck
from optuna_flyte_dsl.engines._flytekit.cluster.eager_execution import EagerExecution, EagerExecutionReader
from optuna_flyte_dsl.engines._flytekit.cluster.registry import Launchable
from optuna_flyte_dsl.engines.remote_trial.handle import TOKEN_ENV


@dataclass(frozen=True)
class Connection:
    """A cluster, as seen by one caller."""

    remote: FlyteRemote
    settings: SerializationSettings
    identity: str
    prefix: str
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    deck: ExecutionsDeck | None = None  # the Deck that lists executions; `None` if there is none
    eager_execution: EagerExecutionReader = field(default_factory=lambda: EagerExecutionReader(None))

    @property
    def attempt(self) -> int:
        """The number of the eager pod's attempt, from 0; 0 outside of a pod."""
        return self.eager_execution.pod.attempt if self.eager_execution.pod is not None else 0

    @property
    def project(self) -> str:
        return str(self.remote.default_project)

    @property
    def domain(self) -> str:
        return str(self.remote.default_domain)


_MAX_LENGTH = 63
_ENTITY_LENGTH = 16


def _words(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@dataclass(eq=False)
class ExecutionNames:
    """Names executions of one search.

    The same call in the same trial has the same name in each process that continues the search.
    """

    connection: Connection
    search: str
    console: str = ""  # the address of Flyte's console; empty if the user gives none
    study: str | None = None  # the identity of a study that other processes may continue; it replaces the caller's

    def name(self, trial: int, entity: str, index: int, collision: int, *, attempt: int = 0) -> str:
        """Return the name of an execution: for people, the entity and the trial's number; and a hash.

        Args:
            attempt: The number of the trial's attempt.
        """
        caller, prefix = self.connection.identity, self.connection.prefix
        if self.study is not None:
            caller, prefix = self.study, "o"
        parts = [caller, self.search, str(trial), entity, str(index), str(collision)]
        digest = hashlib.sha256("\0".join(parts + [str(attempt)] * bool(attempt)).encode()).hexdigest()[:20]
        end = _words(f"{entity.rsplit('.', 1)[-1][:_ENTITY_LENGTH]}-{trial}")
        begin = _words(prefix)
        if not begin or not begin[0].isalpha():
            begin = f"e-{begin}".strip("-")
        return f"{begin[: _MAX_LENGTH - len(end) - len(digest) - 2]}-{end}-{digest}"

    def identifier(self, name: str) -> WorkflowExecutionIdentifier:
        return WorkflowExecutionIdentifier(project=self.connection.project, domain=self.connection.domain, name=name)

    def url(self, name: str) -> str:
        """Return the address of an execution's page in the console.

        In a pod, Flyte gives the address of the pod's own page. The remote's endpoint would not do: it may be an
        address inside the cluster.
        """
        console, _, rest = os.environ.get("FLYTE_EXECUTION_URL", "").partition("/projects/")
        console = self.console or (console if rest else "")
        if console:
            return f"{console}/projects/{self.connection.project}/domains/{self.connection.domain}/executions/{name}"
        identifier = ExecutionIdentifier(self.connection.project, self.connection.domain, name)
        return str(self.connection.remote.generate_console_url(identifier))


ATTEMPT = "optuna-flyte-dsl/attempt"
"""The annotation with the number of the eager pod's attempt that has launched an execution."""

INPUTS_DIGEST = "optuna-flyte-dsl/inputs"
"""The annotation with the digest of an execution's inputs.

Flyte stores the annotation in the database row of the execution, which nothing overwrites.

The inputs that Flyte returns cannot be compared instead: a request that is refused because its name is taken overwrites
them.
"""


def create_request(
    connection: Connection,
    options: Cluster,
    env: Mapping[str, str],
    target: Launchable,
    inputs: LiteralMap,
    *,
    digest: str,
    eager: EagerExecution,
) -> ExecutionCreateRequest:
    """Build the request that creates an execution, without the execution's name.

    Args:
        digest: The digest of the inputs.
        eager: The eager workflow's execution. The eager execution's service account, prefix of raw outputs and
            environment variables are those of the new execution too, unless `options` name others. Flyte's console
            shows the new execution under the eager execution's node.
    """
    inherited = {pair.key: pair.value for pair in eager.spec.envs.values if pair.key != TOKEN_ENV}
    env = {**inherited, **options.env, **connection.env, **env}
    marks = {INPUTS_DIGEST: digest, ATTEMPT: str(connection.attempt)}
    spec = ExecutionSpec(
        launch_plan=target.id,
        metadata=ExecutionMetadata(mode=ExecutionMetadata.MANUAL, parent_node_execution=eager.node),
        labels=Labels(values={**options.labels, **connection.labels}),
        annotations=Annotations(values={**options.annotations, **marks}),
        envs=Envs(values=[KeyValuePair(key=key, value=value) for key, value in env.items()]),
        tags=list(options.tags),
        max_parallelism=options.max_parallelism or 0,
    )
    spec.notifications.SetInParent()
    if options.interruptible is not None:
        spec.interruptible.value = options.interruptible
    if options.overwrite_cache is not None:
        spec.overwrite_cache = options.overwrite_cache
    if options.cluster_pool is not None:
        spec.cluster_assignment.cluster_pool_name = options.cluster_pool
    if options.execution_cluster_label is not None:
        spec.execution_cluster_label.value = options.execution_cluster_label
    if options.raw_output_prefix is not None:
        spec.raw_output_data_config.CopyFrom(RawOutputDataConfig(output_location_prefix=options.raw_output_prefix))
    elif eager.spec.HasField("raw_output_data_config"):
        spec.raw_output_data_config.CopyFrom(eager.spec.raw_output_data_config)
    if options.security_context is not None:
        spec.security_context.CopyFrom(options.security_context.to_flyte_idl())
    elif eager.spec.HasField("security_context"):
        spec.security_context.run_as.CopyFrom(eager.spec.security_context.run_as)
    return ExecutionCreateRequest(project=connection.project, domain=connection.domain, spec=spec, inputs=inputs)
