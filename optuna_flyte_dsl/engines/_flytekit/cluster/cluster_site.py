"""`ClusterSite`: the cluster on which a search runs its trials, of an eager workflow or of a remote.

`current_site` also makes the handler that ends the searches of a pod at SIGTERM.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import threading
import weakref
from dataclasses import dataclass, field
from typing import Any

from flytekit.configuration.file import get_config_file
from flytekit.core.context_manager import ExecutionState, FlyteContext, FlyteContextManager
from flytekit.core.worker_queue import Controller
from optuna.storages import BaseStorage

from optuna_flyte_dsl._compat.flytekit import controller_thread, set_stop_handler
from optuna_flyte_dsl._threads import Threads
from optuna_flyte_dsl.cluster_options import Cluster
from optuna_flyte_dsl.engines._flytekit.cluster.checkpoint import CheckpointStore
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_connection import Connection
from optuna_flyte_dsl.engines._flytekit.cluster.cluster_search import ClusterSearch
from optuna_flyte_dsl.engines._flytekit.cluster.deck import ExecutionsDeck
from optuna_flyte_dsl.engines._flytekit.cluster.eager_execution import EagerExecutionReader, EagerPod
from optuna_flyte_dsl.engines._flytekit.cluster.executions import inner_label
from optuna_flyte_dsl.engines._flytekit.cluster.pod_sigterm import SigtermHandler
from optuna_flyte_dsl.engines._flytekit.cluster.traffic import Traffic
from optuna_flyte_dsl.engines._flytekit.cluster.trial_calls import TrialCalls
from optuna_flyte_dsl.engines._flytekit.event_loops import outlive_exit
from optuna_flyte_dsl.errors import RefusedError


@dataclass(eq=False)
class ClusterSite:
    """What the searches of one caller share; see `Site`. A caller is an eager workflow, a trial, or a laptop."""

    connection: Connection
    store: CheckpointStore | None = None  # keeps studies in the pod's checkpoint; `None` if there is no checkpoint
    # Ends searches when the pod gets SIGTERM; `None` outside of an eager workflow's pod.
    sigterm: SigtermHandler | None = None
    # The poller and pace that a search shares with the searches in its trials; by default made with the first search.
    traffic: Traffic | None = None
    label: str = ""  # the label of the executions of searches inside of a trial; empty outside of a trial
    trial: weakref.ref[TrialCalls] | None = None  # the trial inside of which the searches run
    _counts: collections.Counter[str] = field(default_factory=collections.Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def keeps_studies(self) -> bool:
        return self.store is not None

    def key(self, search: str) -> str:
        with self._lock:
            self._counts[search] += 1
            return f"{search}#{self._counts[search]}"

    def open_storage(self, key: str) -> BaseStorage:
        assert self.store is not None
        return self.store.storage(key)

    def start_search(self, options: Cluster, key: str, thread: Threads) -> ClusterSearch:
        return ClusterSearch(self, options, key, thread)


_sites: weakref.WeakKeyDictionary[Any, ClusterSite] = weakref.WeakKeyDictionary()  # worker queue -> site
_lock = threading.Lock()


def current_site() -> ClusterSite | None:
    """Return the site of a search that is called in this context; `None` if the search launches no executions itself.

    With a worker queue of an unknown class, such as that of another library, the queue runs the awaited tasks.
    """
    context = FlyteContextManager.current_context()
    state, queue = context.execution_state, context.worker_queue
    if state is None or state.mode is not ExecutionState.Mode.EAGER_EXECUTION:
        return None
    with _lock:
        if isinstance(queue, TrialCalls):
            return _sites.get(queue) or _sites.setdefault(queue, _site_of_trial(queue))
        if type(queue) is Controller:
            return _sites.get(queue) or _sites.setdefault(queue, _site_of_workflow(queue, context))
    return None


def _site_of_trial(calls: TrialCalls) -> ClusterSite:
    launcher, outer = calls.launcher, calls.launcher.connection
    identity = f"{outer.identity}/{launcher.search}/{calls.trial.number}"
    return ClusterSite(
        dataclasses.replace(outer, identity=identity),
        traffic=launcher.traffic,
        label=inner_label(launcher.label),
        trial=weakref.ref(calls),
    )


def _site_of_workflow(controller: Controller, context: FlyteContext) -> ClusterSite:
    in_pod = "FLYTE_INTERNAL_EXECUTION_ID" in os.environ
    if in_pod and "FLYTE_PLATFORM_URL" not in os.environ and get_config_file(None) is None:
        # Without an address, flytekit would send requests to its sandbox, at localhost:30080.
        raise RefusedError(
            "This pod does not know the address of flyteadmin, so it cannot launch trials. Ask the operator of your "
            "Flyte to set FLYTE_PLATFORM_URL for all pods, in `plugins.k8s.default-env-vars`; or set it in the task's "
            "`environment`. docs/how-to/cluster.md shows how."
        )
    params = context.user_space_params
    pod = EagerPod.current(params)
    connection = Connection(
        controller.remote,
        controller.ss,
        # The pod's folder distinguishes several eager tasks of one execution.
        f"{controller.tag}/{pod.folder}" if pod is not None else controller.tag,
        controller.exec_prefix,
        controller.get_labels().values,
        controller.get_env(),
        ExecutionsDeck(controller, context),
        EagerExecutionReader(pod),
    )
    store = None
    with contextlib.suppress(NotImplementedError):  # there is no checkpoint
        if params is not None and params.checkpoint is not None:
            store = CheckpointStore(params.checkpoint, context)
    sigterm = SigtermHandler(connection.remote, connection.eager_execution)
    outlive_exit(controller_thread(controller))
    set_stop_handler(controller, sigterm)
    return ClusterSite(connection, store, sigterm)
