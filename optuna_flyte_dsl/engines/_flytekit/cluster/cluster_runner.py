"""`ClusterRunner`: runs a trial whose task calls are executions on a cluster."""

import dataclasses
from typing import Any

from flytekit.core.context_manager import flyte_context_Var

from optuna_flyte_dsl.engines._flytekit.cluster.launcher import Launcher
from optuna_flyte_dsl.engines._flytekit.cluster.trial_calls import TrialCalls
from optuna_flyte_dsl.engines._flytekit.flytekit_runner import FlytekitRunner
from optuna_flyte_dsl.search.runner import TrialRun
from optuna_flyte_dsl.space.objective import Kind, Objective


class ClusterRunner(FlytekitRunner):
    """Runs the trials of one search; see `Runner`."""

    def __init__(self, objective: Objective, launcher: Launcher) -> None:
        super().__init__(objective, is_on_cluster=True)
        self._launcher = launcher

    async def run(self, run: TrialRun) -> Any:
        """Run one trial; see `Runner`. A trial of a task counts as running when its pod runs."""
        in_pod = self._objective.kind is Kind.TASK
        async with TrialCalls(
            self._launcher, run.trial, run.attempt, is_task=in_pod, on_begin=run.on_begin if in_pod else None
        ) as calls:
            flyte_context_Var.set([*self._stack, self._launcher.context(calls)])
            return await self._call(dataclasses.replace(run, on_begin=None) if in_pod else run)
