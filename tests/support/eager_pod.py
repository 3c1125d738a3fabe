"""An attempt of an eager workflow's pod, in this process."""

import asyncio
import time

import pytest
from flyteidl.admin.execution_pb2 import ExecutionSpec
from flyteidl.core import identifier_pb2, literals_pb2
from flytekit.configuration import Image, ImageConfig, SerializationSettings
from flytekit.core.checkpointer import SyncCheckpoint
from flytekit.core.context_manager import ExecutionState, FlyteContextManager
from flytekit.core.worker_queue import Controller
from flytekit.models.core.identifier import WorkflowExecutionIdentifier

from optuna_flyte_dsl.engines._flytekit import call_site
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_site import current_site
from tests.support.flyteadmin import Execution
from tests.support.flyteadmin.executions import PHASES
from tests.support.flyteadmin.nodes import TASK, NodeRecord

IMAGES = ImageConfig(Image("default", "example.com/image", "1"))


class Pod:
    """One attempt of the pod of an eager workflow, in this process."""

    def __init__(self, cluster, folder, attempt, name="eager", node="n0"):
        settings = SerializationSettings(IMAGES, project="project", domain="development", version="v1")
        remote = cluster.remote()
        self.controller = Controller(remote, settings, name, name, f"e-search-{name}")
        previous = str(folder / f"checkpoint-{attempt - 1}") if attempt else None
        context = FlyteContextManager.current_context()
        execution_id = WorkflowExecutionIdentifier("project", "development", name)
        builder = context.user_space_params.new_builder(context.user_space_params)
        builder.execution_id = execution_id
        builder.checkpoint = SyncCheckpoint(str(folder / f"checkpoint-{attempt}"), previous)
        self.execution = eager_execution(cluster, name)
        self.node = self.execution.nodes.setdefault(node, NodeRecord(node, folder / name / node / "data"))
        self.node.task = identifier_pb2.Identifier(project="project", domain="development", name="search", version="1")
        self.node.tasks = [TASK.FAILED] * attempt + [TASK.RUNNING]
        builder.output_metadata_prefix = f"{self.node.folder}/{attempt}"
        self.environment = {
            **cluster.client_environment,
            "FLYTE_INTERNAL_EXECUTION_ID": name,
            "FLYTE_INTERNAL_TASK_NAME": "search",
            "FLYTE_ATTEMPT_NUMBER": str(attempt),
        }
        params = builder.build()
        state = context.new_execution_state().with_params(
            mode=ExecutionState.Mode.EAGER_EXECUTION, user_space_params=params
        )
        self.builder = context.with_execution_state(state).with_worker_queue(self.controller)

    def run(self, function):
        async def main():
            with FlyteContextManager.with_context(self.builder):
                return await function()

        with pytest.MonkeyPatch.context() as patch:
            for variable, value in self.environment.items():
                patch.setenv(variable, value)
            # The frames of pytest are no module that a pod imports.
            patch.setattr(call_site, "is_imported_by_a_pod", lambda: False)
            try:
                return asyncio.run(main())
            finally:
                self.controller.stopping_condition.set()


def eager_execution(cluster, name="eager"):
    """Return the execution of an eager workflow, which the cluster keeps apart from those of trials."""
    inputs = literals_pb2.LiteralMap()
    made = Execution("project", "development", name, ExecutionSpec(), inputs, time.time(), phase=PHASES.RUNNING)
    return cluster.children.setdefault(made.key, made)


async def killed_after(cluster, launches, search):
    """Run a search until it has launched so many executions, then let its process be gone: nothing is told."""
    task = asyncio.ensure_future(search)
    while len(cluster.executions) < launches and not task.done():
        await asyncio.sleep(0.005)
    site = current_site()
    for each in list(site.sigterm.searches):
        each.end(leave=True)
    with pytest.raises(asyncio.CancelledError):
        await task


async def kill_all():
    """Let the searches of this pod be gone, as a SIGKILL would: nothing is told, nothing is terminated."""
    site = current_site()
    await site.store.commit()
    for each in list(site.sigterm.searches):
        each.end(leave=True)
