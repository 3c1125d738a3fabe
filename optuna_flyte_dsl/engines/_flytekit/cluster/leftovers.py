"""Terminates the executions that earlier attempts of a pod have left running, and that no trial asks for any more."""

from collections.abc import Set as AbstractSet

from flyteidl.admin.common_pb2 import NamedEntityIdentifier, ResourceListRequest, Sort
from flyteidl.admin.execution_pb2 import Execution

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl.engines._flytekit.cluster.admin import AdminError
from optuna_flyte_dsl.engines._flytekit.cluster.executions import ATTEMPT, SEARCH
from optuna_flyte_dsl.engines._flytekit.cluster.launcher import Launcher
from optuna_flyte_dsl.errors import ClusterUnavailableError

_PAGE = 100


def terminate_leftovers(launcher: Launcher, search: str, taken: AbstractSet[str]) -> None:
    """Terminate the running executions of a search's earlier attempts. It blocks, and logs failures.

    Args:
        search: The value of the label `SEARCH` of the search's executions.
        taken: The names of the executions that this attempt has launched or adopted.
    """
    deadline = launcher.end_of_grace()
    try:
        left = [name for name in _running_before(launcher, search) if name not in taken]
    except (AdminError, ClusterUnavailableError) as error:
        logger.warning("It is not known which executions earlier attempts of this pod have left running: %s", error)
        return
    launcher.terminated += len(left)
    for name in left:
        launcher.terminate(name, "the search does without it", deadline)


def _running_before(launcher: Launcher, search: str) -> list[str]:
    connection = launcher.connection
    request = ResourceListRequest(
        id=NamedEntityIdentifier(project=connection.project, domain=connection.domain),
        limit=_PAGE,
        filters=f"value_in(execution_tag.key,{SEARCH})+value_in(execution_tag.value,{search})"
        "+value_in(phase,UNDEFINED;QUEUED;RUNNING)",
        sort_by=Sort(key="execution_name", direction=Sort.ASCENDING),
    )
    names: list[str] = []
    while True:
        page = launcher.admin.call("ListExecutions", request, patience=launcher.options.grace / 2)
        names += [each.id.name for each in page.executions if _attempt_of(each) < connection.attempt]
        if not page.token or not page.executions:
            return names
        request.token = page.token


def _attempt_of(execution: Execution) -> int:
    return int(execution.spec.annotations.values.get(ATTEMPT, "0"))
