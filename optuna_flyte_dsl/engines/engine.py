"""`Engine`: what the library needs from a workflow engine's SDK."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self, TypedDict

if TYPE_CHECKING:  # checkers only: what a search runs with is loaded late
    import optuna
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from optuna_flyte_dsl._threads import Threads
    from optuna_flyte_dsl.cluster_options import Cluster
    from optuna_flyte_dsl.search.loop import SearchLoop
    from optuna_flyte_dsl.search.runner import Runner
    from optuna_flyte_dsl.space.objective import Objective, TaskDescription
    from optuna_flyte_dsl.space.search_space import SearchSpace
    from optuna_flyte_dsl.study.liveness import Life


class DeploymentOptions(TypedDict, total=False):
    """How the code of a search gets from this machine to a cluster; `Optimized.on` documents each option."""

    version: str | None
    image_config: Any
    source: str | None
    destination: str
    copy_all: bool


class RemoteSearch(Protocol):
    """One search whose trials run on a cluster.

    As an async context manager, a `RemoteSearch` terminates the executions that the search leaves running.
    """

    is_checkpointed: bool  # whether the study is kept in the checkpoint of the searching pod
    is_durable: bool  # whether another process can continue the search

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...

    @property
    def open_storage(self) -> Callable[[], BaseStorage] | None:
        """Opens a storage that the pod's next attempt can read; `None` if the pod has no checkpoint."""

    @property
    def evidence(self) -> dict[str, Any]:
        """Evidence by which other processes can tell whether this process is alive."""
        ...

    def life(self, evidence: Mapping[str, Any]) -> Life | None:
        """Return whether the process that left the evidence is alive; `None` if that is not known. The call blocks."""

    def adopts(self, trial: FrozenTrial) -> bool:
        """Return whether a trial of a dead process can be continued."""
        ...

    def make_runner(self, objective: Objective) -> Runner:
        """Return the runner of the search's trials."""
        ...

    async def check(self, objective: Objective) -> None:
        """Check that a pod can load the objective."""

    async def recover(self, study: optuna.Study, objective: Objective, space: SearchSpace) -> None:
        """Enqueue the trials of the pod's earlier attempts that the checkpoint lacks."""

    def use_study_in_names(self, identity: str) -> None:
        """Derive the names of executions from the study, because other processes may continue it."""

    def attach(self, loop: SearchLoop) -> None:
        """Store the search loop, so that the search can stop the loop when the pod ends."""

    async def commit(self) -> None:
        """Wait until the study's present content would outlive this process."""


class Site(Protocol):
    """The cluster on which the searches of one caller run their trials: an eager workflow's, or a `FlyteRemote`'s."""

    @property
    def keeps_studies(self) -> bool:
        """Whether a study that the user does not store can be kept for the next attempt of this pod."""
        ...

    def key(self, search: str) -> str:
        """Return a unique key of a search, the same in the pod's next attempt.

        The order of the calls tells equal searches apart.
        """
        ...

    def open_storage(self, key: str) -> BaseStorage:
        """Return the storage that keeps the study of the search with a key for the next attempt of this pod."""
        ...

    def start_search(self, options: Cluster, key: str, thread: Threads) -> RemoteSearch:
        """Return a new search. The search uses its study in the single thread `thread`."""
        ...


class Deployment(Protocol):
    """Deploys the code of a search from this machine to a cluster."""

    def site(self, target: Any, patience: float) -> Site:
        """Return the site of an objective's trials. The first call uploads the code. The call blocks."""
        ...


class EngineTypes(Protocol):
    """How an SDK carries markers and trials: a module of its own, because it is loaded together with the SDK."""

    def register(self) -> None:
        """Make markers, directions and trials native types of the SDK.

        A trial is an input of its task as a `TrialHandle`: the handle has a text, and opens the trial where the task
        runs.
        """


class Engine(Protocol):
    """What the library needs from a workflow engine's SDK: a module with these functions."""

    def is_task(self, target: Any) -> bool:
        """Return whether an object can be run by this SDK: a task, a workflow, a launch plan."""
        ...

    def describe(self, task: Any) -> TaskDescription:
        """Read a task's name and signature; raise `InvalidObjectiveError` if the task cannot be an objective."""
        ...

    def prepare(self, task: Any) -> None:
        """Prepare a task for `@optimize`, for example by spelling out the bare markers in the task's interface."""

    def in_pod(self) -> bool:
        """Return whether this process runs in a pod that the SDK has started."""
        ...

    def check_place(self, name: str) -> None:
        """Raise `CompilationError` if no search can run: a workflow is being compiled, or a pod imports the module."""

    def call(self, task: Any, name: str, kwargs: Mapping[str, Any]) -> Any:
        """Return the result of a decorated task's call if the call is no search; else `NotImplemented`.

        The decorated task's `__call__` must call this method directly, because an engine may inspect the frame of
        `__call__`'s caller.
        """

    def check_attribute(self, name: str, attribute: str) -> None:
        """Raise an error if only the SDK's own decorator, put above `@optimize`, reads this attribute of a function.

        Args:
            name: The name of the objective.
            attribute: An attribute that the function under `@optimize` does not have.
        """

    def pod_methods(
        self, task: Any, objective: Objective, make_pruner: Callable[[], BasePruner]
    ) -> Mapping[str, Callable[..., Any]]:
        """Return the methods that replace a decorated task's own methods when a pod runs the task."""
        ...

    def current_site(self) -> Site | None:
        """Return the site for a search that the caller starts now; `None` if the trials run on this machine."""

    def deploy(self, remote: Any, options: DeploymentOptions) -> Deployment:
        """Return a deployment to a cluster; raise `InvalidOptionError` if the remote or an option cannot be used."""
        ...

    def make_local_runner(self, objective: Objective) -> Runner:
        """Return a runner of trials on this machine, in threads."""
        ...

    def load_search(self) -> None:
        """Load the modules that only a search needs. A process that runs a trial in a pod does not call this."""
