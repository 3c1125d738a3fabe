"""The engine of flytekit. This module has the functions that the protocol `Engine` asks for."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flytekit.core.promise import flyte_entity_call_handler
from flytekit.core.python_function_task import EagerAsyncPythonFunctionTask
from optuna.pruners import BasePruner

from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl._option_names import check_names
from optuna_flyte_dsl.engines._flytekit import call_site, entities
from optuna_flyte_dsl.engines._flytekit.call_site import Place
from optuna_flyte_dsl.engines._flytekit.output_check import checking_outputs
from optuna_flyte_dsl.engines._flytekit.task_workflows import workflow_around
from optuna_flyte_dsl.engines._flytekit.types import spell_out_types
from optuna_flyte_dsl.engines.engine import Deployment, DeploymentOptions, Site
from optuna_flyte_dsl.engines.remote_trial.handle import using_pruner
from optuna_flyte_dsl.errors import ArgumentError, CompilationError, InvalidObjectiveError
from optuna_flyte_dsl.space.objective import TRIAL, Objective, TaskDescription, is_trial

if TYPE_CHECKING:
    from optuna_flyte_dsl.search.runner import Runner


def describe(task: Any) -> TaskDescription:
    """Read an entity's name and signature."""
    name, signature = entities.entity_name(task), entities.entity_signature(task)
    trial = signature.parameters.get(TRIAL)
    ignored = getattr(getattr(task, "metadata", None), "cache_ignore_input_vars", None) or ()
    if trial is not None and is_trial(trial.annotation) and TRIAL in ignored:
        raise InvalidObjectiveError(
            f"`{name}` leaves `trial` out of its cache's key, with `cache_ignore_input_vars`. The cache "
            "could return a pruned trial's value for another trial. Drop `trial` from `cache_ignore_input_vars`."
        )
    return TaskDescription(name, signature)


def prepare(task: Any) -> None:
    """Spell out the types of markers in a task's interface for `pyflyte run`, and wrap the task in a workflow."""
    if entities.is_task(task):
        spell_out_types(task, entities.entity_name(task))
        if not isinstance(task, EagerAsyncPythonFunctionTask):  # flytekit itself makes the workflow of an eager task
            workflow_around(task)


def in_pod() -> bool:
    """Return whether Flyte has started this process."""
    return "FLYTE_INTERNAL_EXECUTION_ID" in os.environ


def check_place(name: str) -> None:
    """Check that neither a pod imports the module, nor a workflow is being compiled."""
    if call_site.is_imported_by_a_pod():
        raise CompilationError(
            f"`{name}`: this module is imported by a pod, and would start the search anew in each. "
            'Put the call under `if __name__ == "__main__":`.'
        )
    if call_site.in_a_workflow():
        raise CompilationError(
            f"`{name}` is a search, and a `@workflow` cannot wait for one. Call it in an `@fl.eager` workflow, "
            f"`await {name}(...)`; or make one node of its task, `create_node({name}.task, ...)`."
        )


def call(task: Any, name: str, kwargs: Mapping[str, Any]) -> Any:
    """Return a node's promises for `create_node`, a task's outputs for `pyflyte run`, else `NotImplemented`."""
    place = call_site.place_of_call(depth=2)
    if place is Place.NODE:
        return flyte_entity_call_handler(task, **kwargs)
    if place is Place.COMMAND:
        return _run_once(task, name, kwargs)
    if place is Place.TASK:
        raise _wrong_order(name)
    return NotImplemented


def _run_once(task: Any, name: str, kwargs: Mapping[str, Any]) -> Any:
    """Run a task for `pyflyte run file.py train`, which cannot run a search, and say what can."""
    cure = f"For a search, run an eager workflow that awaits `{name}(...)`, or call `{name}.run_sync()` in a script"
    parameters = entities.entity_signature(task).parameters.values()
    if missing := [each.name for each in parameters if each.default is each.empty and each.name not in kwargs]:
        options = ", ".join(f"`--{each}`" for each in missing)
        raise ArgumentError(f"`pyflyte run` runs the task `{name}` once, and needs {options}. {cure}.")
    logger.warning("`pyflyte run` runs the task `%s` once. %s.", name, cure)
    return task(**kwargs)


def check_attribute(name: str, attribute: str) -> None:
    """Refuse `@fl.task` above `@optimize`: flytekit reads `task_function` to name the new task."""
    if attribute == "task_function":
        raise _wrong_order(name)


def _wrong_order(name: str) -> InvalidObjectiveError:
    return InvalidObjectiveError(
        f"`{name}`: the task was made of the search, so it has nothing to run. Put `@optimize` above `@fl.task`."
    )


def pod_methods(
    task: Any, objective: Objective, make_pruner: Callable[[], BasePruner]
) -> Mapping[str, Callable[..., Any]]:
    """Return the `dispatch_execute` that replaces the task's method in a pod, and checks the returned values."""
    if not entities.is_task(task):
        return {}

    @functools.wraps(task.dispatch_execute)
    def dispatch_execute(*args: Any, **kwargs: Any) -> Any:
        with using_pruner(make_pruner):
            return checking_outputs(task, objective).dispatch_execute(*args, **kwargs)

    return {"dispatch_execute": dispatch_execute}


def current_site() -> Site | None:
    """Return the cluster of this pod, for a search that an eager workflow starts; `None` outside of a cluster."""
    from optuna_flyte_dsl.engines._flytekit.cluster import cluster_site  # loaded late: a trial's pod does not need it

    return cluster_site.current_site()


def make_local_runner(objective: Objective) -> Runner:
    """Return a runner of trials on this machine; see `FlytekitRunner`."""
    from optuna_flyte_dsl.engines._flytekit.flytekit_runner import FlytekitRunner  # loaded late, as above

    return FlytekitRunner(objective)


def load_search() -> None:
    """Load the modules of the functions above."""
    for module in ("cluster.cluster_site", "flytekit_runner"):
        importlib.import_module(f"optuna_flyte_dsl.engines._flytekit.{module}")


def deploy(remote: Any, options: DeploymentOptions) -> Deployment:
    """Return a deployment to the cluster of a `FlyteRemote`; see `LaptopDeployment`."""
    from optuna_flyte_dsl.engines._flytekit.cluster.laptop_deployment import LaptopDeployment  # loaded late, as above

    elsewhere = (
        "Project and domain are those of the remote; options of executions go to `optimize(cluster=Cluster(...))`."
    )
    check_names("on", options, DeploymentOptions.__annotations__, elsewhere)
    return LaptopDeployment(remote, **options)


is_task = entities.is_entity
