"""Finds the entities that trials launch, and registers those that Flyte does not have."""

import copy
import functools
import importlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from flyteidl.core.identifier_pb2 import Identifier
from flytekit.configuration import SerializationSettings
from flytekit.core.array_node_map_task import ArrayNodeMapTask
from flytekit.core.base_task import PythonTask
from flytekit.core.condition import BranchNode
from flytekit.core.context_manager import flyte_context_Var
from flytekit.core.interface import Interface
from flytekit.core.launch_plan import LaunchPlan, ReferenceLaunchPlan
from flytekit.core.python_auto_container import DefaultTaskResolver, PythonAutoContainerTask
from flytekit.core.reference_entity import ReferenceEntity
from flytekit.core.task import ReferenceTask
from flytekit.core.tracker import extract_task_module
from flytekit.core.type_engine import TypeEngine, UnionTransformer
from flytekit.core.workflow import ReferenceWorkflow, WorkflowBase
from flytekit.exceptions.user import FlyteEntityNotExistException
from flytekit.models.interface import TypedInterface
from flytekit.models.task import TaskSpec
from flytekit.models.types import LiteralType
from flytekit.remote import FlyteLaunchPlan, FlyteTask, FlyteWorkflow
from flytekit.tools.translator import get_serializable

from optuna_flyte_dsl._compat.flytekit import branch_nodes
from optuna_flyte_dsl._foreign_errors import says_other_structure
from optuna_flyte_dsl._log import logger
from optuna_flyte_dsl.engines._flytekit.cluster.admin import Admin, AdminError, status_of
from optuna_flyte_dsl.engines._flytekit.event_loops import use_own_loop
from optuna_flyte_dsl.engines._flytekit.task_workflows import launch_plan_of, workflow_around
from optuna_flyte_dsl.errors import RefusedError, UnloadableError
from optuna_flyte_dsl.space.objective import undecorated


@dataclass(frozen=True)
class Launchable:
    """A registered entity."""

    id: Identifier
    interface: TypedInterface
    python_interface: Interface
    defaults: dict[str, Any]
    required: frozenset[str]  # the inputs that a call must give
    # Of a launch plan. An execution with labels or annotations of its own does not get those of its launch plan.
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    # Whether a launch plan of the user, and not the one around a task, names these; then nothing is inherited.
    has_identity: bool = False  # a service account or a role
    has_raw_output_prefix: bool = False


class Registry:
    """The registered entities of one search."""

    def __init__(self, admin: Admin, settings: SerializationSettings) -> None:
        self._admin = admin
        self._settings = settings
        self._lock = threading.Lock()
        self._locks: dict[int, threading.Lock] = {}
        self._found: dict[int, tuple[Any, Launchable]] = {}  # by id; Python does not reuse the id of a kept entity

    def find(self, entity: Any, given_up: threading.Event) -> Launchable:
        """Return the registered form of an entity; the first call may register the entity. The call blocks."""
        key = id(entity)
        self.enter()
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._found:
                check_loadable(entity)
                try:
                    # Each entity gets its own copy, because registering a task changes the settings.
                    settings = copy.copy(self._settings)
                    fetched = self._admin.retry(
                        functools.partial(self._fetch, entity, settings), f"find `{entity.name}`", given_up=given_up
                    )
                except AdminError as error:
                    raise error.refusal(f"find or register `{entity.name}`") from error
                except FlyteEntityNotExistException as error:
                    raise AdminError(grpc.StatusCode.NOT_FOUND, str(error)).refusal(f"find `{entity.name}`") from error
                self._found[key] = (entity, _launchable(entity, fetched))
            return self._found[key][1]

    def enter(self) -> None:
        """Set a fresh Flyte context in this thread: in an eager workflow's context, compiling would launch tasks."""
        use_own_loop()
        flyte_context_Var.set([self._admin.remote.context])

    def check(self, entity: Any) -> None:
        self.enter()
        check_loadable(entity)

    def _fetch(self, entity: Any, settings: SerializationSettings) -> FlyteTask | FlyteLaunchPlan:
        remote, paced = self._admin.remote, self._admin.paced
        if isinstance(entity, FlyteLaunchPlan):
            return entity
        if isinstance(entity, FlyteWorkflow):
            where = (entity.id.project, entity.id.domain, entity.id.name, entity.id.version)
            return paced(remote.fetch_launch_plan)(*where)
        if isinstance(entity, FlyteTask):
            return self._fetch_plan_of(entity) or entity
        if isinstance(entity, ReferenceTask | ReferenceWorkflow | ReferenceLaunchPlan):
            reference = entity.reference
            where = (reference.project, reference.domain, reference.name, reference.version)
            if not isinstance(entity, ReferenceTask):
                return paced(remote.fetch_launch_plan)(*where)
            task = paced(remote.fetch_task)(*where)
            return self._fetch_plan_of(task) or task
        project = settings.project or remote.default_project
        domain = settings.domain or remote.default_domain
        version = settings.version
        where = (project, domain, entity.name, str(version))
        if isinstance(entity, PythonTask):
            try:
                task = paced(remote.fetch_task)(*where)
            except FlyteEntityNotExistException:
                try:
                    task = paced(remote.register_task)(entity, settings, version)
                except Exception as error:
                    if not _is_taken(error):
                        raise
                    task = paced(remote.fetch_task)(*where)  # another search has just registered this version
            return self._fetch_plan_of(task) or self._register_plan_of(entity, task, settings)
        try:
            return paced(remote.fetch_launch_plan)(*where)
        except FlyteEntityNotExistException:
            if isinstance(entity, WorkflowBase):
                paced(remote.register_workflow)(entity, settings, version)
            elif isinstance(entity, LaunchPlan):
                register = paced(remote.register_launch_plan)
                register(entity, version, project, domain, serialization_settings=settings)
            else:
                raise RefusedError(
                    f"`{entity.name}`, of type {type(entity).__name__}, cannot be launched as an execution. Call it "
                    "in a task or in a workflow."
                ) from None
            return paced(remote.fetch_launch_plan)(*where)

    def _fetch_plan_of(self, task: FlyteTask) -> FlyteLaunchPlan | None:
        """Return the launch plan that has the name, version and interface of a task.

        `None` if the task has no launch plan.
        """
        where = (task.id.project, task.id.domain, task.id.name, task.id.version)
        try:
            plan = self._admin.paced(self._admin.remote.fetch_launch_plan)(*where)
        except FlyteEntityNotExistException:
            return None
        return plan if _types(plan.interface) == _types(task.interface) else None

    def _register_plan_of(
        self, entity: Any, task: FlyteTask, settings: SerializationSettings
    ) -> FlyteTask | FlyteLaunchPlan:
        """Register the workflow of one node around a registered task, and the workflow's launch plan."""
        workflow = workflow_around(entity)
        if workflow is None:
            return task
        register, specs = self._admin.paced(self._admin.remote.raw_register), OrderedDict[Any, Any]()
        get_serializable(specs, settings, launch_plan_of(workflow))
        try:
            for spec in specs.values():
                # The task itself is registered already. A second registration of the task might differ from the first,
                # which Flyte refuses.
                if not (isinstance(spec, TaskSpec) and spec.template.id.name == entity.name):
                    register(spec, settings, str(settings.version), create_default_launchplan=False)
        except Exception as error:
            status = status_of(error)
            if status is not None and status.code() is grpc.StatusCode.PERMISSION_DENIED:
                cure = "This user may not register launch plans: let another run `pyflyte register`."
            elif _is_taken(error):
                cure = "A workflow or launch plan of this name and version has another interface: rename one of them."
            else:
                raise
            logger.warning(
                "`%s` is launched without a launch plan: its `timeout` and `interruptible` do not hold, and its labels "
                "are not searchable. %s %s",
                entity.name,
                cure,
                error,
            )
            return task
        return self._fetch_plan_of(task) or task


def _is_taken(error: BaseException) -> bool:
    """Return whether flyteadmin has refused a registration because another entity has the name and version."""
    status = status_of(error)
    return status is not None and says_other_structure(status.details())


def _types(interface: TypedInterface | None) -> list[dict[str, LiteralType]]:
    assert interface is not None
    sides = (interface.inputs, interface.outputs)
    return [{name: variable.type for name, variable in side.items()} for side in sides]


def _launchable(entity: Any, fetched: FlyteTask | FlyteLaunchPlan) -> Launchable:
    interface: TypedInterface | None = fetched.interface
    assert interface is not None
    python = entity.python_interface or Interface(
        inputs={name: TypeEngine.guess_python_type(variable.type) for name, variable in interface.inputs.items()},
        outputs={name: TypeEngine.guess_python_type(variable.type) for name, variable in interface.outputs.items()},
    )
    if isinstance(fetched, FlyteTask) or isinstance(entity, PythonTask | FlyteTask):
        # Flyte does not store the defaults of a task.
        defaults = dict(python.default_inputs_as_kwargs)
        for name, (kind, default) in python.inputs_with_defaults.items():
            if default is None and UnionTransformer.is_optional_type(kind):
                defaults[name] = None  # flytekit too gives None to an optional input without a default
        required = frozenset(interface.inputs)
        return Launchable(fetched.id.to_flyte_idl(), interface, python, defaults, required, *_metadata_of(fetched))
    fixed = set(fetched.fixed_inputs.literals)
    optional = {name for name, parameter in fetched.default_inputs.parameters.items() if not parameter.required}
    required = frozenset(interface.inputs) - fixed - optional
    prefix = fetched.raw_output_data_config and fetched.raw_output_data_config.output_location_prefix
    return Launchable(
        fetched.id.to_flyte_idl(),
        interface,
        python,
        {},
        required,
        *_metadata_of(fetched),
        has_identity=_has_identity(fetched),
        has_raw_output_prefix=bool(prefix),
    )


def _has_identity(plan: FlyteLaunchPlan) -> bool:
    """Return whether a launch plan names the service account or the role with which its executions run."""
    run_as = plan.security_context and plan.security_context.run_as
    messages = [each.to_flyte_idl() for each in (run_as, plan.auth_role) if each]
    return any(message.ByteSize() for message in messages)


def _metadata_of(fetched: FlyteTask | FlyteLaunchPlan) -> tuple[dict[str, str], dict[str, str]]:
    """Return the labels and the annotations of a launch plan; nothing for a task."""
    if isinstance(fetched, FlyteTask):
        return {}, {}
    return dict(fetched.labels.values or {}), dict(fetched.annotations.values or {})


def check_loadable(entity: Any) -> None:
    """Check that a pod can load each task of a task, workflow or launch plan."""
    if isinstance(entity, ReferenceEntity):
        return  # a reference is to a registered entity
    if isinstance(entity, WorkflowBase):
        for node in entity.nodes:
            check_loadable(node.flyte_entity)
    elif isinstance(entity, BranchNode):
        for branch in branch_nodes(entity):
            check_loadable(getattr(branch, "flyte_entity", None))
    elif isinstance(entity, ArrayNodeMapTask):
        check_loadable(entity.python_function_task)
    elif isinstance(entity, LaunchPlan):
        check_loadable(entity.workflow)
    elif isinstance(entity, PythonAutoContainerTask) and isinstance(entity.task_resolver, DefaultTaskResolver):
        _, module_name, name, _ = extract_task_module(entity)
        if not module_name:
            return  # the task is defined in a notebook: flytekit pickles it
        own = getattr(getattr(entity, "task_function", None), "__module__", None) or module_name
        module = sys.modules[own] if own in sys.modules else importlib.import_module(module_name)
        found = undecorated(getattr(module, name, None))
        what = "nothing of that name" if found is None else f"an object of type {type(found).__name__}"
        if not (isinstance(found, PythonTask) and found.name == entity.name):
            raise UnloadableError(
                f"`{name}` cannot be loaded by the pod of a trial, which looks for a task called `{name}` at the top "
                f"of the module `{module_name}` and finds {what}. Define the function at the top of its "
                "module, with `@optimize` over `@fl.task`, and give its name to nothing else."
            )
