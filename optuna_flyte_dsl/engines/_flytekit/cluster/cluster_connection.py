"""`Connection`: the cluster, project and execution of one caller."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from flytekit.configuration import SerializationSettings
from flytekit.remote import FlyteRemote

from optuna_flyte_dsl.engines._flytekit.cluster.deck import ExecutionsDeck
from optuna_flyte_dsl.engines._flytekit.cluster.eager_execution import EagerExecutionReader


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

    def label(self, search: str) -> str:
        """Return a label for the executions of a search of this caller, the same in each attempt of a pod."""
        return hashlib.sha256(f"{self.identity}/{search}".encode()).hexdigest()[:20]

    @property
    def project(self) -> str:
        return str(self.remote.default_project)

    @property
    def domain(self) -> str:
        return str(self.remote.default_domain)
