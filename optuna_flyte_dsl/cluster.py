"""How trials run on a Flyte cluster: the options that a user may set."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any, Literal, get_args

from optuna_flyte_dsl.errors import InvalidOptionError

OnSigterm = Literal["auto", "terminate", "leave"]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """How the trials of a search run on a Flyte cluster; on one machine it says nothing.

    Args:
        launches_per_second: How many executions are launched in a second, at most.
        launches_at_once: How many launches, and fetches of outputs, go on at the same time, at most.
        patience: Seconds that an outage of flyteadmin is waited out.
        on_sigterm: What happens to running executions when the pod of the eager workflow is told to end. "terminate":
            they are terminated. "leave": they run on, for the pod's next attempt to adopt. "auto": they are left if the
            search is persisted, the eager workflow's execution has not been aborted, and its task has retries left;
            else they are terminated.
        grace: Seconds that ending may take, from the signal on: less than what Kubernetes gives the pod (30 by
            default).
        interruptible: Whether executions may run on machines that can be taken away; `None` leaves it to the task.
        overwrite_cache: Whether cached outputs are computed anew.
        labels: Kubernetes labels of the executions, besides those that flytekit gives them.
        annotations: Kubernetes annotations of the executions.
        env: Environment variables of the executions, besides those that flytekit gives them.
        tags: Tags of the executions.
        cluster_pool: The pool of clusters that they are placed on.
        execution_cluster_label: The label of the clusters that they are placed on.
        raw_output_prefix: Where files and other large outputs are stored, such as "s3://bucket/folder".
        security_context: A `flytekit.models.security.SecurityContext`, which names a service account, for example.
        trials_host: The address by which pods reach this process, where a task takes `trial: optuna.Trial`; by default
            the one that this process reaches Flyte from. Nothing that goes this way is encrypted.
        trials_port: The port there; 0 for a free one.
        trials_token_env: The environment variable that holds the token which pods show there, in this process and in
            theirs, as from a secret. By default the search makes one, and gives it to its executions as
            `OPTUNA_FLYTE_DSL_TOKEN`, which whoever may read their specification can see.
        trials_storage_env: The environment variable that holds, in the pods, the URL of the study's storage: they reach
            it by themselves then, and this process serves nothing.
        max_parallelism: How many nodes of one execution run at the same time, at most.

    Raises:
        InvalidOptionError: If one breaks its rule.

    >>> Cluster(interruptible=True, labels={"team": "vision"}).labels
    {'team': 'vision'}
    """

    launches_per_second: float = 50.0
    launches_at_once: int = 16
    patience: float = 600.0
    on_sigterm: OnSigterm = "auto"
    grace: float = 20.0
    interruptible: bool | None = None
    overwrite_cache: bool | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    cluster_pool: str | None = None
    execution_cluster_label: str | None = None
    raw_output_prefix: str | None = None
    security_context: Any = None
    trials_host: str | None = None
    trials_port: int = 0
    trials_token_env: str | None = None
    trials_storage_env: str | None = None
    max_parallelism: int | None = None

    def __post_init__(self) -> None:
        for name in ("launches_per_second", "patience", "grace"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= threading.TIMEOUT_MAX:
                raise InvalidOptionError(f"`{name}` of `Cluster` must be a number above 0, but got {value!r}.")
        for name in ("launches_at_once", "max_parallelism"):
            value = getattr(self, name)
            if value is None and name == "max_parallelism":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidOptionError(f"`{name}` of `Cluster` must be an integer above 0, but got {value!r}.")
        if self.on_sigterm not in get_args(OnSigterm):
            raise InvalidOptionError(
                f"`on_sigterm` of `Cluster` must be one of {', '.join(map(repr, get_args(OnSigterm)))}, but got "
                f"{self.on_sigterm!r}."
            )
        for name in ("interruptible", "overwrite_cache"):
            if getattr(self, name) not in (None, True, False):
                value = getattr(self, name)
                raise InvalidOptionError(f"`{name}` of `Cluster` must be True, False or None, but got {value!r}.")
        for name in ("labels", "annotations", "env"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(
                isinstance(each, str) for pair in value.items() for each in pair
            ):
                raise InvalidOptionError(f"`{name}` of `Cluster` must map strings to strings, but got {value!r}.")
        port = self.trials_port
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 2**16:
            raise InvalidOptionError(f"`trials_port` of `Cluster` must be a port from 0 to 65535, but got {port!r}.")
        names = ("cluster_pool", "execution_cluster_label", "raw_output_prefix")
        for name in (*names, "trials_host", "trials_token_env", "trials_storage_env"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise InvalidOptionError(f"`{name}` of `Cluster` must be a string or None, but got {value!r}.")
        if self.security_context is not None and not hasattr(self.security_context, "to_flyte_idl"):
            raise InvalidOptionError(
                "`security_context` of `Cluster` must be a flytekit.models.security.SecurityContext, but got "
                f"{self.security_context!r}. For a service account, write "
                "`SecurityContext(run_as=Identity(k8s_service_account=...))`."
            )
        if not isinstance(self.tags, tuple | list) or not all(isinstance(tag, str) for tag in self.tags):
            raise InvalidOptionError(
                f"`tags` of `Cluster` must be strings, such as ('nightly',), but got {self.tags!r}."
            )

    def __repr__(self) -> str:
        given = (
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)
            if getattr(self, each.name) != (each.default_factory() if callable(each.default_factory) else each.default)
        )
        return f"Cluster({', '.join(given)})"
