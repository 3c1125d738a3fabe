"""Finds the cluster that a search's trials go to: that of the eager workflow it is called in, or a given remote's."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import optuna
from flyteidl.admin.common_pb2 import ObjectGetRequest
from flyteidl.admin.execution_pb2 import WorkflowExecutionGetRequest
from flyteidl.core.execution_pb2 import WorkflowExecution
from flyteidl.core.identifier_pb2 import WorkflowExecutionIdentifier
from flytekit.core.checkpointer import Checkpoint
from flytekit.core.context_manager import ExecutionState, FlyteContext, FlyteContextManager
from flytekit.core.worker_queue import Controller
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial

from optuna_flyte_dsl.cluster import Cluster, OnSigterm
from optuna_flyte_dsl.flyte.admin import Admin, AdminError
from optuna_flyte_dsl.flyte.checkpoint import CheckpointStore
from optuna_flyte_dsl.flyte.cluster import ClusterController, Link, Traffic
from optuna_flyte_dsl.flyte.deck import ExecutionsDeck
from optuna_flyte_dsl.flyte.local import outlive_exit
from optuna_flyte_dsl.flyte.trial import EXECUTIONS_ATTRIBUTE, TrialQueue
from optuna_flyte_dsl.flyte.watch import TERMINAL
from optuna_flyte_dsl.log import logger
from optuna_flyte_dsl.owners import Life
from optuna_flyte_dsl.search import Search
from optuna_flyte_dsl.space import SearchSpace
from optuna_flyte_dsl.threads import Threads, insist

ENDING_SECONDS = 5.0
"""How long one question to flyteadmin may take while the pod is ending."""


@dataclass
class Home:
    """What the searches of one caller share: an eager workflow in its pod, a trial, or a program on a laptop.

    Args:
        link: The cluster.
        store: Where studies are kept for the pod's next attempt; `None` where there is no such place.
        ending: Hears of SIGTERM; `None` where nobody tells.
        traffic: What its searches, and those in their trials, share; made with the first one.
    """

    link: Link
    store: CheckpointStore | None = None
    ending: Ending | None = None
    traffic: Traffic | None = None
    _counts: collections.Counter[str] = field(default_factory=collections.Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def key(self, search: str) -> str:
        """Return a name of a search that is its alone here, and the same in the pod's next attempt.

        Args:
            search: What is searched, where and how: equal searches are told apart by their order.
        """
        with self._lock:
            self._counts[search] += 1
            return f"{search}#{self._counts[search]}"


_homes: weakref.WeakKeyDictionary[Any, Home] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def find_home() -> tuple[Home, FlyteContext] | None:
    """Return the cluster that a call at this place goes to, or `None`: then trials run here.

    A controller that is not known is left to do its work by itself.
    """
    context = FlyteContextManager.current_context()
    state, queue = context.execution_state, context.worker_queue
    if state is None or state.mode is not ExecutionState.Mode.EAGER_EXECUTION:
        return None
    with _lock:
        if isinstance(queue, TrialQueue):
            if queue not in _homes:
                cluster = queue.cluster
                identity = f"{cluster.link.identity}/{cluster.identity}/{queue.trial.number}"
                _homes[queue] = Home(_named(cluster.link, identity), traffic=cluster.traffic)
            return _homes[queue], context
        if type(queue) is Controller:
            if queue not in _homes:
                _homes[queue] = _home_of(queue, context)
            return _homes[queue], context
    return None


def _named(link: Link, identity: str) -> Link:
    return Link(link.remote, link.settings, identity, link.prefix, link.labels, link.env, link.deck)


def _home_of(controller: Controller, context: FlyteContext) -> Home:
    link = Link(
        controller.remote,
        controller.ss,
        controller.tag,
        controller.exec_prefix,
        controller.get_labels().values,
        controller.get_env(),
        ExecutionsDeck(controller, context),
    )
    checkpoint = _checkpoint(context)
    store = CheckpointStore(checkpoint, context) if checkpoint is not None else None
    ending = Ending(link, context)
    outlive_exit(controller._Controller__runner_thread)  # type: ignore[attr-defined]
    # flytekit's handler of SIGTERM calls `stop` of this attribute first; the class never sets it.
    controller._Controller__loop = ending  # type: ignore[attr-defined]
    return Home(link, store, ending)


def _checkpoint(context: FlyteContext) -> Checkpoint | None:
    params = context.user_space_params
    try:
        return params.checkpoint if params is not None else None
    except NotImplementedError:
        return None


def _attempt() -> int:
    """Return which attempt of its task this pod is, from 0."""
    return int(os.environ.get("FLYTE_ATTEMPT_NUMBER", "0"))


class ClusterSearch:
    """One search whose trials run on a cluster: its controller, and where its study is kept.

    As an async context manager, it hears of SIGTERM while it is entered, and makes last what is in the study at its
    end.

    Args:
        home: What it shares with other searches.
        options: How its trials run.
        key: The search's.
        context: The Flyte context that it was called in.
        thread: The one thread in which the study is used.
    """

    def __init__(self, home: Home, options: Cluster, key: str, context: FlyteContext, thread: Threads) -> None:
        if home.traffic is None:
            home.traffic = Traffic(Admin(home.link.remote, options.patience), home.link.deck)
        self.controller = ClusterController(home.link, options, key, context, self._record, home.traffic)
        self.persisted = False  # whether another process can go on with it
        self.checkpointed = False  # whether it is kept in the pod's checkpoint
        self._home = home
        self._key = key
        self._options = options
        self._thread = thread
        self._over = threading.Event()
        self._search: Search | None = None
        self._is_new = False
        self._hears = self._told_to_end = False

    async def __aenter__(self) -> Self:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        if self._home.ending is not None:
            self._home.ending.add(self)
        else:
            self._hear_sigterm()
        return self

    def _hear_sigterm(self) -> None:
        """Let SIGTERM end the search, as Ctrl-C does, where it would end the process and leave executions running."""
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and self._task is not None:
            self._loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
            self._hears = True

    def _on_sigterm(self) -> None:
        self._told_to_end = True
        if self._task is not None:
            self._task.cancel()

    async def __aexit__(self, *_: object) -> None:
        try:
            await insist(self._close)
        finally:
            if self._home.ending is not None:
                self._home.ending.remove(self)
            if self._hears:
                self._loop.remove_signal_handler(signal.SIGTERM)
            self._over.set()
        if self._told_to_end:
            raise SystemExit(128 + signal.SIGTERM)

    async def _close(self) -> None:
        await self.commit()
        await self.controller.close()

    @property
    def storage(self) -> Callable[[], BaseStorage] | None:
        """Opens the storage that the pod's next attempt can read; `None` where there is no such place."""
        return self._open if self._home.store is not None else None

    async def recover(self, study: optuna.Study, entity: Any, space: SearchSpace) -> None:
        """Find the trials of an earlier attempt in Flyte, where its checkpoint is missing.

        An attempt that is killed before it has written what it restored leaves nothing to the next one. But trials have
        their executions, whose names are known and whose inputs are the parameters.

        Args:
            study: The study, which is empty.
            entity: What each trial launches.
            space: What the trials search.
        """
        if not self._is_new or _attempt() == 0:
            return
        names = sorted({name.split(".", 1)[0] for name in space})
        points = await self.controller.workers.run(self.controller.launched, entity, names)
        if points:
            logger.warning("The checkpoint is missing: %d trials were found in Flyte.", len(points))
        for point in points:
            await self._thread.run(study.enqueue_trial, space.point(point or {}))

    def _open(self) -> BaseStorage:
        assert self._home.store is not None
        self._is_new = self._home.store.is_new(self._key)
        return self._home.store.storage(self._key)

    async def commit(self) -> None:
        """Return when all that is in the study would outlive this process."""
        if self.checkpointed:
            assert self._home.store is not None
            await self._home.store.commit()

    async def _record(self, trial: Trial, attributes: Mapping[str, Any]) -> None:
        def write() -> None:
            for name, value in attributes.items():
                trial.set_user_attr(name, value)

        await self._thread.run(write)
        await self.commit()

    @property
    def evidence(self) -> dict[str, Any]:
        """By which others can tell whether this process lives: the execution of the eager workflow, and the attempt."""
        ending = self._home.ending
        return {} if ending is None else ending.evidence

    def life(self, record: Mapping[str, Any]) -> Life | None:
        """Tell whether the eager workflow lives that left some evidence; `None` where there is none. It blocks."""
        there = record.get("execution")
        if not there:
            return None
        mine = self.evidence
        if there == mine.get("execution"):
            # An attempt begins when the one before has ended.
            return Life.DEAD if record["attempt"] < mine["attempt"] else Life.ALIVE
        project, domain, name = there
        request = WorkflowExecutionGetRequest(id=WorkflowExecutionIdentifier(project=project, domain=domain, name=name))
        try:
            execution = self.controller.admin.call("GetExecution", request)
        except AdminError as error:
            logger.warning("It is not known whether the execution %s runs: %s", name, error)
            return None
        return Life.DEAD if execution.closure.phase in TERMINAL else Life.ALIVE

    @staticmethod
    def has_executions(trial: FrozenTrial) -> bool:
        """Tell whether a trial has begun to launch executions: then it can be run again, and finds them."""
        return EXECUTIONS_ATTRIBUTE in trial.user_attrs

    def runs(self, search: Search) -> None:
        """Note the loop that runs the trials."""
        self._search = search

    @property
    def policy(self) -> OnSigterm:
        """What happens to running executions when the pod is told to end."""
        return self._options.on_sigterm if self.persisted else "terminate"

    def end(self, *, leave: bool) -> None:
        """Begin to end the search, from another thread.

        Args:
            leave: Whether executions are left running.
        """
        self.controller.leaving = leave
        if self._search is not None:
            if leave:
                self._search.suspend()
            else:
                self._search.mark_lost()
        if self._task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it is over
                self._loop.call_soon_threadsafe(self._task.cancel)

    @property
    def grace(self) -> float:
        """Seconds that ending may take."""
        return self._options.grace

    def wait(self, deadline: float) -> bool:
        """Wait for the end until a moment of the monotonic clock. Return whether it has come."""
        return self._over.wait(max(0.0, deadline - time.monotonic()))


class Ending:
    """Ends the searches of a pod that is told to end, within its grace period.

    Args:
        link: The cluster.
        context: The Flyte context of the eager workflow.
    """

    def __init__(self, link: Link, context: FlyteContext) -> None:
        self._link = link
        self._params = context.user_space_params
        self._searches: set[ClusterSearch] = set()
        self._lock = threading.Lock()

    @property
    def evidence(self) -> dict[str, Any]:
        """The execution of the eager workflow, and which attempt this is."""
        params = self._params
        if params is None or params.execution_id is None:
            return {}
        execution = params.execution_id
        return {
            "execution": [execution.project, execution.domain, execution.name],
            "attempt": _attempt(),
        }

    def add(self, search: ClusterSearch) -> None:
        """Note a search that runs."""
        with self._lock:
            self._searches.add(search)

    def remove(self, search: ClusterSearch) -> None:
        """Forget a search that is over."""
        with self._lock:
            self._searches.discard(search)

    def stop(self) -> None:
        """End all searches; flytekit's handler calls this, on the main thread."""
        started = time.monotonic()
        with self._lock:
            searches = list(self._searches)
        seconds = min([ENDING_SECONDS, *(search.grace / 8 for search in searches)])
        again = any(search.policy == "auto" for search in searches) and self._starts_again(seconds)
        for search in searches:
            leave = search.policy == "leave" or (search.policy == "auto" and again)
            logger.warning("The pod ends: running executions are %s.", "left running" if leave else "terminated")
            search.end(leave=leave)
        for search in searches:
            if not search.wait(started + search.grace):
                logger.error("A search has not ended within its grace period.")

    def _starts_again(self, seconds: float) -> bool:
        """Tell whether Flyte will start another attempt of this pod: none after an abort, or after the last one.

        An aborted execution is ABORTING before its pod is told to end. The attempts are those of the task's `retries`;
        that Flyte may add some of its own is not counted on.

        Args:
            seconds: How long each of the two questions may take.
        """
        params = self._params
        if params is None or params.execution_id is None or params.task_id is None:
            return False
        admin = Admin(self._link.remote, patience=0.0)
        try:
            execution = admin.call(
                "GetExecution",
                WorkflowExecutionGetRequest(id=params.execution_id.to_flyte_idl()),
                seconds=seconds,
            )
            if execution.closure.phase not in (WorkflowExecution.QUEUED, WorkflowExecution.RUNNING):
                return False
            task = admin.call("GetTask", ObjectGetRequest(id=params.task_id.to_flyte_idl()), seconds=seconds)
            retries = int(task.closure.compiled_task.template.metadata.retries.retries)
            return _attempt() < retries
        except Exception as error:  # noqa: BLE001 - what is not known to go on is terminated: it costs money
            logger.warning("It is not known whether Flyte will start this pod again: %r", error)
            return False
