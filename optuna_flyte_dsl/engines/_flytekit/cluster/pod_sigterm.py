"""Ends the searches of a pod that gets SIGTERM, within the pod's grace period."""

import time
from typing import Any

from flyteidl.admin.execution_pb2 import WorkflowExecutionGetRequest
from flyteidl.core.execution_pb2 import WorkflowExecution
from flytekit.remote import FlyteRemote

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin
from optuna_flyte_dsl.engines._flytekit.cluster.eager_execution import EagerExecutionReader

_SYSTEM_FAILURES = 3
"""The number of system failures after each of which Flyte starts a pod again. A further one ends the pod's node.

The number is propeller 1.16's default of `max-node-retries-system-failures`. A pod cannot read the operator's setting.
"""


class SigtermHandler:
    """Ends all searches of one eager workflow."""

    def __init__(self, remote: FlyteRemote, eager: EagerExecutionReader) -> None:
        self._remote = remote
        self._eager = eager
        # Every `ClusterSearch` that runs. The set has no lock: a signal handler could interrupt the lock's holder, and
        # hang.
        self.searches: set[Any] = set()
        self.stopped = False  # from SIGTERM on: the pod begins no other search

    def stop(self) -> None:
        """End all searches. Flytekit's handler of SIGTERM calls this, on the main thread."""
        started = time.monotonic()
        self.stopped = True
        searches = list(self.searches)
        seconds = min([pauses.ending_rpc, *(search.options.grace / 8 for search in searches)])
        has_successor = any(search.is_durable for search in searches) and self._eager.has_successor(
            Admin(self._remote, patience=0.0), seconds
        )
        asks = any(search.on_sigterm == "auto" for search in searches) and not has_successor
        restarts = has_successor or (asks and self._will_restart(seconds))
        for search in searches:
            # A later attempt of the pod may have adopted the executions, so this attempt leaves them running.
            leave = search.on_sigterm == "leave" or (search.on_sigterm == "auto" and restarts)
            leave = leave or (search.is_durable and has_successor)
            logger.warning("The pod ends: running executions are %s.", "left running" if leave else "terminated")
            search.end(leave=leave)
        for search in searches:
            if not search.wait(started + search.options.grace / 2):
                search.terminate_running(started + search.options.grace)
        for search in searches:
            if not search.wait(started + search.options.grace):
                logger.error("A search has not ended within its grace period.")

    def _will_restart(self, seconds: float) -> bool:
        """Return whether Flyte will start this pod again; if that cannot be known, return False.

        Flyte counts the end of a pod by SIGTERM as a system failure. An execution that is aborted is in the phase
        ABORTING before its pod gets SIGTERM.
        """
        if self._eager.pod is None:
            return False
        admin = Admin(self._remote, patience=0.0)
        try:
            request = WorkflowExecutionGetRequest(id=self._eager.pod.execution)
            execution = admin.call("GetExecution", request, seconds=seconds)
            if execution.closure.phase not in (WorkflowExecution.QUEUED, WorkflowExecution.RUNNING):
                return False
            return self._eager.system_failures(admin, seconds) < _SYSTEM_FAILURES
        except Exception as error:  # noqa: BLE001 - if in doubt, executions are terminated, because they cost money
            logger.warning("It is not known whether Flyte will start this pod again: %r", error)
            return False
