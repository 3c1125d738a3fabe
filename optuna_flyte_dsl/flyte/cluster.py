"""The cluster of one search: names, launches and terminations of its executions, and what it shares with others."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from flyteidl.admin.common_pb2 import Annotations, Envs, Labels, RawOutputDataConfig
from flyteidl.admin.execution_pb2 import (
    ExecutionCreateRequest,
    ExecutionMetadata,
    ExecutionSpec,
    ExecutionTerminateRequest,
    WorkflowExecutionGetDataRequest,
)
from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier
from flyteidl.core.literals_pb2 import KeyValuePair, LiteralMap
from flytekit.configuration import SerializationSettings
from flytekit.core.context_manager import ExecutionState, FlyteContext
from flytekit.models.core.identifier import WorkflowExecutionIdentifier as ExecutionIdentifier
from flytekit.remote import FlyteRemote
from optuna.trial import Trial

from optuna_flyte_dsl.cluster import Cluster
from optuna_flyte_dsl.errors import RefusedError
from optuna_flyte_dsl.flyte.admin import Admin, AdminError, GivenUpError
from optuna_flyte_dsl.flyte.deck import ExecutionsDeck
from optuna_flyte_dsl.flyte.handles import TOKEN_ENV, Handle, TrialServer
from optuna_flyte_dsl.flyte.literals import Converter
from optuna_flyte_dsl.flyte.local import close_loops
from optuna_flyte_dsl.flyte.registry import Launchable, Registry
from optuna_flyte_dsl.flyte.watch import Watch
from optuna_flyte_dsl.log import logger
from optuna_flyte_dsl.threads import Threads

_TERMINATIONS_AT_ONCE = 32
_MAX_NAME = 63
_LOOKED_UP = 100
LAUNCH_SECONDS = 10.0
CAUSE = "optuna_flyte_dsl: "
"""What the cause of each termination of ours starts with."""


@dataclass(frozen=True)
class Link:
    """What a search needs to know of a cluster.

    Args:
        remote: The way there.
        settings: How what is not registered yet is registered.
        identity: Of what asks for executions: the name of the eager workflow's execution, for example.
        prefix: What the names of executions start with.
        labels: Of each execution.
        env: Environment variables of each execution.
        deck: Where executions are shown.
    """

    remote: FlyteRemote
    settings: SerializationSettings
    identity: str
    prefix: str
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    deck: ExecutionsDeck | None = None


Recorder = Callable[[Trial, Mapping[str, Any]], Awaitable[None]]
"""Sets a trial's user attributes; returns when they would outlive this process, where they are to."""


class Traffic:
    """What all searches of one caller share, so that together they ask no more of flyteadmin than one: looks and pace.

    Args:
        admin: flyteadmin.
        deck: Where executions are shown.
    """

    def __init__(self, admin: Admin, deck: ExecutionsDeck | None) -> None:
        self._admin = admin
        self._deck = deck
        self._lock = threading.Lock()
        self._next_launch = float("-inf")
        self._users = 0
        self._watch: Watch | None = None

    def enter(self) -> Watch:
        """Return what looks at executions. Each user leaves it once."""
        remote = self._admin.remote
        with self._lock:
            self._users += 1
            if self._watch is None:
                where = (str(remote.default_project), str(remote.default_domain))
                self._watch = Watch(self._admin, *where, self._show_news)
            return self._watch

    async def leave(self) -> None:
        """End the looks, if nobody else needs them."""
        with self._lock:
            self._users -= 1
            watch = self._watch if self._users == 0 else None
            if watch is not None:
                self._watch = None
        if watch is not None:
            await watch.close()

    def keep_pace(self, launches_per_second: float, given_up: threading.Event) -> None:
        """Wait until the next launch may be."""
        with self._lock:
            now = time.monotonic()
            moment = max(self._next_launch, now)
            self._next_launch = moment + 1 / launches_per_second
        if given_up.wait(max(0.0, moment - now)):
            raise GivenUpError("Given up: a launch.")

    def _show_news(self) -> None:
        if self._deck is not None:
            self._deck.publish()


class ClusterController:
    """Launches, watches and terminates the executions of one search.

    Args:
        link: The cluster.
        options: How trials run there.
        identity: Of the search: the same again in the eager pod's next attempt.
        context: The Flyte context that the search was called in.
        record: Sets attributes of a trial.
        traffic: What it shares with other searches.
    """

    def __init__(
        self,
        link: Link,
        options: Cluster,
        identity: str,
        context: FlyteContext,
        record: Recorder,
        traffic: Traffic,
    ) -> None:
        self.link = link
        self.options = options
        self.identity = identity
        self.record = record
        self.leaving = False
        self.admin = Admin(link.remote, options.patience)
        self.registry = Registry(self.admin, link.settings)
        self.traffic = traffic
        self.watch = traffic.enter()
        self._left = False
        self.terminated = 0
        self.adopts = False
        self.root: str | None = None  # stands for who asks in the names, where a study is another process's too
        self._server: TrialServer | None = None
        self.workers = Threads(limit=options.launches_at_once, at_exit=close_loops)
        self.terminators = Threads(limit=_TERMINATIONS_AT_ONCE)
        state = context.execution_state or context.new_execution_state()
        self._context = context.with_execution_state(
            state.with_params(mode=ExecutionState.Mode.EAGER_EXECUTION)
        ).build()
        self._converter: Converter | None = None
        self._lock = threading.Lock()

    @property
    def project(self) -> str:
        """The project of the executions."""
        return str(self.link.remote.default_project)

    @property
    def domain(self) -> str:
        """The domain of the executions."""
        return str(self.link.remote.default_domain)

    @property
    def converter(self) -> Converter:
        """Converts inputs and outputs; made in a worker, since it connects."""
        with self._lock:
            if self._converter is None:
                self._converter = Converter(self.link.remote)
            return self._converter

    def handle(self, trial: Trial) -> Handle:
        """Return what stands for a trial in a pod. It blocks."""
        options = self.options
        if options.trials_storage_env is not None:
            return Handle(f"env:{options.trials_storage_env}", trial._trial_id, trial.study.study_name)
        with self._lock:
            if self._server is None:
                host = options.trials_host or self._own_address()
                self._server = self._serve(trial, host)
                logger.info(
                    "Trials report to %s. The token keeps others out; what is sent is not encrypted.",
                    self._server.address,
                )
        return self._server.handle(trial)

    def _serve(self, trial: Trial, host: str) -> TrialServer:
        name = self.options.trials_token_env
        token = os.environ.get(name) if name is not None else None
        if name is not None and not token:
            raise RefusedError(
                f"`trials_token_env`: the environment variable {name!r} must hold the token that pods show, but it is "
                "not set here. Set it here and in the pods, from one secret."
            )
        return TrialServer(
            trial.storage,
            trial.study.study_name,
            host=host,
            port=self.options.trials_port,
            token=token,
            token_env=name or TOKEN_ENV,
        )

    def _own_address(self) -> str:
        """Return the address of this machine on the way to Flyte."""
        host = str(self.link.remote.config.platform.endpoint).split("://")[-1].partition(":")[0]
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host or "192.0.2.1", 9))  # nothing is sent
            return str(probe.getsockname()[0])
        return socket.gethostbyname(socket.gethostname())

    def forget(self, trial: Trial) -> None:
        """Answer to a trial's pods no more."""
        if self._server is not None:
            self._server.forget(trial)

    def context(self, queue: Any) -> FlyteContext:
        """Return the context of a trial, in which calls go through its queue."""
        return self._context.with_worker_queue(queue).build()

    async def check(self, entity: Any) -> None:
        """Check that pods can load an entity.

        Raises:
            UnloadableError: If they cannot.
        """
        await self.workers.run(self.registry.check, entity)

    def launched(self, entity: Any, names: Sequence[str]) -> list[dict[str, Any] | None]:
        """Return the inputs that trials have launched an entity with. It blocks.

        Args:
            entity: What each trial launches.
            names: The inputs that are asked for.

        Returns:
            For each trial up to the last one that there is an execution of, its inputs; `None` where it has none.
        """
        target = self.registry.find(entity, threading.Event())
        found: list[dict[str, Any] | None] = []
        for start in itertools.count(step=_LOOKED_UP):
            executions = [self.name(start + offset, entity.name, 0, 0) for offset in range(_LOOKED_UP)]
            there = self.watch.find(executions)
            for name in executions:
                request = WorkflowExecutionGetDataRequest(id=self.identifier(name))
                found.append(
                    self.converter.arguments(target, names, self.admin.call("GetExecutionData", request))
                    if name in there
                    else None
                )
            if not there:
                break
        while found and found[-1] is None:
            found.pop()
        return found

    async def close(self) -> None:
        """End all threads. Called when no trial runs any more; it may be called again."""
        if not self._left:
            self._left = True
            if self.terminated and not self.leaving:
                logger.warning("%d executions were terminated.", self.terminated)
            await self.traffic.leave()
        if self._server is not None and not self.workers.closed:
            await self.workers.run(self._server.close)
        await self.workers.close()
        await self.terminators.close()

    def name(self, trial: int, entity: str, index: int, attempt: int, *, retry: int = 0) -> str:
        """Return the name of an execution: a hash of what it is, behind words for people."""
        root = self.link.identity if self.root is None else self.root
        prefix = self.link.prefix if self.root is None else "o"
        retried = [str(retry)] if retry else []
        key = "\0".join([root, self.identity, str(trial), entity, str(index), str(attempt), *retried])
        digest = hashlib.sha256(key.encode()).hexdigest()[:20]
        words = re.sub(r"[^a-z0-9]+", "-", f"{prefix}-{entity.rsplit('.', 1)[-1][:8]}".lower()).strip("-")
        if not words or not words[0].isalpha():
            words = f"e-{words}".strip("-")
        return f"{words[: _MAX_NAME - len(digest) - 1]}-{digest}"

    def identifier(self, name: str) -> WorkflowExecutionIdentifier:
        """Return Flyte's identifier of an execution."""
        return WorkflowExecutionIdentifier(project=self.project, domain=self.domain, name=name)

    def url(self, name: str) -> str:
        """Return an execution's page in Flyte's console."""
        return str(self.link.remote.generate_console_url(ExecutionIdentifier(self.project, self.domain, name)))

    def request(self, target: Launchable, inputs: LiteralMap) -> ExecutionCreateRequest:
        """Return what asks for an execution; all but its name."""
        options = self.options
        env = {**options.env, **self.link.env}
        if self._server is not None and options.trials_token_env is None:
            env[TOKEN_ENV] = self._server.token
        spec = ExecutionSpec(
            launch_plan=target.id,
            metadata=ExecutionMetadata(mode=ExecutionMetadata.MANUAL),
            labels=Labels(values={**options.labels, **self.link.labels}),
            annotations=Annotations(values=dict(options.annotations)),
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
        if options.security_context is not None:
            spec.security_context.CopyFrom(options.security_context.to_flyte_idl())
        return ExecutionCreateRequest(project=self.project, domain=self.domain, spec=spec, inputs=inputs)

    def terminate_by_name(self, name: str, cause: str) -> None:
        """Terminate an execution, if it still runs. It blocks, for the grace period at most, and raises nothing."""
        request = ExecutionTerminateRequest(id=self.identifier(name), cause=f"{CAUSE}{cause}")
        try:
            self.admin.call("TerminateExecution", request, patience=self.options.grace, seconds=LAUNCH_SECONDS)
        except AdminError as error:
            if error.code not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
                logger.error("The execution %s could not be terminated: %s", name, error)
        except Exception as error:  # noqa: BLE001 - the others must be terminated too
            logger.error("The execution %s could not be terminated: %s", name, error)
