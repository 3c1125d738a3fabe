"""Terminates the executions that earlier attempts of a pod have left running, and that no trial has adopted."""

import time

from flyteidl.admin.common_pb2 import NamedEntityIdentifier, ResourceListRequest, Sort
from flyteidl.admin.execution_pb2 import Execution

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._pauses import pauses
from optuna_flyte_dsl.engines._flytekit.cluster.admin import AdminError
from optuna_flyte_dsl.engines._flytekit.cluster.executions import ATTEMPT, SEARCH
from optuna_flyte_dsl.engines._flytekit.cluster.launcher import Launcher
from optuna_flyte_dsl.errors import ClusterUnavailableError

_PAGE = 100


def terminate_leftovers(launcher: Launcher, label: str, deadline: float) -> None:
    """Terminate the executions of earlier attempts that this attempt has not adopted. The call blocks.

    Failures are logged.

    Args:
        label: The value of the label `SEARCH` of the search's executions.
        deadline: The time of the monotonic clock at which the call gives up.
    """
    connection, left = launcher.connection, deadline - time.monotonic()
    if left <= 0 or launcher.is_silent:
        logger.warning("No time is left to terminate the executions that earlier attempts of this pod have left.")
        return
    request = ResourceListRequest(
        id=NamedEntityIdentifier(project=connection.project, domain=connection.domain),
        limit=_PAGE,
        filters=f"value_in(execution_tag.key,{SEARCH})+value_in(execution_tag.value,{label})"
        "+value_in(phase,UNDEFINED;QUEUED;RUNNING)",
        sort_by=Sort(key="execution_name", direction=Sort.ASCENDING),
    )
    limits = {"patience": left / 4, "seconds": min(pauses.rpc, left / 4)}
    running = launcher.admin.pages("ListExecutions", request, "executions", **limits)
    try:
        before = [each.id.name for each in running if _attempt_of(each) < connection.attempt]
    except (AdminError, ClusterUnavailableError) as error:
        logger.warning("It is not known which executions earlier attempts of this pod have left running: %s", error)
        return
    unadopted = [name for name in before if name not in launcher.taken]
    launcher.terminated += len(unadopted)
    launcher.terminate_all(unadopted, "the search no longer needs this execution", deadline)


def _attempt_of(execution: Execution) -> int:
    return int(execution.spec.annotations.values.get(ATTEMPT, "0"))
