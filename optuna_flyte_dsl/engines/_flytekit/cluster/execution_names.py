"""`ExecutionNames`: the names of a search's executions, and the addresses of their pages in the console."""

import hashlib
import os
import re
from dataclasses import dataclass

from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier
from flytekit.models.core.identifier import WorkflowExecutionIdentifier as ExecutionIdentifier

from optuna_flyte_dsl.engines._flytekit.cluster.cluster_connection import Connection

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

    def name(self, trial: int, entity: str, call: str, collision: int, *, attempt: int = 0) -> str:
        """Return the name of an execution: a prefix, the entity and the trial's number, and a hash of the call.

        Args:
            call: The key that distinguishes the call from the trial's other calls.
            collision: The number of earlier names of this call that other executions have taken.
            attempt: The number of the trial's attempt.
        """
        caller, prefix = self.connection.identity, self.connection.prefix
        if self.study is not None:
            caller, prefix = self.study, "o"
        parts = [caller, self.search, str(trial), entity, call, str(collision)]
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

        In a pod, Flyte gives the address of the pod's own page in the console. The remote's endpoint is used last,
        because the endpoint may be an address inside the cluster.
        """
        console, _, rest = os.environ.get("FLYTE_EXECUTION_URL", "").partition("/projects/")
        console = self.console or (console if rest else "")
        if console:
            return f"{console}/projects/{self.connection.project}/domains/{self.connection.domain}/executions/{name}"
        identifier = ExecutionIdentifier(self.connection.project, self.connection.domain, name)
        return str(self.connection.remote.generate_console_url(identifier))
