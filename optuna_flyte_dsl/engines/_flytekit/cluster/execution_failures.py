"""Reads how an execution has failed."""

import threading
from typing import Any

from flyteidl.admin.execution_pb2 import Execution, WorkflowExecutionGetRequest
from flyteidl.core.execution_pb2 import ExecutionError, WorkflowExecution
from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier
from flytekit.exceptions.eager import EagerException

from optuna_flyte_dsl._foreign_errors import (
    says_kubernetes_is_away,
    says_retries_are_used,
    says_too_large_for_kubernetes,
)
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl._retry import backoff
from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin, AdminError
from optuna_flyte_dsl.errors import ExecutionFailedError
from optuna_flyte_dsl.search.outcome import mark_retries_used

TERMINAL = frozenset(
    {WorkflowExecution.SUCCEEDED, WorkflowExecution.FAILED, WorkflowExecution.ABORTED, WorkflowExecution.TIMED_OUT}
)


class EagerExecutionFailedError(ExecutionFailedError, EagerException):
    """The error of a failed execution. Eager workflows can catch this error as flytekit's `EagerException`."""


def read_closure(admin: Admin, identifier: WorkflowExecutionIdentifier, seen: Any, given_up: threading.Event) -> Any:
    """Return the closure of a failed execution, read anew because `ListExecutions` cuts messages short. Blocks.

    Args:
        seen: The closure that `ListExecutions` has returned; the result if the execution cannot be read.
    """
    # A replica of flyteadmin's database may be older than the one that `ListExecutions` has read.
    waits = backoff(pauses.poll_shortest, pauses.poll_longest, lambda: pauses.replica_lag)
    request = WorkflowExecutionGetRequest(id=identifier)
    try:
        while True:
            closure = admin.call("GetExecution", request, given_up=given_up).closure
            if closure.phase in TERMINAL:
                return closure
            pause = next(waits, None)
            if pause is None or given_up.wait(pause):
                return seen
    except AdminError:
        logger.debug("The execution %s could not be read.", identifier.name, exc_info=True)
        return seen


def failure_of(entity: str, name: str, url: str, closure: Any) -> EagerExecutionFailedError:
    """Return the error of a failed execution.

    Args:
        entity: The name of the task, workflow or launch plan.
        name: The name of the execution.
        url: The address of the execution's page.
        closure: The execution's closure.
    """
    cause = closure.abort_metadata.cause or closure.abort_cause
    message = closure.error.message or cause or "Flyte gives no message."
    if says_too_large_for_kubernetes(message):
        message = f"{message}. Pass what is large as a file (`FlyteFile`): an execution holds its address only."
    error = EagerExecutionFailedError(
        entity.rsplit(".", 1)[-1],
        name=name,
        url=url,
        phase=WorkflowExecution.Phase.Name(closure.phase),
        code=closure.error.code,
        kind=ExecutionError.ErrorKind.Name(closure.error.kind),
        message=message,
    )
    mark_retries_used(error, used=says_retries_are_used(error.message))
    return error


def vanished(identifier: WorkflowExecutionIdentifier) -> Execution:
    """Return the state of an execution that Flyte no longer has: it counts as FAILED."""
    execution = Execution(id=identifier)
    execution.closure.phase = WorkflowExecution.FAILED
    execution.closure.error.code = "NotFound"
    execution.closure.error.message = f"The execution {identifier.name} is no longer in Flyte."
    return execution


def has_not_begun(execution: Execution) -> bool:
    """Return whether an execution has failed because Kubernetes was unavailable when flyteadmin launched the execution.

    flyteadmin 1.16.8 answers the CreateExecution request for such an execution with success, and stores the execution
    as FAILED.
    """
    closure = execution.closure
    is_system_failure = closure.phase == WorkflowExecution.FAILED and closure.error.kind == ExecutionError.SYSTEM
    return is_system_failure and says_kubernetes_is_away(closure.error.message)
