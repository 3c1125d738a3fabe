"""Ends the searches of a pod that gets SIGTERM, within the pod's grace period."""

import time
from typing import Any

from flyteidl.admin.common_pb2 import ObjectGetRequest
from flyteidl.admin.execution_pb2 import WorkflowExecutionGetRequest
from flyteidl.core.execution_pb2 import WorkflowExecution
from flytekit.core.context_manager import FlyteContext
from flytekit.remote import FlyteRemote

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin
from optuna_flyte_dsl.engines._flytekit.cluster.eager_execution import EagerExecutionReader


class SigtermHandler:
    """Ends all searches of one eager workflow."""

    def __init__(self, remote: FlyteRemote, context: FlyteContext, eager: EagerExecutionReader) -> None:
        self._remote = remote
        self._params = context.user_space_params
        self._eager = eager
        # Every `ClusterSearch` that runs. The set has no lock: a signal handler could interrupt the lock's holder, and
        # hang.
        self.searches: set[Any] = set()

    def stop(self) -> None:
        """End all searches. Flytekit's handler of SIGTERM calls this, on the main thread."""
        started = time.monotonic()
        searches = list(self.searches)
        seconds = min([pauses.ending_rpc, *(search.options.grace / 8 for search in searches)])
        has_successor = any(search.is_durable for search in searches) and self._has_successor(seconds)
        asks = any(search.on_sigterm == "auto" for search in searches) and not has_successor
        restarts = has_successor or (asks and self._will_restart(seconds))
        for search in searches:
            # What a successor may have adopted is the successor's.
            leave = search.on_sigterm == "leave" or (search.on_sigterm == "auto" and restarts)
            leave = leave or (search.is_durable and has_successor)
            logger.warning("The pod ends: running executions are %s.", "left running" if leave else "terminated")
            search.end(leave=leave)
        for search in searches:
            if not search.wait(started + search.options.grace):
                logger.error("A search has not ended within its grace period.")

    def _has_successor(self, seconds: float) -> bool:
        try:
            return self._eager.has_successor(Admin(self._remote, patience=0.0), seconds)
        except Exception as error:  # noqa: BLE001 - if in doubt, the pod ends as if it had no successor
            logger.warning("It is not known whether Flyte has already started this pod's next attempt: %r", error)
            return False

    def _will_restart(self, seconds: float) -> bool:
        """Tell whether Flyte will start this pod again: its execution is not aborted, and its task has retries left.

        If that cannot be known, return False.

        An execution that is aborted is ABORTING before its pod gets SIGTERM. The retries that count are those of the
        eager task. Flyte may add retries of its own for system failures; they are not relied upon.
        """
        params = self._params
        if params is None or params.execution_id is None or params.task_id is None:
            return False
        admin = Admin(self._remote, patience=0.0)
        try:
            request = WorkflowExecutionGetRequest(id=params.execution_id.to_flyte_idl())
            execution = admin.call("GetExecution", request, seconds=seconds)
            if execution.closure.phase not in (WorkflowExecution.QUEUED, WorkflowExecution.RUNNING):
                return False
            task = admin.call("GetTask", ObjectGetRequest(id=params.task_id.to_flyte_idl()), seconds=seconds)
            retries = int(task.closure.compiled_task.template.metadata.retries.retries)
            return self._eager.pod is not None and self._eager.pod.attempt < retries
        except Exception as error:  # noqa: BLE001 - if in doubt, executions are terminated, because they cost money
            logger.warning("It is not known whether Flyte will start this pod again: %r", error)
            return False
