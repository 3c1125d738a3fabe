"""`ClusterSearch`: one search on a cluster, from its launcher to its checkpoint and its Deck."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import optuna
from flyteidl.admin.execution_pb2 import WorkflowExecutionGetRequest
from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier
from flytekit.core.context_manager import FlyteContextManager
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._threads import Threads, finish
from optuna_flyte_dsl.cluster_options import Cluster, OnSigterm
from optuna_flyte_dsl.engines._flytekit.cluster.admin import AdminError
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_runner import ClusterRunner
from optuna_flyte_dsl.engines._flytekit.cluster.eager_execution import has_ended
from optuna_flyte_dsl.engines._flytekit.cluster.execution_failures import TERMINAL
from optuna_flyte_dsl.engines._flytekit.cluster.executions import inner_label
from optuna_flyte_dsl.engines._flytekit.cluster.laptop_sigterm import laptop_sigterm
from optuna_flyte_dsl.engines._flytekit.cluster.launcher import Launcher
from optuna_flyte_dsl.engines._flytekit.cluster.leftover_executions import terminate_leftovers
from optuna_flyte_dsl.engines._flytekit.cluster.traffic import Traffic
from optuna_flyte_dsl.search.loop import SearchLoop
from optuna_flyte_dsl.space.objective import Kind, Objective
from optuna_flyte_dsl.space.search_space import SearchSpace
from optuna_flyte_dsl.study.attributes import EXECUTIONS
from optuna_flyte_dsl.study.liveness import Life

if TYPE_CHECKING:
    from optuna_flyte_dsl.engines._flytekit.cluster.cluster_site import ClusterSite


class ClusterSearch:
    """One search on a cluster; see `RemoteSearch`. While the search is entered as a context manager, SIGTERM ends it.

    Args:
        thread: The single thread in which the study is used.
    """

    def __init__(self, site: ClusterSite, options: Cluster, key: str, thread: Threads) -> None:
        site.traffic = site.traffic or Traffic(site.connection, options.patience)
        context = FlyteContextManager.current_context()
        self._is_inner = bool(site.label)
        label = site.label or site.connection.label(key)
        study = (self._store_attributes, self._is_taken_over)
        self.launcher = Launcher(site.connection, options, key, context, *study, site.traffic, label)
        self.launcher.on_successor = functools.partial(self.end, leave=True)
        self.is_checkpointed = False
        self.is_durable = False
        self._key = key
        self.options: Cluster = options
        self._thread = thread
        self._store, self._sigterm = site.store, site.sigterm
        self._trial = site.trial() if site.trial is not None else None
        self._over = threading.Event()
        self._given_up = threading.Event()  # set when the search ends: the requests of its beginning are given up
        self._loop_of_trials: SearchLoop | None = None
        self._is_task = False
        self._ends_at: float | None = None  # when the grace period of a pod that ends is over

    async def __aenter__(self) -> Self:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._trial is not None:
            self._trial.enter(self)
        if self._sigterm is not None:
            self._sigterm.searches.add(self)  # before the check: SIGTERM ends the searches that it finds in the set
            if self._sigterm.stopped:
                self._sigterm.searches.discard(self)
                raise asyncio.CancelledError("This pod is ending: it begins no other search.")
        elif not self._is_inner:
            laptop_sigterm.enter()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._given_up.set()
        try:
            await finish(self._close)
        finally:
            if self._sigterm is not None:
                self._sigterm.searches.discard(self)
            if self._trial is not None:
                self._trial.leave(self)
            self._over.set()
            if self._sigterm is None and not self._is_inner:
                laptop_sigterm.leave()

    async def _terminate_leftovers(self, label: str) -> None:
        launcher = self.launcher
        if launcher.connection.attempt > 0 and not launcher.leaves_executions:
            deadline = self._ends_at or launcher.end_of_grace()
            await launcher.workers.run(terminate_leftovers, launcher, label, deadline)

    async def _terminate_not_continued(self) -> None:
        """Terminate the executions of adopted trials that the search has ended without continuing them."""
        trials = self._loop_of_trials.trials.not_continued if self._loop_of_trials is not None else []
        names = [entry["name"] for trial in trials for entry in trial.user_attrs.get(EXECUTIONS, ())]
        if names and not self.launcher.leaves_executions:
            terminate = self.launcher.terminate_all
            deadline = self._ends_at or self.launcher.end_of_grace()
            await self.launcher.workers.run(terminate, names, "the search has ended", deadline)

    async def _close(self) -> None:
        await self.commit()
        await self._terminate_not_continued()
        if not self._is_inner:
            await self._terminate_leftovers(self.launcher.label)
            # An earlier attempt that was still ending may have launched executions after the first look.
            await self._terminate_leftovers(inner_label(self.launcher.label))
        await self.launcher.close()

    @property
    def open_storage(self) -> Callable[[], BaseStorage] | None:
        """The function that opens the search's storage in the checkpoint; `None` if there is no checkpoint."""
        return self._open if self._store is not None else None

    def _open(self) -> BaseStorage:
        assert self._store is not None
        return self._store.storage(self._key)

    async def check(self, objective: Objective) -> None:
        self._is_task = objective.kind is Kind.TASK
        pod = self.launcher.connection.eager_execution.pod
        if pod is not None:
            await self.launcher.workers.run(self.launcher.admin.check_login, pod.execution, self._given_up)
        if not self._is_inner:
            # Searches inside of trials start anew in each attempt, so no attempt adopts their earlier executions.
            await self._terminate_leftovers(inner_label(self.launcher.label))
        if self._is_task:
            await self.launcher.workers.run(self.launcher.registry.check, objective.target)

    def make_runner(self, objective: Objective) -> ClusterRunner:
        self.launcher.adopts = self.is_durable
        return ClusterRunner(objective, self.launcher)

    async def recover(self, study: optuna.Study, objective: Objective, space: SearchSpace) -> None:
        """Enqueue the trials of the pod's earlier attempts that the checkpoint lacks, and that have executions.

        An attempt that is killed before its first write leaves no checkpoint. An attempt whose last writes have failed
        leaves an outdated checkpoint. A trial's execution can be found by its name, and the execution's inputs are the
        trial's parameters.
        """
        is_retry = self._sigterm is not None and self.launcher.connection.attempt > 0
        if not (is_retry and objective.kind is Kind.TASK):
            return
        names = sorted({name.split(".", 1)[0] for name in space})
        first = await self._thread.run(lambda: len(study.get_trials(deepcopy=False)))
        try:
            points = await self.launcher.workers.run(
                self.launcher.find_inputs, objective.target, names, first, self._given_up
            )
        except AdminError as error:
            raise error.refusal("read the executions of this pod's earlier attempts") from error
        if points:
            logger.warning("The checkpoint lacks trials: %d were found in Flyte.", len(points))
        for point in points:
            await self._thread.run(study.enqueue_trial, space.point(point or {}))

    def use_study_in_names(self, identity: str) -> None:
        self.launcher.names.study = identity

    def adopts(self, trial: FrozenTrial) -> bool:
        """Return whether a trial of a dead process can be run again, so that the trial adopts its executions.

        Every running trial of a task that is kept in the checkpoint can be continued, because its execution's name is
        known. In another storage, or for a function, a trial that has launched no execution may have had other effects,
        so it is not repeated.
        """
        return (self.is_checkpointed and self._is_task) or EXECUTIONS in trial.user_attrs

    async def commit(self) -> None:
        if self.is_checkpointed:
            assert self._store is not None
            await self._store.commit()

    async def _store_attributes(self, trial: Trial, attributes: Callable[[], Mapping[str, Any]]) -> None:
        def store() -> None:
            for name, value in attributes().items():
                trial.set_user_attr(name, value)

        await self._thread.run(store)
        await self.commit()

    async def _is_taken_over(self, trial: Trial) -> bool:
        """Return whether another search owns a trial now, because it has taken this process for dead."""
        assert self._loop_of_trials is not None
        return bool(await self._thread.run(self._loop_of_trials.trials.is_taken_over, trial))

    @property
    def evidence(self) -> dict[str, Any]:
        """The execution, node and attempt of this pod; empty outside of an eager workflow's pod."""
        pod = self.launcher.connection.eager_execution.pod
        if pod is None or self._sigterm is None:
            return {}
        execution = [pod.execution.project, pod.execution.domain, pod.execution.name]
        return {"execution": execution, "node": pod.folder, "attempt": pod.attempt}

    def life(self, evidence: Mapping[str, Any]) -> Life | None:
        """Return whether another eager workflow is running, by the phase of its execution; see `RemoteSearch.life`."""
        execution = evidence.get("execution")
        if not execution:
            return None
        own, node = self.evidence, evidence.get("node", "")
        if [execution, node] == [own.get("execution"), own.get("node")]:
            # The pod of an earlier attempt may still be ending, but this attempt has replaced the earlier attempt.
            return Life.DEAD if evidence["attempt"] < own["attempt"] else Life.ALIVE
        project, domain, name = execution
        identifier = WorkflowExecutionIdentifier(project=project, domain=domain, name=name)
        admin = self.launcher.admin
        try:
            state = admin.call("GetExecution", WorkflowExecutionGetRequest(id=identifier))
            is_over = state.closure.phase in TERMINAL or has_ended(admin, identifier, node)
        except AdminError as error:
            logger.warning("It is not known whether the execution %s runs: %s", name, error)
            return None
        return Life.DEAD if is_over else Life.ALIVE

    def attach(self, loop: SearchLoop) -> None:
        self._loop_of_trials = loop

    @property
    def on_sigterm(self) -> OnSigterm:
        """What happens to running executions at SIGTERM. Executions that no process could adopt are terminated."""
        return self.options.on_sigterm if self.is_durable else "terminate"

    def end(self, *, leave: bool) -> None:
        """Begin to end the search, from another thread.

        Args:
            leave: Whether executions are left running.
        """
        self._ends_at = self._ends_at or self.launcher.end_of_grace()
        self.launcher.leaves_executions = leave
        self.launcher.is_ending = True
        if self._loop_of_trials is not None:
            if leave:
                self._loop_of_trials.suspend()
            else:
                self._loop_of_trials.trials.interrupted_are_lost = True  # because this process is ending
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: the search has ended
                self._loop.call_soon_threadsafe(self._task.cancel)

    def terminate_running(self, deadline: float) -> None:
        """Terminate the running executions from another thread, because the event loop is blocked. The call blocks."""
        launcher = self.launcher
        if not launcher.leaves_executions:
            logger.warning("The event loop of a search is blocked: its executions are terminated without it.")
            launcher.terminate_all(list(launcher.running), "the pod ends", deadline)

    def wait(self, deadline: float) -> bool:
        """Wait for the end of the search, until a time of the monotonic clock. Return whether the search has ended."""
        return self._over.wait(max(0.0, deadline - time.monotonic()))
